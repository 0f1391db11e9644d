import json
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.mark.slow
def test_a_dozen_kills_change_no_result_and_the_campaign_goes_on_where_it_was(tmp_path):
    def campaign(kills: int) -> str:
        command = [sys.executable, str(KILLS), "--kills", str(kills), "--seed", "7", "--output", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    campaign(4)
    first = (tmp_path / "kills-7.jsonl").read_text()
    assert "different" in campaign(12)
    rows = [json.loads(line) for line in (tmp_path / "kills-7.jsonl").read_text().splitlines()]
    assert len(rows) >= 12
    assert (tmp_path / "kills-7.jsonl").read_text().startswith(first)
    assert {row["verdict"] for row in rows} == {"equal"}
    assert len({row["stage"] for row in rows}) > 2
    assert {row["recipe"] for row in rows} == {"recipe-constant", "recipe-default"}


def test_results_that_differ_are_found_wherever_they_lie(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(KILLS.parent))
    from kills_results import differences, results

    run = tmp_path / "run"
    for name, text in {
        "rollouts/k/shard-00000.parquet": "rows",
        "students/s/model.safetensors": "weights",
        "students/d/log_history.json": '{"history": [{"loss": 1.0, "seconds": 3.0}]}',
        "answers/k/answers.jsonl": "{}",
    }.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    before = results(run)
    assert differences(before, results(run)) == []
    (run / "students/d/log_history.json").write_text('{"history": [{"loss": 1.0, "seconds": 4.0}]}')
    assert differences(before, results(run)) == [], "time is no result"
    (run / "students/d/log_history.json").write_text('{"history": [{"loss": 1.5, "seconds": 3.0}]}')
    assert differences(before, results(run)) == ["students/d/log_history.json: .history[0].loss is 1.5, undisturbed 1.0"]
    (run / "students/s/model.safetensors").write_text("weighed")
    (run / "students/s/x.partial").write_text("")
    (run / "answers/k/answers.jsonl").unlink()
    found = differences(before, results(run))
    assert [line.split(":")[0] for line in found] == [
        "answers/k/answers.jsonl",
        "left over",
        "students/d/log_history.json",
        "students/s/model.safetensors",
    ]
