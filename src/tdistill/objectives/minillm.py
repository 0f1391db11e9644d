"""Compute MiniLLM: the policy gradient of the reverse KL of whole texts, on the student's own or teacher-mixed text."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tdistill.mdp.bellman import lambda_return
from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Gamma, NonNegative, Objective, ObjectiveOutput, Positive
from tdistill.objectives.parts.divergence import kl
from tdistill.objectives.parts.policy_gradient import log_policy, truncated_ratio
from tdistill.objectives.parts.support import Support, distributions, support_needs


def minillm(
    steps: Steps,
    *,
    gamma: Gamma = 1.0,
    length_normalization: bool = True,
    clip_epsilon: Positive = 0.2,
    reward_clip: NonNegative | None = None,
    w_max: Positive = math.inf,
    support: Support = "tail",
) -> ObjectiveOutput:
    """Follow the policy gradient of the reverse KL of whole texts, with clipped importance ratios (Gu et al. 2024, eq. 7).

        loss_t = sg(w_t)·KL(q‖p)_t − γ·min(w_t·R_{t+1}, clip(w_t, 1−ε, 1+ε)·R_{t+1}),  R without gradient

        r_t = log p(a_t) − log π(a_t)      R_{t+1} = 1/N_t Σ_{t'>t} γ^{t'−t−1} r_{t'},  0 where nothing follows
        w_t = π(a_t)/behaviour(a_t)        N_t = number of tokens after a_t; 1 without length normalisation

    It has the single-step decomposition (eq. 3), the last factor of the importance weight (eq. 5), length normalisation (eq. 6)
    and on it the clip of Schulman et al. 2017 (eq. 7). Teacher-mixed sampling (eq. 4) is a setting of the data. log π and log p are over the
    vocabulary: a token outside A_p counts as any other. On-policy, ``dense``, without length normalisation: the expected gradient is that
    of the sequence-level reverse KL.

    Args:
        gamma: 1 is the paper's sum; 0 leaves w_t·KL(q‖p)_t, ``reverse_kl`` on-policy.
        length_normalization: R is the mean of the later rewards rather than their sum.
        clip_epsilon: ε, 0.2 as published; ``inf`` does not clip.
        reward_clip: r_t lies within ±``reward_clip`` nats. The paper has no bound on it.
        w_max: w_t is at most this. It is ours: with a share α of the teacher w_t ≤ 1/(1−α) anyway. w_t is 1 where nobody sampled the token.
        support: support of the KL, as for ``reverse_kl``.
    """
    assert steps.teacher_taken_logp_t is not None
    exists_t = steps.exists_t
    p, q, legal = distributions(steps, support, 1.0)
    logp_t = torch.where(exists_t, log_policy(steps), 0.0)
    weight_t = torch.where(exists_t, truncated_ratio(steps, w_max), 0.0)
    ratio_t = weight_t * (logp_t - logp_t.detach()).exp()  # worth w_t; its gradient is w_t·∇log π
    bound = math.inf if reward_clip is None else reward_clip
    reward_t = torch.where(exists_t, steps.teacher_taken_logp_t - logp_t.detach(), 0.0).clamp(-bound, bound)
    return_tp1, follows_t = later_return(reward_t, steps, gamma, length_normalization)
    unclipped_t = ratio_t * return_tp1
    surrogate_t = torch.minimum(unclipped_t, ratio_t.clamp(1.0 - clip_epsilon, 1.0 + clip_epsilon) * return_tp1)
    metrics = {
        "td/reward": torch.where(exists_t, reward_t, torch.nan),
        "td/off_support_fraction": (steps.a_t < 0).to(reward_t.dtype),
        "minillm/return": torch.where(follows_t, return_tp1, torch.nan),
        "minillm/ratio": torch.where(exists_t, weight_t, torch.nan),
        "minillm/clipped_fraction": torch.where(follows_t, (surrogate_t < unclipped_t).to(reward_t.dtype), torch.nan),
    }
    return ObjectiveOutput(weight_t * kl(q, p, legal) - gamma * surrogate_t, metrics)


def later_return(reward_t: Float[Tensor, "B T"], steps: Steps, gamma: float, mean: bool) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Return R_{t+1} = Σ_{t'>t} γ^{t'−t−1} r_{t'}, divided by the number of its terms if ``mean``; and where it has any (0 elsewhere)."""
    zero_t, one_t = torch.zeros_like(reward_t), torch.ones_like(reward_t)
    return_t = lambda_return(reward_t, steps.discount_t(gamma), zero_t, zero_t, one_t)
    length_t = lambda_return(steps.exists_t.to(reward_t.dtype), steps.discount_t(1.0), zero_t, zero_t, one_t)
    return_tp1, length_tp1 = steps.later(return_t), steps.later(length_t)
    return (return_tp1 / length_tp1.clamp(min=1.0) if mean else return_tp1), length_tp1 > 0


def _needs(*, support: Support, **_: object) -> frozenset[str]:
    return support_needs(support=support) | {"taken", "log_z", "behaviour"}


OBJECTIVE = Objective(fn=minillm, needs=_needs)
