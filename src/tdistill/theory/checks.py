"""Run every check of the theory, and write the rows and the report (``tdistill theory``)."""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator

import tdistill
from tdistill.runtime.errors import ConfigError
from tdistill.runtime.outputs import claimed
from tdistill.runtime.progress import Bar, bar
from tdistill.theory.compounding import METHODS
from tdistill.theory.estimator_rows import estimator_rows, n_checks
from tdistill.theory.instances import make_road
from tdistill.theory.plots import Rows
from tdistill.theory.propositions import N_BATCHES, batches, check_instances, summarise
from tdistill.theory.report import ROWS_FILE, write_theory
from tdistill.theory.sweeps import BIAS_GAMMAS, BIAS_PS, GAMMAS, bandit_rows, bias_rows, compounding_row, cut_rows


@dataclass(frozen=True)
class TheorySettings:
    """Set the number of instances, seeds and steps of each check."""

    instances: int = 20_000  # random MDPs for P1–P4
    mdps: int = 200  # per γ, for the curves of gaps
    bias_mdps: int = 20  # per γ and p, for the bias of α
    seeds: int = 5  # of the compounding-error experiment; also the token trees of the estimators
    steps: int = 300  # of its training; also the most that the solver takes on those trees
    horizons: tuple[int, ...] = (2, 4, 8, 16, 32)
    seed: int = 0


def run_theory(output_dir: Path, settings: TheorySettings) -> dict[str, Rows]:
    """Run every check, and write ``theory.md``, ``theory.html``, ``figures/*.svg`` and ``theory.jsonl`` into ``output_dir``.

    Raises:
        ConfigError: the directory holds something else, or the settings are impossible.
        OutputError: another process is writing there, or the disk can't be written.
    """
    if min(settings.instances, settings.mdps, settings.bias_mdps, settings.seeds, settings.steps, *settings.horizons) < 1:
        raise ConfigError("instances, mdps, seeds, steps and horizons must be at least 1.")
    with claimed(output_dir, "OUTPUT_DIR", ROWS_FILE, "theory"):
        return _run(output_dir, settings)


def _run(output_dir: Path, settings: TheorySettings) -> dict[str, Rows]:
    started = time.perf_counter()
    n_curves = len(GAMMAS) + len(BIAS_GAMMAS) * len(BIAS_PS) + n_checks()
    with one_thread(), bar("theory", N_BATCHES + n_curves + len(METHODS) * len(settings.horizons), unit="checks") as progress:
        data = measure(settings, progress)
    facts = conditions(settings) | {"seconds": round(time.perf_counter() - started, 1)}
    write_theory(data, facts, output_dir)
    return data


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread inside the block: the tensors are so small that a second thread slows them down, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(settings: TheorySettings, progress: Bar) -> dict[str, Rows]:
    """Return the rows of every section."""

    def ticked(note: str, rows: Any) -> Any:
        progress.advance()
        progress.note(note)
        return rows

    seed = settings.seed
    g = Generator().manual_seed(seed)
    columns = [ticked("P1–P4", check_instances(g, *batch)) for batch in batches(g, settings.instances)]
    cuts = [row for gamma in GAMMAS for row in ticked("gaps", cut_rows(gamma, settings.mdps, seed))]
    bias = [row for p in BIAS_PS for gamma in BIAS_GAMMAS for row in ticked("bias of α", bias_rows(gamma, p, settings.bias_mdps, seed))]
    road = make_road(list(range(seed, seed + settings.seeds)))
    compounding = [
        ticked(f"{name}, H = {horizon}", compounding_row(road, name, horizon, settings.steps, seed))
        for horizon in settings.horizons
        for name in METHODS
    ]
    found = [row for rows in estimator_rows(seed, settings.seeds, settings.steps) for row in ticked("estimators", rows)]
    data = {"propositions": summarise(columns), "cuts": cuts, "bandit": bandit_rows(), "bias": bias, "compounding": compounding}
    return data | {"estimators": found}


def conditions(settings: TheorySettings) -> dict[str, Any]:
    """Return the versions, the machine and the settings that made the rows."""
    return {
        "tdistill": tdistill.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, one thread, CPU, float64",
        **asdict(settings),
    }
