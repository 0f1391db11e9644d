"""Find what is sure to fail, before anything long starts."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tdistill.data.corpus import check_window, read_documents
from tdistill.data.overlap import check_overlap, load_split
from tdistill.experiment.answers import check_references
from tdistill.experiment.context import check_contexts
from tdistill.experiment.experiment import SPLITS, Experiment
from tdistill.experiment.graph import is_complete
from tdistill.experiment.models import trusts_student
from tdistill.experiment.recipe_checks import argument_sections
from tdistill.experiment.rollouts import model_configs
from tdistill.models.attention import check_attention
from tdistill.models.find import PACKAGED, find_model
from tdistill.models.load import check_quantization, compute_device
from tdistill.models.prune import check_layer_count
from tdistill.models.tokenizer import load_tokenizer
from tdistill.recipe.schema import Recipe
from tdistill.runtime.errors import ConfigError, DataError, ModelError, brief
from tdistill.runtime.paths import nearest_path
from tdistill.runtime.progress import say
from tdistill.training.arguments import argument_remarks, training_arguments
from tdistill.training.sharding import check_devices

# Models that are widely known by a name without an owner.
OWNERS = {
    **dict.fromkeys(("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"), "openai-community"),
    **dict.fromkeys(("opt-125m", "opt-350m", "opt-1.3b", "opt-2.7b", "opt-6.7b", "opt-13b"), "facebook"),
    "distilgpt2": "distilbert",
}
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # any of them: the CPU multiplies bfloat16 in hardware


def preflight(experiment: Experiment, stages: Sequence[str] = ()) -> None:
    """Check what can be known before anything is written: models, layers, contexts, the output directory, corpus, prompts and answers.

    Says what another option makes void, and where a CPU would crawl.

    Args:
        experiment: what is asked for.
        stages: those that will run; the devices of training are checked for them.

    Raises:
        ConfigError, ModelError, DataError: with the option, what was got and what to do.
    """
    _check_output(experiment.root)
    _check_models(experiment)
    _check_devices(experiment, stages)
    if experiment.recipe.teacher.quantization:
        check_quantization(experiment.recipe.teacher.quantization)
    _check_corpus(experiment)
    for place, arguments in argument_sections(experiment.recipe).items():
        for remark in argument_remarks(arguments, place):
            say(remark)
    _check_prompts(experiment)  # of complete roll-outs too: what is asked of shared prompts and answers may have changed since
    if is_complete(experiment, "rollout"):
        return
    _say_of_earlier_versions(experiment.root)
    # An older torch can't tell.
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    slow = slow_bfloat16(experiment.recipe, capabilities()) if capabilities and compute_device().type == "cpu" else []
    if slow:
        say(f"This CPU has no bfloat16 instructions: float32 is 2 to 3 times faster here. Append {' '.join(slow)}")


def _say_of_earlier_versions(root: Path) -> None:
    """Say that results of a version without artefacts are not used."""
    old = sorted({path.parents[1].name for path in root.glob("*/*/stage.json")})
    if old:
        say(
            f"{root} holds results of an earlier tdistill ({', '.join(old)}), which are not used and stay as they are. Delete them if you like."
        )


def _check_devices(experiment: Experiment, stages: Sequence[str]) -> None:
    recipe = experiment.recipe
    arguments = {"sft": recipe.sft.arguments if recipe.sft else None, "train": recipe.train.arguments}
    for stage in arguments.keys() & set(stages):
        own = arguments[stage]
        if own is not None and not is_complete(experiment, stage):
            check_devices(training_arguments(own, experiment.root, recipe.seed))


def _check_output(root: Path) -> None:
    """Raise ``ConfigError`` unless the output directory can be made or written."""
    there = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"output_dir {root}: {there} is a file, not a directory. Choose another: output_dir=runs/NAME")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"output_dir {root}: {there} can't be written by this user. Choose another: output_dir=runs/NAME")


def _check_prompts(experiment: Experiment) -> None:
    recipe = experiment.recipe
    check_overlap(recipe.data, {split: load_split(recipe.data, split) for split in SPLITS})
    check_references(experiment, "test")
    human = "human" in [*recipe.train.origins, *(recipe.sft.origins if recipe.sft else [])]
    for split in ("train", "valid"):
        if human and not any(p.references for p in experiment.prompts(split)):
            raise DataError(f"origins: [human], but {getattr(recipe.data, split)} has no answers to learn from. Use origins: [teacher].")


def _check_corpus(experiment: Experiment) -> None:
    """Read the whole corpus, and find at least one window in it where the tokenizer is read fast."""
    lm, source = experiment.recipe.train.lm, experiment.teacher_source
    if lm is None or is_complete(experiment, "train"):
        return
    documents = read_documents(lm.corpus)
    if not source.gguf_file:  # its tokenizer takes seconds: it is looked at when the models are made
        check_window(lm.corpus, documents, load_tokenizer(source, experiment.recipe.teacher.trust_remote_code), lm.window)
    for _ in documents:  # a bad line anywhere is found now
        pass


def slow_bfloat16(recipe: Recipe, capabilities: Mapping[str, object]) -> list[str]:
    """Return the overrides that turn a recipe's bfloat16 off, if the CPU lacks the instructions."""
    if any(capabilities.get(name) for name in BFLOAT16):
        return []
    dtypes = {"teacher": recipe.teacher.dtype, "evaluation": recipe.evaluation.dtype}
    arguments = {"sft": recipe.sft.arguments if recipe.sft else {}, "train": recipe.train.arguments}
    asked = [f"{stage}.dtype=float32" for stage, dtype in dtypes.items() if dtype == "bfloat16"]
    return asked + [f"{stage}.arguments.bf16=false" for stage, own in arguments.items() if own.get("bf16")]


def _check_models(experiment: Experiment) -> None:
    student, named = experiment.recipe.student, experiment.recipe.teacher
    _find("teacher.teacher_model_name_or_path", experiment.recipe.teacher.teacher_model_name_or_path)
    if student.init == "pretrained":
        _find("student.student_model_name_or_path", str(student.student_model_name_or_path))
    if named.attn_implementation is not None:
        check_attention(experiment.teacher_source, named.attn_implementation, "teacher.attn_implementation", named.trust_remote_code)
    if student.attn_implementation is not None:
        source = find_model(student.student_model_name_or_path) if student.student_model_name_or_path else experiment.teacher_source
        check_attention(source, student.attn_implementation, "student.attn_implementation", trusts_student(experiment))
    configs = model_configs(experiment)
    check_contexts(experiment.recipe, configs)
    total = configs["teacher"].get("num_hidden_layers")
    if total is not None and not isinstance(total, int):
        raise ModelError(f"The teacher's configuration has num_hidden_layers={brief(total)}: it must be a whole number.")
    if total is None or student.init == "pretrained":
        return
    if student.num_hidden_layers is not None:
        check_layer_count(total, student.num_hidden_layers)
    wrong = [i for i in student.keep_layers or [] if not 0 <= i < total]
    if wrong:
        raise ModelError(f"student.keep_layers names {wrong}, but the teacher has layers 0 to {total - 1}.")


def _find(option: str, name: str) -> None:
    """Raise ``ModelError``, with the option and what may have been meant, unless the model is there."""
    try:
        find_model(name)
    except ModelError as error:
        raise ModelError(f"'{option}': {error}{_hint(name)}") from error


def _hint(name: str) -> str:
    if name.startswith(PACKAGED):
        return ""
    close = nearest_path(name)
    if close:
        return f" Did you mean {close!r}?"
    if "/" not in name:
        owner = OWNERS.get(name.lower(), "OWNER")
        return f" An id of the hub has its owner before it: {owner}/{name}."
    return ""
