"""Roll out a prompt set into a cache, shard by shard; a rerun keeps the finished shards."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tdistill.cache.read import finished_shards, read_manifest
from tdistill.cache.schema import MANIFEST, PLAN, CacheManifest, Response, to_row
from tdistill.cache.write import finish_cache, free_numbers, write_shard
from tdistill.data.prompts import TokenizedPrompt
from tdistill.models.control import TextEncoder, turn_end
from tdistill.models.vocabulary import Vocabulary, vocabulary_size
from tdistill.recipe.schema import RolloutConfig
from tdistill.runtime.errors import CacheError
from tdistill.runtime.files import remove_partial
from tdistill.runtime.progress import bar
from tdistill.teachers.transformers import generate_batch, score_batch

# A prompt, and the index of the sample to draw or the response to score.
Item = tuple[TokenizedPrompt, Any]


@dataclass(frozen=True)
class Teacher:
    """Hold a teacher that is loaded when its first answer is asked for.

    Args:
        load: loads the model; called once, and only if something is missing.
        tokenizer: reads the references and decodes the texts.
        eos_ids: ids that end a response.
        fingerprints: fingerprints of ``teacher``, ``tokenizer`` and ``template``, by which a cache is known.
        vocab_size: V of teacher and student; by default of the tokenizer and the teacher (see ``vocabulary.vocabulary_size``).
    """

    load: Callable[[], PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase
    eos_ids: Sequence[int]
    fingerprints: dict[str, str]
    vocab_size: int | None = None

    @cached_property
    def model(self) -> PreTrainedModel:
        """Return the model."""
        return self.load()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Return V and the ids that end a response."""
        size = self.vocab_size or vocabulary_size(self.tokenizer, {"teacher": self.model}, self.eos_ids)
        return Vocabulary(size, self.eos_ids)


def roll_out(
    teacher: Teacher,
    prompts: Sequence[TokenizedPrompt],
    directory: Path,
    rollout: RolloutConfig,
    human: bool = False,
    title: str = "roll-out",
) -> CacheManifest:
    """Answer every prompt ``num_generations`` times and write the cache; with ``human``, score the prompts' references instead.

    Args:
        teacher: answers and scores.
        prompts: what to answer.
        directory: the cache's directory; finished shards in it are kept.
        rollout: how responses are drawn, what is recorded, and the batch plan.
        human: take the references as responses.
        title: title of the progress bar.

    Raises:
        CacheError: a shard in the directory is damaged, or is of another cache.
        DataError: the tokenizer can't read a reference as text.
        ModelError: a prompt or response has a token outside the vocabulary, or the teacher's logits are not finite.
    """

    def answer(batch: Sequence[Item]) -> list[Response]:
        if human:
            return score_batch(teacher.model, batch, teacher.vocabulary, rollout)
        return generate_batch(teacher.model, batch, rollout, teacher.vocabulary, rollout)

    origin = "human" if human else "teacher"
    items = reference_items(prompts, teacher, rollout) if human else [(p, i) for p in prompts for i in range(rollout.num_generations)]
    settings = cache_settings(rollout, teacher.fingerprints, teacher.eos_ids, prompts) | {"origin": origin}
    return RolloutWriter(directory, settings, rollout, teacher.tokenizer, teacher.fingerprints["teacher"]).write(items, answer, title)


def cache_settings(
    rollout: RolloutConfig, fingerprints: dict[str, str], eos_ids: Sequence[int], prompts: Sequence[TokenizedPrompt]
) -> dict[str, Any]:
    """Return all that shapes a cache's content; it is stored in the manifest and in every shard.

    The batch plan is no part of it: the noise of a token belongs to the token, so a batch size chooses none.
    """
    content = rollout.model_dump(exclude={*PLAN, "score_references"})
    return {**content, **fingerprints, "eos_ids": list(eos_ids), "prompts": [p.prompt.prompt_id for p in prompts]}


@dataclass(frozen=True)
class RolloutWriter:
    """Write a cache of responses, in batches whose size is no part of its content.

    Args:
        directory: the cache's directory.
        settings: all that shapes the content, from ``cache_settings``, with the responses' ``origin``.
        rollout: its ``batch_size`` and ``shard_batches`` say in which batches the work is done.
        tokenizer: decodes the texts.
        policy_id: who wrote the responses.
    """

    directory: Path
    settings: dict[str, Any]
    rollout: RolloutConfig
    tokenizer: PreTrainedTokenizerBase
    policy_id: str

    def write(self, items: Sequence[Item], answer: Callable[[Sequence[Item]], list[Response]], title: str | None = None) -> CacheManifest:
        """Answer the items that no finished shard holds, batch by batch, and finish the cache.

        A shard is a run of whole batches in the order of the plan. So with the same batch size what is left gives the same batches, and
        the cache ends with the same bytes after a kill; with another one, the finished shards stay and the rest is planned anew.

        Args:
            items: all responses that the cache shall hold.
            answer: turns a batch of items into responses; called only for what is missing.
            title: title of the progress bar; None: no bar.

        Raises:
            CacheError: a shard is damaged, or holds a response that is none of ``items``.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        remove_partial(self.directory)
        plan, (left, taken) = self._plan(), self._left(items)
        batches = batch_plan(left, plan["batch_size"])
        runs = [batches[i : i + plan["shard_batches"]] for i in range(0, len(batches), plan["shard_batches"])]
        with bar(title, len(items), "responses", len(items) - len(left)) if title and left else nullcontext() as progress:
            for index, run in zip(free_numbers(self.directory, taken, len(runs)), runs, strict=True):
                rows: list[dict[str, Any]] = []
                for batch in run:
                    rows += [self._row(response) for response in answer(batch)]
                    if progress is not None:
                        progress.advance(len(batch))
                write_shard(self.directory, index, rows, self.settings)
        return finish_cache(self.directory, self.settings, len(taken) + len(runs), plan)

    def _plan(self) -> dict[str, int]:
        """Return the batch sizes: of the recipe, or of a finished cache that has lost a shard, which gets the same shard again."""
        earlier = read_manifest(self.directory) if (self.directory / MANIFEST).is_file() else None
        known = self.rollout if earlier is None else earlier.rollout
        return {name: getattr(known, name) for name in PLAN}

    def _left(self, items: Sequence[Item]) -> tuple[list[Item], set[int]]:
        """Return the items that no shard holds, and the numbers of the shards that exist."""
        have: Counter[Any] = Counter()
        taken = set()
        for number, table in finished_shards(self.directory, self.settings):
            taken.add(number)
            have.update(self._keys(table))
        left = []
        for item in items:
            key = (item[0].prompt.prompt_id, tuple(item[1]) if self._human else item[1])
            if have[key] > 0:  # an item may be asked for twice
                have[key] -= 1
            else:
                left.append(item)
        foreign = next((key for key, n in have.items() if n > 0), None)
        if foreign is not None:
            raise CacheError(
                f"{self.directory} holds a response to prompt {foreign[0]} that this roll-out does not ask for, or holds it twice. "
                "Use another output_dir, or delete the directory."
            )
        return left, taken

    @property
    def _human(self) -> bool:
        return bool(self.settings["origin"] == "human")

    def _keys(self, table: pa.Table) -> Iterator[tuple[str, Any]]:
        """Yield the key of every response: its prompt, and its sample's index or, for human text, its tokens."""
        second = map(tuple, table["response_ids"].to_pylist()) if self._human else table["sample_index"].to_pylist()
        return zip(table["prompt_id"].to_pylist(), second, strict=True)

    def _row(self, response: Response) -> dict[str, Any]:
        text = self.tokenizer.decode(response.text_ids, skip_special_tokens=True)
        return to_row(response, self.settings["origin"], self.policy_id, text)


def batch_plan(items: Iterable[Item], batch_size: int) -> list[list[Item]]:
    """Return items in batches, by descending length. Float logits move with a batch's shape, so only an equal plan gives equal bytes."""

    def order(item: Item) -> tuple[int, str, int]:
        prompt, asked = item
        length = len(prompt.ids) + (0 if isinstance(asked, int) else len(asked))
        return -length, prompt.prompt.prompt_id, asked if isinstance(asked, int) else 0

    ordered = sorted(items, key=order)
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]


def reference_items(prompts: Sequence[TokenizedPrompt], teacher: Teacher, rollout: RolloutConfig) -> list[tuple[TokenizedPrompt, list[int]]]:
    """Return (prompt, response ids) of every reference.

    A reference ends with the token that ends a turn in the chat template, unless the length limit cuts it off. Control tokens' names in it
    are text.

    Raises:
        DataError: the tokenizer can't read a control token's name as text.
    """
    tokenizer = teacher.tokenizer
    ends: tuple[int | None, ...] = (turn_end(tokenizer), tokenizer.eos_token_id, teacher.eos_ids[0])
    end = next(i for i in ends if i is not None and i in teacher.eos_ids)
    answered = [(p, text) for p in prompts for text in p.prompt.references]
    rows = TextEncoder(tokenizer).encode_texts([text for _, text in answered], [f"{p.prompt.place}, the answer" for p, _ in answered])
    return [(p, [*row, end][: rollout.max_completion_length]) for (p, _), row in zip(answered, rows, strict=True)]
