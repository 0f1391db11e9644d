"""Compute the loss of Bellman Distill's released code, which is not the paper's: for comparison only."""

import torch

from tdistill.mdp.bellman import soft_value
from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Finite, Gamma, Objective, ObjectiveOutput, Positive
from tdistill.objectives.parts.gauge import gauged_q


def bd_released(steps: Steps, *, gamma: Gamma = 0.99, alpha: Positive = 0.1, q_min: Finite = -10.0) -> ObjectiveOutput:
    """Average φ over the whole vocabulary, as the released code of Yu et al. (2026) does.

        loss_t = V_p(s_t) − |V|⁻¹Σ_{A_p}Q + (4α|V|)⁻¹[Σ_{A_p}(Q − γV')² + (|V| − |A_p|)(γV')²],  V' = V_p(s_{t+1})

    It is −φ(r) + V − γV' with χ², where φ is averaged over the vocabulary with Q = 0 off A_p, instead of taken at the token taken,
    which never enters. Q = max(ℓ − max_V ℓ, ``q_min``) by a hard clamp: no gradient where it clips. The last position of
    each response contributes 0, finished or not. Every other position counts, whether its token lies on A_p or not.
    """
    assert steps.vocab_size is not None
    q_t = gauged_q(steps, "max").clamp(min=q_min)
    v_t = soft_value(q_t, steps.legal_t)
    backup_t = steps.discounted_value(v_t, gamma)
    squares_t = torch.where(steps.legal_t, (q_t - backup_t.unsqueeze(-1)).square(), 0.0).sum(-1)
    squares_t = squares_t + (steps.vocab_size - steps.legal_t.sum(-1)) * backup_t.square()
    q_sum_t = torch.where(steps.legal_t, q_t, 0.0).sum(-1)
    loss_t = v_t - q_sum_t / steps.vocab_size + squares_t / (4.0 * alpha * steps.vocab_size)
    return ObjectiveOutput(torch.where(steps.continues_t, loss_t, 0.0), {"td/v": v_t})


OBJECTIVE = Objective(fn=bd_released, needs=lambda **_: frozenset({"max"}))
