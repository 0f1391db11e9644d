"""What each stage does; ``pipeline`` decides whether it has to."""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tdistill.config import SftConfig, TrainConfig
from tdistill.data.dataset import RolloutDataset
from tdistill.errors import ConfigError, DataError, ModelError
from tdistill.evaluation.run import EvaluatedSystem, Protocol, evaluate_systems
from tdistill.model_card import write_model_card
from tdistill.models import (
    ModelSource,
    check_same_vocabulary,
    eos_token_ids,
    find_model,
    load_model,
    load_tokenizer,
    model_fingerprint,
    read_config,
    tokenizer_fingerprint,
)
from tdistill.objectives import bind
from tdistill.pipeline import Run, StageSpec
from tdistill.progress import say
from tdistill.prune import check_layer_count, outer_layers, prune_layers
from tdistill.rollout.generate import Sampling
from tdistill.rollout.prompts import TokenizedPrompt, load_prompts, template_fingerprint, tokenize_prompts
from tdistill.rollout.run import Capture, roll_out
from tdistill.training.run import train_student

SPLITS = ("train", "valid", "test")
INFO_FILE = "models.json"


# --- models: the teacher where its form can't be read fast, and the student's start


def _models_settings(run: Run) -> dict[str, Any]:
    student = run.recipe.student
    settings = {"teacher": run.teacher_fingerprint, "student": student.model_dump()}
    if student.init == "pretrained":
        settings["start"] = model_fingerprint(find_model(str(student.student_model_name_or_path)))
    return settings


def _models(run: Run, directory: Path) -> dict[str, Any]:
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
    (directory / INFO_FILE).write_text(json.dumps(info))
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


def _load_teacher(run: Run, dtype: str | None = None) -> PreTrainedModel:
    return load_model(teacher_directory(run), dtype or run.recipe.teacher.dtype, run.recipe.teacher.trust_remote_code)


def _tokenizer(run: Run) -> PreTrainedTokenizerBase:
    return load_tokenizer(find_model(str(run.directory("models") / "start")))


def _info(run: Run) -> dict[str, Any]:
    return json.loads((run.directory("models") / INFO_FILE).read_text())


# --- rollout: the teacher's answers to all three prompt sets


def _rollout_settings(run: Run) -> dict[str, Any]:
    recipe = run.recipe
    files = {split: _content(getattr(recipe.data, split)) for split in SPLITS}
    return {
        "files": files,
        "data": recipe.data.model_dump(exclude=set(SPLITS)),
        "rollout": recipe.rollout.model_dump(),
        "dtype": recipe.teacher.dtype,
        "seed": recipe.seed,
    }


def _content(source: str) -> str:
    path = Path(source).expanduser()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else source


def read_prompts(run: Run, split: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[TokenizedPrompt], int]:
    """The prompts of a split, cut to the recipe's limit, and how many were too long.

    Raises:
        DataError: see ``load_prompts`` and ``tokenize_prompts``.
    """
    data = run.recipe.data
    prompts = load_prompts(getattr(data, split))[: getattr(data, f"max_{split}_prompts")]
    return tokenize_prompts(prompts, tokenizer, data.max_prompt_length, data.overlong)


def _rollout(run: Run, directory: Path) -> dict[str, Any]:
    recipe, tokenizer, info = run.recipe, _tokenizer(run), _info(run)
    c = recipe.rollout
    check_context(run, read_config(run.directory("models") / "start"))
    load = lru_cache(partial(_load_teacher, run))
    sampling = Sampling(c.temperature, c.top_p or c.teacher_top_p, c.top_k, c.max_completion_length, recipe.seed)
    capture = Capture(c.teacher_top_p, c.max_candidates, c.num_generations, c.batch_size, c.shard_batches)
    notes: dict[str, Any] = {}
    # All three are read before the first token is drawn: a bad test file must not cost an hour of roll-outs.
    sets = {split: read_prompts(run, split, tokenizer) for split in SPLITS}
    for split, (prompts, skipped) in sets.items():
        if skipped:
            say(f"{split}: {skipped} prompts over {recipe.data.max_prompt_length} tokens skipped")
        human = [False, True] if c.score_references and any(p.prompt.references for p in prompts) else [False]
        for scored in human:
            name = f"{split}-human" if scored else split
            manifest = roll_out(
                load, tokenizer, prompts, directory / name, sampling, capture, _fingerprints(run), info["eos_ids"], scored, name
            )
            notes[name] = {**manifest.counts, "skipped_prompts": skipped, "checksum": manifest.checksum}
    return notes


def check_context(run: Run, config: dict[str, Any]) -> None:
    """Raise ``DataError`` if prompts and answers at their longest do not fit the model's context."""
    data = run.recipe.data
    context = config.get("max_position_embeddings") or config.get("n_positions")
    wanted = data.max_prompt_length + run.recipe.rollout.max_completion_length
    if context and wanted > context:
        raise DataError(
            f"data.max_prompt_length + rollout.max_completion_length = {wanted} tokens, but the model's context is {context}: lower one."
        )


def _fingerprints(run: Run) -> dict[str, str]:
    info = _info(run)
    return {"teacher": run.teacher_fingerprint, "tokenizer": info["tokenizer"], "template": info["template"]}


def cache(run: Run, split: str, p: float | None = None, origins: Sequence[str] | None = None) -> RolloutDataset:
    """A split's roll-outs as a data set, checked to be this teacher's."""
    human = list(origins or []) == ["human"]
    directory = run.directory("rollout") / (f"{split}-human" if human else split)
    if origins and len(origins) > 1:
        raise ConfigError(f"origins {origins}: train on one of teacher and human at a time.")
    return RolloutDataset(directory, p, tuple(origins or ["teacher"]), _fingerprints(run))


# --- sft and train


def _sft_settings(run: Run) -> dict[str, Any]:
    assert run.recipe.sft is not None
    return {"sft": run.recipe.sft.model_dump(), "seed": run.recipe.seed}


def _sft(run: Run, directory: Path) -> dict[str, Any]:
    assert run.recipe.sft is not None
    return _train_one(run, run.directory("models") / "start", directory, "sft", {"name": "nll"}, run.recipe.sft)


def _train_settings(run: Run) -> dict[str, Any]:
    return {"train": run.recipe.train.model_dump(), "seed": run.recipe.seed}


def train_systems(run: Run) -> dict[str, Any]:
    """Name → objective of all that the train stage makes: the baselines, then the distilled student."""
    return {**run.recipe.train.baselines, "distilled": run.recipe.train.objective}


def start_directory(run: Run) -> Path:
    """Where distillation starts: the SFT student, or the pruned or pretrained start."""
    return run.directory("sft") if "sft" in run.stages else run.directory("models") / "start"


def _train(run: Run, directory: Path) -> dict[str, Any]:
    notes = {}
    for name, objective in train_systems(run).items():
        target = directory / name
        if (target / "done.json").exists():
            notes[name] = json.loads((target / "done.json").read_text())
            continue
        notes[name] = _train_one(run, start_directory(run), target, name, objective, run.recipe.train)
        (target / "done.json").write_text(json.dumps(notes[name]))
    return notes


def _train_one(run: Run, start: Path, directory: Path, name: str, objective: Any, config: SftConfig | TrainConfig) -> dict[str, Any]:
    p = config.teacher_top_p if isinstance(config, TrainConfig) else None
    origins, bound, tokenizer = list(config.origins), bind(objective), _tokenizer(run)
    metrics = train_student(
        start,
        directory,
        bound,
        cache(run, "train", p, origins),
        cache(run, "valid", p, origins),
        tokenizer,
        config.arguments,
        run.recipe.seed,
        name,
        load_teacher=partial(_load_teacher, run),
        keep_checkpoints=isinstance(config, TrainConfig) and config.keep_checkpoints,
        trust_remote_code=run.recipe.student.trust_remote_code,
    )
    write_model_card(directory, run, name, bound.describe(), metrics)
    return {"objective": bound.describe(), "validation": metrics}


# --- evaluate and report


def _evaluate_settings(run: Run) -> dict[str, Any]:
    return {"evaluation": run.recipe.evaluation.model_dump(), "seed": run.recipe.seed}


def systems(run: Run) -> list[EvaluatedSystem]:
    """Everything the report compares, the teacher first."""
    dtype, trust = run.recipe.evaluation.dtype, run.recipe.student.trust_remote_code

    def load(directory: Path) -> PreTrainedModel:
        return load_model(find_model(str(directory)), dtype, trust)

    found = [
        EvaluatedSystem("teacher", run.teacher_source.name, partial(_load_teacher, run, dtype)),
        EvaluatedSystem("start", "the student before any training", partial(load, run.directory("models") / "start")),
    ]
    if "sft" in run.stages:
        found.append(EvaluatedSystem("sft", "the start after supervised fine-tuning", partial(load, run.directory("sft"))))
    for name, objective in train_systems(run).items():
        found.append(EvaluatedSystem(name, bind(objective).describe(), partial(load, run.directory("train") / name)))
    return found


def protocol(run: Run) -> Protocol:
    """What is the same for every system."""
    recipe, tokenizer = run.recipe, _tokenizer(run)
    prompts, _ = read_prompts(run, "test", tokenizer)
    held_out = cache(run, "test")
    if recipe.evaluation.reference == "human":
        references = {p.prompt.prompt_id: list(p.prompt.references) for p in prompts}
        if not any(references.values()):
            raise DataError(f"evaluation.reference: human, but {recipe.data.test} has no answers. Use reference: teacher.")
    else:
        references = {p.prompt.prompt_id: [] for p in prompts}
        for i in range(len(held_out)):
            references[held_out.prompt_id(i)].append(held_out.text(i))
    length = recipe.evaluation.max_completion_length or recipe.rollout.max_completion_length
    return Protocol(recipe.evaluation, prompts, held_out, references, tokenizer, _info(run)["eos_ids"], length, recipe.seed)


def _evaluate(run: Run, directory: Path) -> dict[str, Any]:
    shared = protocol(run)
    evaluate_systems(systems(run), partial(_load_teacher, run, run.recipe.evaluation.dtype), shared, directory)
    return {"protocol": shared.describe(), "systems": [s.name for s in systems(run)]}


def _report_settings(run: Run) -> dict[str, Any]:
    return {"title": run.recipe.title, "shown": run.recipe.evaluation.num_samples_shown}


def _report(run: Run, directory: Path) -> dict[str, Any]:
    from tdistill.report.collect import collect
    from tdistill.report.render import write_report

    markdown, page = write_report(collect(run), directory)
    return {"markdown": markdown.name, "page": page.name}


STAGES: dict[str, StageSpec] = {
    "models": StageSpec((), _models_settings, _models),
    "rollout": StageSpec(("models",), _rollout_settings, _rollout),
    "sft": StageSpec(("models", "rollout"), _sft_settings, _sft),
    "train": StageSpec(("models", "rollout", "sft"), _train_settings, _train),
    "evaluate": StageSpec(("models", "rollout", "sft", "train"), _evaluate_settings, _evaluate),
    "report": StageSpec(("evaluate",), _report_settings, _report),
}
