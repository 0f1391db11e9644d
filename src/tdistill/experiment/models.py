"""Make what all students share: the teacher's fast form, its tokenizer and facts, and the student's start."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tdistill.data.corpus import check_window, read_documents
from tdistill.data.prompts import template_fingerprint
from tdistill.experiment.artefact import Artefact
from tdistill.experiment.experiment import Experiment, once
from tdistill.models.attention import check_training_attention
from tdistill.models.find import ModelSource, find_model
from tdistill.models.fingerprint import model_identity, weights_fingerprint
from tdistill.models.load import compute_device, load_model
from tdistill.models.lora import add_lora
from tdistill.models.probe import probe
from tdistill.models.prune import check_layer_count, outer_layers, prune_layers
from tdistill.models.templates import pin_clock
from tdistill.models.tokenizer import check_same_vocabulary, eos_token_ids, load_tokenizer, tokenizer_fingerprint
from tdistill.models.value_head import VALUES
from tdistill.models.vocabulary import vocabulary_size
from tdistill.objectives import bind
from tdistill.recipe.schema import Recipe
from tdistill.runtime.errors import ModelError
from tdistill.runtime.forms import Count, Form, Name, Positive
from tdistill.runtime.progress import say
from tdistill.training.finite import check_start

FORMAT = 1


class TeacherNotes(Form):
    """Declare what the teacher's artefact notes."""

    eos_ids: list[Count] = Field(min_length=1)
    vocab_size: Positive
    weights: Name
    tokenizer: Name
    template: Name
    parameters: Positive


class StartNotes(Form):
    """Declare what the start's artefact notes."""

    vocab_size: Positive
    layers: list[Count] | None
    parameters: Positive


@once
def teacher(experiment: Experiment) -> Artefact:
    """Return the teacher: its tokenizer and, if it is a GGUF file, its weights in a form that loads fast."""

    def make(directory: Path) -> dict[str, Any]:
        return _make_teacher(experiment, directory)

    settings = {"model": model_identity(experiment.teacher_source, experiment.recipe.teacher.trust_remote_code)}
    return Artefact(experiment.root, "teacher", "teacher", settings, make, format=FORMAT, notes_form=TeacherNotes)


@once
def start(experiment: Experiment) -> Artefact:
    """Return the student before any training: some of the teacher's layers, or a pretrained model."""

    def make(directory: Path) -> dict[str, Any]:
        return _make_start(experiment, directory)

    student = experiment.recipe.student
    settings: dict[str, Any] = {"init": student.init}
    if student.init == "pretrained":
        settings["model"] = model_identity(find_model(str(student.student_model_name_or_path)), student.trust_remote_code)
    else:
        settings |= {"num_hidden_layers": student.num_hidden_layers, "keep_layers": student.keep_layers}
    inputs = {"teacher": teacher(experiment)}
    return Artefact(experiment.root, "start", "start", settings, make, inputs, format=FORMAT, notes_form=StartNotes)


def _make_teacher(experiment: Experiment, directory: Path) -> dict[str, Any]:
    """Save the teacher's tokenizer, and its weights if they are those of a GGUF file, whose reading takes far longer.

    Raises:
        ModelError: the model can't be loaded, or lacks a property (see ``probe``).
    """
    source, trust = experiment.teacher_source, experiment.recipe.teacher.trust_remote_code
    model, tokenizer = load_model(source, "float32", trust), load_tokenizer(source, trust)
    template = tokenizer.chat_template
    pin_clock(tokenizer, datetime.now())
    if tokenizer.chat_template != template:
        say("The chat template writes the date: it is pinned to today's, so that every prompt of this run is rendered alike.")
    eos_ids = eos_token_ids(model, tokenizer)
    vocab = vocabulary_size(tokenizer, {"teacher": model}, eos_ids)
    probe(model, f"teacher {source.name}", vocab, avoid=[*eos_ids, *tokenizer.all_special_ids])
    tokenizer.save_pretrained(directory)
    if source.gguf_file:
        model.save_pretrained(directory)
        check_saved(model, find_model(str(directory)), trust)
    return {
        "name": source.name,
        "eos_ids": list(eos_ids),
        "vocab_size": vocab,
        "weights": weights_fingerprint(source),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "template": template_fingerprint(tokenizer),
        "parameters": _size(model),
    }


def _make_start(experiment: Experiment, directory: Path) -> dict[str, Any]:
    """Save the student's start.

    Raises:
        ModelError: it can't be loaded or pruned, its vocabulary is not the teacher's, or it lacks a property (see ``probe``).
    """
    recipe, tokenizer, facts = experiment.recipe, load_own_tokenizer(experiment), teacher_notes(experiment)
    name = "pruned from it" if recipe.student.init == "prune" else str(recipe.student.student_model_name_or_path)
    model, layers = _start_model(experiment, tokenizer)
    check_start(model, f"student {name}")
    vocab = vocabulary_size(tokenizer, {"student": model}, facts["eos_ids"])
    probe(model, f"student {name}", vocab, [*facts["eos_ids"], *tokenizer.all_special_ids])
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    check_saved(model, find_model(str(directory)), trusts_student(experiment))
    return {"layers": layers, "vocab_size": min(vocab, facts["vocab_size"]), "parameters": _size(model)}


def check_training(experiment: Experiment) -> None:
    """Check before the roll-outs that adapters fit the start, the objectives' heads read it, and the corpus has a window.

    Raises:
        ConfigError, DataError, ModelError: they do not.
    """
    recipe = experiment.recipe
    if recipe.train.lm is not None:
        documents = read_documents(recipe.train.lm.corpus)
        check_window(recipe.train.lm.corpus, documents, load_own_tokenizer(experiment), recipe.train.lm.window)
    attention = recipe.student.attn_implementation
    if attention is not None or recipe.train.peft is not None or _has_value_head(experiment):
        source, trust = find_model(str(start(experiment).directory)), trusts_student(experiment)
        model = load_model(source, "float32", trust, attn_implementation=attention)
        if attention is not None:
            for precision in _precisions(recipe):
                check_training_attention(model, "student.attn_implementation", precision)
            model = model.cpu()
        if _has_value_head(experiment):
            probe(model, "student", vocab_size(experiment), teacher_notes(experiment)["eos_ids"], hidden=True)
        if recipe.train.peft is not None:
            add_lora(model, recipe.train.peft.lora)


def _precisions(recipe: Recipe) -> list[torch.dtype | None]:
    """Return the dtypes that the training runs of a recipe compute in; None: that of the weights."""
    runs = [m.arguments for m in recipe.train.methods().values()] + ([recipe.sft.arguments] if recipe.sft else [])
    found = {torch.bfloat16 if a.get("bf16") else torch.float16 if a.get("fp16") else None for a in runs}
    return sorted(found, key=str)


def computing(experiment: Experiment) -> dict[str, Any]:
    """Return how models compute while they are evaluated, for the settings of artefacts. Attention stands in it only where a recipe sets it."""
    recipe = experiment.recipe
    named = {"teacher": recipe.teacher.attn_implementation, "student": recipe.student.attn_implementation}
    chosen = {who: name for who, name in named.items() if name is not None}
    return {"dtype": recipe.evaluation.dtype} | ({"attn_implementation": chosen} if chosen else {})


def _start_model(experiment: Experiment, tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedModel, list[int] | None]:
    """Return the student's start, and the teacher's layers that it has, if it is pruned."""
    student = experiment.recipe.student
    if student.init == "prune":
        whole = load_model(teacher_files(experiment), "float32", experiment.recipe.teacher.trust_remote_code)
        total = whole.config.get_text_config().num_hidden_layers
        layers = student.keep_layers or outer_layers(total, int(student.num_hidden_layers or 0))
        check_layer_count(total, len(layers))
        say(f"student: layers {layers} of the teacher's {total}")
        return prune_layers(whole, layers), layers
    source = find_model(str(student.student_model_name_or_path))
    own = load_tokenizer(source, student.trust_remote_code)
    check_same_vocabulary(tokenizer, own, (experiment.teacher_source.name, source.name))
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


def _has_value_head(experiment: Experiment) -> bool:
    return any(VALUES & bind(method.objective).needs for method in experiment.recipe.train.methods().values())


def _size(model: PreTrainedModel) -> int:
    return sum(p.numel() for p in model.parameters())


def teacher_files(experiment: Experiment) -> ModelSource:
    """Return the teacher as later artefacts load it."""
    source = experiment.teacher_source
    return find_model(str(teacher(experiment).directory)) if source.gguf_file else source


def load_teacher(experiment: Experiment, dtype: str | None = None) -> PreTrainedModel:
    """Load the teacher in the recipe's dtype, or another, on the device where it computes."""
    config = experiment.recipe.teacher
    given = config.trust_remote_code, config.quantization, config.attn_implementation
    model = load_model(teacher_files(experiment), dtype or config.dtype, *given)
    if not config.quantization:
        return model.to(compute_device())
    # The weights were probed before they were quantised.
    probe(model, f"teacher {experiment.teacher_source.name}, quantised", vocab_size(experiment), avoid=teacher_notes(experiment)["eos_ids"])
    return model


def load_own_tokenizer(experiment: Experiment) -> PreTrainedTokenizerBase:
    """Load the tokenizer that was saved with the teacher's artefact."""
    directory = teacher(experiment).directory
    experiment.notes(teacher(experiment))  # the files are checked
    return load_tokenizer(ModelSource(str(directory), directory), experiment.recipe.teacher.trust_remote_code)


def trusts_student(experiment: Experiment) -> bool:
    """Return whether the student's code may run: a pruned student's is the teacher's."""
    recipe = experiment.recipe
    return recipe.student.trust_remote_code or (recipe.student.init == "prune" and recipe.teacher.trust_remote_code)


def teacher_notes(experiment: Experiment) -> dict[str, Any]:
    """Return the teacher's end-of-text ids, vocabulary, fingerprints and size.

    Raises:
        OutputError: the artefact is not complete, or is damaged.
    """
    return experiment.notes(teacher(experiment))


def vocab_size(experiment: Experiment) -> int:
    """Return V, the bound on token ids from the tokenizer and the heads of teacher and start.

    Raises:
        OutputError: an artefact is not complete, or is damaged.
    """
    return int(experiment.notes(start(experiment))["vocab_size"])


def fingerprints(experiment: Experiment) -> Mapping[str, str]:
    """Return the fingerprints that a cache must have been made with to belong to this experiment."""
    notes = teacher_notes(experiment)
    return {"teacher": notes["weights"], "tokenizer": notes["tokenizer"], "template": notes["template"]}
