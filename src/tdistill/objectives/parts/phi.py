"""Compute the concave φ of inverse soft Q-learning, one for each statistical distance between expert and student (Garg et al. 2021)."""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tdistill.runtime.errors import ConfigError

Phi = Literal["chi2", "hellinger", "kl", "js", "tv", "linear"]

# Below margin·α, φ is continued by its tangent. hellinger and js fall to −∞ at −1 and −log 2: the margin is half of that.
# kl is finite everywhere, but its slope e^(−x/α) has no bound. tv ends at −½, where its tangent is x itself.
MARGIN: dict[str, float] = {"hellinger": -0.5, "kl": -5.0, "js": -0.5 * math.log(2.0), "tv": -0.5}
ARGMAX: dict[str, float] = {"chi2": 2.0, "tv": 0.5}  # the least x/α at which φ is largest


def phi_alpha(x: Float[Tensor, "*B"], phi: Phi, alpha: float) -> Float[Tensor, "*B"]:
    """Return φ_α(x) = α·φ(x/α): concave, φ(0) = 0, φ'(0) = 1, finite with finite gradient for every finite x; α → ∞ is linear.

    ``chi2`` x − x²/(4α), largest at 2α · ``hellinger`` αx/(α+x) · ``kl`` α(1−e^(−x/α)) · ``js`` α·log(2−e^(−x/α)) ·
    ``tv`` min(x, α/2) · ``linear`` x. Below ``MARGIN[phi]``·α it is the tangent at that point.

    Examples:
        >>> phi_alpha(torch.tensor([0.0, 1.0, 2.0, 4.0]), "chi2", alpha=1.0)
        tensor([0.0000, 0.7500, 1.0000, 0.0000])

    The conjugate of total variation is x on |x| ≤ α/2 and −∞ outside. Here it is α/2 above and x below. So it stays concave, and its
    gradient is that of a clamp on both sides which passes what would raise x.
    """
    if phi == "linear" or math.isinf(alpha):
        return x
    if phi == "chi2":
        return x - x.square() / (4.0 * alpha)
    if phi == "tv":
        return x.clamp(max=ARGMAX["tv"] * alpha)
    margin = MARGIN[phi]
    # Nothing below the margin enters the formula: where would let its infinities into the gradient.
    inside = x.clamp(min=margin * alpha)
    if phi == "hellinger":
        value, slope = inside / (1.0 + inside / alpha), (1.0 + margin) ** -2
    elif phi == "kl":
        value, slope = -alpha * torch.expm1(-inside / alpha), math.exp(-margin)
    else:
        value, slope = alpha * torch.log1p(-torch.expm1(-inside / alpha)), 1.0 / (2.0 * math.exp(margin) - 1.0)
    return value + slope * (x - inside)


def extended(x: Float[Tensor, "*B"], phi: Phi, alpha: float) -> Bool[Tensor, "*B"]:
    """Tell where φ is continued by its tangent."""
    return x < MARGIN[phi] * alpha


def r_max(phi: Phi, alpha: float) -> float:
    """Return argmax φ_α, the reward that an absorbing end pays for ever: 2α for ``chi2``, α/2 for ``tv``.

    Raises:
        ConfigError: φ rises for ever (every other φ, and α = ∞).
    """
    if phi not in ARGMAX or math.isinf(alpha):
        raise ConfigError(
            f"terminal='absorbing' needs the reward at which φ is largest, which phi={phi!r} with alpha={alpha} does not have: "
            f"use one of phi={', '.join(map(repr, ARGMAX))} with a finite alpha, or terminal='zero'."
        )
    return ARGMAX[phi] * alpha
