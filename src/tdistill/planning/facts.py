"""Gather what a plan starts from: the shapes of both models, the lengths of all splits, and the machine. No weight is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from tdistill.experiment.experiment import Experiment
from tdistill.experiment.graph import WAY, is_complete
from tdistill.experiment.models import teacher_files
from tdistill.models.find import ModelSource, find_model
from tdistill.planning.lengths import Expected, Lengths, split_lengths, tokenizer_of
from tdistill.planning.machines import Machine, free_disk, machine
from tdistill.planning.sizes import ModelShape, key_value_numbers, shape_of, student_shape
from tdistill.recipe.schema import Recipe


@dataclass(frozen=True)
class Facts:
    """Hold what a plan of a recipe starts from, and what stays as it is when a batch size or a dtype changes."""

    teacher: ModelShape
    student: ModelShape
    teacher_cache: int  # numbers in the key-value cache for each token
    student_cache: int
    from_gguf: bool
    tokenizer: int  # tokens
    tokenizer_bytes: int  # of its files, which lie beside every saved model
    lengths: Mapping[str, Lengths]
    machine: Machine
    free_disk: int
    complete: frozenset[str]  # stages

    @property
    def vocabulary(self) -> int:
        """Return V: the rows of the smaller head, or the tokenizer's tokens where they are fewer."""
        return min(self.teacher.size.rows, self.student.size.rows, self.tokenizer)


def gather(experiment: Experiment, device: str | None, expected: Expected) -> Facts:
    """Return the facts of a recipe.

    Args:
        experiment: it need not be prepared, and nothing is written.
        device: a name of ``machines.DEVICES``; None: this machine.
        expected: what the user knows.

    Raises:
        ModelError, DataError, ConfigError: a model, a prompt file or the device can't be used.
    """
    recipe = experiment.recipe
    teacher = shape_of(_teacher_source(experiment), recipe.teacher.trust_remote_code)
    named = recipe.student.student_model_name_or_path
    pretrained = find_model(str(named)) if recipe.student.init == "pretrained" else None
    student = student_shape(recipe, teacher, pretrained)
    tokenizer = tokenizer_of(experiment)
    return Facts(
        teacher=teacher,
        student=student,
        teacher_cache=key_value_numbers(teacher.build()),
        student_cache=key_value_numbers(student.build()),
        from_gguf=experiment.teacher_source.gguf_file is not None,
        tokenizer=max(tokenizer.get_vocab().values()) + 1,
        tokenizer_bytes=_saved_bytes(tokenizer),
        lengths=split_lengths(experiment, expected),
        machine=machine(device, dtypes(recipe)),
        free_disk=free_disk(experiment.root),
        complete=frozenset(stage for stage in WAY if is_complete(experiment, stage)),
    )


def _teacher_source(experiment: Experiment) -> ModelSource:
    """Return where the teacher's configuration is read fastest: of a GGUF file that a run has converted, from its artefact."""
    return teacher_files(experiment) if is_complete(experiment, "models") else experiment.teacher_source


def _saved_bytes(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the bytes of a tokenizer's main file. A slow tokenizer's are taken as 20 a token."""
    return len(tokenizer.backend_tokenizer.to_str(pretty=True).encode()) if tokenizer.is_fast else 20 * len(tokenizer)


def dtypes(recipe: Recipe) -> set[str]:
    """Return every dtype in which a recipe multiplies matrices."""
    return {"float32", "bfloat16", recipe.teacher.dtype, recipe.evaluation.dtype}
