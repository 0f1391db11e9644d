"""Let the teacher answer all three prompt sets (the stage ``rollout``)."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tdistill.cache.schema import MANIFEST
from tdistill.data.dataset import RolloutDataset
from tdistill.data.overlap import HELD_OUT, held_out_prompts, load_split, shared_prompts
from tdistill.data.prompts import TokenizedPrompt, tokenize_prompts
from tdistill.experiment.context import check_contexts, read_model_config
from tdistill.experiment.models import load_teacher, models_info, student_tokenizer, vocab_size
from tdistill.experiment.pipeline import Run
from tdistill.experiment.run_files import remedy
from tdistill.models.find import find_model
from tdistill.recipe.schema import CandidateRule
from tdistill.runtime.errors import CacheError, ConfigError
from tdistill.runtime.paths import local_path
from tdistill.runtime.progress import say
from tdistill.teachers.rollouts import Teacher, roll_out

SPLITS = ("train", "valid", "test")


def rollout_settings(run: Run) -> dict[str, Any]:
    """Return the settings that shape the roll-outs."""
    recipe = run.recipe
    files = {split: content_hash(getattr(recipe.data, split)) for split in SPLITS}
    return {
        "files": files,
        # To count or refuse shared prompts changes none of them.
        "data": recipe.data.model_dump(exclude=set(SPLITS) if recipe.data.overlap == "drop" else {*SPLITS, "overlap"}),
        "rollout": recipe.rollout.model_dump(),
        "dtype": recipe.teacher.dtype,
        "seed": recipe.seed,
    } | ({"quantization": recipe.teacher.quantization} if recipe.teacher.quantization else {})


def content_hash(source: str) -> str:
    """Return the SHA-256 of a file. A hub id is returned unchanged."""
    path = local_path(source)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else source


def read_prompts(run: Run, split: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[TokenizedPrompt], int]:
    """Read the prompts of a split as every stage uses them, and count those that were too long.

    Raises:
        DataError: see ``held_out_prompts`` and ``tokenize_prompts``.
    """
    data, prompts = run.recipe.data, held_out_prompts(run.recipe.data, split)
    return tokenize_prompts(prompts, tokenizer, data.max_prompt_length, data.overlong)


def make_rollouts(run: Run, directory: Path) -> dict[str, Any]:
    """Let the teacher answer all three prompt sets.

    Raises:
        DataError: a prompt set can't be used, or prompts and answers do not fit the context.
    """
    recipe, tokenizer, info = run.recipe, student_tokenizer(run), models_info(run)
    c = recipe.rollout
    check_contexts(run.recipe, model_configs(run))
    teacher = Teacher(partial(load_teacher, run), tokenizer, info["eos_ids"], fingerprints(run), vocab_size(run))
    notes: dict[str, Any] = {}
    # All three are read before the first token is drawn: a bad test file must not cost an hour of roll-outs.
    sets = {split: read_prompts(run, split, tokenizer) for split in SPLITS}
    shared = overlap_counts(run, {split: prompts for split, (prompts, _) in sets.items()})
    for split, (prompts, skipped) in sets.items():
        if skipped:
            say(f"{split}: {skipped} prompts over {recipe.data.max_prompt_length} tokens skipped")
        human = [False, True] if c.score_references and any(p.prompt.references for p in prompts) else [False]
        for scored in human:
            name = f"{split}-human" if scored else split
            manifest = roll_out(teacher, prompts, directory / name, c, scored, name)
            notes[name] = {
                **manifest.counts,
                "skipped_prompts": skipped,
                **({"also_in_train": shared[split]} if split in shared else {}),
                "checksum": manifest.checksum,
                "candidate_logp_max_error": manifest.candidate_logp_max_error,
            }
    return notes


def model_configs(run: Run) -> dict[str, Mapping[str, Any]]:
    """Return the configurations of teacher and student, before or after the student's start is made."""
    teacher = read_model_config(run.teacher_source)
    own = run.recipe.student.student_model_name_or_path
    pretrained = run.recipe.student.init == "pretrained" and own is not None
    return {"teacher": teacher, "student": read_model_config(find_model(str(own))) if pretrained else teacher}


def overlap_counts(run: Run, sets: Mapping[str, Sequence[TokenizedPrompt]]) -> dict[str, int]:
    """Count the prompts of ``valid`` and ``test`` that are also in ``train``, as they are used."""
    train = load_split(run.recipe.data, "train")
    return {split: len(shared_prompts((p.prompt for p in sets[split]), train)) for split in HELD_OUT if split in sets}


def fingerprints(run: Run) -> dict[str, str]:
    """Return the fingerprints that a cache must have been made with to belong to this run."""
    info = models_info(run)
    return {"teacher": run.teacher_fingerprint, "tokenizer": info["tokenizer"], "template": info["template"]}


def cache(
    run: Run, split: str, p: float | None = None, origins: Sequence[str] | None = None, rule: CandidateRule | None = None
) -> RolloutDataset:
    """Return a split's roll-outs as a data set, checked to be those that the roll-out stage made with this teacher.

    Raises:
        CacheError: see ``open_cache``; or they are another run's.
    """
    human = list(origins or []) == ["human"]
    directory = run.directory("rollout") / (f"{split}-human" if human else split)
    if origins and len(origins) > 1:
        raise ConfigError(f"origins {origins}: train on one of teacher and human at a time.")
    data = RolloutDataset(directory, p, tuple(origins or ["teacher"]), fingerprints(run), rule, vocab_size(run))
    noted = run.read_stage("rollout")["notes"].get(directory.name)
    if noted is None or noted["checksum"] != data.manifest.checksum:
        raise CacheError(f"{directory} is not the cache that the roll-out stage made. Put it back, or {remedy(directory / MANIFEST)}")
    return data
