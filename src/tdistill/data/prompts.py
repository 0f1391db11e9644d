"""Read prompts from files or the hub, and render them to token ids by a tokenizer's chat template."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from tdistill.data.conversations import COLUMNS, checked_role, conversation
from tdistill.data.records import read_records
from tdistill.models.control import TextEncoder, restored
from tdistill.models.templates import ADVICE, render_conversations
from tdistill.runtime.errors import DataError
from tdistill.runtime.textfiles import checked_text

INSTRUCTION_TEMPLATE = "### Instruction:\n{prompt}\n\n### Response:\n"


@dataclass(frozen=True)
class Prompt:
    """Hold one prompt as a conversation that waits for an answer, and the answers that came with it."""

    prompt_id: str  # from the content, so that it does not depend on the file's order
    messages: tuple[dict[str, str], ...]
    references: tuple[str, ...] = ()
    where: str = field(default="", compare=False)  # file and line, for messages

    @property
    def text(self) -> str:
        """Return the last user turn, for people to read."""
        return self.messages[-1]["content"]

    @property
    def place(self) -> str:
        """Return where the prompt stands, or its id."""
        return self.where or f"prompt {self.prompt_id}"


@dataclass(frozen=True)
class TokenizedPrompt:
    """Hold a prompt as the model reads it."""

    prompt: Prompt
    ids: tuple[int, ...]


def load_prompts(source: str) -> list[Prompt]:
    """Read prompts from a ``.jsonl`` / ``.json`` / ``.parquet`` file (the first two also as ``.gz``) or a hub data set.

    A prompt that occurs twice is kept twice, with ids of its own.

    Args:
        source: a path, ``owner/name`` or ``owner/name:split`` (by default ``train``).

    Raises:
        DataError: nothing there, no records, a file that can't be read, a record without a prompt; file and line are named.
    """
    prompts: list[Prompt] = []
    seen: Counter[str] = Counter()
    for where, record in read_records(source):
        messages, references = conversation(where, record)
        digest = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()[:16]
        seen[digest] += 1
        unique = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        prompts.append(Prompt(unique, tuple(messages), tuple(references), where))
    if not prompts:
        raise DataError(f"{source} holds no prompts: give at least one record with {COLUMNS}.")
    return prompts


def prompt_set_key(prompts: Iterable[Prompt], with_references: bool) -> str:
    """Return 64 hex digits of prompts as they are used, in their order: a change of any prompt changes the key.

    The file is no part of the key: neither its path, nor its format, nor the order of the keys in a record.

    Args:
        prompts: the prompts, after they were cut and those that overlap were dropped.
        with_references: hash the answers that came with the prompts too.
    """
    used = [[p.prompt_id, list(p.messages), list(p.references) if with_references else []] for p in prompts]
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()


def render(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[int, ...]:
    """Return the token ids of one prompt; see ``render_prompts``."""
    return render_prompts(tokenizer, [prompt])[0]


def render_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    """Return the token ids of prompts, up to where the answer starts: the tokenizer's chat template, else an instruction template.

    Control tokens come from the template alone: their names in a prompt's text are text.

    Raises:
        DataError: the template can't be used, leaves a turn out, or the tokenizer can't read a text; the prompt is named.
    """
    encoder, template = TextEncoder(tokenizer), tokenizer.chat_template
    if template is None:
        return [_instruction(encoder, prompt, tokenizer.eos_token_id) for prompt in prompts]
    shielded = [_shielded(encoder, prompt, str(template)) for prompt in prompts]
    texts = render_conversations(tokenizer, [turns for turns, _ in shielded], [prompt.place for prompt in prompts])
    ids = []
    for prompt, text, (_, marks) in zip(prompts, texts, shielded, strict=True):
        _check_turns(prompt, restored(text, marks))
        ids.append(tuple(encoder.encode(text, marks, prompt.place)))
    return ids


def _shielded(encoder: TextEncoder, prompt: Prompt, template: str) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Return the prompt's turns with their control strings replaced by marks, and the marks."""
    roles = [checked_role(prompt.place, turn["role"]) for turn in prompt.messages]
    texts, marks = encoder.shield(_contents(prompt), template)
    return [{"role": role, "content": content} for role, content in zip(roles, texts, strict=True)], marks


def _contents(prompt: Prompt) -> list[str]:
    return [checked_text(prompt.place, "content", turn["content"]) for turn in prompt.messages]


def _instruction(encoder: TextEncoder, prompt: Prompt, eos: int | None) -> tuple[int, ...]:
    texts, marks = encoder.shield(_contents(prompt), INSTRUCTION_TEMPLATE)
    ids = encoder.encode(INSTRUCTION_TEMPLATE.format(prompt="\n\n".join(texts)), marks, prompt.place, special=True)
    return tuple(ids[:-1] if ids and ids[-1] == eos else ids)


def _check_turns(prompt: Prompt, rendered: str) -> None:
    """Refuse a rendering without one of the turns: two prompts that differ there would be the same to the model.

    White space may differ, and what an assistant thought before its answer may be left out, as templates of reasoning models do.
    """
    squeezed: str | None = None
    for turn in prompt.messages:
        content = turn["content"].rpartition("</think>")[2] if turn["role"] == "assistant" else turn["content"]
        if content.strip() in rendered:
            continue
        squeezed = "".join(rendered.split()) if squeezed is None else squeezed
        forms = (content, json.dumps(content, ensure_ascii=False)[1:-1])
        if not any("".join(form.split()) in squeezed for form in forms):
            raise DataError(
                f"{prompt.place}: the chat template does not write the {turn['role']} turn {content!r:.60} as it is, so prompts that differ "
                f"there would be the same. Give conversations without such a turn. Or: {ADVICE}"
            )


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 16 hex digits of the template that ``render`` uses."""
    template = INSTRUCTION_TEMPLATE if tokenizer.chat_template is None else tokenizer.chat_template
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:16]


def tokenize_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, max_prompt_length: int, overlong: str
) -> tuple[list[TokenizedPrompt], int]:
    """Render prompts; drop and count those over ``max_prompt_length`` tokens, or refuse them.

    Raises:
        DataError: ``overlong="refuse"`` and a prompt is too long, none is left, or see ``render_prompts``.
    """
    rendered = [TokenizedPrompt(p, ids) for p, ids in zip(prompts, render_prompts(tokenizer, prompts), strict=True)]
    fitting = [p for p in rendered if len(p.ids) <= max_prompt_length]
    skipped = len(rendered) - len(fitting)
    if skipped and (overlong == "refuse" or not fitting):
        longest = max(rendered, key=lambda p: len(p.ids))
        found = f"longer than data.max_prompt_length={max_prompt_length} tokens (the longest, {longest.prompt.place}, has {len(longest.ids)}"
        shortest = min(len(p.ids) for p in rendered)
        if fitting:
            raise DataError(
                f"{skipped} of {len(rendered)} prompts are {found}: {longest.prompt.text!r:.60}). "
                "Raise data.max_prompt_length, shorten them, or set data.overlong: skip."
            )
        raise DataError(
            f"All {len(rendered)} prompts are {found}, the shortest {shortest}), so data.overlong={overlong} leaves none. "
            "Raise data.max_prompt_length, or shorten the prompts."
        )
    return fitting, skipped
