"""Train students from the cache (the stages ``sft`` and ``train``)."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tdistill.data.corpus import PackedCorpus
from tdistill.data.mixed import Mixture
from tdistill.experiment.model_card import write_model_card
from tdistill.experiment.models import load_teacher, student_tokenizer, student_trust, vocab_size
from tdistill.experiment.pipeline import Run
from tdistill.experiment.rollouts import cache, content_hash
from tdistill.experiment.run_files import read_run_file
from tdistill.experiment.run_forms import TrainedForm
from tdistill.models.load import DTYPES
from tdistill.objectives import bind
from tdistill.recipe.schema import BaselineConfig, OnPolicyConfig, TrainConfig
from tdistill.runtime.files import sync_tree, write_json
from tdistill.runtime.processes import is_main_process
from tdistill.teachers.generate import Sampling
from tdistill.training.checkpoints import drop_checkpoints
from tdistill.training.extras import Extras, OnPolicy
from tdistill.training.fit import CHECKPOINTS, train_student
from tdistill.training.language_modelling import LanguageModelling
from tdistill.training.on_policy import StudentSampling
from tdistill.training.value import ValueSettings

DONE = "done.json"  # written last by a student


def sft_settings(run: Run) -> dict[str, Any]:
    """Return the settings that shape the SFT student."""
    assert run.recipe.sft is not None
    return {"sft": run.recipe.sft.model_dump(), "seed": run.recipe.seed}


def make_sft(run: Run, directory: Path) -> dict[str, Any]:
    """Fine-tune the start by ``nll``."""
    assert run.recipe.sft is not None
    sft = run.recipe.sft
    cloning = TrainConfig(objective={"name": "nll"}, origins=list(sft.origins), arguments=sft.arguments)
    return _train_one(run, run.directory("models") / "start", directory, "sft", BaselineConfig(objective=cloning.objective), cloning)


def train_settings(run: Run) -> dict[str, Any]:
    """Return the settings that shape the students."""
    train = run.recipe.train
    return {"train": train.model_dump(), "seed": run.recipe.seed} | ({"corpus": content_hash(train.lm.corpus)} if train.lm else {})


def train_systems(run: Run) -> dict[str, BaselineConfig]:
    """Return name → objective and own arguments of all students of the train stage: the baselines, then the distilled student."""
    return {**run.recipe.train.baselines, "distilled": BaselineConfig(objective=run.recipe.train.objective)}


def start_directory(run: Run) -> Path:
    """Return the directory where distillation starts: the SFT student, or the pruned or pretrained start."""
    return run.directory("sft") if "sft" in run.stages else run.directory("models") / "start"


def make_students(run: Run, directory: Path) -> dict[str, Any]:
    """Train baselines and the distilled student from the same start; what is done is kept."""
    start, config = start_directory(run), run.recipe.train
    return {name: _train_one(run, start, directory / name, name, system, config) for name, system in train_systems(run).items()}


def on_policy(config: OnPolicyConfig | None, dtype: str) -> OnPolicy | None:
    """Return how the student writes a part of its training text in ``dtype``; None if it writes none."""
    if config is None or config.lmbda == 0.0:
        return None
    mixture = Mixture(config.lmbda, config.refresh_steps, config.replay)
    sampling = StudentSampling(config.temperature, config.top_p, config.teacher_mix)
    return OnPolicy(mixture, sampling, DTYPES[dtype])


def training_extras(run: Run, config: TrainConfig, system: BaselineConfig, tokenizer: PreTrainedTokenizerBase) -> Extras:
    """Return what the recipe adds to a training run."""
    protocol, lm = run.recipe.evaluation, config.lm
    length = protocol.max_completion_length or run.recipe.rollout.max_completion_length
    return Extras(
        on_policy=on_policy(system.on_policy or config.on_policy, run.recipe.teacher.dtype),
        value=ValueSettings(**(system.value or config.value).model_dump()),
        lm=LanguageModelling(lm.lm_coef, lm.kd_ratio) if lm else None,
        corpus=PackedCorpus(lm.corpus, tokenizer, lm.window) if lm else None,
        peft=config.peft.lora if config.peft else None,
        merge=config.peft is not None and config.peft.merge,
        sampling=Sampling(protocol.temperature, protocol.top_p, 0, length, run.recipe.seed),
        vocab_size=vocab_size(run),
        trust_remote_code=student_trust(run),
        **config.monitor.model_dump(),
    )


def _train_one(run: Run, start: Path, directory: Path, name: str, system: BaselineConfig, config: TrainConfig) -> dict[str, Any]:
    """Train a student unless it is done, and return its notes. Its checkpoints go when it has its mark, so no kill costs a step twice."""
    if os.path.lexists(directory / DONE):
        notes = read_run_file(directory / DONE, TrainedForm)
    else:
        notes = _trained(run, start, directory, name, system, config)
        if is_main_process():
            sync_tree(directory)  # before the mark that says it is all there
            write_json(directory / DONE, notes)
    if is_main_process() and not config.monitor.keep_checkpoints:
        drop_checkpoints(directory / CHECKPOINTS)
    return notes


def _trained(run: Run, start: Path, directory: Path, name: str, system: BaselineConfig, config: TrainConfig) -> dict[str, Any]:
    p, rule = config.teacher_top_p, config.candidate_rule
    origins, bound, tokenizer = list(config.origins), bind(system.objective), student_tokenizer(run)
    metrics = train_student(
        start,
        directory,
        bound,
        cache(run, "train", p, origins, rule),
        cache(run, "valid", p, origins, rule),
        tokenizer,
        {**config.arguments, **system.arguments},
        run.recipe.seed,
        name,
        load_teacher=partial(load_teacher, run),
        extras=replace(training_extras(run, config, system, tokenizer), keep_checkpoints=True),  # until the student has its mark
    )
    if is_main_process():
        write_model_card(directory, run, name, bound.describe(), metrics)
    return {"objective": bound.describe(), "validation": metrics}
