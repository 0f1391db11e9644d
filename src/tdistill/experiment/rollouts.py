"""Let the teacher answer the prompt sets. Each split has its own artefact, so one more test prompt leaves the training roll-outs alone."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tdistill.data.dataset import RolloutDataset
from tdistill.data.overlap import HELD_OUT, shared_prompts
from tdistill.data.prompts import TokenizedPrompt, prompt_set_key, tokenize_prompts
from tdistill.experiment.artefact import Artefact
from tdistill.experiment.context import check_contexts, read_model_config
from tdistill.experiment.experiment import SPLITS, Experiment, once
from tdistill.experiment.models import check_training, fingerprints, load_own_tokenizer, load_teacher, teacher, teacher_notes, vocab_size
from tdistill.models.find import find_model
from tdistill.recipe.schema import MethodConfig
from tdistill.runtime.errors import CacheError
from tdistill.runtime.forms import Form, Name, Positive
from tdistill.runtime.progress import say
from tdistill.teachers.rollouts import Teacher, roll_out

HUMAN = "-human"  # ends the name of a cache of the prompts' own answers
# Settings of a roll-out that shape no answer, or say nothing beyond other settings.
FREE = {"batch_size", "shard_batches", "score_references"}
SAMPLING = {"temperature", "top_p", "top_k", "seed", "num_generations"}  # nothing is sampled for a human answer


class RolloutNotes(Form):
    """Declare what a prompt set's roll-outs note."""

    responses: Positive
    tokens: Positive
    candidates: Positive
    checksum: Name


@once
def rollouts(experiment: Experiment) -> dict[str, Artefact]:
    """Return name → roll-outs: ``train``, ``valid`` and ``test``, and ``…-human`` where the prompts' own answers are scored.

    Raises:
        OutputError: the models, which say how many tokens there are, are not complete.
        DataError: a prompt set can't be read.
    """
    found = {split: _of_split(experiment, split, human=False) for split in SPLITS}
    if experiment.recipe.rollout.score_references:
        with_answers = [split for split in SPLITS if any(p.references for p in experiment.prompts(split))]
        found |= {split + HUMAN: _of_split(experiment, split, human=True) for split in with_answers}
    return found


def _of_split(experiment: Experiment, split: str, human: bool) -> Artefact:
    config, recipe = experiment.recipe.rollout, experiment.recipe
    name = split + HUMAN if human else split
    settings = {
        "prompts": prompt_set_key(experiment.prompts(split), with_references=human),
        "max_prompt_length": recipe.data.max_prompt_length,
        "vocab_size": vocab_size(experiment),
        "origin": "human" if human else "teacher",
        "dtype": recipe.teacher.dtype,
        "quantization": recipe.teacher.quantization,
        **({"attn_implementation": recipe.teacher.attn_implementation} if recipe.teacher.attn_implementation else {}),
        "template": teacher_notes(experiment)["template"],  # with its clock pinned to when the teacher's artefact was made
        **config.model_dump(exclude=FREE | (SAMPLING if human else set())),
    }
    make = partial(_make, experiment, split, human)
    inputs = {"teacher": teacher(experiment)}
    return Artefact(
        experiment.root, "rollouts", f"roll-outs of {name}", settings, make, inputs, notes_form=RolloutNotes, loose=(), resumes=True
    )


def _make(experiment: Experiment, split: str, human: bool, directory: Path) -> dict[str, Any]:
    """Let the teacher answer one prompt set, or score the answers that came with it.

    Raises:
        DataError: a prompt set can't be used, or prompts and answers do not fit the context.
    """
    recipe = experiment.recipe
    prompts, skipped = read_prompts(experiment, split)
    if skipped:
        say(f"{split}: {skipped} prompts over {recipe.data.max_prompt_length} tokens skipped")
    answering = Teacher(
        partial(load_teacher, experiment),
        load_own_tokenizer(experiment),
        teacher_notes(experiment)["eos_ids"],
        dict(fingerprints(experiment)),
        vocab_size(experiment),
    )
    manifest = roll_out(answering, prompts, directory, recipe.rollout, human, split + HUMAN if human else split)
    shared = overlap_count(experiment, split, prompts)
    return {
        **manifest.counts,
        "skipped_prompts": skipped,
        **({"also_in_train": shared} if split in HELD_OUT else {}),
        "checksum": manifest.checksum,
        "candidate_logp_max_error": manifest.candidate_logp_max_error,
    }


def check_inputs(experiment: Experiment) -> None:
    """Check all inputs of training before the first token is drawn, since a bad test file or adapter must not cost an hour of roll-outs.

    Raises:
        ConfigError, DataError, ModelError: see ``read_prompts`` and ``check_training``.
    """
    check_contexts(experiment.recipe, model_configs(experiment))
    for split in SPLITS:
        read_prompts(experiment, split)
    check_training(experiment)


def read_prompts(experiment: Experiment, split: str) -> tuple[list[TokenizedPrompt], int]:
    """Return the prompts of a split as every artefact uses them, and the count of those that were too long.

    Raises:
        DataError: see ``held_out_prompts`` and ``tokenize_prompts``.
    """
    key = (read_prompts, split)
    if key not in experiment.memo:
        data, tokenizer = experiment.recipe.data, load_own_tokenizer(experiment)
        experiment.memo[key] = tokenize_prompts(experiment.prompts(split), tokenizer, data.max_prompt_length, data.overlong)
    return experiment.memo[key]


def model_configs(experiment: Experiment) -> dict[str, Mapping[str, Any]]:
    """Return the configurations of teacher and student, before or after the student's start is made."""
    config = read_model_config(experiment.teacher_source)
    own = experiment.recipe.student.student_model_name_or_path
    pretrained = experiment.recipe.student.init == "pretrained" and own is not None
    return {"teacher": config, "student": read_model_config(find_model(str(own))) if pretrained else config}


def overlap_count(experiment: Experiment, split: str, prompts: list[TokenizedPrompt]) -> int:
    """Count the prompts of a split that are also in ``train``."""
    return len(shared_prompts((p.prompt for p in prompts), experiment.prompts("train")))


def dataset(experiment: Experiment, split: str, method: MethodConfig) -> RolloutDataset:
    """Return a split's roll-outs as a method reads them.

    Raises:
        CacheError: see ``open_cache``; or they are not those that the artefact was made with.
    """
    artefact, p = rollouts(experiment)[cache_name(split, method)], method.teacher_top_p
    noted = experiment.notes(artefact)
    origins, rule, own = tuple(method.origins), method.candidate_rule, dict(fingerprints(experiment))
    data = RolloutDataset(artefact.directory, p, origins, own, rule, vocab_size(experiment))
    if noted["checksum"] != data.manifest.checksum:
        raise CacheError(f"{artefact.directory} is not the cache that was made there. Put it back, or delete it and run again.")
    return data


def cache_name(split: str, method: MethodConfig) -> str:
    """Return the name of the roll-outs that a method learns from."""
    return split + HUMAN if "human" in method.origins else split
