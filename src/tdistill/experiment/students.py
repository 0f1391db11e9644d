"""Train students from the cache (the stages ``sft`` and ``train``)."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from tdistill.experiment.model_card import write_model_card
from tdistill.experiment.models import load_teacher, student_tokenizer, student_trust, vocab_size
from tdistill.experiment.pipeline import Run
from tdistill.experiment.rollouts import cache, content_hash
from tdistill.experiment.run_files import read_run_file
from tdistill.experiment.run_forms import TrainedForm
from tdistill.objectives import bind
from tdistill.recipe.schema import MethodConfig, Sampling
from tdistill.runtime.files import sync_tree, write_json
from tdistill.runtime.processes import is_main_process
from tdistill.training.checkpoints import drop_checkpoints
from tdistill.training.fit import CHECKPOINTS, fit
from tdistill.training.inputs import FitInputs

DONE = "done.json"  # written last by a student


def sft_settings(run: Run) -> dict[str, Any]:
    """Return the settings that shape the SFT student."""
    assert run.recipe.sft is not None
    return {"sft": run.recipe.sft.model_dump(), "seed": run.recipe.seed}


def make_sft(run: Run, directory: Path) -> dict[str, Any]:
    """Fine-tune the start by ``nll``."""
    assert run.recipe.sft is not None
    return _train_one(run, run.directory("models") / "start", directory, "sft", run.recipe.sft.method())


def train_settings(run: Run) -> dict[str, Any]:
    """Return the settings that shape the students."""
    train = run.recipe.train
    return {"train": train.model_dump(), "seed": run.recipe.seed} | ({"corpus": content_hash(train.lm.corpus)} if train.lm else {})


def train_systems(run: Run) -> dict[str, MethodConfig]:
    """Return name → method of all students of the train stage: the baselines, then the distilled student."""
    return run.recipe.train.methods()


def start_directory(run: Run) -> Path:
    """Return the directory where distillation starts: the SFT student, or the pruned or pretrained start."""
    return run.directory("sft") if "sft" in run.stages else run.directory("models") / "start"


def make_students(run: Run, directory: Path) -> dict[str, Any]:
    """Train baselines and the distilled student from the same start; what is done is kept."""
    start = start_directory(run)
    return {name: _train_one(run, start, directory / name, name, method) for name, method in train_systems(run).items()}


def fit_inputs(run: Run, start: Path, method: MethodConfig) -> FitInputs:
    """Return what a training run of this recipe reads."""
    p, origins, rule, protocol = method.teacher_top_p, list(method.origins), method.candidate_rule, run.recipe.evaluation
    sampling = {key: getattr(protocol, key) for key in ("temperature", "top_p", "max_completion_length")}
    return FitInputs(
        start=start,
        train=cache(run, "train", p, origins, rule),
        valid=cache(run, "valid", p, origins, rule),
        tokenizer=student_tokenizer(run),
        vocab_size=vocab_size(run),
        load_teacher=partial(load_teacher, run),
        teacher_dtype=run.recipe.teacher.dtype,
        sampling=Sampling(**sampling, seed=run.recipe.seed),
        trust_remote_code=student_trust(run),
    )


def _train_one(run: Run, start: Path, directory: Path, name: str, method: MethodConfig) -> dict[str, Any]:
    """Train a student unless it is done, and return its notes. Its checkpoints go when it has its mark, so no kill costs a step twice."""
    if os.path.lexists(directory / DONE):
        notes = read_run_file(directory / DONE, TrainedForm)
    else:
        notes = _trained(run, start, directory, name, method)
        if is_main_process():
            sync_tree(directory)  # before the mark that says it is all there
            write_json(directory / DONE, notes)
    if is_main_process() and not method.monitor.keep_checkpoints:
        drop_checkpoints(directory / CHECKPOINTS)
    return notes


def _trained(run: Run, start: Path, directory: Path, name: str, method: MethodConfig) -> dict[str, Any]:
    objective = bind(method.objective).describe()
    metrics = fit(fit_inputs(run, start, method), method, run.recipe.seed, directory, name, keep_checkpoints=True)
    if is_main_process():
        write_model_card(directory, run, name, objective, metrics)
    return {"objective": objective, "validation": metrics}
