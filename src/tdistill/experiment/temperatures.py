"""Measure every system at several decoding temperatures. Existing answers are kept: a new temperature adds its own cost only."""

from collections.abc import Sequence
from dataclasses import dataclass

from tdistill.evaluation.answer_files import SCORES, read_scores
from tdistill.evaluation.metrics import METRICS
from tdistill.experiment.answers import ANSWERS_KIND, answers, check_references, sampling_of
from tdistill.experiment.artefact import Artefact
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.on_demand import make_missing, require_students
from tdistill.experiment.systems import START, System, systems
from tdistill.pages.markdown import to_markdown
from tdistill.pages.tables import ARROWS, Cell, Table, format_estimate, right_aligned
from tdistill.runtime.errors import ConfigError
from tdistill.statistics.pooling import pooled

SHOWN = ("teacher_nll", "rouge_l", "entropy", "distinct_2", "mean_length")


def parse_temperatures(text: str) -> tuple[float, ...]:
    """Return the temperatures in a list such as "0.5,1", ascending, each once.

    Raises:
        ConfigError: one is no positive number or has more than six digits, or there is none.
    """
    try:
        found = sorted({float(part) for part in text.split(",") if part.strip()})
    except ValueError as error:
        raise ConfigError(f"--temperatures takes numbers separated by commas, such as 0.5,0.7,1; got {text!r}.") from error
    if not found or not all(1e-3 <= t <= 1e3 for t in found):
        raise ConfigError(f"--temperatures takes numbers from 0.001 to 1000, such as 0.5,0.7,1; got {text!r:.80}.")
    if finer := [t for t in found if float(f"{t:g}") != t]:  # tables show six digits
        raise ConfigError(f"--temperatures takes numbers of at most six digits, got {finer[0]!r}: round it to {finer[0]:g}.")
    return tuple(found)


@dataclass(frozen=True)
class Measured:
    """Hold the scores of one system at one temperature."""

    system: str  # its name, which students that differ by their seed share
    seed: int | None
    temperature: float
    scores: dict[str, dict[str, float]]  # metric → prompt → value


class TemperatureRun:
    """Measure a recipe's systems at several decoding temperatures, on the prompts of a split, otherwise by the recipe's protocol.

    Raises:
        ConfigError: a temperature that is none, students not trained yet, or several processes.
    """

    def __init__(self, experiment: Experiment, temperatures: str, split: str = "test"):
        self.experiment, self.split = experiment, split
        self.temperatures = parse_temperatures(temperatures)
        require_students(experiment, "--temperatures")
        check_references(experiment, split)

    def artefacts(self) -> list[tuple[System, float, Artefact]]:
        """Return every system's answers at every temperature: system by system, temperatures ascending."""
        measured = [system for system in systems(self.experiment) if system.name != START]  # what it writes is noise at any temperature
        return [(s, t, answers(self.experiment, s, self.split, sampling_of(self.experiment, t))) for s in measured for t in self.temperatures]

    def measure(self) -> list[Measured]:
        """Make the answers that are missing, and return all scores. A model is loaded once for all temperatures."""
        asked = self.artefacts()
        make_missing(self.experiment, [artefact for _, _, artefact in asked])
        return [Measured(system.name, system.seed, t, read_scores(artefact.directory / SCORES)) for system, t, artefact in asked]

    def report(self) -> str:
        """Measure every system, and return a Markdown table with the place of the scores."""
        table = sweep_table(self.measure())
        return f"{to_markdown(table)}\n\n{table.caption}\nscores: {self.experiment.root / ANSWERS_KIND}"


def sweep_table(measured: Sequence[Measured]) -> Table:
    """Build a table with one line for each system and temperature, pooled over seeds."""
    groups: dict[tuple[str, float], list[Measured]] = {}
    for found in measured:
        groups.setdefault((found.system, found.temperature), []).append(found)
    header = ["system", "T", *(METRICS[m][0] + ARROWS[METRICS[m][2]] for m in SHOWN)]
    rows = [
        [
            Cell(system),
            Cell(f"{temperature:g}"),
            *(Cell(format_estimate(pooled({found.seed: found.scores.get(m, {}) for found in group}))) for m in SHOWN),
        ]
        for (system, temperature), group in groups.items()
    ]
    caption = (
        "Mean over seeds and prompts ± standard error. Entropy is that of the distribution that the tokens were drawn from, in nats per "
        "token. At one temperature a sharper "
        "student writes likelier text: compare systems at equal entropy, which `tdistill compare` does."
    )
    return Table(caption, header, rows, right_aligned(len(header)))
