"""A chat endpoint on a thread, whose replies a test scripts, and two systems' answers to put before it."""

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tdistill.cli import main
from tdistill.data.prompts import load_prompts
from tdistill.judge import judging as judge
from tdistill.judge.client import Retries

KEY = "sk-very-secret-0123456789"
FAST = Retries(attempts=3, first_wait_s=0.01, longest_wait_s=0.02, longest_retry_after_s=5.0)
PAIRS = {"a": [[3], [2], [1], [5], [4], [1]], "b": [[1], [2], [3], [1], [1], [2]]}  # 3 wins, 1 tie, 2 losses
DROP = 0  # the status of a connection that is closed without a reply


@dataclass
class Asked:
    """One request as the server got it."""

    body: dict[str, Any]
    authorization: str | None
    number: int  # of all requests, from 1
    first: str = ""
    second: str = ""
    at: float = field(default_factory=time.monotonic)


@dataclass
class Response:
    """What the server sends: a reply's text, or another status with a body of its own."""

    text: str = ""
    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    finish_reason: str = "stop"
    refusal: str | None = None
    model: str = "judge-2026"
    drip_s: float = 0.0  # seconds between two bytes of the body

    def content(self) -> bytes:
        message = {"role": "assistant", "content": self.text, "refusal": self.refusal}
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        reply = {"model": self.model, "choices": [{"message": message, "finish_reason": self.finish_reason}], "usage": usage}
        body = reply if self.body is None else self.body
        return body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()


Script = Callable[[Asked], Response]


@dataclass
class Server:
    url: str
    asked: list[Asked]
    script: Script  # may be replaced while it runs


@contextmanager
def serving(script: Script) -> Iterator[Server]:
    asked: list[Asked] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            content = body["messages"][0]["content"]
            shown = [re.search(rf"<answer_{x}>\n(.*)\n</answer_{x}>", content, re.DOTALL)[1] for x in "ab"]
            with lock:
                request = Asked(body, self.headers.get("authorization"), len(asked) + 1, *shown)
                asked.append(request)
            response = server.script(request)
            if response.status == DROP:
                self.close_connection = True
                return
            data = response.content()
            self.send_response(response.status)
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            for piece in [data] if not response.drip_s else [data[i : i + 1] for i in range(len(data))]:
                self.wfile.write(piece)
                time.sleep(response.drip_s)

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # the client was killed, or did not wait
                super().handle()

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_port}/v1", asked, script)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def prefer_larger(asked: Asked) -> Response:
    """An unbiased judge of numbers."""
    a, b = float(asked.first), float(asked.second)
    return Response(f"One look is enough.\n\n**Verdict: {'A' if a > b else 'B' if b > a else 'tie'}**")


def fails_first(times: int, response: Response) -> Script:
    """A judge whose first requests go wrong."""
    return lambda asked: response if asked.number <= times else prefer_larger(asked)


def write_evaluation(root: Path, scores: dict[str, list[list[float | str]]]) -> dict[str, Path]:
    """Answers (per system, per prompt, per sample) as ``evaluate`` leaves them, each the text of a number; with their prompts."""
    root.mkdir(exist_ok=True)
    prompts = root / "test.jsonl"
    most = max(map(len, scores.values()))
    prompts.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(most)))
    ids = [p.prompt_id for p in load_prompts(str(prompts))]
    paths = {name: root / "answers" / f"key-{name}" / "answers.jsonl" for name in scores}
    for name, by_prompt in scores.items():
        rows = [
            {"prompt_id": ids[i], "sample_index": j, "tokens": [1], "finished": True, "text": str(text)}
            for i, texts in enumerate(by_prompt)
            for j, text in enumerate(texts)
        ]
        paths[name].parent.mkdir(parents=True)
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
        (paths[name].parent / "artefact.json").write_text(json.dumps({"notes": {"system": name, "prompts": str(prompts)}}))
    return paths


class Caller:
    """The command line on two systems' answers, against one server."""

    def __init__(self, paths: dict[str, Path], root: Path, monkeypatch, capsys):
        self.a, self.b = list(paths.values())[:2]
        self.output, self._monkeypatch, self._capsys = root / "out" / "result.json", monkeypatch, capsys
        monkeypatch.setattr(judge, "RETRIES", FAST)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def __call__(self, url: str, *more: str, yes: bool = True) -> tuple[int, str]:
        """Exit status, and all that was printed, on one line."""
        argv = [str(self.a), str(self.b), "--base-url", url, "--model", "m", "--output", str(self.output), *(["--yes"] * yes), *more]
        self._monkeypatch.setattr(sys, "argv", ["tdistill", "judge", *argv])
        with pytest.raises(SystemExit) as stop:
            main()
        streams = self._capsys.readouterr()
        text = " ".join((streams.out + streams.err).split())
        assert "Traceback" not in text
        assert KEY not in text
        return stop.value.code or 0, text

    @property
    def summary(self) -> dict:
        return json.loads(self.output.read_text())

    @property
    def rows(self) -> list[dict]:
        return [json.loads(line) for line in self.output.with_suffix(".jsonl").read_text().splitlines()]
