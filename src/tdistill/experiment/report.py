"""Read a finished run into ``ReportData``, and write its pages (the stage ``report``)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tdistill.evaluation.answer_files import SCORES, advice, read_scores
from tdistill.evaluation.metrics import TEACHER
from tdistill.evaluation.sparsity import SparsityForm
from tdistill.experiment import evaluation, rollouts, students
from tdistill.experiment.answers import answers, divergences, protocol, read_own_answers, sampling_of
from tdistill.experiment.artefact import Artefact
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.provenance import provenance, resolved_yaml
from tdistill.experiment.stages import ARTEFACTS
from tdistill.experiment.students import SFT
from tdistill.experiment.systems import START, System, systems
from tdistill.pages.parts import Sample
from tdistill.pages.tables import format_count
from tdistill.pages.terminal import print_document
from tdistill.recipe.schema import DISTILLED
from tdistill.report.data import ReportData, Sparsity, StageCost, TrainingCurve
from tdistill.report.pooled import MeasuredSystem, differences, pooled_system
from tdistill.report.sections import report_document, write_report
from tdistill.runtime.errors import OutputError
from tdistill.runtime.forms import read_form
from tdistill.training.log import read_history

PAGES = ("report.md", "report.html")


def report(experiment: Experiment) -> Artefact:
    """Return the pages of a finished run. People may write on them."""

    def make(directory: Path) -> dict[str, Any]:
        write_report(collect(experiment), directory)
        return {}

    settings = {"title": experiment.recipe.title, "num_samples_shown": experiment.recipe.evaluation.num_samples_shown}
    inputs = {"evaluation": evaluation.evaluation(experiment)}
    return Artefact(experiment.root, "report", "report", settings, make, inputs, loose=("figures",), pages=PAGES)


def show(experiment: Experiment) -> list[str]:
    """Return what the terminal shows of a finished run: the tables, and where pages and students are."""
    data, console = collect(experiment), Console()
    with console.capture() as captured:
        print_document(console, report_document(data))
    directory = report(experiment).directory
    own = [s for s in systems(experiment) if s.name == DISTILLED]
    places = [f"student: {s.artefact.directory}" + (f" (seed {s.seed})" if len(own) > 1 else "") for s in own]
    return [captured.get(), f"report: {directory / PAGES[1]}", f"        {directory / PAGES[0]}", *places]


def collect(experiment: Experiment) -> ReportData:
    """Read what the stages of a run left, and pool each method over its seeds.

    Raises:
        OutputError: an artefact is not complete, or one of its files is missing or damaged.
    """
    methods: dict[str, list[System]] = {}
    for system in systems(experiment):
        methods.setdefault(system.name, []).append(system)
    noted = {s["title"]: s for s in experiment.notes(evaluation.evaluation(experiment))["systems"]}
    measured = {name: _measured(experiment, group, noted[group[0].title]) for name, group in methods.items()}
    return ReportData(
        title=experiment.recipe.title,
        facts=_facts(experiment, noted),
        protocol=evaluation.describe(experiment),
        systems=[pooled_system(found) for found in measured.values()],
        differences=list(differences(measured[DISTILLED], [measured[name] for name in _others(measured)])),
        curves=_curves(experiment),
        sparsity=_sparsity(experiment),
        stages=[_stage(experiment, name, made) for name, made in ARTEFACTS.items() if made(experiment)],
        samples=_samples(experiment, [group[0] for group in methods.values()]),
        recipe_yaml=resolved_yaml(experiment.recipe),
        notes=[
            "Teacher NLL rewards likely text, and repetition is likely: read it together with distinct-2. A sharper student, of lower entropy, "
            "writes likelier text at one temperature: `tdistill evaluate RECIPE --temperatures 0.5,0.7,1` shows others.",
        ],
    )


def _measured(experiment: Experiment, group: Sequence[System], facts: dict[str, Any]) -> MeasuredSystem:
    """Return a method with the scores of all its seeds."""
    scores = {system.seed: _scores(experiment, system) for system in group}
    return MeasuredSystem(group[0].name, facts["description"], facts["parameters"], facts["num_hidden_layers"], scores)


def _others(measured: Mapping[str, MeasuredSystem]) -> list[str]:
    """Return what the distilled student is compared with: the baselines, then where training started."""
    references = [name for name in (SFT, START) if name in measured]
    return [*(name for name in measured if name not in (TEACHER, DISTILLED, *references)), *references]


def _scores(experiment: Experiment, system: System) -> dict[str, dict[str, float]]:
    """Return metric → prompt id → value."""
    found: dict[str, dict[str, float]] = {}
    for artefact in (answers(experiment, system), divergences(experiment, system)):
        experiment.notes(artefact)
        found |= read_scores(artefact.directory / SCORES)
    return found


def _facts(experiment: Experiment, noted: dict[str, Any]) -> dict[str, str]:
    recipe, facts = experiment.recipe, provenance(experiment.recipe)
    own = next(s for s in noted.values() if s["name"] == DISTILLED)
    sizes = [f"{format_count(s['parameters'])} parameters, {s['num_hidden_layers']} layers" for s in (noted["teacher"], own)]
    counts = experiment.notes(rollouts.rollouts(experiment)["train"])
    per_token = counts["candidates"] / counts["tokens"]
    return {
        "teacher": f"{recipe.teacher.teacher_model_name_or_path} ({sizes[0]})",
        "student": sizes[1],
        "objective": own["description"],
        "roll-outs": f"{counts['responses']} answers, {counts['tokens']} tokens, {per_token:.1f} candidates a token",
        "top-p": f"{recipe.train.teacher_top_p or recipe.rollout.teacher_top_p:g} (roll-outs hold {recipe.rollout.teacher_top_p:g})",
        "seed": str(recipe.seed) if recipe.train.seeds == [recipe.seed] else f"{recipe.seed}; of training {_listed(recipe.train.seeds)}",
        "versions": f"tdistill {facts['tdistill']}, torch {facts['torch']}, transformers {facts['transformers']}",
        "git commit": facts["git_commit"],
        "machine": facts["machine"],
    }


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _curves(experiment: Experiment) -> list[TrainingCurve]:
    tuned = students.sft(experiment)
    trained = ([tuned] if tuned else []) + students.students(experiment)
    several = len(experiment.recipe.train.seeds) > 1
    return [
        TrainingCurve(s.name, read_history(s.artefact.directory)["history"], s.seed if several and s.name != SFT else None) for s in trained
    ]


def _sparsity(experiment: Experiment) -> Sparsity:
    artefact = evaluation.concentration(experiment)
    experiment.notes(artefact)
    path = artefact.directory / evaluation.SPARSITY
    raw = read_form(path, SparsityForm, OutputError, advice(path))
    return Sparsity(
        n_tokens=raw["n_tokens"],
        vocab_size=raw["vocab_size"],
        top_k_mass={int(k): v for k, v in raw["top_k_mass"].items()},
        sizes={float(p): v for p, v in raw["sizes"].items()},
    )


def _stage(experiment: Experiment, name: str, made: Callable[[Experiment], Sequence[Artefact]]) -> StageCost:
    """Add up what the artefacts of a stage took. Each of them counts once."""
    artefacts = {a.directory: a for a in made(experiment)}
    manifests = [m for m in map(experiment.manifest, artefacts.values()) if m is not None]
    size = sum(f.stat().st_size for directory in artefacts for f in directory.rglob("*") if f.is_file())
    return StageCost(name, sum(m.seconds for m in manifests), size, max((m.peak_memory_bytes for m in manifests), default=0))


def _samples(experiment: Experiment, every: Sequence[System]) -> list[Sample]:
    """Return the answers of each method's first seed to the first prompts."""
    asked = protocol(experiment, "test", sampling_of(experiment)).prompts[: experiment.recipe.evaluation.num_samples_shown]
    answered: dict[str, dict[str, str]] = {}
    for system in every:
        for record in read_own_answers(experiment, system):
            answered.setdefault(record["prompt_id"], {}).setdefault(system.name, record["text"])
    return [Sample(p.prompt.text, answered[p.prompt.prompt_id]) for p in asked]
