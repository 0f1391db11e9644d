"""Every file of a run, damaged in every way, through the command line: refused with what to do, or made anew; never a traceback."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import command, save_tiny_model, tiny_recipe_dict

from fuzz.mutate import mutated_bytes, mutated_values
from tdistill.compare.comparing import compare
from tdistill.experiment.pipeline import Run
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.experiment.report import collect
from tdistill.experiment.temperatures import read_sweep
from tdistill.pages.markdown import to_markdown
from tdistill.report.tables import comparison_table, quality_table

TEMPERATURES = ("--temperatures", "0.5,1")
# What `report` reads of earlier stages. What only the checksums see: the files of models that it does not load.
REPORT = [
    "models/*/stage.json",
    "models/*/models.json",
    "models/*/start/config.json",
    "models/*/start/tokenizer.json",
    "rollout/*/stage.json",
    "rollout/*/test/manifest.json",
    "rollout/*/test/shard-00000.parquet",
    "sft/*/stage.json",
    "sft/*/log_history.json",
    "train/*/stage.json",
    "train/*/distilled/log_history.json",
    "evaluate/*/stage.json",
    "evaluate/*/scores/distilled.json",
    "evaluate/*/scores/teacher.json",
    "evaluate/*/answers/distilled.jsonl",
    "evaluate/*/sparsity.json",
]
UNREAD = [
    "train/*/distilled/done.json",
    "train/*/distilled/config.json",
    "train/*/distilled/model.safetensors",
    "sft/*/tokenizer.json",
    "rollout/*/train/manifest.json",
    "models/*/start/model.safetensors",
]
COMPARE = [
    "recipe.yaml",
    "rollout/*/stage.json",
    "rollout/*/test/manifest.json",
    "rollout/*/train/manifest.json",
    "train/*/stage.json",
    "train/*/distilled/done.json",
    "train/*/distilled/log_history.json",
    "evaluate/*/stage.json",
    "evaluate/*/scores/distilled.json",
    "temperatures/*/sweep.json",
    "temperatures/*/0.5/scores/distilled.json",
]
SWEEP = ["temperatures/*/0.5/scores/distilled.json", "temperatures/*/1/scores/teacher.json"]
TASKS = ["tasks/*/dolly/data.json", "tasks/*/dolly/scores/distilled.json"]
DAMAGES = ("missing", "directory", "empty", "garbage", "truncated", "null", "list", "object", "other file", "not UTF-8", "deep", "loop")


@pytest.fixture(scope="module")
def finished(tiny_teacher, tmp_path_factory) -> tuple[Path, Path]:
    """A recipe, and the output directory of its run, decoded at two temperatures and on a task too."""
    root = tmp_path_factory.mktemp("finished")
    recipe = root / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe_dict(tiny_teacher, root)))
    (root / "data/dolly").mkdir(parents=True)
    (root / "data/dolly/test.jsonl").write_text("".join(json.dumps({"instruction": f"Name {i}", "output": "A"}) + "\n" for i in range(3)))
    assert command("run", recipe) == 0
    assert command("evaluate", recipe, *TEMPERATURES, "--tasks", "dolly", "--data-dir", root / "data", "--seeds", 1) == 0
    return recipe, root / "run"


@pytest.fixture(params=["with checksums", "of an earlier version"])
def run(request, finished, tmp_path) -> tuple[Path, Path]:
    """A recipe and a copy of its run that a test may damage; an earlier version noted no checksums in ``stage.json``."""
    recipe, output = finished
    copy = shutil.copytree(output, tmp_path / "run")
    if request.param != "with checksums":
        forget_checksums(copy)
    return recipe, copy


def forget_checksums(output: Path) -> None:
    for path in output.glob("*/*/stage.json"):
        stage = json.loads(path.read_text())
        del stage["files"], stage["checksum"]
        path.write_text(json.dumps(stage))


@contextlib.contextmanager
def damaged(path: Path, damage: str, others: list[Path]) -> Iterator[None]:
    """Damage a file, and put it back."""
    content = path.read_bytes()
    other = next(p.read_bytes() for p in others if p.read_bytes() != content and p.name != path.name and p.suffix != ".parquet")
    new = {
        "empty": b"",
        "garbage": b"\x00\xff garbage {",
        "truncated": content[: len(content) // 2],
        "null": b"null",
        "list": b"[1, 2]",
        "object": b"{}",
        "other file": other,
        "not UTF-8": b"\xff\xfe" + content,
        "deep": b"[" * 100_000,
    }
    path.unlink()
    if damage == "directory":
        path.mkdir()
    elif damage == "loop":
        path.symlink_to(path)
    elif damage != "missing":
        path.write_bytes(new[damage])
    try:
        yield
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def files(output: Path, patterns: list[str]) -> list[Path]:
    found = [path for pattern in patterns for path in sorted(output.glob(pattern))]
    assert len(found) >= len(patterns)
    return found


def check_refused(capsys, path: Path, damage: str, *argv: Any) -> None:
    capsys.readouterr()
    status = command(*argv)
    said = capsys.readouterr().err
    what = f"{path.name} {damage}: {said}"
    assert status == 2, what
    error = said[said.index("tdistill: error:") :]
    if path.name == "stage.json" and damage in ("missing", "loop"):
        assert any(words in error for words in ("not complete", "not the", "has no complete", "can't be read")), what
        return
    assert path.name in error or str(path.parent) in error, what
    assert any(
        word in error
        for word in ("delete", "Delete", "Run any command", "Save the model again", "no model", "Can't load", "`tdistill rollout` first")
    ), what


def test_report_refuses_every_damaged_file_that_it_reads(run, capsys):
    recipe, output = run
    others = files(output, REPORT)
    sealed = "files" in json.loads(files(output, ["models/*/stage.json"])[0].read_text())
    for path in others:
        if path.parent.name == "start" and not sealed:
            continue  # a report loads a tokenizer alone, which may do without some of a model's files
        for damage in DAMAGES:
            with damaged(path, damage, others):
                check_refused(capsys, path, damage, "report", recipe, f"output_dir={output}")
    assert command("report", recipe, f"output_dir={output}") == 0


def test_a_page_that_is_gone_is_not_called_complete(finished, tmp_path, capsys):
    recipe, output = finished
    output = shutil.copytree(output, tmp_path / "run")
    for path in files(output, ["report/*/report.md", "report/*/report.html"]):
        path.rename(tmp_path / path.name)
        assert command("run", recipe, f"output_dir={output}") == 2
        assert f"{path.name} is missing" in capsys.readouterr().err
        (tmp_path / path.name).rename(path)
        path.write_text(path.read_text() + "<!-- a reader's note -->")
    assert command("run", recipe, f"output_dir={output}") == 0


def test_another_chat_template_beside_the_start_is_refused(tmp_path, capsys):
    teacher = save_tiny_model(tmp_path / "teacher")
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<eos>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    (teacher / "chat_template.jinja").write_text(template)
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(tiny_recipe_dict(teacher, tmp_path)))
    assert command("rollout", recipe) == 0
    (beside,) = output.glob("models/*/start/chat_template.jinja")
    beside.write_text(template.replace("assistant: ", "a: "))
    assert command("sft", recipe) == 2
    assert "chat_template.jinja was altered or is damaged" in capsys.readouterr().err
    beside.unlink()
    assert command("sft", recipe) == 2
    (stage,) = output.glob("models/*/stage.json")
    old = json.loads(stage.read_text())
    del old["files"], old["checksum"]  # as an earlier version wrote it
    stage.write_text(json.dumps(old))
    capsys.readouterr()
    assert command("sft", recipe) == 2
    assert "is not the one that the models stage saved" in capsys.readouterr().err
    beside.write_text(template)
    assert command("sft", recipe) == 0


def test_checksums_see_damage_in_files_that_nobody_reads_now(finished, tmp_path, capsys):
    recipe, output = finished
    output = shutil.copytree(output, tmp_path / "run")
    for path in files(output, UNREAD):
        for damage in ("missing", "empty", "truncated", "other file"):
            with damaged(path, damage, files(output, REPORT)):
                check_refused(capsys, path, damage, "report", recipe, f"output_dir={output}")


def test_compare_refuses_every_damaged_file_that_it_reads(run, tmp_path, capsys):
    _, output = run
    others = files(output, COMPARE)
    for path in others:
        for damage in DAMAGES:
            if path.parent.parent.name == "0.5" and damage == "missing":
                continue  # a sweep may lack a temperature
            if path.name == "sweep.json" and damage in ("missing", "loop"):
                continue  # a run may lack a sweep
            with damaged(path, damage, others):
                check_refused(capsys, path, damage, "compare", output, "--output", tmp_path / "out")
    assert command("compare", output, "--output", tmp_path / "out") == 0


def test_evaluate_refuses_damaged_scores_of_temperatures_and_tasks(run, finished, capsys):
    recipe, output = run
    tasks = ("--tasks", "dolly", "--data-dir", finished[0].parent / "data", "--seeds", 1)
    for patterns, options in ((SWEEP, TEMPERATURES), (TASKS, tasks)):
        for path in files(output, patterns):
            for damage in DAMAGES[1:]:
                with damaged(path, damage, files(output, COMPARE)):
                    check_refused(capsys, path, damage, "evaluate", recipe, f"output_dir={output}", *options)


@pytest.mark.parametrize("pattern", ["evaluate/*/scores/distilled.json", "evaluate/*/answers/distilled.jsonl", "evaluate/*/sparsity.json"])
def test_what_a_stopped_evaluation_left_damaged_is_not_taken(finished, pattern, tmp_path, capsys):
    recipe, output = finished
    output = shutil.copytree(output, tmp_path / "run")
    (path,) = files(output, [pattern])
    (path.parents[len(Path(pattern).parts) - 3] / "stage.json").unlink()
    if "answers" in pattern:
        (path.parents[1] / "scores/distilled.json").unlink()
    for damage in DAMAGES[1:]:
        with damaged(path, damage, files(output, REPORT[:2])):
            check_refused(capsys, path, damage, "evaluate", recipe, f"output_dir={output}")
    path.unlink()
    assert command("report", recipe, f"output_dir={output}") in (0, 2)
    assert command("evaluate", recipe, f"output_dir={output}") == 0
    assert path.is_file(), "what was deleted is made anew"


def test_the_advice_of_a_damaged_file_works(finished, tmp_path, capsys):
    recipe, output = finished
    output = shutil.copytree(output, tmp_path / "run")
    valid = {pattern: files(output, [pattern])[0].read_bytes() for pattern in REPORT}
    for pattern in ("evaluate/*/scores/distilled.json", "train/*/distilled/log_history.json", "models/*/models.json"):
        (path,) = files(output, [pattern])
        path.write_text("{}")
        stages = ["report", "run"]  # a damaged student is refused by its own files, then by its stage's
        while command(stages[0], recipe, f"output_dir={output}") == 2:
            advice = re.search(r"[dD]elete (.*?),? and run again", capsys.readouterr().err)[1]
            victims = [Path(victim) for victim in advice.replace(" and ", ", ").split(", ")]
            for victim in victims:
                shutil.rmtree(victim) if victim.is_dir() else victim.unlink(missing_ok=len(victims) > 1)
            stages = ["run"]
        assert stages == ["run"]
        again = files(output, [pattern])[0].read_bytes()
        assert json.loads(again).keys() == json.loads(valid[pattern]).keys()


def fuzz(outcomes, finished, tmp_path, count: int, seed: int) -> None:
    """Mutate bytes and values of every JSON file that the report reads: it shows what it showed, or is refused."""
    recipe, output = finished
    output = shutil.copytree(output, tmp_path / "run")
    loaded = open_recipe(recipe, [f"output_dir={output}"])
    valid = collect(Run(loaded))
    for i, path in enumerate(p for p in files(output, REPORT) if p.suffix in (".json", ".jsonl") and p.parent.name != "start"):
        content = path.read_bytes()

        def attempt(new: bytes, path: Path = path) -> Any:
            path.write_bytes(new)
            return collect(Run(loaded))

        outcomes("run files: report", changed(content, seed + i, count), attempt, lambda _, data: shown(data) == shown(valid))
        path.write_bytes(content)


def changed(content: bytes, seed: int, count: int) -> Iterator[bytes]:
    yield from mutated_bytes(content, seed, count // 2)
    lines = content.split(b"\n") if content.count(b"\n}") == 0 else [content]
    values = [json.loads(line) for line in lines if line.strip()]
    for value in mutated_values(values if len(values) > 1 else values[0], seed, count - count // 2):
        with contextlib.suppress(ValueError, UnicodeEncodeError):  # no JSON file can hold it
            yield json.dumps(value).encode()


def shown(data: Any) -> str:
    """Return what a report says, without today's commit, and without the size on the disk, which a blank in a file changes."""
    facts = {k: v for k, v in data.facts.items() if k != "git commit"}
    return repr(replace(data, facts=facts, stages=[replace(stage, size_bytes=0) for stage in data.stages]))


def tables(data: Any) -> str:
    return to_markdown(quality_table(data.systems)) + to_markdown(comparison_table(data.differences))


def fuzz_earlier(outcomes, finished, tmp_path, count: int, seed: int) -> None:
    """The same without checksums: numbers may have been changed, but everything that is read can be shown."""
    recipe, output = finished
    output = shutil.copytree(output, tmp_path / "run")
    forget_checksums(output)
    loaded = open_recipe(recipe, [f"output_dir={output}"])
    names = [s.name for s in collect(Run(loaded)).systems]
    for i, path in enumerate(p for p in files(output, COMPARE + REPORT) if p.suffix in (".json", ".jsonl") and p.parent.name != "start"):
        content = path.read_bytes()

        def attempt(new: bytes, path: Path = path) -> Any:
            path.write_bytes(new)
            return collect(Run(loaded)), compare([output]), [read_sweep(p.parent, names) for p in output.glob("temperatures/*/sweep.json")]

        def is_right(_: bytes, result: Any) -> bool:
            data, comparison, _ = result
            return [s.name for s in data.systems] == names and "distilled" in tables(data) and len(comparison.methods) >= 2

        outcomes("run files: earlier", changed(content, seed + i, count), attempt, is_right)
        path.write_bytes(content)


def test_mutated_files_of_a_run(outcomes, finished, tmp_path):
    fuzz(outcomes, finished, tmp_path / "a", 16, 1)
    fuzz_earlier(outcomes, finished, tmp_path / "b", 8, 2)


@pytest.mark.slow
def test_many_mutated_files_of_a_run(outcomes, finished, tmp_path):
    fuzz(outcomes, finished, tmp_path / "a", 100, 11)
    fuzz_earlier(outcomes, finished, tmp_path / "b", 60, 12)
