"""Roll out a prompt set into a cache, shard by shard; a rerun keeps the finished ones."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import tdistill
from tdistill.cache.write import Manifest, Response, finish_cache, shard_is_done, write_shard
from tdistill.data.prompts import TokenizedPrompt
from tdistill.models.control import TextEncoder, turn_end
from tdistill.models.vocabulary import vocabulary_size
from tdistill.runtime.files import remove_partial
from tdistill.runtime.progress import bar
from tdistill.teachers.generate import Generated, Sampling, batch_plan, generate_batch
from tdistill.teachers.score import score_batch


@dataclass(frozen=True)
class Capture:
    """Set what is recorded for every token, and in which batches."""

    teacher_top_p: float
    max_candidates: int | None
    num_generations: int
    batch_size: int
    shard_batches: int  # batches in a shard: what a kill can cost


def cache_settings(
    sampling: Sampling,
    capture: Capture,
    fingerprints: dict[str, str],
    eos_ids: Sequence[int],
    prompts: Sequence[TokenizedPrompt],
) -> dict[str, Any]:
    """Return all that shapes a cache's content; it is stored in the manifest and in every shard."""
    return {
        **asdict(sampling),
        **asdict(capture),
        **fingerprints,
        "eos_ids": list(eos_ids),
        "prompts": [p.prompt.prompt_id for p in prompts],
    }


def roll_out(
    load_teacher: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[TokenizedPrompt],
    directory: Path,
    sampling: Sampling,
    capture: Capture,
    fingerprints: dict[str, str],
    eos_ids: Sequence[int],
    human: bool = False,
    title: str = "roll-out",
    vocab_size: int | None = None,
) -> Manifest:
    """Answer every prompt ``num_generations`` times and write the cache; with ``human``, score the prompts' references instead.

    Args:
        load_teacher: called only if a shard is missing.
        tokenizer: decodes the texts, and reads the references.
        prompts: the prompt list; it fixes the batch plan.
        directory: the cache's directory; finished shards in it are kept.
        sampling: how responses are drawn.
        capture: what is recorded, and the batch plan.
        fingerprints: fingerprints of ``teacher``, ``tokenizer`` and ``template``.
        eos_ids: ids that end a response.
        human: take the references as responses.
        title: title of the progress bar.
        vocab_size: V, of teacher and student; by default of the tokenizer and the teacher (see ``vocabulary.vocabulary_size``).
    """
    plan = (
        _human_plan(prompts, tokenizer, sampling, capture, eos_ids)
        if human
        else batch_plan(prompts, capture.num_generations, capture.batch_size)
    )
    origin = "human" if human else "teacher"
    settings = cache_settings(sampling, capture, fingerprints, eos_ids, prompts) | {"origin": origin}
    teacher, kept = lru_cache(load_teacher), (capture.teacher_top_p, capture.max_candidates)

    def answer(batch: Any) -> list[Generated]:
        vocab = vocab_size or vocabulary_size(tokenizer, {"teacher": teacher()}, eos_ids)
        if human:
            return score_batch(teacher(), batch, eos_ids, vocab, *kept)
        return generate_batch(teacher(), batch, sampling, eos_ids, vocab, *kept)

    return write_rollouts(plan, answer, tokenizer, directory, capture.shard_batches, settings, (origin, fingerprints["teacher"]), title)


def write_rollouts(
    plan: Sequence[Sequence[Any]],
    answer: Callable[[Any], list[Generated]],
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    shard_batches: int,
    settings: dict[str, Any],
    author: tuple[str, str],
    title: str | None,
) -> Manifest:
    """Answer the missing shards of a plan, batch by batch, and finish the cache.

    Args:
        plan: batches; ``answer`` turns each into responses.
        answer: called only for what is missing.
        tokenizer: decodes the texts.
        directory: the cache's directory.
        shard_batches: batches in a shard.
        settings: all that shapes the content.
        author: the origin, and the policy's id.
        title: title of the progress bar; None: no bar.
    """
    directory.mkdir(parents=True, exist_ok=True)
    remove_partial(directory)
    shards = [plan[i : i + shard_batches] for i in range(0, len(plan), shard_batches)]
    missing = [i for i in range(len(shards)) if not shard_is_done(directory, i, settings)]
    total = sum(map(len, plan))
    done = total - sum(len(batch) for i in missing for batch in shards[i])
    with bar(title, total, "responses", done) if title and missing else nullcontext() as progress:
        for index in missing:
            rows: list[Response] = []
            for batch in shards[index]:
                rows += [to_response(g, tokenizer, author[1], author[0]) for g in answer(batch)]
                if progress is not None:
                    progress.advance(len(batch))
            write_shard(directory, index, rows, settings)
    return finish_cache(directory, settings, len(shards), tdistill.__version__)


def _human_plan(
    prompts: Sequence[TokenizedPrompt],
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    capture: Capture,
    eos_ids: Sequence[int],
) -> list[list[tuple[TokenizedPrompt, list[int]]]]:
    """Return (prompt, response ids) of every reference, in batches.

    A reference ends with the token that ends a turn in the chat template, unless the length limit cuts it off. Control tokens' names in it
    are text.

    Raises:
        DataError: the tokenizer can't read such a name as text.
    """
    ends: tuple[int | None, ...] = (turn_end(tokenizer), tokenizer.eos_token_id, eos_ids[0])
    end = next(i for i in ends if i is not None and i in eos_ids)
    answered = [(p, text) for p in prompts for text in p.prompt.references]
    rows = TextEncoder(tokenizer).encode_texts([text for _, text in answered], [f"{p.prompt.place}, the answer" for p, _ in answered])
    pairs = [(p, [*row, end][: sampling.max_completion_length]) for (p, _), row in zip(answered, rows, strict=True)]
    pairs.sort(key=lambda pair: (-len(pair[0].ids) - len(pair[1]), pair[0].prompt.prompt_id))
    return [pairs[i : i + capture.batch_size] for i in range(0, len(pairs), capture.batch_size)]


def to_response(row: Generated, tokenizer: PreTrainedTokenizerBase, policy_id: str, origin: str) -> Response:
    """Turn a generated or scored row into the cache's types."""
    behaviour = np.asarray(row.behaviour_logp, dtype=np.float32) if row.behaviour_logp else None
    return Response(
        prompt_id=row.prompt.prompt.prompt_id,
        sample_index=row.sample_index,
        origin=origin,
        policy_id=policy_id if origin != "human" else "human",
        prompt_ids=np.asarray(row.prompt.ids, dtype=np.uint32),
        response_ids=np.asarray(row.tokens, dtype=np.uint32),
        finished=row.finished,
        text=tokenizer.decode(row.text_tokens, skip_special_tokens=True),
        candidate_count=np.asarray([len(c) for c in row.candidate_ids], dtype=np.int32),
        kept_mass=np.asarray(row.kept_mass, dtype=np.float32),
        token_logp=np.asarray(row.token_logp, dtype=np.float32),
        behaviour_logp=behaviour,
        candidate_ids=np.concatenate(row.candidate_ids).astype(np.uint32),
        candidate_logp=np.concatenate(row.candidate_logp).astype(np.float16),
    )
