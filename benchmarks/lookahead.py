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
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from bench import Bench, measured_systems, parser
from torch import Tensor
from transformers import PreTrainedModel

from tdistill.data.prompts import Prompt, TokenizedPrompt
from tdistill.experiment.answers import protocol, sampling_of
from tdistill.experiment.provenance import provenance
from tdistill.experiment.systems import load_own_teacher, load_system
from tdistill.models.forward import step_logp
from tdistill.models.layout import pad_pairs
from tdistill.models.vocabulary import Vocabulary
from tdistill.recipe.schema import Sampling
from tdistill.runtime.files import write_jsonl
from tdistill.runtime.progress import bar, say
from tdistill.teachers.transformers import generate_batch

GAMMAS = (0.5, 0.7, 0.9, 0.99, 1.0)
ROWS_AT_ONCE = 256  # continuations in a batch


@dataclass(frozen=True)
class State:
    """Hold a prefix of a text of the student's, and the tokens to try there."""

    ids: tuple[int, ...]
    left: int  # tokens up to the length limit, the one to try included
    actions: np.ndarray  # [K] token ids
    probs: np.ndarray  # [K] the teacher's, renormalised over them
    mass: float  # of the teacher on them
    kl: float  # KL(q‖p) here


@dataclass(frozen=True)
class Setting:
    """Hold the models and settings that continuations are made with."""

    student: PreTrainedModel
    teacher: PreTrainedModel
    eos_ids: tuple[int, ...]
    vocab: int
    length: int
    seed: int


def text_costs(setting: Setting, prompts: list[tuple[int, ...]], texts: list[list[int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for every text, for each token, KL(q‖p) in its state and log p of the token."""
    inputs, attention, taken, _ = pad_pairs(prompts, texts)
    logq, logp = (step_logp(m, inputs, attention, taken.shape[1], setting.vocab) for m in (setting.student, setting.teacher))
    kl = (logq.exp() * (logq - logp)).sum(-1).double().numpy()
    likelihood = logp.gather(-1, taken.unsqueeze(-1)).squeeze(-1).double().numpy()
    return [(kl[i, : len(t)], likelihood[i, : len(t)]) for i, t in enumerate(texts)]


def pick_states(setting: Setting, prompts: list[TokenizedPrompt], count: int, actions: int) -> tuple[list[State], float, float]:
    """Return states of the student's own texts, drawn evenly from the tokens of all, and the means per token of KL and of log p."""
    sampling = Sampling(max_completion_length=setting.length, seed=setting.seed)
    rows = generate_batch(setting.student, [(p, 0) for p in prompts], sampling, Vocabulary(setting.vocab, setting.eos_ids))
    texts = [r.response_ids for r in rows]
    costs = text_costs(setting, [p.ids for p in prompts], texts)
    places = [(i, t) for i, text in enumerate(texts) for t in range(len(text)) if t < setting.length - 1]
    rng = np.random.default_rng(setting.seed)
    chosen = [places[j] for j in rng.choice(len(places), size=min(count, len(places)), replace=False)]
    states = []
    for i, t in chosen:
        ids = (*prompts[i].ids, *texts[i][:t])
        logp = _next_logp(setting.teacher, ids, setting.vocab)
        top = logp.topk(actions)
        probs = top.values.exp().double().numpy()
        states.append(State(ids, setting.length - t, top.indices.numpy(), probs / probs.sum(), float(probs.sum()), float(costs[i][0][t])))
    return states, *(float(np.concatenate([c[k] for c in costs]).mean()) for k in (0, 1))


def _next_logp(model: PreTrainedModel, ids: tuple[int, ...], vocab: int) -> Tensor:
    inputs = torch.tensor([ids])
    return step_logp(model, inputs, torch.ones_like(inputs), 1, vocab)[0, 0]


def futures(setting: Setting, state: State, number: int, samples: int) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Return action → sample → (KL, log p) for each token of what follows it; empty after the end of the text."""
    sampling = Sampling(max_completion_length=state.left - 1, seed=setting.seed + 1)
    live = [k for k, a in enumerate(state.actions) if int(a) not in setting.eos_ids]
    # The noise goes by prompt id and sample: every action meets noise of its own.
    starts = {k: TokenizedPrompt(Prompt(f"{number}-{k}", ()), (*state.ids, int(state.actions[k]))) for k in live}
    plan = [(starts[k], i) for k in live for i in range(samples)]
    found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in state.actions]
    for begin in range(0, len(plan), ROWS_AT_ONCE):
        chunk = plan[begin : begin + ROWS_AT_ONCE]
        rows = generate_batch(setting.student, chunk, sampling, Vocabulary(setting.vocab, setting.eos_ids))
        costs = text_costs(setting, [p.ids for p, _ in chunk], [r.response_ids for r in rows])
        for (prompt, _), cost in zip(chunk, costs, strict=True):
            found[int(prompt.prompt.prompt_id.split("-")[1])].append(cost)
    nothing = (np.zeros(0), np.zeros(0))
    return [f or [nothing] * samples for f in found]


def returns(future: list[list[tuple[np.ndarray, np.ndarray]]], gamma: float, mean_kl: float, mean_logp: float) -> dict[str, np.ndarray]:
    """Return kind of return → its values, [K, samples]."""

    def total(values: np.ndarray) -> float:
        return float((gamma ** np.arange(len(values)) * values).sum())

    kinds = {
        "divergence": lambda kl, _: -kl,
        "divergence, centred": lambda kl, _: mean_kl - kl,
        "likelihood, centred": lambda _, logp: logp - mean_logp,
    }
    return {name: np.array([[total(of(*sample)) for sample in action] for action in future]) for name, of in kinds.items()}


def gain(g: np.ndarray, probs: np.ndarray) -> tuple[float, float]:
    """Return ½ Var_p of the actions' mean returns, by the covariance of two halves of the samples, and E_p of the variance of one return."""
    half = g.shape[1] // 2
    first, second = g[:, :half].mean(1), g[:, half : 2 * half].mean(1)
    covariance = float((probs * (first - probs @ first) * (second - probs @ second)).sum())
    return 0.5 * covariance, float(probs @ g.var(axis=1, ddof=1))


def measure(setting: Setting, prompts: list[TokenizedPrompt], options: argparse.Namespace, title: str) -> dict[str, Any]:
    """Return the row of one student."""
    states, mean_kl, mean_logp = pick_states(setting, prompts, options.states, options.actions)
    gains: dict[tuple[str, float], list[tuple[float, float]]] = {}
    with bar(title, len(states), "states") as progress:
        for number, state in enumerate(states):
            future = futures(setting, state, number, options.samples)
            for gamma in GAMMAS:
                for kind, g in returns(future, gamma, mean_kl, mean_logp).items():
                    gains.setdefault((kind, gamma), []).append(gain(g, state.probs))
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
    main()
