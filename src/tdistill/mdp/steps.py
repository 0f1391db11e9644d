"""Define ``Steps``: all that an objective may see of a batch. The vocabulary axis is gone (but for ``dense``).

Axes: B responses, T steps, K candidates, V vocabulary. Time suffixes: ``_t`` at the step, ``_tp1`` one later.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Steps:
    """Hold a batch of transitions on the top-p MDP.

    The first eight fields are enough to build one; each further field is None unless an objective ``needs`` it.
    """

    q_t: Float[Tensor, "B T K"]  # student logits at the candidates, before any gauge
    log_z_t: Float[Tensor, "B T"] | None  # log Σ_V exp(logit) of the student
    max_t: Float[Tensor, "B T"] | None  # largest student logit over V
    teacher_logp_t: Float[Tensor, "B T K"]  # true (full-vocabulary) teacher log-probs, −inf where not legal
    legal_t: Bool[Tensor, "B T K"]  # False = padding along K; a state exists where legal_t.any(-1)
    a_t: Int[Tensor, "B T"]  # index in K of the token taken; −1 when it is no candidate
    mask_t: Bool[Tensor, "B T"]  # the step counts
    terminal_t: Bool[Tensor, "B T"]  # a_t ended the response; a length cut-off is not terminal
    taken_logit_t: Float[Tensor, "B T"] | None = None  # student logit of the token taken, on A_p or not
    teacher_taken_logp_t: Float[Tensor, "B T"] | None = None
    behaviour_logp_t: Float[Tensor, "B T"] | None = None
    value_t: Float[Tensor, "B T"] | None = None  # the value head
    action_value_t: Float[Tensor, "B T K"] | None = None  # the value head's, of each candidate
    expert_t: Bool[Tensor, "B T"] | None = None  # teacher or human data, not the student's
    vocab_size: int | None = None
    target: "Steps | None" = None  # the same steps under a target network
    dense: "Steps | None" = None  # the same steps with K = V, every token a candidate: the teacher must be online
    uniform: "Steps | None" = None  # with K = V and the teacher's mass outside A_p spread evenly over the tokens there

    @property
    def exists_t(self) -> Bool[Tensor, "B T"]:
        """Tell where a state exists: it has at least one candidate."""
        return self.legal_t.any(-1)

    def bootstrap(self, target_network: bool) -> "Steps":
        """Return the steps from which values of later states are read: the target network's, or these."""
        if not target_network:
            return self
        assert self.target is not None
        return self.target
