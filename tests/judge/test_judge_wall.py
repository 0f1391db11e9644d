"""What a judge's server may send, and where a key may go: everything is bounded, read in any encoding, and said."""

import gzip
import json
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import DROP, KEY, PAIRS, Asked, Caller, Response, fails_first, prefer_larger, serving, write_evaluation

from tdistill.judge.client import ChatClient, Endpoint, Retries
from tdistill.judge.cost import Cost, Prices
from tdistill.judge.journal import Journal
from tdistill.judge.protocol import LONGEST_BODY, Reply, body_text, key_warning, retry_after_s
from tdistill.runtime.errors import DataError, JudgeError

NO_PATIENCE = Retries(attempts=1, first_wait_s=0.01, longest_wait_s=0.01)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: Any, capsys: Any) -> Caller:
    return Caller(write_evaluation(tmp_path / "run", PAIRS), tmp_path, monkeypatch, capsys)


def ask(response: Response, timeout_s: float = 5.0) -> Reply:
    """One request through the real client to a real server."""
    with serving(lambda _: response) as server, ChatClient(Endpoint(server.url, "m", KEY, 16, timeout_s, 1), NO_PATIENCE) as client:
        return client.complete("<answer_a>\n1\n</answer_a> <answer_b>\n2\n</answer_b>", lambda _: None)


def completion(content: Any = "Verdict: A", **more: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}], **more}


def compressed(data: bytes, headers: str) -> Response:
    return Response(body=data, headers={"content-encoding": headers})


PLAIN = json.dumps(completion()).encode()


@pytest.mark.parametrize(
    "response",
    [
        Response(body=PLAIN),
        Response(body=b"\xef\xbb\xbf" + PLAIN),
        Response(body=PLAIN.decode().encode("utf-16")),
        Response(body=PLAIN.decode().encode("utf-16-le"), headers={"content-type": "application/json; charset=utf-16"}),
        Response(body=PLAIN.decode().encode("utf-32")),
        Response(body=PLAIN, headers={"content-type": "application/json; charset=no-such"}),
        compressed(gzip.compress(PLAIN, mtime=0), "gzip"),
        compressed(zlib.compress(PLAIN), "deflate"),
        Response(body=completion([{"type": "text", "text": "Verdict:"}, {"type": "text", "text": " A"}])),
        Response(body=completion(usage={"prompt_tokens": -5, "completion_tokens": 10**30}, model=["m"])),
        Response(body=completion(usage="many")),
        Response(body=PLAIN.decode().replace("Verdict: A", "\\ud83d Verdict: A")),
    ],
)
def test_a_reply_is_read_in_any_encoding_and_whatever_its_counts(response: Response) -> None:
    reply = ask(response)
    assert reply.content.endswith("Verdict: A")
    assert reply.content.encode()
    assert (reply.prompt_tokens, reply.completion_tokens) == (None, None)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (Response(body=b" " * (LONGEST_BODY + 1)), "sent more than 8,388,608 bytes in one reply"),
        (compressed(gzip.compress(b" " * (LONGEST_BODY + 1), mtime=0), "gzip"), "inflates to more than 8,388,608 bytes"),
        (compressed(gzip.compress(PLAIN, mtime=0)[:-9], "gzip"), "packed in a way that was not asked for"),
        (compressed(PLAIN, "br"), "packed in a way that was not asked for"),
        (Response(body=b"[" * 100_000), "sent no chat completion"),
        (Response(body=b"1" * 10_000), "sent no chat completion"),
        (Response(body=b"\xff\xfe\x00\xd8"), "sent no chat completion"),
        (Response(status=204), "refuses: HTTP 204"),
        (Response(status=307, headers={"location": "http://127.0.0.1:9/v1"}), "refuses: HTTP 307"),
        (Response(body=completion(3)), "sent no chat completion"),
        (Response(status=400, body=b"\xff\xfe" + f"bad key {KEY}".encode("utf-16-le")), r"bad key \[key\]"),
        (Response(status=400, body=json.dumps({"error": {"message": f"key {KEY}", "param": 3}})), r"key \[key\]"),
    ],
)
def test_a_reply_that_is_none_ends_with_one_message(response: Response, message: str) -> None:
    with pytest.raises(JudgeError, match=message) as raised:
        ask(response)
    assert KEY not in str(raised.value)


def test_a_server_that_drips_is_given_up_in_time() -> None:
    started = time.monotonic()
    with pytest.raises(JudgeError, match=r"no reply within 0\.5 s"):
        ask(Response(text="Verdict: A", drip_s=0.1), timeout_s=0.5)
    assert time.monotonic() - started < 5.0  # the whole body would take 15 s


def test_a_server_that_breaks_off_is_asked_again(call: Caller) -> None:
    with serving(fails_first(3, Response(status=DROP))) as server:
        assert call(server.url, "--concurrency", "1")[0] == 0


def test_replies_without_a_count_are_said_and_not_taken_for_free(call: Caller) -> None:
    def uncounted(asked: Asked) -> Response:
        return Response(body=completion(prefer_larger(asked).text, usage={"prompt_tokens": 10, "completion_tokens": -1}))

    with serving(uncounted) as server:
        code, text = call(server.url)
    assert code == 0
    assert "without 12 replies that the server did not count" in text
    assert call.summary["cost"] == {"input_tokens": 120, "output_tokens": 0, "money": None, "uncounted": 12}
    assert Cost.reported([{"prompt_tokens": 3, "completion_tokens": 2}, {}], Prices(1e6, 1e6)) == Cost(3, 2, 5.0, 1)


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://judge.example/v1", True),
        ("http://10.0.0.7:8000/v1", True),
        ("http://[2001:db8::1]/v1", True),
        ("http://localhost.example/v1", True),
        ("https://judge.example/v1", False),
        ("http://localhost:8000/v1", False),
        ("http://127.0.0.53/v1", False),
        ("http://[::1]:8000/v1", False),
    ],
)
def test_a_key_over_plain_http_is_warned_of(url: str, warned: bool) -> None:
    assert (key_warning(url, KEY) is not None) == warned
    assert key_warning(url, None) is None
    assert KEY not in (key_warning(url, KEY) or "")


def test_the_warning_comes_before_anything_is_sent(call: Caller) -> None:
    code, text = call("http://192.0.2.1/v1", yes=False)  # an address for documentation: nothing is there
    assert code == 2
    assert "the key goes to 192.0.2.1 over plain http" in text
    assert "Nothing was sent" in text


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("1.5", 1.5), ("-3", None), ("nan", None), ("inf", None), ("", None), ("Mon, 99 Foo 2026", None), ("9" * 400, float("inf"))],
)
def test_retry_after_is_a_number_or_nothing(header: str, seconds: float | None) -> None:
    assert retry_after_s(header, 0.0) == seconds
    assert retry_after_s("Fri, 31 Dec 9999 23:59:59 GMT", 0.0) > 1e11


@pytest.mark.parametrize(
    "options",
    [["--timeout", "inf"], ["--price-per-million-input", "inf", "--price-per-million-output", "1"], ["--model", "\x1b[31m"], ["--model", " "]],
)
def test_numbers_and_names_that_are_none_are_refused(options: list[str], call: Caller) -> None:
    code, text = call("http://127.0.0.1:9/v1", *options)
    assert code == 2
    assert "must be" in text


ROW = {
    "key": "k",
    "verdict": "A",
    "failure": None,
    "served_model": "m",
    "max_tokens": 16,
    "options": {},
    "prompt_tokens": 1,
    "completion_tokens": None,
}


def damaged(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for change in (
        {"verdict": "C"},
        {"verdict": ["A"]},
        {"verdict": None},
        {"failure": "empty"},
        {"key": 3},
        {"max_tokens": True},
        {"max_tokens": "16"},
        {"options": []},
        {"served_model": {}},
        {"prompt_tokens": 1.5},
    ):
        yield {**row, **change}


@pytest.mark.parametrize("row", damaged(ROW), ids=str)
def test_a_journal_row_that_no_judge_wrote_is_refused(row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text(json.dumps(ROW | {"key": "other"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match="row 2 is no judge's verdict"):
        Journal(path)


def test_two_verdicts_on_one_question_are_refused_and_a_longer_reply_is_not(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    cut = ROW | {"verdict": None, "failure": "cut off"}
    path.write_text("".join(json.dumps(row) + "\n" for row in (cut, ROW, ROW)))
    assert Journal(path).rows["k"]["verdict"] == "A"
    path.write_text("".join(json.dumps(row) + "\n" for row in (ROW, ROW | {"verdict": "B"})))
    with pytest.raises(DataError, match="contradicts an earlier verdict"):
        Journal(path)


def test_an_error_body_in_latin_1_is_read_as_its_header_says() -> None:
    assert body_text("é".encode("latin-1"), "", "text/plain; charset=iso-8859-1") == "é"
    assert body_text("é".encode("latin-1"), "", "") == "\ufffd"


def test_one_file_is_not_compared_with_itself(call: Caller) -> None:
    call.b = call.a
    code, text = call("http://127.0.0.1:9/v1")
    assert (code, "are the same file" in text) == (2, True)


def test_a_verdict_says_which_server_it_came_from(call: Caller) -> None:
    with serving(prefer_larger) as first:
        assert call(first.url, "--limit", "3")[0] == 0
    with serving(prefer_larger) as second:
        assert call(second.url)[0] == 0
    assert len(second.asked) < 12
    assert call.summary["judge"]["base_urls_of_verdicts"] == sorted([first.url, second.url])
