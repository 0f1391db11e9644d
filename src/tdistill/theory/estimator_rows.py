"""Measure the options of ``iq_learn`` and its relatives on token trees: bias and noise of the gradient, and the optimum of each setting."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from tdistill.mdp.bellman import project
from tdistill.objectives import bind
from tdistill.theory.estimators import (
    EOS,
    TOKEN_NOISE,
    Forest,
    Gradient,
    Last,
    Reading,
    TabularStudent,
    gradient,
    grow,
    near_teacher,
    reading,
    sum_by,
)
from tdistill.theory.optimum import Optimum, fit, learnt, mass, minimise, policy_kl
from tdistill.theory.sweeps import mean_stderr

ALPHAS = (0.1, 1.0, 10.0, 100.0)
GAMMA = 0.99
GAUGES = ("none", "max", "max_support", "mean_support", "lse", "learned")
END_GAUGES = ("none", "lse")  # of the terminal's rows
ANCHOR_GAUGES = ("max", "lse")
ANCHORS = ("none", "tail", "nll")
ESTIMATORS = ("sampled", "expected")
Arguments = dict[str, Any]

_IQ: Arguments = {"name": "iq_learn", "q_min": None, "anchor": "none"}
CLONING: Arguments = {**_IQ, "phi": "linear", "gauge": "none", "estimator": "sampled"}  # −log proj_p π(a|s), whatever γ is
_TD = ({"name": "csil"}, {"name": "q_lambda", "lambda_": 0.95}, {"name": "path_consistency", "lambda_": 0.95})
OTHERS: tuple[Arguments, ...] = (
    *({**td, "gamma": GAMMA, "gauge": gauge} for gauge in ("learned", "none") for td in _TD),
    {"name": "forward_kl", "support": "proj"},
    {"name": "forward_kl"},
    {"name": "reverse_kl"},
)
DISTANCES = (0.1, 0.5, 1.5)  # noise in the student's logits
DISTANCE_ALPHAS = (1.0, 10.0, 100.0)
SEMI_GRADIENT = ("csil", "q_lambda")
LAST_TOKEN: tuple[Arguments, ...] = (
    {**CLONING, "estimator": "sampled"},
    {**CLONING, "estimator": "expected"},
    {"name": "forward_kl", "support": "proj"},
)


@dataclass(frozen=True)
class Setting:
    """Hold arguments of ``iq_learn`` without the estimator, and the estimators whose optimum is sought."""

    group: str
    arguments: Arguments
    solved: Sequence[str] = ESTIMATORS


def settings() -> list[Setting]:
    """Return all settings of ``iq_learn`` that are measured: one option changed at a time, starting from no anchor and V(end) = 0."""
    chosen = []
    for alpha in ALPHAS:
        for gauge in GAUGES:
            base = {**_IQ, "alpha": alpha, "gauge": gauge}
            chosen.append(Setting("gauge", {**base, "gamma": GAMMA}))
            # At γ = 0 no step has a successor that untaken tokens could share: both estimators have one population.
            chosen.append(Setting("gauge", {**base, "gamma": 0.0}, ("expected",)))
            if gauge in END_GAUGES:
                chosen.append(Setting("terminal", {**base, "gamma": GAMMA, "terminal": "absorbing"}))
            if gauge in ANCHOR_GAUGES:
                chosen += [Setting("anchor", {**base, "gamma": GAMMA, "anchor": anchor}, ("expected",)) for anchor in ANCHORS[1:]]
    return chosen


def n_checks() -> int:
    """Return how many times ``estimator_rows`` yields."""
    return 1 + len(DISTANCES) + len(settings()) + len(OTHERS) + 1


def estimator_rows(seed: int, n_trees: int, most_steps: int) -> Iterator[list[Arguments]]:
    """Yield the rows of the section, setting by setting; ``most_steps`` is the solver's."""
    start, read = world(seed, n_trees, "cut_off")
    cloning = gradient(bind(CLONING), read, start)
    yield [start_row(read, start)]
    for noise in DISTANCES:
        yield distance_rows(seed, n_trees, noise)
    for setting in settings():
        yield knob_rows(setting, read, start, cloning, most_steps)
    ended_start, ended = world(seed, n_trees, "end")
    for arguments in OTHERS:
        row = {"group": "other", **arguments} | gradient_columns(gradient(bind(arguments), read, start), cloning)
        without = optimum_columns(end_of(arguments, ended, ended_start, most_steps), ended.forest)
        yield [row | optimum_columns(end_of(arguments, read, start, most_steps), read.forest) | {f"{k}_ended": v for k, v in without.items()}]
    yield last_token_rows(seed, n_trees, most_steps)


def world(seed: int, n_trees: int, last: Last, token_noise: float = TOKEN_NOISE) -> tuple[TabularStudent, Reading]:
    """Return the student at the start, and the trees and texts that it reads."""
    g = Generator().manual_seed(seed)
    forest, texts = grow(g, n_trees, last=last)
    return near_teacher(g, forest, token_noise), reading(forest, texts)


def distance_rows(seed: int, n_trees: int, token_noise: float) -> list[Arguments]:
    """Return noise and bias by the student's distance from the teacher, under the gauge ``lse``."""
    start, read = world(seed, n_trees, "cut_off", token_noise)
    rows = []
    for alpha in DISTANCE_ALPHAS:
        arguments = {**_IQ, "alpha": alpha, "gauge": "lse", "gamma": GAMMA}
        sampled, expected = (gradient(bind({**arguments, "estimator": name}), read, start) for name in ESTIMATORS)
        row = {"group": "distance", **arguments, "token_noise": token_noise} | mean_stderr("kl", policy_kl(read.forest, start.logits))
        row |= mean_stderr("noise_sampled", sampled.noise) | mean_stderr("noise_expected", expected.noise)
        row |= mean_stderr("noise_ratio", sampled.noise / expected.noise)
        rows.append(row | mean_stderr("bias", sampled.bias(expected)))
    return rows


def start_row(read: Reading, start: TabularStudent) -> Arguments:
    """Return the row of the trees, and of the student from which all settings start.

    ``kl_uniform`` is the KL of a uniform student, for comparison with the others.
    """
    forest, texts = read.forest, read.texts
    off = (~(forest.ids[texts.state] == texts.token.unsqueeze(-1)) | ~forest.legal[texts.state]).all(-1) & texts.mask
    lengths = read.per_tree(texts.mask.sum(-1).double())
    row: Arguments = {"group": "start", "trees": len(lengths), "states": len(forest.tree), "texts": len(texts.weight)}
    row |= mean_stderr("kl", policy_kl(forest, start.logits)) | mean_stderr("mass", mass(forest, start.logits))
    row |= mean_stderr("kl_uniform", policy_kl(forest, torch.zeros_like(start.logits)))
    row |= mean_stderr("teacher_mass", mass(forest, forest.teacher_logp))
    row |= mean_stderr("candidates", sum_by(forest.tree, learnt(forest) * forest.legal.sum(-1)))
    row |= mean_stderr("length", lengths) | mean_stderr("off_support", read.per_tree(off.sum(-1).double()) / lengths)
    return row | mean_stderr("ended", read.per_tree(((texts.token == EOS) & texts.mask).any(-1).double()))


def knob_rows(setting: Setting, read: Reading, start: TabularStudent, cloning: Gradient, most_steps: int) -> list[Arguments]:
    """Return one row for each estimator: its gradient at the start, its bias against ``sampled``, and its optimum."""
    bound = {name: bind({**setting.arguments, "estimator": name}) for name in ESTIMATORS}
    found = {name: gradient(objective, read, start) for name, objective in bound.items()}
    optima = {name: minimise(bound[name], read, start, most_steps) for name in setting.solved}
    if setting.arguments["gamma"] == 0.0:
        optima["sampled"] = optima["expected"]
    rows: list[Arguments] = []
    for name in ESTIMATORS:
        row = {"group": setting.group, **setting.arguments, "estimator": name}
        row |= gradient_columns(found[name], cloning) | mean_stderr("bias", found["sampled"].bias(found[name]))
        row |= mean_stderr("reward_square", reward_square(setting.arguments, read, start))
        rows.append(row | optimum_columns(optima.get(name), read.forest))
    if setting.arguments["gamma"] > 0.0:
        rows[-1]["break_even"] = found["sampled"].break_even(found["expected"]).median().item()  # trees differ by orders of magnitude
    return rows


def gradient_columns(found: Gradient, cloning: Gradient) -> Arguments:
    """Return the noise of one text's gradient, and its cosine with the gradient of cloning."""
    return mean_stderr("noise", found.noise) | mean_stderr("cosine", found.cosine(cloning))


def optimum_columns(optimum: Optimum | None, forest: Forest) -> Arguments:
    """Return the KL from the teacher and the mass on A_p at an optimum; an empty row if none was sought."""
    if optimum is None:
        return {}
    logits = optimum.student.logits
    columns = mean_stderr("kl", policy_kl(forest, logits)) | mean_stderr("mass", mass(forest, logits))
    return {"found": optimum.found, **columns}


def reward_square(arguments: Arguments, read: Reading, student: TabularStudent) -> Tensor:
    """Return [E]  E r² over the steps that count, at the token taken."""
    steps = read(read.rows(student))
    square_t = bind(arguments)(steps).metrics["td/bellman_error"]
    counts_t = square_t.isfinite() & steps.mask_t
    return read.per_tree(torch.where(counts_t, square_t, 0.0).sum(-1)) / read.per_tree(counts_t.sum(-1).double())


def end_of(arguments: Arguments, read: Reading, start: TabularStudent, most_steps: int) -> Optimum:
    """Return the optimum of an objective that has no estimator to choose."""
    if arguments["name"] in SEMI_GRADIENT:
        return fit(bind({**arguments, "target_network": True}), read, start, most_steps)
    return minimise(bind(arguments), read, start, most_steps)


def last_token_rows(seed: int, n_trees: int, most_steps: int) -> list[Arguments]:
    """Return how probable the end of text is at the last token.

    If the last token may be EOS, only the texts that end there have a step that counts.
    """
    start, read = world(seed, n_trees, "any")
    forest = read.forest
    rows: list[Arguments] = [{"group": "last_token", "name": "teacher"} | end_columns(forest, forest.teacher_logp)]
    for arguments in LAST_TOKEN:
        optimum = minimise(bind(arguments), read, start, most_steps)
        row = {"group": "last_token", **arguments, "found": optimum.found}
        rows.append(row | end_columns(forest, optimum.student.logits))
    return rows


def end_columns(forest: Forest, logits: Tensor) -> Arguments:
    """Return proj_p π(EOS|s) at the last token, over the states whose A_p holds EOS, and before it."""
    may_end = forest.legal & (forest.ids == EOS)
    share = project(logits.gather(-1, forest.ids), forest.legal).exp().masked_fill(~may_end, 0.0).sum(-1)
    last = forest.length == forest.length.max()
    columns: Arguments = {}
    for key, states in (("end_last", last), ("end_before", ~last)):
        visits = torch.where(states & may_end.any(-1), forest.visits, 0.0)
        columns |= mean_stderr(key, sum_by(forest.tree, visits * share) / sum_by(forest.tree, visits))
    return columns
