"""``rollout``: the teacher's answers to all three prompt sets."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tdistill.config import CandidateRuleConfig
from tdistill.data.dataset import RolloutDataset
from tdistill.errors import CacheError, ConfigError, DataError
from tdistill.mdp.candidates import CandidateRule
from tdistill.models import read_config
from tdistill.pipeline import Run
from tdistill.progress import say
from tdistill.rollout.generate import Sampling
from tdistill.rollout.manifest_form import MANIFEST
from tdistill.rollout.prompts import TokenizedPrompt, load_prompts, tokenize_prompts
from tdistill.rollout.run import Capture, roll_out
from tdistill.run_files import remedy
from tdistill.stages.models import load_teacher, models_info, student_tokenizer

SPLITS = ("train", "valid", "test")


def rollout_settings(run: Run) -> dict[str, Any]:
    """What shapes the roll-outs."""
    recipe = run.recipe
    files = {split: content_hash(getattr(recipe.data, split)) for split in SPLITS}
    return {
        "files": files,
        "data": recipe.data.model_dump(exclude=set(SPLITS)),
        "rollout": recipe.rollout.model_dump(),
        "dtype": recipe.teacher.dtype,
        "seed": recipe.seed,
    } | ({"quantization": recipe.teacher.quantization} if recipe.teacher.quantization else {})


def content_hash(source: str) -> str:
    """Of a file; a hub id stands for itself."""
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


def make_rollouts(run: Run, directory: Path) -> dict[str, Any]:
    """Let the teacher answer all three prompt sets.

    Raises:
        DataError: a prompt set can't be used, or prompts and answers do not fit the context.
    """
    recipe, tokenizer, info = run.recipe, student_tokenizer(run), models_info(run)
    c = recipe.rollout
    check_context(run, read_config(run.directory("models") / "start"))
    load = lru_cache(partial(load_teacher, run))
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
            manifest = roll_out(load, tokenizer, prompts, directory / name, sampling, capture, fingerprints(run), info["eos_ids"], scored, name)
            notes[name] = {
                **manifest.counts,
                "skipped_prompts": skipped,
                "checksum": manifest.checksum,
                "candidate_logp_max_error": manifest.candidate_logp_max_error,
            }
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


def fingerprints(run: Run) -> dict[str, str]:
    """What a cache must have been made with to be this run's."""
    info = models_info(run)
    return {"teacher": run.teacher_fingerprint, "tokenizer": info["tokenizer"], "template": info["template"]}


def cache(
    run: Run, split: str, p: float | None = None, origins: Sequence[str] | None = None, rule: CandidateRuleConfig | None = None
) -> RolloutDataset:
    """Return a split's roll-outs as a data set, checked to be those that the roll-out stage made with this teacher.

    Raises:
        CacheError: see ``open_cache``; or they are another run's.
    """
    human = list(origins or []) == ["human"]
    directory = run.directory("rollout") / (f"{split}-human" if human else split)
    if origins and len(origins) > 1:
        raise ConfigError(f"origins {origins}: train on one of teacher and human at a time.")
    cut = CandidateRule(rule.name, rule.value) if rule else None
    data = RolloutDataset(directory, p, tuple(origins or ["teacher"]), fingerprints(run), cut, vocabulary(run))
    noted = run.read_stage("rollout")["notes"].get(directory.name)
    if noted is None or noted["checksum"] != data.manifest.checksum:
        raise CacheError(f"{directory} is not the cache that the roll-out stage made. Put it back, or {remedy(directory / MANIFEST)}")
    return data


def vocabulary(run: Run) -> int:
    """Return the bound that token ids lie below."""
    info = models_info(run)
    return info.get("vocab_size") or max(student_tokenizer(run).get_vocab().values()) + 1
