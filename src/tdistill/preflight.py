"""What can be known to fail is found before anything long starts."""

from collections.abc import Mapping, Sequence

import torch

from tdistill.config import Recipe
from tdistill.data.corpus import read_documents
from tdistill.errors import DataError, ModelError
from tdistill.gguf_header import gguf_config
from tdistill.models import check_quantization, compute_device, find_model, read_config
from tdistill.pipeline import Run
from tdistill.progress import say
from tdistill.prune import check_layer_count
from tdistill.rollout.prompts import load_prompts
from tdistill.stages.rollout import SPLITS, check_context
from tdistill.training.run import training_arguments
from tdistill.training.sharding import check_devices

BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # any of them: the CPU multiplies bfloat16 in hardware


def preflight(run: Run, stages: Sequence[str] = ()) -> None:
    """Models are there, the layers asked for exist, every prompt file parses. Says so where a CPU would crawl.

    Args:
        run: what will be run.
        stages: those that will be; the devices of training are checked for them.

    Raises:
        ModelError, DataError, ConfigError: with what was got and what to do.
    """
    _check_devices(run, stages)
    _check_models(run)
    if run.recipe.teacher.quantization:
        check_quantization(run.recipe.teacher.quantization)
    if run.recipe.train.lm is not None:
        next(read_documents(run.recipe.train.lm.corpus), None)
    if run.is_complete("rollout"):
        return
    for split in SPLITS:
        prompts = load_prompts(getattr(run.recipe.data, split))
        if split == "test" and run.recipe.evaluation.reference == "human" and not any(p.references for p in prompts):
            raise DataError(f"evaluation.reference: human, but {run.recipe.data.test} has no answers. Use reference: teacher.")
    # An older torch can't tell.
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    slow = slow_bfloat16(run.recipe, capabilities()) if capabilities and compute_device().type == "cpu" else []
    if slow:
        say(f"This CPU has no bfloat16 instructions: float32 is 2 to 3 times faster here. Append {' '.join(slow)}")


def _check_devices(run: Run, stages: Sequence[str]) -> None:
    arguments = {"sft": run.recipe.sft.arguments if run.recipe.sft else {}, "train": run.recipe.train.arguments}
    for stage in arguments.keys() & run.stages.keys() & set(stages):
        if not run.is_complete(stage):
            check_devices(training_arguments(arguments[stage], run.root, run.recipe.seed))


def slow_bfloat16(recipe: Recipe, capabilities: Mapping[str, object]) -> list[str]:
    """The overrides that turn a recipe's bfloat16 off, if the CPU lacks the instructions."""
    if any(capabilities.get(name) for name in BFLOAT16):
        return []
    dtypes = {"teacher": recipe.teacher.dtype, "evaluation": recipe.evaluation.dtype}
    arguments = {"sft": recipe.sft.arguments if recipe.sft else {}, "train": recipe.train.arguments}
    asked = [f"{stage}.dtype=float32" for stage, dtype in dtypes.items() if dtype == "bfloat16"]
    return asked + [f"{stage}.arguments.bf16=false" for stage, own in arguments.items() if own.get("bf16")]


def _check_models(run: Run) -> None:
    source, student = run.teacher_source, run.recipe.student
    if student.init == "pretrained":
        find_model(str(student.student_model_name_or_path))
        return
    values = gguf_config(source.directory / source.gguf_file) if source.gguf_file else read_config(source.directory)
    check_context(run, values)
    total = values.get("num_hidden_layers")
    if total is None:
        return
    if student.num_hidden_layers is not None:
        check_layer_count(total, student.num_hidden_layers)
    wrong = [i for i in student.keep_layers or [] if not 0 <= i < total]
    if wrong:
        raise ModelError(f"student.keep_layers names {wrong}, but the teacher has layers 0 to {total - 1}.")
