"""Turn a record into a conversation that ends with a question, and the answers to it.

Nothing in a record that belongs to the prompt is left out: what can't be used is refused.
"""

import re
from collections.abc import Mapping, Sequence
from reprlib import repr as short
from typing import Any

from tdistill.runtime.errors import DataError
from tdistill.runtime.textfiles import checked_text

FORMS = ("messages", "prompt", "instruction")
ANSWERS = ("completion", "output", "response")
EXTRAS = ("input", "context")
# Columns that would change what the model reads, were they read.
UNREAD = ("system", "system_prompt", "history", "tools", "functions", "image", "images", "audio", "audios", "video", "videos")
UNREAD_IN_MESSAGE = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
COLUMNS = (
    "`messages` (role, content), `prompt` (a text or messages), or `instruction` with `input` or `context`; an answer stands in "
    "`completion`, `output` or `response`, or is the last of the `messages`"
)
Turn = dict[str, str]
_ROLE = re.compile(r"[\w-]{1,40}")


def conversation(where: str, record: Mapping[str, Any]) -> tuple[list[Turn], list[str]]:
    """Return the turns of a record, the last of them a user's, and the answers to it.

    A column that is null counts as one that is not there.

    Raises:
        DataError: no prompt, several that differ, an empty one, no text where a text is needed, or a column that can't be used.
    """
    given = {name: value for name, value in record.items() if value is not None}
    unread = [name for name in UNREAD if given.get(name)]
    if unread:
        raise DataError(f"{where}: the column `{unread[0]}` is not read. Put what belongs to the prompt into `messages`, or remove it.")
    turns, answers = _turns(where, given), _answers(where, given)
    if turns[-1]["role"] == "assistant":
        last = [text for text in (turns.pop()["content"],) if text.strip()]
        if answers and last and answers != last:
            raise DataError(f"{where}: the messages end with an answer, and the column with the answer has another. Remove one.")
        answers = last or answers
    if not turns or turns[-1]["role"] != "user":
        raise DataError(f"{where}: the conversation must end with a user's turn, or with one and the assistant's answer to it.")
    if not turns[-1]["content"].strip():
        raise DataError(f"{where}: the prompt must be non-empty text, got {short(turns[-1]['content'])}.")
    return turns, answers


def _turns(where: str, given: Mapping[str, Any]) -> list[Turn]:
    forms = [form for form in FORMS if form in given]
    if not forms:
        raise DataError(f"{where}: no prompt; expected {COLUMNS}, got the keys {short(sorted(map(str, given)))}.")
    found = {form: _form(where, form, given) for form in forms}
    turns = found[forms[0]]
    if len(forms) > 1 and not (forms == ["messages", "prompt"] and _same_prompt(turns, found["prompt"])):
        raise DataError(f"{where}: {' and '.join(f'`{form}`' for form in forms)} are both here, and not the same prompt. Remove one.")
    for name in EXTRAS:
        extra = given.get(name)
        read = isinstance(extra, str) and any(extra.strip() in turn["content"] for turn in turns)
        if "instruction" not in given and extra and not read:
            raise DataError(f"{where}: `{name}` is not part of the `{forms[0]}`. Put it there, name the prompt `instruction`, or remove it.")
    return turns


def _non_empty(where: str, column: str, value: Any) -> str:
    text = checked_text(where, column, value)
    if not text.strip():
        raise DataError(f"{where}: `{column}` must be non-empty text, got {short(text)}.")
    return text


def _form(where: str, form: str, given: Mapping[str, Any]) -> list[Turn]:
    value = given[form]
    if form == "instruction":
        text, extra = _non_empty(where, form, value), _extra(where, given)
        return [{"role": "user", "content": f"{text}\n\n{extra}" if extra else text}]
    if form == "prompt" and not isinstance(value, list):
        return [{"role": "user", "content": _non_empty(where, form, value)}]
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: `{form}` must be a non-empty list of {{role, content}}, got {short(value)}.")
    return [_turn(where, message) for message in value]


def _same_prompt(messages: Sequence[Turn], prompt: Sequence[Turn]) -> bool:
    """Tell whether ``prompt`` is the first turns of ``messages``, or its first user turn, as in UltraChat."""
    users = [turn for turn in messages if turn["role"] == "user"]
    return list(messages[: len(prompt)]) == list(prompt) or users[:1] == list(prompt)


def _extra(where: str, given: Mapping[str, Any]) -> str:
    texts = {name: checked_text(where, name, given[name]) for name in EXTRAS if given.get(name)}
    if len(set(texts.values())) > 1:
        raise DataError(f"{where}: `input` and `context` are both here, and differ. Remove one.")
    return next(iter(texts.values()), "")


def _turn(where: str, message: Any) -> Turn:
    if not isinstance(message, dict):
        raise DataError(f"{where}: messages must be objects with `role` and `content`, got {short(message)}.")
    unread = [name for name in UNREAD_IN_MESSAGE if message.get(name)]
    if unread:
        raise DataError(f"{where}: `{unread[0]}` in a message is not read. Put what the model shall read into `content`.")
    return {"role": checked_role(where, message.get("role")), "content": _content(where, message.get("content"))}


def checked_role(where: str, role: Any) -> str:
    """Return a role that is one word.

    Raises:
        DataError: it is none: a template writes roles as they are, and a control token's name in one would be a control token.
    """
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise DataError(f"{where}: a message's `role` must be a word such as user, got {short(role)}.")
    return role


def _content(where: str, value: Any) -> str:
    """Return a message's text, which may come in parts."""
    if not isinstance(value, list):
        return checked_text(where, "content", value)
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type", "text") != "text" or "text" not in part:
            raise DataError(f'{where}: a part of a message must be {{"type": "text", "text": …}}, got {short(part)}.')
        texts.append(checked_text(where, "text", part["text"]))
    return "".join(texts)


def _answers(where: str, given: Mapping[str, Any]) -> list[str]:
    """Return the texts of the answer column; leave empty ones out."""
    found = {name: _texts(where, name, given[name]) for name in ANSWERS if name in given}
    texts = [answers for answers in found.values() if answers]
    if any(answers != texts[0] for answers in texts):
        raise DataError(f"{where}: {' and '.join(f'`{name}`' for name in found)} hold different answers. Remove all but one.")
    return texts[0] if texts else []


def _texts(where: str, name: str, value: Any) -> list[str]:
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):  # TRL's conversational completion
        if len(value) != 1:
            raise DataError(f"{where}: `{name}` as messages must be one assistant's turn, got {len(value)} items.")
        turn = _turn(where, value[0])
        if turn["role"] != "assistant":
            raise DataError(f"{where}: `{name}` must be an assistant's turn, got the role {turn['role']!r}.")
        value = turn["content"]
    texts = value if isinstance(value, list) else [value]
    return [text for text in (checked_text(where, name, text) for text in texts) if text.strip()]
