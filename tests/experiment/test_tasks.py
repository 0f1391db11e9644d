"""Named tasks: what their files may hold, what is measured of an answer, and a run's systems on them through the command line."""

import gzip
import importlib.util
import json
import shutil
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import command, tiny_recipe_dict
from places import experiment, start, titled

from tdistill.cache.schema import Response
from tdistill.cli import app
from tdistill.data.prompts import Prompt, TokenizedPrompt, load_prompts, render
from tdistill.evaluation import tasks
from tdistill.evaluation.answer_files import AnswerBounds, answer_all
from tdistill.evaluation.answers import answer_record
from tdistill.evaluation.task_scores import read_nll_by_position, read_task_scores
from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.models.tokenizer import load_tokenizer
from tdistill.runtime.errors import ConfigError, DataError

SYSTEMS = ["teacher", "start", "sft", "sft_continued", "distilled"]
RECORDS = {
    "dolly/test.jsonl": [{"instruction": f"Name thing {i}", "input": "x" * 60 * (i == 3), "output": f"A thing {i}"} for i in range(6)],
    "sni/test.jsonl.gz": [{"instruction": f"Say {i}", "input": "", "output": ["yes", "no"] if i else []} for i in range(4)],
    "gsm8k/test.jsonl.gz": [{"instruction": f"{i}+1?", "input": "", "output": f"so\n#### {i + 1}"} for i in range(3)],
}


def write_records(directory: Path) -> Path:
    for name, records in RECORDS.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as handle:
            handle.writelines(json.dumps(r) + "\n" for r in records)
    return directory


@pytest.fixture
def data(tmp_path):
    return write_records(tmp_path / "data")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_teacher):
    """A recipe with students, a directory of task files, and the folder of the results of ``OPTIONS``."""
    root = tmp_path_factory.mktemp("tasks")
    recipe = root / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe_dict(tiny_teacher, root)))
    data = write_records(root / "data")
    assert command("run", recipe) == 0
    assert command("evaluate", recipe, "--tasks", "dolly,sni,gsm8k", *OPTIONS, "--data-dir", data) == 0
    (folder,) = (root / "run/tasks").iterdir()
    return recipe, data, folder


OPTIONS = ["--seeds", "3", "--max-prompt-length", "80"]


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "tasks.jsonl").read_text().splitlines()]


def test_the_command_names_every_task():
    (option,) = (c.callback.__annotations__["tasks"] for c in app.registered_commands if c.callback.__name__ == "evaluate")
    assert ", ".join(tasks.TASKS) in option.__metadata__[0].help


def test_names_are_read_once_each():
    assert tasks.task_names(" gsm8k,dolly ,gsm8k,") == ("gsm8k", "dolly")
    with pytest.raises(ConfigError, match=r"Unknown task 'dolli'\. Did you mean 'dolly'\?"):
        tasks.task_names("dolli")
    with pytest.raises(ConfigError, match=r"names no task, got ' , '\. Known: dolly, selfinst"):
        tasks.task_names(" , ")


def test_a_file_is_found_under_any_of_its_names(data):
    assert [tasks.load_task(name, data).file for name in ("dolly", "sni")] == ["dolly/test.jsonl", "sni/test.jsonl.gz"]
    sni = tasks.load_task("sni", data)
    assert (len(sni.prompts), sni.without_reference) == (4, 1)
    assert sni.prompts[1].references == ("yes", "no")


def test_missing_directories_files_and_answers_are_named(data):
    with pytest.raises(ConfigError, match="'dolly' needs --data-dir DIR, the directory with dolly/test.jsonl"):
        tasks.load_task("dolly", None)
    with pytest.raises(DataError, match="--data-dir .*nowhere is no directory"):
        tasks.load_task("dolly", data / "nowhere")
    with pytest.raises(DataError, match="can't be read as a path"):
        tasks.load_task("dolly", Path("~nobody-here/data"))
    with pytest.raises(DataError, match=r"none of unni/test_0_2.jsonl, .*unni/test.parquet\. Put .*orhonovich.*; MIT"):
        tasks.load_task("unni", data)
    (data / "dolly/test.jsonl").write_text('{"instruction": "a", "output": ""}\n')
    with pytest.raises(DataError, match="none of its 1 records has an answer"):
        tasks.load_task("dolly", data)


def test_a_limit_takes_a_fixed_subset_of_what_fits(data, tiny_teacher):
    task, tokenizer = tasks.load_task("dolly", data), load_tokenizer(find_model(str(tiny_teacher)))
    kept = {}
    for limit in (2, 4, None):
        chosen, skipped = tasks.choose_prompts(task, tokenizer, 80, "skip", limit)
        assert skipped == 1
        kept[limit] = [p.prompt.prompt_id for p in chosen]
    assert [len(v) for v in kept.values()] == [2, 4, 5]
    assert set(kept[2]) < set(kept[4]) < set(kept[None])
    turned = tasks.Task(task.name, task.spec, task.file, task.sha256, task.prompts[::-1])
    assert {p.prompt.prompt_id for p in tasks.choose_prompts(turned, tokenizer, 80, "skip", 2)[0]} == set(kept[2])
    with pytest.raises(DataError, match="1 of 6 prompts are longer than 80 tokens"):
        tasks.choose_prompts(task, tokenizer, 80, "refuse", None)
    with pytest.raises(DataError, match="6 of 6 prompts are longer than 8 tokens .* Raise --max-prompt-length"):
        tasks.choose_prompts(task, tokenizer, 8, "skip", None)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18", "18"),
        ("It costs $1,234.50.", "1234.5"),
        ("from 10-12", "12"),
        ("minus -3 degrees", "-3"),
        ("-$5", "-5"),
        ("16.00 dollars", "16"),
        ("1,2 and 3,", "3"),
        ("none", None),
    ],
)
def test_the_last_number_of_a_text(text, number):
    assert tasks.last_number(text) == (None if number is None else Decimal(number))


def test_answers_match_up_to_case_punctuation_and_blanks():
    assert tasks.exact_match(" The  end.", ["no", "the end"]) == 100.0
    assert tasks.exact_match("The ends", ["the end"]) == 0.0
    assert tasks.number_match("so it is 1,000", ["x\n#### 1000"]) == 100.0
    assert tasks.number_match("no idea", ["no number either"]) == 0.0


def test_stopped_answers_go_on_at_the_first_missing_batch(tmp_path, tiny_teacher):
    p, q = (TokenizedPrompt(Prompt(name, ({"role": "user", "content": name},)), (1, 2)) for name in "pq")
    plan, asked = [[(p, 0), (p, 1)], [(q, 0)], [(q, 1)]], []
    tokenizer = load_tokenizer(find_model(str(tiny_teacher)))
    bounds = AnswerBounds(tokenizer, [256], 8, 257)

    def answer(batch):
        asked.append(batch)
        if len(asked) == 3:
            raise KeyboardInterrupt
        tokens = tokenizer("\u2028.").input_ids
        logp = [-1.0] * len(tokens)
        return [answer_record(Response(p.prompt.prompt_id, i, p.ids, tokens, False, logp, logp), tokenizer) for p, i in batch]

    with pytest.raises(KeyboardInterrupt):
        answer_all(tmp_path, plan, answer, bounds, "a")
    with (tmp_path / "answers.batches").open("ab") as journal:
        journal.write(b'[{"prompt_id": "q", "sam')  # a kill in the middle of a line
    records = answer_all(tmp_path, plan, answer, bounds, "a")
    assert asked[3:] == plan[2:]
    assert [(r["prompt_id"], r["sample_index"]) for r in records] == [("p", 0), ("p", 1), ("q", 0), ("q", 1)]
    assert answer_all(tmp_path, plan, answer, bounds, "a") == records
    assert len(asked) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["answers.jsonl"]


def test_every_system_has_a_row_a_task(trained):
    rows = rows_of(trained[-1])
    assert [(r["task"], r["system"]) for r in rows] == [(t, s) for t in ("dolly", "gsm8k", "sni") for s in SYSTEMS]
    common = {"rouge_l", "exact_match", "teacher_nll", "entropy", "mean_length", "finished"}
    for row in rows:
        assert set(row["metrics"]) - {"distinct_2"} == common | ({"number_match"} if row["task"] == "gsm8k" else set())
        assert (row["seeds"], row["limit"], row["subset_seed"], row["max_prompt_length"]) == (3, None, None, 80)
        assert row["sampling"] == {"temperature": 1.0, "top_p": 0.8, "top_k": 0, "max_completion_length": 12, "seed": 1_000_006}
        assert {"tdistill", "torch", "transformers", "git_commit", "recipe"} <= set(row["provenance"])
    dolly, sni = rows[0], rows[-1]
    assert (dolly["prompts"], dolly["skipped_overlong"], dolly["data"]["file"]) == (5, 1, "dolly/test.jsonl")
    assert (sni["prompts"], sni["without_reference"], sni["metrics"]["rouge_l"]["n"], sni["metrics"]["teacher_nll"]["n"]) == (4, 1, 3, 4)
    scores = read_task_scores(trained[-1])
    assert set(scores) == set(SYSTEMS)
    values = list(scores["teacher"]["dolly"]["teacher_nll"].values())
    assert dolly["metrics"]["teacher_nll"]["mean"] == pytest.approx(np.mean(values))
    assert dolly["metrics"]["teacher_nll"]["stderr"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(5))


def test_scores_are_those_of_the_answers_one_by_one(trained):
    recipe, data, folder = trained
    teacher = load_model(find_model(experiment(recipe).recipe.teacher.teacher_model_name_or_path))
    tokenizer = load_tokenizer(find_model(str(start(recipe))))
    prompts = {p.prompt_id: p for p in load_prompts(str(data / "dolly/test.jsonl"))}
    place = titled(folder.parents[1], "dolly by distilled")
    answers = [json.loads(line) for line in (place / "answers.jsonl").read_bytes().split(b"\n") if line]
    assert [(a["sample_index"]) for a in answers] == [0, 1, 2] * 5
    assert len({tuple(a["tokens"]) for a in answers if a["prompt_id"] == answers[0]["prompt_id"]}) > 1
    sums, counts, nll = np.zeros(12), np.zeros(12), {}
    for a in answers:
        prompt = render(tokenizer, prompts[a["prompt_id"]])
        ids = torch.tensor([[*prompt, *a["tokens"]]])
        with torch.no_grad():
            logp = teacher(ids).logits[0, len(prompt) - 1 : -1, : len(tokenizer)].log_softmax(-1)
        own = -logp.gather(-1, torch.tensor(a["tokens"]).unsqueeze(-1)).squeeze(-1).double().numpy()
        sums[: len(own)] += own
        counts[: len(own)] += 1
        nll.setdefault(a["prompt_id"], []).append(own.mean())
    found = read_nll_by_position(folder)["distilled"]["dolly"]
    np.testing.assert_allclose(found[0], sums, rtol=1e-4)
    np.testing.assert_array_equal(found[1], counts)
    scores = read_task_scores(folder)["distilled"]["dolly"]
    assert scores["teacher_nll"] == pytest.approx({k: np.mean(v) for k, v in nll.items()}, rel=1e-4)
    assert scores["finished"] == {p: np.mean([a["finished"] for a in answers if a["prompt_id"] == p]) for p in scores["finished"]}


def test_a_rerun_measures_only_what_is_missing(trained, capsys):
    recipe, data, folder = trained
    rows = rows_of(folder)
    gone = [titled(folder.parents[1], f"{task} by sft") for task in ("sni", "dolly")]
    for place in gone:
        shutil.rmtree(place)
    before = {p: p.stat().st_mtime_ns for p in folder.parents[1].glob("*/*/*")}
    assert command("evaluate", recipe, "--tasks", "sni,dolly", *OPTIONS, "--data-dir", data) == 0
    out = capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert all((place / "scores.json").is_file() for place in gone)
    (other,) = (f for f in folder.parent.iterdir() if f != folder)
    assert rows_of(other) == [row for row in rows if row["task"] != "gsm8k"]
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert table[0].startswith("| task | system | prompts | ROUGE-L ↑ | exact match ↑ | teacher NLL ↓ |")
    assert [line.split("|")[1].strip() for line in table[2:]] == ["sni"] * 5 + ["dolly"] * 5
    assert "".join(out.split()).endswith("".join(f"rows: {other / 'tasks.jsonl'}".split()))
    shutil.rmtree(other)


def test_other_settings_go_elsewhere(trained):
    recipe, data, folder = trained
    assert command("evaluate", recipe, "--tasks", "dolly", "--seeds", "1", "--limit", "2", "--data-dir", data) == 0
    (other,) = (f for f in folder.parent.iterdir() if f != folder)
    rows = rows_of(other)
    assert {(r["limit"], r["subset_seed"], r["prompts"], r["seeds"], r["skipped_overlong"]) for r in rows} == {(2, 0, 2, 1, 0)}
    answered = {s: set(v["dolly"]["teacher_nll"]) for s, v in read_task_scores(other).items()}
    assert len({frozenset(ids) for ids in answered.values()}) == 1


REFUSED = {
    "unknown task": (["--tasks", "doly", "--data-dir", "DATA"], "Unknown task 'doly'. Did you mean 'dolly'?"),
    "no data": (["--tasks", "dolly"], "needs --data-dir DIR"),
    "no tasks": (["--data-dir", "DATA"], "--tasks names no task"),
    "empty": (["--tasks", "", "--data-dir", "DATA"], "--tasks names no task, got ''"),
    "no file": (["--tasks", "unni", "--data-dir", "DATA"], "has none of unni/test_0_2.jsonl"),
    "context": (["--tasks", "dolly", "--data-dir", "DATA", "evaluation.max_completion_length=250"], "but the teacher model's context is 256"),
    "not trained": (["--tasks", "dolly", "--data-dir", "DATA", "seed=4"], "reads what `train` makes, which is not complete"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_measured_is_refused_before_a_model_is_loaded(name, trained, capsys, monkeypatch):
    recipe, data, _ = trained
    argv, message = REFUSED[name]
    monkeypatch.setattr("tdistill.experiment.systems.load_model", pytest.fail)
    assert command("evaluate", recipe, *(data if a == "DATA" else a for a in argv)) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_another_file_of_a_task_is_answered_anew(trained, tmp_path):
    recipe, _, folder = trained
    other = write_records(tmp_path / "other")
    with (other / "dolly/test.jsonl").open("a") as handle:
        handle.write('{"instruction": "One more", "output": "yes"}\n')
    rows, places = rows_of(folder), set(folder.parent.iterdir())
    assert command("evaluate", recipe, "--tasks", "dolly", *OPTIONS, "--data-dir", other) == 0
    (made,) = set(folder.parent.iterdir()) - places
    assert {row["prompts"] for row in rows_of(made)} == {6}
    assert rows_of(folder) == rows


def test_a_folder_without_scores_is_named(tmp_path):
    with pytest.raises(DataError, match="has no scores of tasks"):
        read_task_scores(tmp_path)


HARNESS = importlib.util.find_spec("lm_eval") is not None
COLOURS = """
task: tiny_colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def colours(tmp_path):
    path = tmp_path / "yaml/colours.jsonl"
    path.parent.mkdir()
    questions = [{"question": f"The sky {i} is", "choices": ["blue", "made of cheese"], "label": i % 2} for i in range(4)]
    path.write_text("".join(json.dumps(q) + "\n" for q in questions))
    (path.parent / "colours.yaml").write_text(COLOURS.format(path=path))
    return path.parent


@pytest.mark.skipif(HARNESS, reason="lm-eval is installed")
def test_without_the_harness_its_extra_is_named(trained, capsys):
    assert command("evaluate", trained[0], "--lm-eval", "hellaswag") == 2
    assert "pip install 'tdistill[lm-eval]'" in capsys.readouterr().err


@pytest.mark.skipif(not HARNESS, reason="lm-eval is not installed: pip install 'tdistill[lm-eval]'")
def test_a_local_harness_task_is_measured_for_every_system(trained, colours, capsys):
    recipe, _, folder = trained
    argv = ["evaluate", recipe, "--lm-eval", "tiny_c*", "--lm-eval-include-path", colours]
    assert command(*argv) == 0
    assert "| tiny_colours | acc |" in capsys.readouterr().out
    files = {json.loads(p.read_text())["system"]: p for p in folder.parents[1].glob("lm_eval/*/results.json")}
    assert set(files) == set(SYSTEMS)
    record = json.loads(files["distilled"].read_text())
    assert record["results"]["tiny_colours"]["acc,none"] in {0.0, 0.25, 0.5, 0.75, 1.0}
    assert record["n-samples"]["tiny_colours"]["effective"] == 4
    assert record["provenance"]["seed"] == 3
    before = {p: p.stat().st_mtime_ns for p in files.values()}
    assert command(*argv) == 0
    assert {p: p.stat().st_mtime_ns for p in files.values()} == before
    assert command("evaluate", recipe, "--lm-eval", "tiny_colour", "--lm-eval-include-path", colours) == 2
    assert "Did you mean 'tiny_colours'?" in capsys.readouterr().err


def test_prompts_of_a_task_that_were_trained_on_are_counted_and_said(trained, tmp_path, capsys):
    recipe = trained[0]
    other = write_records(tmp_path / "other")
    with (other / "dolly/test.jsonl").open("a") as handle:
        handle.write('{"instruction": "TRAIN question  0", "output": "yes"}\n')
    options = ["--seeds", "1", "--max-prompt-length", "81"]
    assert command("evaluate", recipe, "--tasks", "dolly", *options, "--data-dir", other) == 0
    assert "1 of these prompts are also in train" in " ".join(capsys.readouterr().err.split())
    (path,) = (p for p in (recipe.parent / "run/tasks").glob("*/tasks.jsonl") if '"max_prompt_length": 81' in p.read_text())
    assert {row["also_in_train"] for row in rows_of(path.parent)} == {1}
