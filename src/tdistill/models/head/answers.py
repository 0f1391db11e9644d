"""Answer the needs that a head can answer without a vocabulary axis, from a block of logits, and take their gradients back to these logits.

    q = ℓ(a) at the candidates      taken = ℓ(a_t)      max = max_v ℓ(v)      log_z = log Σ_v w_v·exp ℓ(v)      entropy = −Σ_v π(v)·log π(v)
    ∂/∂ℓ(v):  g_z·π(v) + Σ_k g_q,k·[v = a_k] + g_taken·[v = a_t] + g_max·[v is a maximum] ÷ (number of maxima)

w_v is 1. Of a token that was drawn at random it is the inverse of its probability to be drawn, or 0 where its logit is known already.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdistill.models.head.sampling import Drawn

# Needs that a pass over all logits answers. The others are read at some tokens alone.
OVER_VOCABULARY = frozenset({"log_z", "max", "entropy"})


@dataclass(frozen=True)
class Asked:
    """Hold what is read of the logits of N tokens: the rows of the candidates and of the token taken, and the needs."""

    needs: frozenset[str]
    candidates: Int[Tensor, "N K"] | None  # None: none are read
    taken: Int[Tensor, " N"]
    drawn: Drawn | None = None  # of all tokens together, where the rows are those of drawn tokens

    def part(self, tokens: slice) -> "Asked":
        """Return what is asked of some of the tokens."""
        candidates, drawn = None if self.candidates is None else self.candidates[tokens], self.drawn
        if drawn is not None:
            states, places = drawn.known
            inside = (states >= tokens.start) & (states < tokens.stop)
            drawn = replace(drawn, known=(states[inside] - tokens.start, places[inside]))
        return Asked(self.needs, candidates, self.taken[tokens], drawn)


@dataclass
class Answered:
    """Hold the answers, and what their gradients need: exp(ℓ + log w − peak), its sum, and where the largest logits are."""

    fields: dict[str, Tensor]
    unnormalised: Tensor | None = None
    total: Tensor | None = None
    at_max: tuple[Tensor, Tensor] | None = None


def answer(logits: Float[Tensor, "N rows"], asked: Asked, keep: bool) -> Answered:
    """Return the fields that are asked. ``keep`` leaves the logits as they are; else their memory is used again.

    Names of the fields are those of ``Steps``.
    """
    out = Answered({})
    if asked.candidates is not None:
        out.fields["q_t"] = logits.gather(-1, asked.candidates)
    if "taken" in asked.needs:
        out.fields["taken_logit_t"] = logits.gather(-1, asked.taken.unsqueeze(-1)).squeeze(-1)
    if not asked.needs & OVER_VOCABULARY:
        return out
    if asked.drawn is not None:
        logits, keep = logits + asked.drawn.log_weight if keep else logits.add_(asked.drawn.log_weight), False
        logits.index_put_(asked.drawn.known, logits.new_tensor(-torch.inf))
    peak = logits.amax(-1, keepdim=True)
    if "max" in asked.needs:
        out.fields["max_t"] = peak.squeeze(-1).clone()
        tokens, rows = (logits == peak).nonzero(as_tuple=True)
        out.at_max = (tokens, rows)
    finite = torch.where(peak.isfinite(), peak, 0.0)
    out.unnormalised = (logits - finite).exp_() if keep else logits.sub_(finite).exp_()
    out.total = out.unnormalised.sum(-1, keepdim=True)
    out.fields["log_z_t"] = (out.total.log() + finite).squeeze(-1)
    if "entropy" in asked.needs:
        out.fields["entropy_t"] = torch.special.entr(out.unnormalised / out.total).sum(-1)
    return out


def gradient_of_logits(gradients: dict[str, Tensor], answered: Answered, asked: Asked, shape: tuple[int, int]) -> Float[Tensor, "N rows"]:
    """Return the gradient of the logits, of those of the fields. It takes the memory of ``answered``.

    Args:
        gradients: of some of the fields.
        answered: what ``answer`` returned.
        asked: what it was asked.
        shape: N and the number of rows.
    """
    some = next(iter(gradients.values()))
    if "log_z_t" in gradients:
        assert answered.unnormalised is not None
        assert answered.total is not None
        out = answered.unnormalised.mul_(gradients["log_z_t"].unsqueeze(-1) / answered.total)
    else:
        out = some.new_zeros(shape)
    if "q_t" in gradients:
        assert asked.candidates is not None
        out.scatter_add_(-1, asked.candidates, gradients["q_t"])
    if "taken_logit_t" in gradients:
        out.scatter_add_(-1, asked.taken.unsqueeze(-1), gradients["taken_logit_t"].unsqueeze(-1))
    if "max_t" in gradients:
        assert answered.at_max is not None
        tokens, rows = answered.at_max
        shares = gradients["max_t"] / torch.bincount(tokens, minlength=shape[0]).clamp(min=1)
        out.index_put_((tokens, rows), shares[tokens], accumulate=True)
    return out


def names_of(asked: Asked) -> list[str]:
    """Return the names of the fields that ``answer`` gives, in a fixed order."""
    names = [] if asked.candidates is None else ["q_t"]
    names += [name for need, name in (("taken", "taken_logit_t"), ("max", "max_t")) if need in asked.needs]
    names += ["log_z_t"] if asked.needs & OVER_VOCABULARY else []
    return names + (["entropy_t"] if "entropy" in asked.needs else [])
