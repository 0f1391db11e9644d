"""Render chat templates within bounds of memory and time. A template is a program that comes with a tokenizer, so it is not trusted.

It runs in a forked process: an expression such as ``'x' * 10**8`` can take any amount of memory and a loop any time, and limits on this
process would disturb everything else in it.
"""

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NoReturn

from transformers import PreTrainedTokenizerBase

from tdistill.runtime.errors import DataError

MOST_BYTES = 512 << 20  # of memory beyond what the process has when it starts
MOST_CPU_SECONDS = 10.0  # for one conversation
MOST_SECONDS = 120.0  # for one conversation, by the clock: far more, since the machine may be busy
MOST_CHARACTERS, MOST_GROWTH = 1_000_000, 4  # a rendering may have MOST_CHARACTERS + MOST_GROWTH · those of the conversation
ADVICE = "Mend the chat template (chat_template.jinja or tokenizer_config.json beside the model)."
_TEXT, _PROBLEM = b"t", b"p"
_CLOCK, _ANY_CLOCK = re.compile(r"""\bstrftime_now\(\s*(["'])([^"'\\]*)\1\s*\)"""), re.compile(r"\bstrftime_now\s*\(")


def render_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[dict[str, str]]],
    where: Sequence[str],
    add_generation_prompt: bool = True,
) -> list[str]:
    """Render conversations with a tokenizer's chat template.

    Args:
        tokenizer: has a ``chat_template``.
        conversations: each a sequence of ``{role, content}``.
        where: the place of each conversation, such as file and line, for messages.
        add_generation_prompt: end with the text that comes before an answer.

    Raises:
        DataError: the template does not parse, raises, writes nothing or too much, or needs too much memory or time.
    """
    if not conversations:
        return []
    reader, writer = Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        _serve(tokenizer, conversations, add_generation_prompt, writer)
    writer.close()
    texts: list[str] = []
    try:
        for place in where:
            texts.append(_received(reader, place))
    except EOFError:
        pass  # the process ended; its status says why
    finally:
        reader.close()
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if len(texts) < len(where):
        slow = os.waitstatus_to_exitcode(status) == -signal.SIGPROF
        why = f"took more than {MOST_CPU_SECONDS:g} s of processor time" if slow else "ended its process: out of memory, or nested too deeply"
        raise DataError(f"{where[len(texts)]}: the chat template {why}. {ADVICE}")
    return texts


def _received(reader: Connection, where: str) -> str:
    if not reader.poll(MOST_SECONDS):
        raise DataError(f"{where}: the chat template did not end within {MOST_SECONDS:g} s. {ADVICE}")
    answer = reader.recv_bytes()
    text = answer[1:].decode("utf-8")
    if answer[:1] == _PROBLEM:
        raise DataError(f"{where}: the chat template {text}")
    return text


def _serve(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[dict[str, str]]], add_generation_prompt: bool, writer: Connection
) -> NoReturn:
    """Render in the forked process, and end it without the exit handlers of its parent."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPROF):
            signal.signal(number, signal.SIG_DFL)
        _limit_memory()
        for turns in conversations:
            signal.setitimer(signal.ITIMER_PROF, MOST_CPU_SECONDS)
            writer.send_bytes(_rendered(tokenizer, [dict(turn) for turn in turns], add_generation_prompt))
    except OSError:
        pass  # the reader is gone
    finally:
        os._exit(0)


def _limit_memory() -> None:
    if sys.platform == "linux":  # elsewhere the size is not told, or the limit not kept
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = size + MOST_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, Any]], add_generation_prompt: bool) -> bytes:
    most = MOST_CHARACTERS + MOST_GROWTH * sum(len(turn["content"]) for turn in turns)
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
        if not isinstance(text, str) or not text.strip():
            return _PROBLEM + f"writes nothing for these turns ({_roles(turns)}). {ADVICE}".encode()
        if len(text) > most:
            return _PROBLEM + f"writes {len(text):,} characters, more than {most:,}. {ADVICE}".encode()
        return _TEXT + text.encode("utf-8")
    except MemoryError:
        return _PROBLEM + f"needs more than {MOST_BYTES >> 20} MiB of memory. {ADVICE}".encode()
    except Exception as error:  # a template is foreign code, which may raise anything; nothing of ours runs here
        said = f"fails on these turns ({_roles(turns)}) with {type(error).__name__}: {error!s:.500}. "
        return _PROBLEM + f"{said}{ADVICE} Or give conversations that it accepts.".encode("utf-8", "backslashreplace")


def _roles(turns: list[dict[str, Any]]) -> str:
    roles = [str(turn["role"]) for turn in turns[:8]]
    return ", ".join(roles) + (", …" if len(turns) > len(roles) else "")


def pin_clock(tokenizer: PreTrainedTokenizerBase, now: datetime) -> None:
    """Replace every ``strftime_now("…")`` in a tokenizer's chat templates by the text that it writes at ``now``.

    Otherwise a prompt that is rendered tomorrow has other tokens than the same prompt today.

    Raises:
        DataError: a template calls ``strftime_now`` with something else than one text in quotes.
    """
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        tokenizer.chat_template = {name: _pinned(text, now) for name, text in templates.items()}
    elif templates is not None:
        tokenizer.chat_template = _pinned(templates, now)


def _pinned(template: str, now: datetime) -> str:
    pinned = _CLOCK.sub(lambda call: json.dumps(now.strftime(call[2]), ensure_ascii=False), template)
    if _ANY_CLOCK.search(pinned):
        raise DataError(f"The chat template reads the clock with a format that is not a text in quotes (strftime_now). {ADVICE}")
    return pinned


ANSWER = "The answer stands here."


def text_after_answer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text that the chat template writes after the last answer of a conversation; "" if it can't be found.

    It can't be found if the template refuses a question with its answer, or leaves the answer out.
    """
    if tokenizer.chat_template is None:
        return ""
    turns = [{"role": "user", "content": "Which question?"}, {"role": "assistant", "content": ANSWER}]
    try:
        (text,) = render_conversations(tokenizer, [turns], ["the chat template"], add_generation_prompt=False)
    except DataError:
        return ""
    return text.rpartition(ANSWER)[2] if ANSWER in text else ""
