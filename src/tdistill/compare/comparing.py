"""Read runs and pool them (``tdistill compare``); ``pages`` writes the result."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tdistill.compare.collect import Collected, collect
from tdistill.compare.data import METRICS, MeasuredStudent, PooledMethod, by_seed, methods
from tdistill.compare.figure import trained
from tdistill.compare.frontier import AtBaseline, at_baseline
from tdistill.compare.table import Quality, differences_table, methods_table
from tdistill.pages.tables import Table
from tdistill.report.data import Difference
from tdistill.runtime.errors import ConfigError, nearest
from tdistill.statistics.equal_entropy import TemperatureCurve
from tdistill.statistics.pooling import compared, pooled

DEFAULT_BASELINE = "sft_continued"
FEW_SEEDS = 5  # a bootstrap over fewer is rough


@dataclass(frozen=True)
class Comparison:
    """Hold the whole result of a comparison."""

    collected: Collected
    methods: list[PooledMethod]
    quality: Quality
    baseline: PooledMethod | None
    differences: list[Difference]
    curves: dict[str, TemperatureCurve]  # of the methods that were decoded at several temperatures
    at_equal_entropy: list[AtBaseline]  # empty without a baseline, or unless it was decoded at several temperatures
    notes: list[str]

    @property
    def tables(self) -> list[Table]:
        """Return the table of methods, then the table of differences if there is a baseline."""
        found = [methods_table(self.methods, self.quality)]
        return found + ([differences_table(self.differences, self.baseline.label)] if self.baseline and self.differences else [])


def compare(runs: Sequence[Path], baseline: str | None = None) -> Comparison:
    """Read runs, and pool their students by method.

    Args:
        runs: output directories of ``tdistill run``, or single evaluations in them, as RUN/evaluation/KEY.
        baseline: the method that the others are compared with, by its name in the table; by default ``sft_continued`` if there is one.

    Raises:
        ConfigError: see ``collect``; or no method has the baseline's name.
    """
    collected = collect(runs)
    found = methods(collected.students)
    quality = {m.label: {metric: pooled(by_seed(m, metric)) for metric in METRICS} for m in found}
    chosen = choose_baseline(found, baseline)
    differences = list(_differences(found, chosen)) if chosen else []
    curves = {m.label: m.curve for m in found if len(m.curve) > 1}
    equal = at_baseline(curves, chosen.label) if chosen and chosen.label in curves else []
    return Comparison(collected, found, quality, chosen, differences, curves, equal, [*collected.notes, *_notes(found, chosen)])


def choose_baseline(found: Sequence[PooledMethod], name: str | None) -> PooledMethod | None:
    """Return the baseline: by its label in the table, or by its plain name if only one method has it.

    Raises:
        ConfigError: none, or several, are called so.
    """
    wanted = name or DEFAULT_BASELINE
    fitting = [m for m in found if m.label == wanted] or [m for m in found if m.first.name == wanted]
    if len(fitting) == 1:
        return fitting[0]
    if name is None:
        return None
    if fitting:
        raise ConfigError(f"Several methods are called {name!r}. Choose one by --baseline: {', '.join(repr(m.label) for m in fitting)}.")
    raise ConfigError(f"No method is called {name!r}.{nearest(name, [m.label for m in found])}")


def _differences(found: Sequence[PooledMethod], baseline: PooledMethod) -> Iterator[Difference]:
    for method in found:
        for metric in METRICS if method is not baseline and not method.first.is_reference else ():
            value = compared(by_seed(method, metric), by_seed(baseline, metric))
            if value is not None:
                yield Difference(method.label, baseline.label, metric, value)


def _notes(found: Sequence[PooledMethod], baseline: PooledMethod | None) -> list[str]:
    """Return what a reader should know about the limits of the comparison."""
    own, notes = trained(found), []
    if baseline is None:
        several = sum(m.first.name == DEFAULT_BASELINE for m in own)
        reason = f"several methods are called {DEFAULT_BASELINE}" if several else f"no method is called {DEFAULT_BASELINE}"
        notes.append(f"No differences: {reason}. --baseline chooses what to compare with.")
    else:
        apart = [m.label for m in own if m is not baseline and not set(m.seeds) & set(baseline.seeds)]
        if apart:
            notes.append(f"No seed in common with {baseline.label}, so not paired by seed: {', '.join(apart)}.")
    shared = {_of(m.first, ("start", "train", "valid")) for m in own}
    if len(shared) > 1:
        notes.append("Not all methods have the same start and the same data: their differences do not come from the objective alone.")
    if any(len(m.curve) < 2 for m in own):
        command = "`tdistill evaluate RECIPE --temperatures 0.5,0.7,1`"
        notes.append(
            f"Not all methods were decoded at several temperatures. At a single temperature a sharper student writes likelier text. Run "
            f"{command} for every run to compare them at equal entropy."
        )
    machines = sorted({s.machine for m in own for s in m.students})
    if len(machines) > 1:
        notes.append(f"Wall-clock comes from different machines ({'; '.join(machines)}): compare tokens and steps instead.")
    untimed = [m.label for m in own if not math.isfinite(m.cost("best", "seconds"))]
    if untimed:
        notes.append(f"Trained before wall-clock was recorded, so without it: {', '.join(untimed)}.")
    fewest = min((len(m.seeds) for m in own), default=0)
    if fewest == 1:
        notes.append("A method with one training seed: its ± is over prompts only.")
    elif fewest < FEW_SEEDS:
        notes.append(f"With only {fewest} seeds, standard errors are rough. The intervals allow for that, and are wide.")
    return notes


def _of(student: MeasuredStudent, keys: Sequence[str]) -> str:
    return str([student.settings.get(k) for k in keys])
