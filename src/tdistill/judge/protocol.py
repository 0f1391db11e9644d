"""Define OpenAI's chat protocol as values: what is sent, what comes back, and what a server's error means."""

import ipaddress
import json
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Annotated, Any

import httpx2
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from tdistill.runtime.errors import ConfigError, visible

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
TEMPERATURE, SEED = 0.0, 0
LONGEST_QUOTE = 300  # characters of a server's message in an error
LONGEST_BODY = 8 << 20  # bytes of a reply: a reasoning judge's longest is far below
MOST_TOKENS = 10**9  # of one reply: what is above is no count
ZLIB_OR_GZIP = 47  # zlib's "wbits" that reads both formats


@dataclass(frozen=True)
class Reply:
    """Hold a model's reply and the token counts that the server reported."""

    content: str
    refusal: str | None = None
    finish_reason: str | None = None
    served_model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def _text(value: Any) -> str | None:
    """Return a text; None for anything else, since a field that is no text says nothing."""
    return value if isinstance(value, str) else None


def _content(value: Any) -> Any:
    """Join the text parts of a content that is given in parts."""
    if isinstance(value, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value):
        return "".join(part["text"] for part in value)
    return value


def _count(value: Any) -> int | None:
    """Return a number of tokens; None for anything that can't be one."""
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None


OptionalText = Annotated[str | None, BeforeValidator(_text)]
OptionalCount = Annotated[int | None, BeforeValidator(_count)]


class _Message(BaseModel):
    content: Annotated[str | None, BeforeValidator(_content)] = None
    refusal: OptionalText = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: OptionalText = None


class _Usage(BaseModel):
    prompt_tokens: OptionalCount = None
    completion_tokens: OptionalCount = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: Annotated[_Usage | None, BeforeValidator(lambda value: value if isinstance(value, dict) else None)] = None
    model: OptionalText = None


class _ErrorBody(BaseModel):
    message: str
    param: OptionalText = None


class _Error(BaseModel):
    """Parse the shapes in which servers put their message."""

    error: _ErrorBody | str | None = None
    message: OptionalText = None
    detail: OptionalText = None


def read_key(variable: str) -> str | None:
    """Return the key in an environment variable, or None if OPENAI_API_KEY is not set: a local server needs no key.

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
    """Return ``base_url`` without its last slash.

    Raises:
        ConfigError: it is no http(s) address, or holds a password or a query, which would end up in files.
    """
    try:
        url = httpx2.URL(base_url)
        base_url.encode()
    except (httpx2.InvalidURL, UnicodeError, ValueError) as error:
        raise ConfigError(f"--base-url is no address: {error}. Give one such as http://localhost:8000/v1") from None
    if url.userinfo or url.query or url.fragment:
        raise ConfigError("--base-url must hold no user, password, query or fragment: the key comes from an environment variable.")
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"--base-url must be an http(s) address such as http://localhost:8000/v1, got {base_url!r:.80}.")
    return base_url.rstrip("/")


def key_warning(base_url: str, key: str | None) -> str | None:
    """Return a warning where a key would go over plain http to another machine; None where it would not."""
    url = httpx2.URL(base_url)
    if not key or url.scheme == "https" or _is_this_machine(url.host):
        return None
    return f"warning   the key goes to {url.host} over plain http: everybody on the way can read it. Give an https address."


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def retry_after_s(header: str | None, now: float) -> float | None:
    """Return the seconds that a Retry-After header asks for, as a number or as a date; None for any other text."""
    if header is None:
        return None
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", header.strip()):
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):  # what the standard library raises for dates that are none
        return None


def body_text(data: bytes, encoding: str, content_type: str) -> str | None:
    """Turn the bytes of a reply into text: inflate them, and decode any Unicode encoding. A byte that is no text becomes U+FFFD.

    Args:
        data: the body, at most ``LONGEST_BODY`` bytes.
        encoding: the header Content-Encoding.
        content_type: the header Content-Type.

    Returns:
        The text; None if the body is packed in another way than gzip or deflate, is damaged, or inflates to more than ``LONGEST_BODY``.
    """
    if encoding.strip().lower() in ("gzip", "x-gzip", "deflate"):
        unpack = zlib.decompressobj(ZLIB_OR_GZIP)
        try:
            data = unpack.decompress(data, LONGEST_BODY + 1)
        except zlib.error:
            return None
        if len(data) > LONGEST_BODY or not unpack.eof:
            return None
    elif encoding.strip().lower() not in ("", "identity"):
        return None
    about = Message()
    about["content-type"] = content_type
    named = about.get_content_charset("")
    # JSON is UTF-8, 16 or 32, which its first bytes tell; a server's own words may be in an encoding that it names.
    detected = json.detect_encoding(data)
    text = data.decode(named if detected == "utf-8" and _is_codec(named) else detected, "replace")
    return text.replace("\x00", "")


def _is_codec(name: str) -> bool:
    try:
        b" ".decode(name)
    except (LookupError, ValueError):
        return False
    return bool(name)


def first_options(max_tokens: int) -> dict[str, Any]:
    """Return the options of the first request. Options that the server refuses are dropped later."""
    return {"temperature": TEMPERATURE, "seed": SEED, "max_tokens": max_tokens}


def without_refused(options: dict[str, Any], text: str) -> dict[str, Any] | None:
    """Return ``options`` without the one that a server's error names; None if it names none.

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
    """Read a chat completion from a server's JSON; None if it holds none. Every text in it passes through ``clean``."""
    try:
        completion = _Completion.model_validate(_loaded(text))
    except ValidationError:
        return None
    choice, usage = completion.choices[0], completion.usage or _Usage()
    texts = (choice.message.refusal, choice.finish_reason, completion.model)
    refusal, finish_reason, model = (t and clean(_whole(t)) for t in texts)
    content = clean(_whole(choice.message.content or ""))
    return Reply(content, refusal, finish_reason, model, usage.prompt_tokens, usage.completion_tokens)


def _loaded(text: str) -> Any:
    """Parse JSON; return None for a text that is not JSON, is nested too deeply or has too many digits for Python."""
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return None


def _whole(text: str) -> str:
    """Replace halves of surrogate pairs, which a server sends where it cuts an emoji: no file can hold them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def quote(text: str, clean: Callable[[str], str]) -> str:
    """Return a server's message on one line, from its JSON if it sent JSON. The text passes through ``clean`` before it is cut."""
    body = _error(text)
    error = body.error.message if isinstance(body.error, _ErrorBody) else body.error
    line = " ".join(visible(error or body.message or body.detail or text).split())
    return clean(line)[:LONGEST_QUOTE] or "(no message)"


def _error(text: str) -> _Error:
    try:
        return _Error.model_validate(_loaded(text))
    except ValidationError:
        return _Error()
