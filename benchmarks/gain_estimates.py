"""Estimate from noisy roll-outs how much a perfect critic gains in a state.

G(a) is minus the divergence that follows token a, p the teacher's distribution over the K tokens that were followed. Perfect cloning takes a
by p, a perfect critic by q(a) ∝ p(a)·exp G(a), and it gains

    gain = log E_p[exp G] − E_p[G] ≈ ½ Var_p[G]    (nats of the text's divergence, all other states left as they are).

The mean of S roll-outs stands for G(a). Its noise makes the gain of the means too large, so there are several estimates of a state's gain:

- ``half_gain``: ½ Var_p by the covariance of two halves of the roll-outs. Unbiased for ½ Var_p; use it where differences are small.
- ``jackknifed_gain``: the gain of the means less its bias of order 1/S. It is ``half_gain``'s aim where differences are small, and right
  where they are large.
- ``bounds``: below and above the gain in expectation, for every kind of noise.

None of them says how many states have a large gain: noise alone spreads them. ``Shrinkage`` does, by empirical Bayes (Stephens, *False
discovery rates: a new deal*, Biostatistics 2017).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# How far apart the returns of a state's actions may be: standard deviations, in nats.
SCALES = np.array([0.0, *np.geomspace(0.03, 100.0, 24)])
EXACT = 1e-6  # variance of a mean that has no noise
STEPS = 150  # of expectation maximisation
LEAST = 1e-10  # probability of a scale: a state that no other is like keeps a scale of its own


def discounted(values: np.ndarray, gamma: float) -> float:
    """Return Σ γᵏ values[k]."""
    return float((gamma ** np.arange(len(values)) * values).sum())


def half_gain(g: np.ndarray, probs: np.ndarray) -> tuple[float, float]:
    """Return ½ Var_p of the actions' mean returns, by the covariance of two halves of the samples, and E_p of the variance of one return.

    Args:
        g: [K, S] returns.
        probs: [K] p.
    """
    half = g.shape[1] // 2
    first, second = g[:, :half].mean(1), g[:, half : 2 * half].mean(1)
    covariance = float((probs * (first - probs @ first) * (second - probs @ second)).sum())
    return 0.5 * covariance, float(probs @ g.var(axis=1, ddof=1))


def perfect_gain(returns: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """Return log E_p[exp G] − E_p[G] for true returns G [..., K]."""
    top = returns.max(-1, keepdims=True)
    return np.log(np.exp(returns - top) @ probs) + top[..., 0] - returns @ probs


def jackknifed_gain(g: np.ndarray, probs: np.ndarray) -> float:
    """Return the gain of the mean returns, less its bias of order 1/S. It may be below 0."""
    samples = g.shape[1]
    without_one = (g.sum(1, keepdims=True) - g) / (samples - 1)
    return float(samples * perfect_gain(g.mean(1), probs) - (samples - 1) * perfect_gain(without_one.T, probs).mean())


def bounds(g: np.ndarray, probs: np.ndarray) -> tuple[float, float]:
    """Return two numbers that lie below and above the gain in expectation.

    Below: what the critic of one half of the roll-outs gains by the other half's returns; no critic gains more than a perfect one. Above:
    the gain of the mean returns, since the gain is convex in them.
    """
    half = g.shape[1] // 2
    first, second = g[:, :half], g[:, half : 2 * half]
    crossed = [policy_gain(_tilted(a.mean(1), probs), b, probs) for a, b in ((first, second), (second, first))]
    return float(np.mean(crossed)), float(perfect_gain(g.mean(1), probs))


def _tilted(returns: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """Return q ∝ p·exp(returns)."""
    weights = probs * np.exp(returns - returns.max())
    return weights / weights.sum()


def policy_gain(policy: np.ndarray, g: np.ndarray, probs: np.ndarray) -> float:
    """Return what a policy [K] gains over perfect cloning: E_q[G] − KL(q‖p) − E_p[G]. It is linear in the returns, so their noise is no bias.

    A perfect critic's gain less this is what the policy leaves, KL(q‖q*), with q* ∝ p·exp G.
    """
    support = policy > 0
    divergence = float(policy[support] @ (np.log(policy[support]) - np.log(probs[support])))
    return float((policy - probs) @ g.mean(1)) - divergence


def means_and_variances(g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of every action's returns, and the variance of that mean: half the action's own, half the average of the state's."""
    own = g.var(axis=1, ddof=1) / g.shape[1]
    noisy = own > 0
    pooled = own[noisy].mean() if noisy.any() else 0.0
    return g.mean(1), np.where(noisy, (own + pooled) / 2, 0.0) + EXACT


class Shrinkage:
    """Estimate the distribution of the gain over states by empirical Bayes.

    In a state the true returns of the K actions are normal with an unknown mean and a scale τ of the state's own; the mean of the roll-outs
    adds normal noise of the variance that the roll-outs show. The distribution of τ over states is free, on the grid ``SCALES``, and is
    that of the largest likelihood. So states without any difference, and a few with a large one, are both possible.

    Args:
        states: of every state the returns [K, S] and the teacher's probabilities [K].
        levels: gains of which the share of states above them is wanted.
        draws: number of draws of the true returns for each state and scale.
        seed: seed of the draws.
    """

    def __init__(self, states: Sequence[tuple[np.ndarray, np.ndarray]], levels: Sequence[float], draws: int = 200, seed: int = 0):
        rng, shape = np.random.default_rng(seed), (len(states), len(SCALES))
        self.loglik, self.gains, self.above = np.empty(shape), np.empty(shape), np.empty((*shape, len(levels)))
        for i, (g, probs) in enumerate(states):
            mean, variance = means_and_variances(g)
            for j, scale in enumerate(SCALES):
                spread = _Spread.of(mean, variance, scale)
                gains = perfect_gain(spread.draws(rng, draws), probs)
                self.loglik[i, j], self.gains[i, j] = spread.loglik, gains.mean()
                self.above[i, j] = [(gains > level).mean() for level in levels]

    def posterior(self, counts: np.ndarray | None = None) -> np.ndarray:
        """Return the probability of every scale for every state [N, scales]. State i counts ``counts[i]`` times, by default once."""
        counts = np.ones(len(self.loglik)) if counts is None else counts
        likelihood = np.exp(self.loglik - self.loglik.max(1, keepdims=True))
        weights = np.full(len(SCALES), 1 / len(SCALES))
        for _ in range(STEPS):
            joint = likelihood * weights
            weights = np.maximum(counts @ (joint / joint.sum(1, keepdims=True)) / counts.sum(), LEAST)
        joint = likelihood * weights
        return joint / joint.sum(1, keepdims=True)

    def state_gains(self, counts: np.ndarray | None = None) -> np.ndarray:
        """Return the expected gain of every state [N]."""
        return (self.posterior(counts) * self.gains).sum(1)

    def state_shares(self, counts: np.ndarray | None = None) -> np.ndarray:
        """Return for every state and level the probability that the state's gain exceeds it [N, levels]."""
        return np.einsum("ij,ijl->il", self.posterior(counts), self.above)


@dataclass(frozen=True)
class _Spread:
    """Hold what is known of a state's true returns, given their scale."""

    loglik: float  # of the observed means, up to a constant
    centre: float  # estimate of the mean of the true returns
    centre_variance: float
    shrunk: tuple[np.ndarray, np.ndarray]  # weight of the observed mean, and the observed means
    variance: np.ndarray  # of a true return, given the centre

    @staticmethod
    def of(mean: np.ndarray, variance: np.ndarray, scale: float) -> "_Spread":
        total = variance + scale**2
        precision = 1 / total
        centre = float(precision @ mean / precision.sum())
        loglik = -0.5 * float(np.log(total).sum() + np.log(precision.sum()) + precision @ (mean - centre) ** 2)
        return _Spread(loglik, centre, float(1 / precision.sum()), (scale**2 / total, mean), variance * scale**2 / total)

    def draws(self, rng: np.random.Generator, number: int) -> np.ndarray:
        """Return draws [number, K] of the true returns."""
        weight, mean = self.shrunk
        centre = self.centre + np.sqrt(self.centre_variance) * rng.standard_normal((number, 1))
        return weight * mean + (1 - weight) * centre + np.sqrt(self.variance) * rng.standard_normal((number, len(mean)))
