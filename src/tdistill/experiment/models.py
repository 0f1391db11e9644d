"""Make the teacher's fast form if it needs one, and the student's start (the stage ``models``)."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tdistill.data.corpus import check_window, read_documents
from tdistill.data.prompts import template_fingerprint
from tdistill.experiment.pipeline import Run
from tdistill.experiment.run_files import read_run_file, remedy
from tdistill.experiment.run_forms import ModelsForm
from tdistill.models.find import ModelSource, find_model
from tdistill.models.fingerprint import weights_fingerprint
from tdistill.models.head import VALUES
from tdistill.models.load import compute_device, load_model
from tdistill.models.lora import add_lora
from tdistill.models.probe import probe
from tdistill.models.prune import check_layer_count, outer_layers, prune_layers
from tdistill.models.tokenizer import check_same_vocabulary, eos_token_ids, load_tokenizer, tokenizer_fingerprint
from tdistill.models.vocabulary import vocabulary_size
from tdistill.objectives import bind
from tdistill.runtime.errors import ModelError, OutputError
from tdistill.runtime.files import write_json
from tdistill.runtime.progress import say
from tdistill.training.finite import check_start

INFO_FILE = "models.json"


def models_settings(run: Run) -> dict[str, Any]:
    """Return the settings that shape the models stage's content."""
    student = run.recipe.student
    settings = {"teacher": run.teacher_fingerprint, "student": student.model_dump()}
    if student.init == "pretrained":
        settings["start"] = weights_fingerprint(find_model(str(student.student_model_name_or_path)))
    return settings


def make_models(run: Run, directory: Path) -> dict[str, Any]:
    """Save the student's start, and the teacher if it is a GGUF.

    Raises:
        ModelError: a model can't be loaded or pruned, the vocabularies do not fit, or a model lacks a property (see ``probe``).
        ConfigError: the recipe's adapters do not fit the student.
    """
    recipe = run.recipe
    teacher = load_model(run.teacher_source, "float32", recipe.teacher.trust_remote_code)
    tokenizer = load_tokenizer(run.teacher_source, recipe.teacher.trust_remote_code)
    if recipe.train.lm is not None:
        check_window(recipe.train.lm.corpus, read_documents(recipe.train.lm.corpus), tokenizer, recipe.train.lm.window)
    eos_ids = eos_token_ids(teacher, tokenizer)
    avoid = [*eos_ids, *tokenizer.all_special_ids]
    probe(teacher, f"teacher {run.teacher_source.name}", vocabulary_size(tokenizer, {"teacher": teacher}, eos_ids), avoid=avoid)
    start, layers = _make_start(run, teacher, tokenizer)
    check_start(start, f"student {_start_name(run)}")
    vocab = vocabulary_size(tokenizer, {"teacher": teacher, "student": start}, eos_ids)
    probe(start, f"student {_start_name(run)}", vocab, avoid, hidden=_has_value_head(run))
    for name, model in {"teacher": teacher, "start": start}.items():
        if name == "start" or run.teacher_source.gguf_file:  # reading a GGUF takes far longer than its weights would
            model.save_pretrained(directory / name)
            tokenizer.save_pretrained(directory / name)
            check_saved(model, find_model(str(directory / name)), _trust(run, name))
    info = {
        "eos_ids": eos_ids,
        "vocab_size": vocab,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "template": template_fingerprint(tokenizer),
        "layers": layers,
        "parameters": {"teacher": _size(teacher), "start": _size(start)},
    }
    if recipe.train.peft is not None:
        add_lora(start, recipe.train.peft.lora)  # only to see before the roll-outs that the adapters fit: the start is saved
    write_json(directory / INFO_FILE, info)
    return {"layers": layers, "parameters": info["parameters"]}


def _make_start(run: Run, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedModel, list[int] | None]:
    """Return the student's start, and the teacher's layers that it has, if it is pruned."""
    student = run.recipe.student
    if student.init == "prune":
        total = teacher.config.get_text_config().num_hidden_layers
        layers = student.keep_layers or outer_layers(total, int(student.num_hidden_layers or 0))
        check_layer_count(total, len(layers))
        say(f"student: layers {layers} of the teacher's {total}")
        return prune_layers(teacher, layers), layers
    source = find_model(str(student.student_model_name_or_path))
    own = load_tokenizer(source, student.trust_remote_code)
    check_same_vocabulary(tokenizer, own, (run.teacher_source.name, source.name))
    return load_model(source, "float32", student.trust_remote_code), None


def check_saved(model: PreTrainedModel, saved: ModelSource, trust_remote_code: bool) -> None:
    """Check that a saved model is read back as it was.

    Raises:
        ModelError: it is not; a configuration may not hold all that the model was built from.
    """
    loaded = load_model(saved, "float32", trust_remote_code)
    ids = torch.arange(1, 9).unsqueeze(0)
    with torch.inference_mode():
        same = torch.allclose(loaded(input_ids=ids).logits, model.float()(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    if not same:
        raise ModelError(f"{type(model).__name__} saved to {saved.directory} and loaded again gives other logits: use another architecture.")


def _trust(run: Run, name: str) -> bool:
    return run.recipe.teacher.trust_remote_code if name == "teacher" else student_trust(run)


def _start_name(run: Run) -> str:
    return "pruned from it" if run.recipe.student.init == "prune" else str(run.recipe.student.student_model_name_or_path)


def _has_value_head(run: Run) -> bool:
    train = run.recipe.train
    every = [train.objective, *(b.objective for b in train.baselines.values())]
    return any(VALUES & bind(objective).needs for objective in every)


def _size(model: PreTrainedModel) -> int:
    return sum(p.numel() for p in model.parameters())


def teacher_directory(run: Run) -> ModelSource:
    """Return the teacher as later stages load it."""
    return find_model(str(run.directory("models") / "teacher")) if run.teacher_source.gguf_file else run.teacher_source


def load_teacher(run: Run, dtype: str | None = None) -> PreTrainedModel:
    """Load the teacher in the recipe's dtype, or another, on the device where it computes."""
    config = run.recipe.teacher
    teacher = load_model(teacher_directory(run), dtype or config.dtype, config.trust_remote_code, config.quantization)
    if not config.quantization:
        return teacher.to(compute_device())
    # The models stage probed the weights before they were quantised.
    probe(teacher, f"teacher {run.teacher_source.name}, quantised", vocab_size(run), avoid=models_info(run)["eos_ids"])
    return teacher


def student_tokenizer(run: Run) -> PreTrainedTokenizerBase:
    """Return the tokenizer saved with the student's start.

    Raises:
        OutputError: its chat template is another than the models stage used, such as that of a file laid beside it since.
    """
    directory = run.directory("models")
    tokenizer = load_tokenizer(find_model(str(directory / "start")), run.recipe.teacher.trust_remote_code)
    if template_fingerprint(tokenizer) != models_info(run)["template"]:
        raise OutputError(
            f"The chat template in {directory / 'start'} is not the one that the models stage saved there. Put the right one back "
            f"(chat_template.jinja, tokenizer_config.json), or {remedy(directory / INFO_FILE)}"
        )
    return tokenizer


def student_trust(run: Run) -> bool:
    """Return whether the student's code may run: a pruned student's is the teacher's."""
    student, teacher = run.recipe.student, run.recipe.teacher
    return student.trust_remote_code or (student.init == "prune" and teacher.trust_remote_code)


def vocab_size(run: Run) -> int:
    """Return V, the bound on token ids that the models stage took from the tokenizer and both heads.

    Raises:
        ModelError: an older tdistill made the models stage.
    """
    found = models_info(run).get("vocab_size")
    if not isinstance(found, int) or found < 1:
        directory = run.directory("models")
        raise ModelError(f"{directory / INFO_FILE} has no vocab_size: an older tdistill wrote it. Delete {directory} and run again.")
    return found


def models_info(run: Run) -> dict[str, Any]:
    """Return end-of-text ids, fingerprints, layers kept and sizes, as the models stage noted them.

    Raises:
        OutputError: the file is missing or damaged.
    """
    return read_run_file(run.directory("models") / INFO_FILE, ModelsForm)
