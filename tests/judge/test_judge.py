import signal
import subprocess
import sys
import threading
import time

import pytest
from judge_server import DROP, FAST, KEY, PAIRS, Asked, Caller, Response, fails_first, prefer_larger, serving, write_evaluation


@pytest.fixture
def caller(tmp_path, monkeypatch, capsys):
    def make(scores=PAIRS) -> Caller:
        return Caller(write_evaluation(tmp_path, scores), tmp_path, monkeypatch, capsys)

    return make


def test_both_orders_are_asked_and_an_unbiased_judge_is_read_right(caller):
    call = caller()
    with serving(prefer_larger) as server:
        code, text = call(server.url, "--price-per-million-input", "10", "--price-per-million-output", "100")
    assert code == 0, text
    shown = [(str(a), str(b)) for (a,), (b,) in zip(PAIRS["a"], PAIRS["b"], strict=True)]
    assert sorted((x.first, x.second) for x in server.asked) == sorted(shown + [(b, a) for a, b in shown])
    assert {x.authorization for x in server.asked} == {f"Bearer {KEY}"}
    assert all(x.body["temperature"] == 0 and x.body["seed"] == 0 and x.body["max_tokens"] == 512 for x in server.asked)
    summary = call.summary
    assert summary["pairs"] == {"counted": 6, "wins": 3, "ties": 1, "losses": 2, "left_out": 0}
    assert summary["position"] == {"inconsistent_pairs": 0.0, "same_position_pairs": 0.0, "first_position_wins": 0.5}
    rate = summary["win_rate_of_a"]
    assert rate["mean"] == pytest.approx(3.5 / 6)
    assert rate["stderr"] == pytest.approx((sum((x - 3.5 / 6) ** 2 for x in (1, 0.5, 0, 1, 1, 0)) / 5 / 6) ** 0.5)
    assert 0.0 <= rate["interval_95"][0] < rate["mean"] < rate["interval_95"][1] <= 1.0
    assert summary["cost"] == {"input_tokens": 1200, "output_tokens": 120, "money": pytest.approx(0.024), "uncounted": 0}
    assert "requests 12, each pair in both orders; 0 verdicts are in" in text
    assert "at most 6,144 out" in text
    assert "3 / 1 / 2" in text


def test_a_judge_that_always_takes_the_first_gives_a_half_and_is_found_out(caller):
    call = caller()
    with serving(lambda _: Response("Verdict: A")) as server:
        assert call(server.url)[0] == 0
    summary = call.summary
    assert summary["pairs"] == {"counted": 6, "wins": 0, "ties": 6, "losses": 0, "left_out": 0}
    assert summary["win_rate_of_a"] == {"mean": 0.5, "stderr": 0.0, "prompts": 6, "interval_95": None}
    assert summary["position"] == {"inconsistent_pairs": 1.0, "same_position_pairs": 1.0, "first_position_wins": 1.0}


def test_orders_and_then_samples_of_a_prompt_are_averaged(caller):
    call = caller({"a": [[9, 9, 1], [7]], "b": [[1, 2, 9], [8]]})
    with serving(lambda x: Response("Verdict: tie") if (x.first, x.second) == ("7", "8") else prefer_larger(x)) as server:
        assert call(server.url)[0] == 0
    rate, position = call.summary["win_rate_of_a"], call.summary["position"]
    assert (rate["mean"], rate["prompts"]) == (pytest.approx((2 / 3 + 1 / 4) / 2), 2)
    assert call.summary["pairs"] == {"counted": 4, "wins": 2, "ties": 0, "losses": 2, "left_out": 0}
    assert position == {"inconsistent_pairs": 0.25, "same_position_pairs": 0.0, "first_position_wins": 4 / 7}


def test_retry_after_is_honoured(caller):
    call = caller()
    busy = Response(status=429, body={"error": {"message": "slow down"}}, headers={"Retry-After": "1"})
    with serving(fails_first(1, busy)) as server:
        assert call(server.url, "--concurrency", "1")[0] == 0
    assert server.asked[1].at - server.asked[0].at >= 1.0
    assert len(server.asked) == 13
    assert call.summary["pairs"]["counted"] == 6


def test_too_long_a_retry_after_is_not_waited_for(caller):
    call = caller()
    with serving(lambda _: Response(status=429, body="", headers={"Retry-After": "3600"})) as server:
        code, text = call(server.url)
    assert code == 2
    assert "asks to wait 3600 s: HTTP 429: (no message). 0 of 12 verdicts are kept" in text


@pytest.mark.parametrize("trouble", [Response(status=500, body="oops"), Response(status=DROP), Response(status=503, body="{}")])
def test_passing_trouble_is_tried_again(trouble, caller):
    call = caller()
    with serving(fails_first(2, trouble)) as server:
        code, text = call(server.url, "--concurrency", "1")
    assert code == 0, text
    assert len(server.asked) == 14
    assert call.summary["pairs"]["counted"] == 6


def test_a_server_that_only_fails_is_given_up_and_a_rerun_asks_for_the_rest(caller):
    call = caller()
    with serving(lambda x: prefer_larger(x) if x.number <= 5 else Response(status=500, body={"error": "[/out] of memory"})) as server:
        code, text = call(server.url, "--concurrency", "1")
        assert code == 2
        assert "no reply after 3 attempts; the last: HTTP 500: [/out] of memory. 5 of 12 verdicts are kept" in text
        sent = len(server.asked)
        assert sent <= 5 + 4 * FAST.attempts  # a fourth may have begun
        assert not call.output.exists()
        server.script = prefer_larger
        code, text = call(server.url)
    assert code == 0, text
    assert "requests 7, each pair in both orders; 5 verdicts are in" in text
    assert len(server.asked) == sent + 7
    assert call.summary["pairs"]["counted"] == 6


def test_one_request_that_always_fails_costs_its_pair_only(caller):
    call = caller()
    with serving(lambda x: Response(status=500) if (x.first, x.second) == ("5", "1") else prefer_larger(x)) as server:
        code, text = call(server.url)
        assert code == 0, text
        assert "1 requests got no reply, and their pairs are left out" in text
        assert call.summary["pairs"] == {"counted": 5, "wins": 2, "ties": 1, "losses": 2, "left_out": 1}
        assert call.summary["replies"] == {"without_verdict": {}, "unanswered": 1}
        server.script = prefer_larger
        assert "requests 1," in call(server.url)[1]
    assert call.summary["pairs"]["counted"] == 6


def test_time_outs_are_tried_again_and_then_named(caller):
    call = caller()

    def slow(asked: Asked) -> Response:
        time.sleep(1.5 if asked.number <= slow_until else 0.0)
        return prefer_larger(asked)

    slow_until = 2
    with serving(slow) as server:
        assert call(server.url, "--concurrency", "1", "--timeout", "1")[0] == 0
        assert len(server.asked) >= 14
        call.output.with_suffix(".jsonl").unlink()
        slow_until = 1000
        code, text = call(server.url, "--timeout", "0.2")
    assert code == 2
    assert "no reply within 0.2 s (--timeout)" in text


def test_a_refused_key_stops_at_once_with_the_servers_words(caller):
    call = caller()
    message = {"error": {"message": f"Incorrect API key provided: {KEY}."}}
    with serving(lambda _: Response(status=401, body=message)) as server:
        code, text = call(server.url, "--concurrency", "2")
    assert code == 2
    assert f"{server.url}/chat/completions refuses: HTTP 401: Incorrect API key provided: [key]. Check the key" in text
    assert len(server.asked) <= 2  # those under way


def test_what_is_no_chat_server_is_named(caller):
    call = caller()
    with serving(lambda _: Response(body="<html>It works!</html>")) as server:
        code, text = call(server.url)
        assert code == 2
        assert "sent no chat completion, but: <html>It works!</html>. Is --base-url" in text
        server.script = lambda _: Response(status=404, body={"detail": "Not Found"})
        assert "HTTP 404: Not Found. Check --model, and --base-url" in call(server.url)[1]


def test_replies_without_a_verdict_are_counted_and_left_out(caller):
    odd = {
        "30": Response("I like both of them."),
        "20": Response("", refusal="I can't help with that."),
        "10": Response("Verdict: A\n\nOn reflection:\n\nVerdict: B"),
        "50": Response("  "),
        "40": Response("The first is", finish_reason="length"),
    }
    call = caller({"a": [[30], [20], [10], [50], [40], [60]], "b": [[1], [2], [3], [4], [5], [6]]})
    with serving(lambda x: odd.get(x.first) or prefer_larger(x)) as server:
        code, text = call(server.url)
        assert code == 0
        assert "1 contradictory, 1 cut off, 1 empty, 1 no verdict, 1 refused" in text
        summary = call.summary
        server.script = prefer_larger
        assert call(server.url)[0] == 0
        assert len(server.asked) == 12  # what was paid for is not asked for again …
        assert call(server.url, "--max-tokens", "1024")[0] == 0
        assert [x.first for x in server.asked[12:]] == ["40"]  # … unless it was cut off, and may now be longer
    assert summary["replies"] == {
        "without_verdict": {"contradictory": 1, "cut off": 1, "empty": 1, "no verdict": 1, "refused": 1},
        "unanswered": 0,
    }
    assert summary["pairs"] == {"counted": 1, "wins": 1, "ties": 0, "losses": 0, "left_out": 5}
    assert summary["win_rate_of_a"] == {"mean": 1.0, "stderr": None, "prompts": 1, "interval_95": None}
    assert call.summary["pairs"]["counted"] == 2


def test_options_that_a_server_refuses_are_left_out(caller):
    def script(asked: Asked) -> Response:
        for name in ("max_tokens", "seed", "temperature"):
            if name in asked.body:
                return Response(status=400, body={"error": {"message": f"temperature, seed: '{name}' is not supported", "param": name}})
        return prefer_larger(asked)

    call = caller()
    with serving(script) as server:
        code, text = call(server.url)
        assert code == 0, text
        assert call.summary["judge"]["options"] == [{"max_completion_tokens": 512}]
        assert "The server does not take `seed`: it was left out. The server does not take `temperature`" in text
        server.script = lambda _: Response(status=400, body={"error": "seed, max_tokens, temperature: no"})
        call.output = call.output.with_name("other.json")
        before = len(server.asked)
        assert "HTTP 400: seed, max_tokens, temperature: no." in call(server.url, "--concurrency", "1")[1]
        assert len(server.asked) <= before + 5  # no option is left to leave out


def test_a_judge_killed_half_way_goes_on_where_it_was(caller):
    killed = threading.Event()

    def stuck_half_way(asked: Asked) -> Response:
        if asked.number > 6:
            killed.wait()
        return prefer_larger(asked)

    call = caller()
    journal = call.output.with_suffix(".jsonl")
    with serving(stuck_half_way) as server:
        argv = [call.a, call.b, "--base-url", server.url, "--model", "m", "--output", call.output, "--yes", "--concurrency", "2"]
        process = subprocess.Popen([sys.executable, "-m", "tdistill", "judge", *map(str, argv)], stderr=subprocess.DEVNULL)
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") == 6):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        killed.set()
        kept = call.rows
        with journal.open("a") as handle:
            handle.write('{"key": "half a li')
        code, text = call(server.url)
    assert code == 0, text
    assert len(server.asked) <= 6 + 2 + 6  # two were under way
    assert call.rows[:6] == kept
    assert len({row["key"] for row in call.rows}) == len(call.rows) == 12
    assert call.summary["pairs"] == {"counted": 6, "wins": 3, "ties": 1, "losses": 2, "left_out": 0}


def test_the_key_is_written_nowhere(caller, tmp_path, monkeypatch):
    call = caller()
    with serving(lambda x: Response(f"Your key is {KEY}.\nVerdict: A", model=f"m {KEY}", finish_reason=KEY)) as server:
        assert call(server.url)[0] == 0
        server.script = lambda _: Response(status=503, body=f'{{"error": {{"message": "{KEY[:-1]}\\u0039 is busy"}}}}')
        call.output = call.output.with_name("other.json")
        assert "HTTP 503: [key] is busy" in call(server.url)[1]
    for bad, words in ((f"{KEY}\nmore", "holds spaces or characters"), (f"{KEY}é", "that no header can carry")):
        monkeypatch.setenv("OPENAI_API_KEY", bad)
        assert words in call(server.url)[1]
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for argv in (["--api-key-env", KEY], ["--base-url", f"http://user:{KEY}@localhost/v1"], ["--base-url", f"http://localhost/v1?key={KEY}"]):
        assert call(server.url, *argv)[0] == 2
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(written) == 7
    assert not [p for p in written if KEY.encode() in p.read_bytes()]
    assert "[key]" in call.output.with_name("result.jsonl").read_text()
