"""Prompts from JSONL, Parquet or a hub data set, and how a tokenizer's template renders them."""

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tdistill.errors import DataError

COLUMNS = "`prompt`, `messages`, `prompt` + `completion`, or `instruction` / `input` / `output` (as in Alpaca; in Dolly `context` / `response`)"
INSTRUCTION_TEMPLATE = "### Instruction:\n{prompt}\n\n### Response:\n"


@dataclass(frozen=True)
class Prompt:
    """One prompt as a conversation that waits for an answer, and the answers that came with it."""

    prompt_id: str  # from the content, so that it does not depend on the file's order
    messages: tuple[dict[str, str], ...]
    references: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The last user turn, for people to read."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the model reads it."""

    prompt: Prompt
    ids: tuple[int, ...]


def load_prompts(source: str) -> list[Prompt]:
    """Read prompts from a ``.jsonl`` / ``.jsonl.gz`` / ``.parquet`` file or a hub data set (``owner/name`` or ``owner/name:split``).

    A prompt that occurs twice is kept twice, with ids of its own.

    Raises:
        DataError: nothing there, no records, a line that is no UTF-8 or no JSON object, a record without a prompt; file and
            line are named.
    """
    path = Path(source).expanduser()
    if path.suffix in {".jsonl", ".json", ".gz"} or path.name.endswith(".jsonl.gz"):
        records = _read_jsonl(path)
    elif path.suffix == ".parquet":
        records = _read_parquet(path)
    else:
        records = _read_hub(source)
    prompts: list[Prompt] = []
    seen: Counter[str] = Counter()
    for where, record in records:
        messages, references = _conversation(where, record)
        digest = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()[:16]
        seen[digest] += 1
        unique = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        prompts.append(Prompt(unique, tuple(messages), tuple(references)))
    if not prompts:
        raise DataError(f"{source} holds no prompts: give at least one record with {COLUMNS}.")
    return prompts


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise DataError(f"No prompt file at {path}.")
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as handle:
            lines = handle.readlines()
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path} can't be read: {error}") from error
    for number, raw in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 (byte {error.start} is 0x{raw[error.start]:02x}).") from None
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON: {error.msg} at column {error.colno}.") from None
        if not isinstance(record, dict):
            raise DataError(f"{where}: expected an object with {COLUMNS}, got {type(record).__name__}.")
        yield where, record


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError(f"No prompt file at {path}.")
    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is no readable Parquet file: {error}") from error
    yield from ((f"{path}, row {i}", row) for i, row in enumerate(rows))


def _read_hub(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    name, _, split = source.partition(":")
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise DataError(f"No prompts at {source!r}: expected a .jsonl, .jsonl.gz or .parquet file, or a hub data set's owner/name.")
    try:
        rows = datasets.load_dataset(name, split=split or "train")
    except (datasets.exceptions.DatasetNotFoundError, OSError, ValueError) as error:
        raise DataError(f"Can't load {source!r} from the hub ({type(error).__name__}: {error}), and no such file is here.") from error
    yield from ((f"{source}, row {i}", dict(row)) for i, row in enumerate(rows))


def _conversation(where: str, record: dict[str, Any]) -> tuple[list[dict[str, str]], list[str]]:
    if "messages" in record:
        return _from_messages(where, record["messages"], None)
    if "prompt" in record:
        prompt, completion = record["prompt"], record.get("completion")
        if isinstance(prompt, list):
            return _from_messages(where, prompt, completion)
        return [_user(where, "prompt", prompt)], _references(where, completion)
    if "instruction" in record:
        column = "context" if "context" in record and "input" not in record else "input"
        extra = record.get(column) or ""
        if not isinstance(extra, str):
            raise DataError(f"{where}: `{column}` must be text, got {type(extra).__name__}.")
        user = _user(where, "instruction", record["instruction"])
        if extra:
            user = {"role": "user", "content": f"{user['content']}\n\n{extra}"}
        return [user], _references(where, record["output"] if "output" in record else record.get("response"))
    raise DataError(f"{where}: no prompt; expected {COLUMNS}, got the keys {sorted(record)}.")


def _user(where: str, column: str, text: Any) -> dict[str, str]:
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: `{column}` must be non-empty text, got {text!r:.60}.")
    return {"role": "user", "content": text}


def _from_messages(where: str, messages: Any, completion: Any) -> tuple[list[dict[str, str]], list[str]]:
    ok = (
        isinstance(messages, list)
        and messages
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages)
    )
    if not ok:
        raise DataError(f"{where}: messages must be a non-empty list of {{role, content}}, got {messages!r:.80}.")
    turns = [{"role": m["role"], "content": m["content"]} for m in messages]
    references = _references(where, completion)
    if turns[-1]["role"] == "assistant":
        references = [turns.pop()["content"], *references]
    if not turns or turns[-1]["role"] != "user":
        raise DataError(f"{where}: the conversation must end with a user's turn, or one and the assistant's answer to it.")
    return turns, references


def _references(where: str, value: Any) -> list[str]:
    if value is None or value == "":
        return []
    if isinstance(value, list) and value and isinstance(value[0], dict):  # TRL's conversational completion
        value = [turn.get("content") for turn in value]
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: the answer must be text or a list of texts, got {value!r:.60}.")
    return list(texts)


def render(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[int, ...]:
    """Token ids of a prompt, up to where the answer starts: the tokenizer's chat template, else an instruction template."""
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
        return tuple(tokenizer(text, add_special_tokens=False).input_ids)
    text = "\n\n".join(m["content"] for m in prompt.messages)
    ids = tokenizer(INSTRUCTION_TEMPLATE.format(prompt=text)).input_ids
    return tuple(ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids)


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits of the template that ``render`` uses."""
    template = tokenizer.chat_template or INSTRUCTION_TEMPLATE
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:16]


def tokenize_prompts(
    prompts: list[Prompt], tokenizer: PreTrainedTokenizerBase, max_prompt_length: int, overlong: str
) -> tuple[list[TokenizedPrompt], int]:
    """Render prompts; those over ``max_prompt_length`` tokens are dropped and counted, or refused.

    Raises:
        DataError: ``overlong="refuse"`` and a prompt is too long, or none is left.
    """
    rendered = [TokenizedPrompt(p, render(tokenizer, p)) for p in prompts]
    fitting = [p for p in rendered if len(p.ids) <= max_prompt_length]
    skipped = len(rendered) - len(fitting)
    if skipped and (overlong == "refuse" or not fitting):
        longest = max(rendered, key=lambda p: len(p.ids))
        raise DataError(
            f"{skipped} of {len(rendered)} prompts are longer than {max_prompt_length} tokens (the longest has {len(longest.ids)}: "
            f"{longest.prompt.text!r:.60}). Raise data.max_prompt_length, shorten them, or set data.overlong: skip."
        )
    return fitting, skipped
