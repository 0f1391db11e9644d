"""Every class of error, through a real process: status 2, one message, no traceback."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import places
import pytest
from processes_under_test import start
from test_cli import flat

from tdistill.runtime import errors


def prepared_nothing(recipe: Path) -> list[str]:
    return ["run", str(recipe)]


def bad_prompts(recipe: Path) -> list[str]:
    (recipe.parent / "train.jsonl").write_text('{"question": 1}\n')
    return ["rollout", str(recipe)]


def truncated_shard(recipe: Path) -> list[str]:
    run("rollout", str(recipe))
    shard = places.rollout(recipe) / "shard-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    return ["sft", str(recipe)]


def file_as_stage(recipe: Path) -> list[str]:
    (recipe.parent / "run").mkdir()
    (recipe.parent / "run" / ".tdistill").write_text("")
    (recipe.parent / "run" / "teacher").write_text("")
    return ["rollout", str(recipe)]


def diverging(recipe: Path) -> list[str]:
    run("rollout", str(recipe))
    return ["sft", str(recipe), "sft.arguments.learning_rate=1e30"]


def no_judge(recipe: Path) -> list[str]:
    answers = recipe.parent / "evaluate" / "k" / "answers"
    answers.mkdir(parents=True)
    rows = [{"prompt_id": "p", "sample_index": 0, "tokens": [1], "finished": True, "text": "x"}]
    for name in ("a", "b"):
        (answers / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (recipe.parent / "p.jsonl").write_text('{"id": "p", "prompt": "a question"}\n')
    where = ["--base-url", "ftp://nowhere", "--model", "m", "--output", str(recipe.parent / "out.json"), "--yes"]
    return ["judge", str(answers / "a.jsonl"), str(answers / "b.jsonl"), *where]


# The class, what leads to it, and words of its message.
CASES: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "ConfigError": (lambda r: [*prepared_nothing(r), "seed=x"], "'seed'"),
    "DataError": (bad_prompts, "train.jsonl, line 1: no prompt"),
    "CacheError": (truncated_shard, "shard-00000.parquet"),
    "OutputError": (file_as_stage, "Can't write or read"),
    "ModelError": (lambda r: [*prepared_nothing(r), "teacher.teacher_model_name_or_path=/nowhere"], "No model at '/nowhere'"),
    "NonFiniteLossError": (diverging, ""),
    "JudgeError": (no_judge, ""),
}
QUICK = ("ConfigError", "DataError", "OutputError", "ModelError", "JudgeError")


def run(*argv: str, status: int = 0) -> str:
    process = start(*argv)
    out, err = process.communicate()
    assert process.returncode == status, (out + err).decode()
    return err.decode()


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in CASES])
def test_an_error_of_every_class_ends_with_status_2_and_no_traceback(name, tiny_recipe):
    prepare, words = CASES[name]
    said = run(*prepare(tiny_recipe), status=2)
    assert "Traceback" not in said
    assert said.count("tdistill: error: ") == 1
    assert words in flat(said)


def test_every_class_of_error_has_a_case_here():
    known = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.TdistillError)}
    # TrainingError's own case, a checkpoint of another length, stands in the tests of resuming.
    assert known - set(CASES) == {"TdistillError", "TrainingError"}


@pytest.mark.parametrize(("argv", "status"), [(["--help"], 0), (["run"], 2), (["no-such-command"], 2), (["run", "--no-such-option"], 2)])
def test_usage_errors_end_with_status_2_and_help_with_0_without_torch(argv, status):
    program = (
        "import sys\nfrom tdistill.__main__ import main\n"
        f"sys.argv = ['tdistill', *{argv!r}]\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, 'transformers' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert done.stderr.splitlines()[-1] == "False False"
    assert "Traceback" not in done.stderr
