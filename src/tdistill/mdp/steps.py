"""Define ``Steps``: everything that an objective may read from a batch. It has no vocabulary axis, except in ``dense`` and ``uniform``.

Axes: B responses, T steps, K candidates, V vocabulary. Time suffixes: ``_t`` at the step, ``_tp1`` one step later.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad


def answers(need: str, *, may_be_missing: bool = False) -> Any:
    """Declare an optional field of ``Steps``: it is filled in if the objective has this need, else it is None.

    ``objectives.contract`` reads the needs from here. An objective that has the need must accept None if ``may_be_missing``.
    """
    return field(default=None, metadata={"need": need, "may_be_missing": may_be_missing})


@dataclass(frozen=True)
class Steps:
    """Hold a batch of transitions on the top-p MDP.

    The first six fields are enough to build one. The others are None, unless an objective needs them.

    Termination is data: ``discount_t``, ``later`` and ``discounted_value`` read it from ``terminal_t`` and ``legal_t``, so that an
    objective is written as if a response never ended.
    """

    q_t: Float[Tensor, "B T K"]  # student logits at the candidates, before any gauge
    teacher_logp_t: Float[Tensor, "B T K"]  # true (full-vocabulary) teacher log-probs, −inf where not legal
    legal_t: Bool[Tensor, "B T K"]  # False = padding along K; a state exists where legal_t.any(-1)
    a_t: Int[Tensor, "B T"]  # index in K of the token taken; −1 when it is no candidate
    mask_t: Bool[Tensor, "B T"]  # the step counts in the mean of the loss
    terminal_t: Bool[Tensor, "B T"]  # a_t ended the response; a length cut-off is not terminal
    log_z_t: Float[Tensor, "B T"] | None = answers("log_z")  # log Σ_V exp(logit) of the student
    max_t: Float[Tensor, "B T"] | None = answers("max")  # largest student logit over V
    taken_logit_t: Float[Tensor, "B T"] | None = answers("taken")  # student logit of the token taken, on A_p or not
    entropy_t: Float[Tensor, "B T"] | None = answers("entropy")  # of the student over V, in nats, without gradient: for logs
    value_t: Float[Tensor, "B T"] | None = answers("value")  # value of the state, from the value head
    action_value_t: Float[Tensor, "B T K"] | None = answers("action_value")  # value of each candidate, from the value head
    behaviour_logp_t: Float[Tensor, "B T"] | None = answers("behaviour")  # of the token taken, under the policy that sampled it; or NaN
    expert_t: Bool[Tensor, "B T"] | None = answers("expert", may_be_missing=True)  # teacher or human data; None: every step is
    target: "Steps | None" = answers("target")  # the same steps under a target network
    dense: "Steps | None" = answers("dense")  # the same steps with K = V, every token a candidate: the teacher must be online
    uniform: "Steps | None" = answers("uniform")  # with K = V, and the teacher's mass outside A_p spread evenly over the tokens there
    teacher_taken_logp_t: Float[Tensor, "B T"] | None = None  # of the token taken; roll-outs always have it
    vocab_size: int | None = None

    @property
    def exists_t(self) -> Bool[Tensor, "B T"]:
        """Tell where a state exists: it has at least one candidate."""
        return self.legal_t.any(-1)

    @property
    def continues_t(self) -> Bool[Tensor, "B T"]:
        """Tell which steps lead to a state of the batch: the token did not end the response, and the next state exists."""
        return pad(self.exists_t[:, 1:], (0, 1)) & ~self.terminal_t

    @property
    def has_successor_t(self) -> Bool[Tensor, "B T"]:
        """Tell of which steps it is known where they lead: to a state, or to the end. The last step of a cut-off response has no successor."""
        return self.terminal_t | self.continues_t

    @property
    def counted_t(self) -> Bool[Tensor, "B T"]:
        """Tell which steps count in a temporal difference: the token taken lies on A_p, and the step has a successor."""
        return (self.a_t >= 0) & self.has_successor_t

    def discount_t(self, gamma: float) -> Float[Tensor, "B T"]:
        """Return γ_t: γ where the step leads to a state, 0 where the token taken ended the response and where no state follows.

        Examples:
            A response of three tokens that ends with the last one:

            >>> legal, token = torch.ones(1, 3, 2, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.long)
            >>> terminal = torch.tensor([[False, False, True]])
            >>> steps = Steps(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), legal, token, legal.any(-1), terminal)
            >>> steps.discount_t(0.5)
            tensor([[0.5000, 0.5000, 0.0000]])
            >>> steps.discounted_value(torch.tensor([[1.0, 2.0, 3.0]]), gamma=0.5, end=10.0)
            tensor([[1.0000, 1.5000, 5.0000]])
        """
        return gamma * self.continues_t.to(self.q_t.dtype)

    def later(self, x_t: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Return x_{t+1} at each step that leads to a state, 0 at the others."""
        return torch.where(self.continues_t, pad(x_t[:, 1:], (0, 1)), 0.0)

    def discounted_value(self, v_t: Float[Tensor, "B T"], gamma: float, end: float = 0.0) -> Float[Tensor, "B T"]:
        """Return γ_t·V(s_{t+1}), with V = ``end`` after the end of a response. It is 0 at the last step of a cut-off response."""
        return torch.where(self.terminal_t, gamma * end, self.discount_t(gamma) * self.later(v_t))

    def bootstrap(self, target_network: bool) -> "Steps":
        """Return the steps from which values of later states are read: those of the target network, or these."""
        if not target_network:
            return self
        assert self.target is not None
        return self.target
