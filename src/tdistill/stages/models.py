"""``models``: the teacher where its form can't be read fast, and the student's start."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tdistill.errors import ModelError
from tdistill.files import write_json
from tdistill.models import (
    ModelSource,
    check_same_vocabulary,
    compute_device,
    eos_token_ids,
    find_model,
    load_model,
    load_tokenizer,
    model_fingerprint,
    tokenizer_fingerprint,
)
from tdistill.pipeline import Run
from tdistill.progress import say
from tdistill.prune import check_layer_count, outer_layers, prune_layers
from tdistill.rollout.prompts import template_fingerprint
from tdistill.run_files import read_run_file
from tdistill.run_forms import ModelsForm

INFO_FILE = "models.json"


def models_settings(run: Run) -> dict[str, Any]:
    """What shapes the models stage's content."""
    student = run.recipe.student
    settings = {"teacher": run.teacher_fingerprint, "student": student.model_dump()}
    if student.init == "pretrained":
        settings["start"] = model_fingerprint(find_model(str(student.student_model_name_or_path)))
    return settings


def make_models(run: Run, directory: Path) -> dict[str, Any]:
    """Save the student's start, and the teacher if it is a GGUF."""
    recipe = run.recipe
    teacher = load_model(run.teacher_source, "float32", recipe.teacher.trust_remote_code)
    tokenizer = load_tokenizer(run.teacher_source, recipe.teacher.trust_remote_code)
    layers: list[int] | None = None
    if recipe.student.init == "prune":
        total = teacher.config.get_text_config().num_hidden_layers
        layers = recipe.student.keep_layers or outer_layers(total, int(recipe.student.num_hidden_layers or 0))
        check_layer_count(total, len(layers))
        start = prune_layers(teacher, layers)
        say(f"student: layers {layers} of the teacher's {total}")
    else:
        source = find_model(str(recipe.student.student_model_name_or_path))
        own = load_tokenizer(source, recipe.student.trust_remote_code)
        check_same_vocabulary(tokenizer, own, (run.teacher_source.name, source.name))
        start = load_model(source, "float32", recipe.student.trust_remote_code)
    _check_rows(len(tokenizer), teacher, start)
    for name, model in {"teacher": teacher, "start": start}.items():
        if name == "start" or run.teacher_source.gguf_file:  # reading a GGUF takes far longer than its weights would
            model.save_pretrained(directory / name)
            tokenizer.save_pretrained(directory / name)
    info = {
        "eos_ids": eos_token_ids(teacher, tokenizer),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "template": template_fingerprint(tokenizer),
        "layers": layers,
        "parameters": {"teacher": _size(teacher), "start": _size(start)},
    }
    write_json(directory / INFO_FILE, info)
    return {"layers": layers, "parameters": info["parameters"]}


def _check_rows(vocab: int, teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    for name, model in {"teacher": teacher, "student": student}.items():
        rows = model.get_output_embeddings().weight.shape[0]
        if rows < vocab:
            raise ModelError(f"The {name}'s head has {rows} rows for a vocabulary of {vocab} tokens.")


def _size(model: PreTrainedModel) -> int:
    return sum(p.numel() for p in model.parameters())


def teacher_directory(run: Run) -> ModelSource:
    """The teacher as later stages load it."""
    return find_model(str(run.directory("models") / "teacher")) if run.teacher_source.gguf_file else run.teacher_source


def load_teacher(run: Run, dtype: str | None = None) -> PreTrainedModel:
    """The teacher in the recipe's dtype, or another, where it computes."""
    config = run.recipe.teacher
    teacher = load_model(teacher_directory(run), dtype or config.dtype, config.trust_remote_code, config.quantization)
    return teacher if config.quantization else teacher.to(compute_device())


def student_tokenizer(run: Run) -> PreTrainedTokenizerBase:
    """The tokenizer saved with the student's start."""
    return load_tokenizer(find_model(str(run.directory("models") / "start")))


def models_info(run: Run) -> dict[str, Any]:
    """Return end-of-text ids, fingerprints, layers kept and sizes, as the models stage noted them.

    Raises:
        OutputError: the file is missing or damaged.
    """
    return read_run_file(run.directory("models") / INFO_FILE, ModelsForm)
