"""Enforce path consistency on the top-p tokens: values and log-ratios must agree over windows of every length, up to the whole response."""

from typing import Annotated

import torch
from pydantic import Field

from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Gamma, Objective, ObjectiveOutput, UnitInterval
from tdistill.objectives.parts.gauge import Gauge
from tdistill.objectives.parts.transition import td_error, td_needs, td_output, transitions
from tdistill.objectives.parts.windows import bounded_window_loss, whole_response_loss, window_length

Length = Annotated[int, Field(ge=1)]


def path_consistency(
    steps: Steps, *, gamma: Gamma = 0.99, lambda_: UnitInterval = 0.95, max_n: Length | None = None, gauge: Gauge = "learned"
) -> ObjectiveOutput:
    """Minimise the squared error of path consistency over windows of every length.

        loss_t = (1−λ)Σ_{n<N} λ^{n−1} ½δ²_{t,n} + λ^{N−1} ½δ²_{t,N},  N = min(max_n, longest window from t)
        δ_{t,n} = V_p(s_t) − γⁿV_p(s_{t+n}) + Σ_{k<n} γᵏ log[proj_p π(a_{t+k})/proj_p π*(a_{t+k})]

    A window of n tokens has them all on A_p, and ends at an existing state or at the end (V_p = 0). Nachum et al. (2017), with the
    teacher's log-probability as reward. δ_{t,n} = Σ_{k<n} γᵏ δ_{t+k,1}, and δ_{t,1} is the error of ``csil``: max_n = 1 or λ = 0 is
    ``csil(stop_target=False)``. γ = λ = 1 is trajectory balance (Malkin et al. 2022) of every suffix: at t = 0 of a finished
    response, ½(V_p(s_0) + Σ log-ratios)². A student that equals the teacher, with v ≡ 0 under the gauge ``learned``, pays 0 with gradient 0.

    Args:
        lambda_: weight of long windows, in [0, 1]; the weights of a step sum to 1.
        max_n: the longest window in tokens; None is the whole response.
        gauge: c(s) in Q = ℓ − c, see ``gauged_q``; under all but ``learned`` and ``none`` V_p is a function of the policy alone.
    """
    td = transitions(steps, gauge, gamma)
    delta_t, span = td_error(steps, td), td.v_t.shape[1]
    longest = min(max_n or span, span)
    length_t = window_length(steps.counted_t, longest)
    if longest == span:
        discount_t = steps.discount_t(gamma) * steps.later(steps.counted_t.to(delta_t.dtype))
        loss_t = whole_response_loss(delta_t, discount_t, lambda_)
    else:
        loss_t = bounded_window_loss(delta_t, length_t, gamma, lambda_, longest)
    out = td_output(steps, td, loss_t)
    window_t = torch.where(steps.counted_t, length_t.to(delta_t.dtype), torch.nan)
    return ObjectiveOutput(out.loss_t, {**out.metrics, "td/window": window_t})


OBJECTIVE = Objective(fn=path_consistency, needs=td_needs, anchor="none")
