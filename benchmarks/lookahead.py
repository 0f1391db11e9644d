"""Measure how much looking ahead could gain, without any TD algorithm: what follows each token is played out.

`python benchmarks/lookahead.py RECIPE --only NAME,… --rows FILE [KEY=VALUE …]` takes students that `bench.py` trained. In states of the
student's own text every one of the teacher's likeliest tokens is taken, and the student goes on from there many times. Let G(a) =
−Σ γᵏ KL_{t+1+k} be minus the divergence that follows token a, exact in every state, over the whole vocabulary. Cloning aims at p. The
distribution that lowers the divergence of the whole text, all other states left as they are, is q(a) ∝ p(a)·exp G(a). The difference of
the two in nats,

    gain(s) = log E_p[exp G] − E_p[G] ≈ ½ Var_p[G],

is what a perfect critic could save at s over perfect cloning at s. Two independent halves of the continuations give Var_p[G] without the
bias of their noise: their covariance under p. It is measured for the total divergence, for one that leaves out the student's mean per
token (then ending early saves nothing), and for the teacher's log-likelihood of what follows, less its mean.
"""

import argparse
from typing import Any

import numpy as np
from bench import Bench, measured_systems, parser
from futures import Costs, Setting, futures, pick_states
from gain_estimates import discounted, half_gain
from told import script

from tdistill.data.prompts import TokenizedPrompt
from tdistill.experiment.answers import protocol, sampling_of
from tdistill.experiment.provenance import provenance
from tdistill.experiment.systems import load_own_teacher, load_system
from tdistill.runtime.files import write_jsonl
from tdistill.runtime.progress import bar, say

GAMMAS = (0.5, 0.7, 0.9, 0.99, 1.0)


def returns(future: list[list[Costs]], gamma: float, mean_kl: float, mean_logp: float) -> dict[str, np.ndarray]:
    """Return kind of return → its values, [K, samples]."""

    kinds = {
        "divergence": lambda kl, _: -kl,
        "divergence, centred": lambda kl, _: mean_kl - kl,
        "likelihood, centred": lambda _, logp: logp - mean_logp,
    }
    return {name: np.array([[discounted(of(*sample), gamma) for sample in action] for action in future]) for name, of in kinds.items()}


def measure(setting: Setting, prompts: list[TokenizedPrompt], options: argparse.Namespace, title: str) -> dict[str, Any]:
    """Return the row of one student."""
    states, text = pick_states(setting, prompts, options.states, options.actions)
    gains: dict[tuple[str, float], list[tuple[float, float]]] = {}
    with bar(title, len(states), "states") as progress:
        for number, state in enumerate(states):
            future = futures(setting, state, number, options.samples)
            for gamma in GAMMAS:
                for kind, g in returns(future, gamma, text.mean_kl, text.mean_logp).items():
                    gains.setdefault((kind, gamma), []).append(half_gain(g, state.probs))
            progress.advance(1)
    return {
        "states": len(states),
        "actions": options.actions,
        "samples": options.samples,
        "mass_of_actions": float(np.mean([s.mass for s in states])),
        "kl": _estimate([s.kl for s in states]),
        "gains": [
            {"return": kind, "gamma": gamma, "gain": _estimate([g for g, _ in v]), "noise_variance": float(np.mean([n for _, n in v]))}
            for (kind, gamma), v in gains.items()
        ],
    }


def _estimate(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "stderr": float(np.std(values, ddof=1) / np.sqrt(len(values)))}


def main() -> None:
    options = _options()
    experiment, rows = Bench(options).first, []
    sampling = sampling_of(experiment)
    shared = protocol(experiment, options.split, sampling)
    for system, about in measured_systems(experiment):
        if "method" not in about:
            continue
        models = load_system(experiment, system), load_own_teacher(experiment)
        setting = Setting(*models, tuple(shared.eos_ids), shared.vocab_size, sampling.max_completion_length, sampling.seed)
        found = measure(setting, list(shared.prompts), options, about["system"])
        rows.append({"student": about["system"]} | found | {"provenance": provenance(experiment.recipe)})
        say(f"{about['system']}: KL {found['kl']['mean']:.3f} a state; " + "; ".join(_line(g) for g in found["gains"]))
        write_jsonl(options.rows, rows)


def _line(g: dict[str, Any]) -> str:
    return f"{g['return']}, γ={g['gamma']:g}: gain {g['gain']['mean']:.3f} ± {g['gain']['stderr']:.3f}, noise {g['noise_variance']:.1f}"


def _options() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--states", type=int, default=100)
    made.add_argument("--actions", type=int, default=6, help="number of the teacher's likeliest tokens tried in a state")
    made.add_argument("--samples", type=int, default=24, help="number of continuations after each of them")
    return made.parse_intermixed_args()


if __name__ == "__main__":
    with script():
        main()
