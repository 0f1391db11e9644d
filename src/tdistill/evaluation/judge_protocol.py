"""OpenAI's chat protocol as values: what is sent, what comes back, and what a server means by an error."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
from pydantic import BaseModel, Field, ValidationError

from tdistill.errors import ConfigError, visible

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
TEMPERATURE, SEED = 0.0, 0
LONGEST_QUOTE = 300  # characters of a server's message in an error


@dataclass(frozen=True)
class Reply:
    """What a model said, and what the server says it took."""

    content: str
    refusal: str | None = None
    finish_reason: str | None = None
    served_model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None
    model: str | None = None


class _ErrorBody(BaseModel):
    message: str
    param: str | None = None


class _Error(BaseModel):
    """The shapes in which servers put their message."""

    error: _ErrorBody | str | None = None
    message: str | None = None
    detail: str | None = None


def read_key(variable: str) -> str | None:
    """The key that an environment variable holds; None if OPENAI_API_KEY is not set, for a local server needs none.

    Raises:
        ConfigError: another variable was named and is not set, or the key can't stand in a header. The key is never shown.
    """
    key = os.environ.get(variable, "").strip()
    if not key and variable != DEFAULT_KEY_VARIABLE:
        raise ConfigError("--api-key-env must name an environment variable that is set, and holds the key (not be the key itself).")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"The key in {variable} holds spaces or characters that no header can carry. Export it again, in one line.")
    return key or None


def check_url(base_url: str) -> str:
    """``base_url`` without its last slash.

    Raises:
        ConfigError: it is no http(s) address, or holds a password or a query, which would end up in files.
    """
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"--base-url is no address: {error}. Give one such as http://localhost:8000/v1") from None
    if url.userinfo or url.query or url.fragment:
        raise ConfigError("--base-url must hold no user, password, query or fragment: the key comes from an environment variable.")
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"--base-url must be an http(s) address such as http://localhost:8000/v1, got {base_url!r}.")
    return base_url.rstrip("/")


def retry_after_s(header: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date; None for neither."""
    if header is None:
        return None
    if re.fullmatch(r"\d+(\.\d+)?", header.strip()):
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - now)
    except ValueError:
        return None


def first_options(max_tokens: int) -> dict[str, Any]:
    """What is asked of a server beside the reply, until it refuses some of it."""
    return {"temperature": TEMPERATURE, "seed": SEED, "max_tokens": max_tokens}


def without_refused(options: dict[str, Any], text: str) -> dict[str, Any] | None:
    """``options`` without the one that a server's error names; None if it names none.

    Newer models of OpenAI take ``max_completion_tokens`` for ``max_tokens``, and no temperature; some servers take no seed.
    Some errors quote the whole request: what matters least is then the first to go.
    """
    named = [name for name in ("seed", "max_tokens", "temperature") if name in options and re.search(rf"\b{name}\b", text)]
    if not named:
        return None
    error = _error(text).error
    param = error.param if isinstance(error, _ErrorBody) else None
    refused = param if param in named else named[0]
    left = {k: v for k, v in options.items() if k != refused}
    return left | {"max_completion_tokens": options["max_tokens"]} if refused == "max_tokens" else left


def read_reply(text: str, clean: Callable[[str], str]) -> Reply | None:
    """A chat completion out of a server's JSON, every text of it passed through ``clean``; None if it is none."""
    try:
        completion = _Completion.model_validate_json(text)
    except ValidationError:
        return None
    choice, usage = completion.choices[0], completion.usage or _Usage()
    texts = (choice.message.refusal, choice.finish_reason, completion.model)
    refusal, finish_reason, model = (t and clean(t) for t in texts)
    content = clean(choice.message.content or "")
    return Reply(content, refusal, finish_reason, model, usage.prompt_tokens, usage.completion_tokens)


def quote(text: str, clean: Callable[[str], str]) -> str:
    """A server's own message on one line, out of its JSON where it is that, passed through ``clean`` before it is cut."""
    body = _error(text)
    error = body.error.message if isinstance(body.error, _ErrorBody) else body.error
    line = " ".join(visible(error or body.message or body.detail or text).split())
    return clean(line)[:LONGEST_QUOTE] or "(no message)"


def _error(text: str) -> _Error:
    try:
        return _Error.model_validate_json(text)
    except ValidationError:
        return _Error()
