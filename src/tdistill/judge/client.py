"""Send one question at a time to a chat endpoint and return its reply. The client waits for a busy server and never shows the key."""

import asyncio
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote as url_encoded

import httpx2

from tdistill.judge.protocol import LONGEST_BODY, Reply, body_text, first_options, quote, read_reply, retry_after_s, without_refused
from tdistill.runtime.errors import JudgeError

OK, BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 200, 400, 401, 403, 404
REQUEST_TIMEOUT, UNPROCESSABLE, TOO_MANY, SERVER_ERROR = 408, 422, 429, 500
SHORTEST_SECRET = 8  # a shorter key is a local server's dummy, such as EMPTY, and may be a word of a reply
HIDDEN = "[key]"


@dataclass(frozen=True)
class Retries:
    """Set how long to wait for a server: from ``first_wait_s`` up to ``longest_wait_s``, doubled each time, half of it random."""

    attempts: int = 6
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    longest_retry_after_s: float = 300.0  # a server that asks for more is given up

    def wait_s(self, failures: int, asked_s: float | None, chance: float) -> float:
        """Return the seconds to wait after ``failures`` failures in a row; ``chance`` in [0, 1) is the jitter.

        What the server asks for (Retry-After) is the least wait, jitter comes on top.
        """
        if asked_s is not None:
            return asked_s + chance * self.first_wait_s
        return min(self.longest_wait_s, self.first_wait_s * 2.0 ** (failures - 1)) * (1.0 + chance) / 2.0


@dataclass(frozen=True)
class Endpoint:
    """Set which model answers at which address, and how it is asked."""

    base_url: str
    model: str
    key: str | None = field(repr=False)
    max_tokens: int  # of a reply
    timeout_s: float  # of a whole request
    concurrency: int  # requests on their way at once


class EndpointDownError(JudgeError):
    """Report that one request was given up; others may still be answered."""


class _BusyError(Exception):
    """Report that the request is worth another attempt."""

    def __init__(self, reason: str, asked_s: float | None = None):
        super().__init__(reason)
        self.asked_s = asked_s


class ChatClient:
    """Send one user message at a time; threads may share the client. Its key stands in a request's header and nowhere else."""

    def __init__(self, endpoint: Endpoint, retries: Retries):
        self._url, self._model, self._key = f"{endpoint.base_url}/chat/completions", endpoint.model, endpoint.key
        self._timeout_s, self._retries = endpoint.timeout_s, retries
        self.options = first_options(endpoint.max_tokens)
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._refusal: JudgeError | None = None
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {})
        limits = httpx2.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
        # No redirects: they would carry the key to another host.
        self._http = httpx2.AsyncClient(headers=headers, timeout=None, limits=limits, follow_redirects=False)
        # Requests run in an event loop of their own, because only there can a whole request be given a deadline: a server that sends
        # one byte a second never exceeds the time-out of a single read.
        self._loop = asyncio.new_event_loop()
        self._runner = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._runner.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()
        asyncio.run_coroutine_threadsafe(self._http.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._runner.join()
        self._loop.close()

    def abort(self) -> None:
        """Give up the requests that are on their way: their threads see them as failed."""
        self.stop()
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()

    def stop(self) -> None:
        """Send nothing more: requests that would be tried again are given up."""
        self._stop.set()

    def complete(self, content: str, on_wait: Callable[[str], None]) -> Reply:
        """Return the model's reply to one user message. While it waits, it calls ``on_wait`` with the reason.

        Raises:
            EndpointDownError: no reply after all attempts (429, 5xx, time-outs, broken connections), or too long a Retry-After.
            JudgeError: the server refuses the request (any other status), or is no chat endpoint. Nothing is sent after that.
        """
        failures = 0
        while True:
            if self._refusal:
                raise self._refusal
            try:
                return self._ask(content)
            except JudgeError as error:
                self._refusal = error
                self.stop()
                raise
            except _BusyError as busy:
                failures += 1
                wait = self._retries.wait_s(failures, busy.asked_s, random.random())
                if failures == self._retries.attempts:
                    raise EndpointDownError(f"{self._url}: no reply after {failures} attempts; the last: {busy}") from None
                if busy.asked_s is not None and busy.asked_s > self._retries.longest_retry_after_s:
                    raise EndpointDownError(f"{self._url} asks to wait {busy.asked_s:.0f} s: {busy}") from None
                on_wait(f"waiting {wait:.0f} s: {busy}")
                if self._stop.wait(wait) and not self._refusal:
                    raise EndpointDownError(f"{self._url}: stopped while waiting; the last: {busy}") from None

    def _ask(self, content: str) -> Reply:
        while True:
            sent = self.options
            status, asked, text = self._post(content, sent)
            if status == OK:
                return self._read(text)
            reason = f"HTTP {status}: {quote(text, self._clean)}"
            if status in (REQUEST_TIMEOUT, TOO_MANY) or status >= SERVER_ERROR:
                raise _BusyError(reason, retry_after_s(asked, time.time()))
            if status not in (BAD_REQUEST, UNPROCESSABLE) or not self._adapt(sent, text):
                raise JudgeError(f"{self._url} refuses: {reason.rstrip('.')}.{self._hint(status)}")

    def _post(self, content: str, options: dict[str, Any]) -> tuple[int, str | None, str]:
        body = {"model": self._model, "messages": [{"role": "user", "content": content}], **options}
        try:
            return asyncio.run_coroutine_threadsafe(self._send(body), self._loop).result()
        except CancelledError:
            raise EndpointDownError(f"{self._url}: given up") from None
        except TimeoutError:
            raise _BusyError(f"no reply within {self._timeout_s:g} s (--timeout)") from None
        except httpx2.RequestError as error:
            raise _BusyError(self._clean(f"{type(error).__name__}: {error}")) from None

    async def _send(self, body: dict[str, Any]) -> tuple[int, str | None, str]:
        async with asyncio.timeout(self._timeout_s), self._http.stream("POST", self._url, json=body) as response:
            data = bytearray()
            async for part in response.aiter_raw():
                data += part
                if len(data) > LONGEST_BODY:
                    raise JudgeError(f"{self._url} sent more than {LONGEST_BODY:,} bytes in one reply. Is it a chat endpoint?")
        text = body_text(bytes(data), response.headers.get("content-encoding", ""), response.headers.get("content-type", ""))
        if text is None:
            raise JudgeError(
                f"{self._url} sent a reply that is packed in a way that was not asked for, or inflates to more than {LONGEST_BODY:,} bytes. "
                "Switch compression off at the server or the proxy before it."
            )
        return response.status_code, response.headers.get("retry-after"), text

    def _clean(self, text: str) -> str:
        """Remove the key from a text. A server may send it back in an error or a reply."""
        if not self._key or len(self._key) < SHORTEST_SECRET:
            return text
        return text.replace(self._key, HIDDEN).replace(url_encoded(self._key, safe=""), HIDDEN)

    def _adapt(self, sent: dict[str, Any], text: str) -> bool:
        """Drop an option that the server does not know, and tell whether to send the request again."""
        with self._lock:
            if self.options == sent:
                left = without_refused(sent, text)
                if left is None:
                    return False
                self.options = left
            return True

    def _read(self, text: str) -> Reply:
        reply = read_reply(text, self._clean)
        if reply is None:
            said = quote(text, self._clean)
            raise JudgeError(f"{self._url} sent no chat completion, but: {said}. Is --base-url that of an OpenAI-compatible server?")
        return reply

    def _hint(self, status: int) -> str:
        if status in (UNAUTHORIZED, FORBIDDEN):
            return " Check the key and what it may use." if self._key else " No key was sent: export OPENAI_API_KEY, or name --api-key-env."
        return " Check --model, and --base-url, which often ends in /v1." if status == NOT_FOUND else ""


async def _cancel_others() -> None:
    waiting = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
