"""Every file of a run, damaged in every way, through the command line: refused with what to do, or made anew; never a traceback."""

import contextlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import command, save_tiny_model, tiny_recipe_dict
from places import altered, checksum, experiment, titled

from fuzz.mutate import mutated_bytes, mutated_values
from tdistill.compare.comparing import compare
from tdistill.evaluation.task_scores import read_records
from tdistill.experiment.model_card import CARD_FILE
from tdistill.experiment.report import collect
from tdistill.pages.markdown import to_markdown
from tdistill.report.tables import comparison_table, quality_table

MANIFEST = "artefact.json"
TEMPERATURES = ("--temperatures", "0.5,1")
# What `report` checks: all that the stages before it and itself made. The pages are for people to write on.
BY_REPORT = ("teacher", "start", "rollouts", "students", "answers", "divergences", "concentration", "evaluation", "report")
# What `compare` reads of a run.
BY_COMPARE = ("evaluation", "answers", "divergences", "students")
BY_TASKS = ("task_answers", "tasks")
NOT_CHECKED = (".md", ".html", ".svg", ".lock")
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
    assert command("evaluate", recipe, *TEMPERATURES, *on_task(recipe)) == 0
    return recipe, root / "run"


def on_task(recipe: Path) -> tuple[Any, ...]:
    return "--tasks", "dolly", "--data-dir", recipe.parent / "data", "--seeds", 1


@pytest.fixture
def run(finished, tmp_path) -> tuple[Path, Path]:
    """A recipe and a copy of its run that a test may damage."""
    recipe, output = finished
    return recipe, shutil.copytree(output, tmp_path / "run")


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


def files(output: Path, kinds: tuple[str, ...]) -> list[Path]:
    """Return one file of every name that each kind of artefact has: of the newest, where it is read."""
    found: dict[tuple[str, str], Path] = {}
    for kind in kinds:
        for path in sorted(output.glob(f"{kind}/*/**/*")):
            if path.is_file() and path.suffix not in NOT_CHECKED and path.name not in (".lock", CARD_FILE):
                found.setdefault((kind, path.name), path)
    assert {kind for kind, _ in found} == set(kinds)
    return list(found.values())


def check_refused(capsys, path: Path, damage: str, *argv: Any) -> None:
    capsys.readouterr()
    status = command(*argv)
    said = capsys.readouterr().err
    what = f"{path.parent.parent.name}/{path.name} {damage}: {said}"
    assert status == 2, what
    error = said[said.index("tdistill: error:") :]
    if path.name == MANIFEST and damage == "missing":
        assert any(words in error for words in ("not complete", "has no complete")), what
        return
    assert path.name in error or str(path.parent) in error, what
    assert any(word in error for word in ("delete", "Delete", "Run any command")), what


def test_report_refuses_every_damaged_file(run, capsys, record_property):
    recipe, output = run
    others = files(output, BY_REPORT)
    counts = Counter()
    for path in others:
        for damage in DAMAGES:
            if damage == "missing" and path.parent.parent.name == "report":
                continue  # it is made anew
            with damaged(path, damage, others):
                check_refused(capsys, path, damage, "report", recipe, f"output_dir={output}")
            counts["refused"] += 1
    record_property("fuzz", {"kind": "run files: damaged", "inputs": counts.total(), **counts})
    assert command("report", recipe, f"output_dir={output}") == 0


def test_compare_refuses_every_damaged_file_that_it_reads(run, tmp_path, capsys):
    _, output = run
    others = [output / "recipe.yaml", *files(output, BY_COMPARE)]
    for path in others:
        for damage in DAMAGES:
            if damage == "missing" and path.name not in (MANIFEST, "scores.json", "log_history.json", "recipe.yaml"):
                continue  # a copy may lack what is not read
            with damaged(path, damage, others):
                check_refused(capsys, path, damage, "compare", output, "--output", tmp_path / "out")
    assert command("compare", output, "--output", tmp_path / "out") == 0


def test_evaluate_refuses_every_damaged_file_of_a_task(run, finished, capsys):
    recipe, output = run
    others = files(output, BY_TASKS)
    for path in others:
        for damage in DAMAGES[(path.name == MANIFEST) :]:  # without its manifest it is made anew
            with damaged(path, damage, others):
                check_refused(capsys, path, damage, "evaluate", recipe, f"output_dir={output}", *on_task(finished[0]))


def test_a_page_that_is_gone_is_not_called_complete(run, tmp_path, capsys):
    recipe, output = run
    (report,) = output.glob("report/*")
    for name in ("report.md", "report.html"):
        (report / name).rename(tmp_path / name)
        assert command("run", recipe, f"output_dir={output}") == 2
        assert f"{name} is missing. Delete {report} and run again: it alone is made anew." in capsys.readouterr().err
        (tmp_path / name).rename(report / name)
        (report / name).write_text((report / name).read_text() + "<!-- a reader's note -->")
    assert command("run", recipe, f"output_dir={output}") == 0


def test_another_chat_template_beside_the_teacher_is_refused(tmp_path, capsys):
    teacher = save_tiny_model(tmp_path / "teacher")
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<eos>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    (teacher / "chat_template.jinja").write_text(template)
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(tiny_recipe_dict(teacher, tmp_path)))
    assert command("rollout", recipe) == 0
    (beside,) = output.glob("teacher/*/chat_template.jinja")
    beside.write_text(template.replace("assistant: ", "a: "))
    assert command("sft", recipe) == 2
    assert "chat_template.jinja was altered or is damaged" in capsys.readouterr().err
    beside.unlink()
    assert command("sft", recipe) == 2
    assert "chat_template.jinja is missing" in capsys.readouterr().err
    beside.write_text(template)
    assert command("sft", recipe) == 0


def test_what_a_stopped_evaluation_left_damaged_is_not_taken(run, capsys):
    recipe, output = run
    place = titled(output, "answers of distilled", "answers")
    (place / MANIFEST).unlink()
    (place / "scores.json").unlink()
    answers, journal = place / "answers.jsonl", place / "answers.batches"
    for damage in DAMAGES[1:]:
        with damaged(answers, damage, files(output, ("students",))):
            check_refused(capsys, answers, damage, "evaluate", recipe, f"output_dir={output}")
    content = answers.read_bytes()
    answers.unlink()
    for damage in (b"\x00\xff garbage {", b"null", b"[1, 2]", b"{}", b"[" * 100_000, content, b"[]"):
        journal.write_bytes(damage + b"\n")  # a last line without its end is what a kill leaves
        check_refused(capsys, journal, str(damage[:20]), "evaluate", recipe, f"output_dir={output}")
    journal.unlink()
    assert command("evaluate", recipe, f"output_dir={output}") == 0
    assert answers.read_bytes() == content, "what was deleted is made anew"


def test_the_advice_of_a_damaged_file_works(run, capsys):
    recipe, output = run
    for path in files(output, ("answers", "divergences", "concentration", "students", "rollouts", "start")):
        if path.name == MANIFEST or not path.exists():
            continue
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert command("report", recipe, f"output_dir={output}") == 2
        error = capsys.readouterr().err
        for victim in re.search(r"[dD]elete (.*?) and run again", error)[1].split(" and "):
            shutil.rmtree(victim) if Path(victim).is_dir() else Path(victim).unlink()
        assert command("run", recipe, f"output_dir={output}") == 0
        assert path.is_file(), path
        if path.suffix not in (".safetensors", ".json"):
            assert path.read_bytes() == content, path


def fuzz(outcomes, run, count: int, seed: int) -> None:
    """Mutate bytes and values of every JSON file that the report reads: it shows what it showed, or is refused."""
    recipe, output = run
    valid = collect(experiment(recipe, [f"output_dir={output}"]))
    for i, path in enumerate(p for p in files(output, BY_REPORT[:-1]) if p.suffix in (".json", ".jsonl")):
        content = path.read_bytes()

        def attempt(new: bytes, path: Path = path) -> Any:
            path.write_bytes(new)
            return collect(experiment(recipe, [f"output_dir={output}"]))

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


# Files that are read, with who reads them: as if their artefact had been made so, checksums and all.
READ = {
    "answers": ("scores.json",),
    "divergences": ("scores.json",),
    "concentration": ("sparsity.json",),
    "students": ("log_history.json",),
    "tasks": ("task_scores.jsonl",),
}


def fuzz_made_so(outcomes, run, count: int, seed: int) -> None:
    """The same with checksums that fit: numbers may be others, but everything that is read can be shown."""
    recipe, output = run
    names = [s.name for s in collect(experiment(recipe, [f"output_dir={output}"])).systems]
    titles = {"answers": "answers of distilled", "divergences": "divergences of distilled", "students": "distilled"}
    places = {kind: titled(output, titles[kind], kind) if kind in titles else next(output.glob(f"{kind}/*")) for kind in READ}
    paths = [places[kind] / name for kind, of_kind in READ.items() for name in of_kind]
    notes = [next(output.glob("evaluation/*")) / MANIFEST, places["answers"] / MANIFEST]

    def show() -> Any:
        return collect(experiment(recipe, [f"output_dir={output}"])), compare([output]), read_records(places["tasks"])

    def is_right(_: Any, result: Any) -> bool:
        return [s.name for s in result[0].systems] == names and "distilled" in tables(result[0]) and len(result[1].methods) >= 2

    for i, path in enumerate([*paths, *notes]):
        content, manifest = path.read_bytes(), (path.parent / MANIFEST).read_bytes()
        if path.name == MANIFEST:
            inputs: Any = mutated_values(json.loads(content)["notes"], seed + i, count)
            attempt = made_so(path.parent, lambda record, new: record.update(notes=new), show)
        else:
            inputs = changed(content, seed + i, count)
            attempt = written(path, show)
        outcomes("run files: made so", inputs, attempt, is_right)
        path.write_bytes(content)
        (path.parent / MANIFEST).write_bytes(manifest)


def made_so(place: Path, change: Callable[[dict[str, Any], Any], Any], show: Callable[[], Any]) -> Callable[[Any], Any]:
    def attempt(new: Any) -> Any:
        altered(place, lambda record: change(record, new))
        return show()

    return attempt


def written(path: Path, show: Callable[[], Any]) -> Callable[[bytes], Any]:
    def attempt(new: bytes) -> Any:
        path.write_bytes(new)
        altered(path.parent, lambda record: record["files"].update({path.name: checksum(path)}))
        return show()

    return attempt


def test_mutated_files_of_a_run(outcomes, run):
    fuzz(outcomes, run, 4, 1)
    fuzz_made_so(outcomes, run, 6, 2)


@pytest.mark.slow
def test_many_mutated_files_of_a_run(outcomes, run):
    fuzz(outcomes, run, 40, 11)
    fuzz_made_so(outcomes, run, 60, 12)
