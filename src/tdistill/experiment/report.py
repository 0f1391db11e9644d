"""Read a finished run into ``ReportData``."""

from pathlib import Path
from typing import Any

from tdistill.experiment.evaluation import ANSWERS, read_answers, read_scores, read_sparsity
from tdistill.experiment.pipeline import Run, provenance, resolved_yaml
from tdistill.experiment.run_files import STAGE_FILE, advice_for
from tdistill.experiment.students import train_systems
from tdistill.experiment.systems import protocol, systems
from tdistill.pages.parts import Sample
from tdistill.report.data import ReportData, Sparsity, Stage, TrainingCurve
from tdistill.report.pooled import MeasuredSystem, differences, pooled_system
from tdistill.runtime.errors import OutputError
from tdistill.training.log import read_history


def collect(run: Run) -> ReportData:
    """Read what the stages of a run left.

    Raises:
        OutputError: a stage, or a file that one left, is missing or damaged.
    """
    directory = run.directory("evaluate")
    evaluated = run.read_stage("evaluate")["notes"]
    expected = [s.name for s in systems(run)]
    if evaluated["systems"] != expected:
        path = directory / STAGE_FILE
        raise OutputError(f"{path} names the systems {evaluated['systems']}, and the recipe has {expected}. {advice_for(path)}")
    scores = {name: read_scores(directory, name) for name in evaluated["systems"]}
    measured = {name: _measured(run, record) for name, record in scores.items()}
    return ReportData(
        title=run.recipe.title,
        facts=_facts(run, scores),
        protocol=evaluated["protocol"],
        systems=[pooled_system(s) for s in measured.values()],
        differences=list(differences(measured["distilled"], [measured[name] for name in _others(run, scores)])),
        curves=_curves(run),
        sparsity=_sparsity(read_sparsity(directory)),
        stages=[_stage(run, name) for name in run.way if name != "report"],
        samples=_samples(run, directory, list(scores)),
        recipe_yaml=resolved_yaml(run.recipe),
        notes=[
            "Teacher NLL rewards likely text, and repetition is likely: read it together with distinct-2. A sharper student, of lower entropy, "
            "writes likelier text at one temperature: `tdistill evaluate RECIPE --temperatures 0.5,0.7,1` shows others.",
        ],
    )


def _facts(run: Run, scores: dict[str, Any]) -> dict[str, str]:
    recipe, facts = run.recipe, provenance(run.recipe)
    sizes = {
        name: f"{scores[name]['parameters'] / 1e6:.1f}M parameters, {scores[name]['num_hidden_layers']} layers"
        for name in ("teacher", "distilled")
    }
    counts = run.read_stage("rollout")["notes"]["train"]
    per_token = counts["candidates"] / counts["tokens"]
    return {
        "teacher": f"{recipe.teacher.teacher_model_name_or_path} ({sizes['teacher']})",
        "student": sizes["distilled"],
        "objective": scores["distilled"]["description"],
        "roll-outs": f"{counts['responses']} answers, {counts['tokens']} tokens, {per_token:.1f} candidates a token",
        "top-p": f"{recipe.train.teacher_top_p or recipe.rollout.teacher_top_p:g} (roll-outs hold {recipe.rollout.teacher_top_p:g})",
        "seed": str(recipe.seed),
        "versions": f"tdistill {facts['tdistill']}, torch {facts['torch']}, transformers {facts['transformers']}",
        "git commit": facts["git_commit"],
        "machine": facts["machine"],
    }


def _measured(run: Run, record: dict[str, Any]) -> MeasuredSystem:
    seed = run.recipe.seed if record["name"] in train_systems(run) else None
    return MeasuredSystem(record["name"], record["description"], record["parameters"], record["num_hidden_layers"], {seed: record["scores"]})


def _others(run: Run, scores: dict[str, Any]) -> list[str]:
    """Return the systems that the distilled student is compared with."""
    return [*run.recipe.train.baselines, *(["sft"] if "sft" in scores else []), "start"]


def _curves(run: Run) -> list[TrainingCurve]:
    runs = {"sft": run.directory("sft")} if "sft" in run.stages else {}
    runs |= {name: run.directory("train") / name for name in train_systems(run)}
    return [TrainingCurve(name, read_history(directory)["history"]) for name, directory in runs.items()]


def _sparsity(raw: dict[str, Any]) -> Sparsity:
    return Sparsity(
        n_tokens=raw["n_tokens"],
        vocab_size=raw["vocab_size"],
        top_k_mass={int(k): v for k, v in raw["top_k_mass"].items()},
        sizes={float(p): v for p, v in raw["sizes"].items()},
    )


def _stage(run: Run, name: str) -> Stage:
    record, directory = run.read_stage(name), run.directory(name)
    size = sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())
    return Stage(name, record["seconds"], size, record["peak_memory_bytes"])


def _samples(run: Run, directory: Path, names: list[str]) -> list[Sample]:
    asked = protocol(run)
    prompts = {p.prompt.prompt_id: p.prompt.text for p in asked.prompts}
    answers: dict[str, dict[str, str]] = {name: {} for name in names}
    for name in names:
        for record in read_answers(directory / ANSWERS / f"{name}.jsonl", asked):
            answers[name].setdefault(record["prompt_id"], record["text"])
    chosen = list(prompts)[: run.recipe.evaluation.num_samples_shown]
    return [Sample(prompts[p], {name: answers[name][p] for name in names}) for p in chosen]
