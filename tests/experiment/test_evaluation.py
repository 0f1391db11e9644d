"""The evaluation of a recipe with several seeds: what is measured, what is kept, and how its numbers are pooled."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import command, tiny_recipe_dict
from places import experiment, titled

from tdistill.compare.comparing import compare
from tdistill.evaluation.answers import Protocol
from tdistill.experiment import systems
from tdistill.experiment.answers import answers, divergences
from tdistill.experiment.kept import kept_of_artefact
from tdistill.experiment.report import collect
from tdistill.pages.tables import format_estimate
from tdistill.runtime.files import read_jsonl

MEASURED = ("answers", "divergences", "concentration", "students")
SEEDS = "train.seeds=[3,4]"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Path:
    """A recipe that ran with one seed."""
    directory = tmp_path_factory.mktemp("evaluation")
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe_dict(tiny_teacher, directory)))
    assert command("run", path) == 0
    return path


def manifests(recipe: Path) -> dict[str, int]:
    """Return title → time of the manifest, of all that was measured or trained."""
    found = [path for kind in MEASURED for path in (recipe.parent / "run").glob(f"{kind}/*/artefact.json")]
    return {json.loads(path.read_text())["title"]: path.stat().st_mtime_ns for path in found}


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Count the models that an evaluation loads, beside the teacher."""
    names, load = [], systems.load_model

    def count(source, *rest, **named):
        names.append(source.directory)
        return load(source, *rest, **named)

    monkeypatch.setattr(systems, "load_model", count)
    return names


def test_one_seed_more_is_measured_alone(recipe, loaded) -> None:
    before = manifests(recipe)
    assert command("run", recipe, SEEDS) == 0
    after = manifests(recipe)
    new = {f"{what}{name}, seed 4" for name in ("distilled", "sft_continued") for what in ("", "answers of ", "divergences of ")}
    assert after.keys() - before.keys() == new
    assert {title: after[title] for title in before} == before
    assert len(loaded) == 2, "each new student is loaded once for its answers and its divergences"


def test_one_baseline_more_is_measured_alone(recipe, loaded) -> None:
    before = manifests(recipe)
    assert command("run", recipe, "train.baselines.jsd.name=jsd") == 0
    assert manifests(recipe).keys() - before.keys() == {"jsd", "answers of jsd", "divergences of jsd"}
    assert len(loaded) == 1


def test_what_shapes_no_answer_measures_nothing_anew(recipe, loaded) -> None:
    assert command("run", recipe) == 0
    before = manifests(recipe)
    changes = ["evaluation.batch_size=1", "evaluation.num_samples_shown=1", "train.monitor.log_completions=1", "title=Another"]
    assert command("run", recipe, *changes) == 0
    assert manifests(recipe) == before
    assert loaded == []


def test_another_nucleus_is_answered_anew_and_keeps_the_divergences(recipe) -> None:
    assert command("run", recipe) == 0
    own = experiment(recipe)
    other = experiment(recipe, ["evaluation.top_p=0.5"])
    for one, another in zip(systems.systems(own), systems.systems(other), strict=True):
        assert answers(own, one).key != answers(other, another).key
        assert divergences(own, one).key == divergences(other, another).key


def test_the_report_pools_seeds_as_compare_does(recipe) -> None:
    assert command("run", recipe, SEEDS) == 0
    data = collect(experiment(recipe, [SEEDS]))
    assert [(s.name, s.seeds) for s in data.systems][-2:] == [("sft_continued", (3, 4)), ("distilled", (3, 4))]
    newest = max((recipe.parent / "run").glob("evaluation/*/artefact.json"), key=lambda path: path.stat().st_mtime_ns).parent
    every = [place for place in newest.parent.iterdir() if "distilled, seed 4" in (place / "artefact.json").read_text()]
    (pooled_run,) = every
    compared = compare([pooled_run])
    for system in data.systems:
        quality = compared.quality[system.name]
        for metric in quality.keys() & system.metrics.keys():
            assert (quality[metric].mean, quality[metric].stderr) == pytest.approx(
                (system.metrics[metric].mean, system.metrics[metric].stderr), nan_ok=True
            ), (system.name, metric)
    found = {d.metric: d.value for d in compared.differences if (d.a, d.b) == ("distilled", "sft_continued")}
    shown = {d.metric: d.value for d in data.differences if (d.a, d.b) == ("distilled", "sft_continued")}
    for metric in found.keys() & shown.keys():
        assert found[metric] == shown[metric], metric


def test_the_report_of_one_seed_has_means_and_errors_over_prompts(recipe) -> None:
    assert command("run", recipe) == 0
    data = collect(experiment(recipe))
    run = recipe.parent / "run"
    for system in data.systems:
        scores = {}
        for kind in ("answers", "divergences"):
            titles = [f"{kind} of {system.name}", f"{kind} of {system.name}, seed 3"]
            place = next(titled(run, title) for title in titles if title in manifests(recipe))
            scores |= json.loads((place / "scores.json").read_text())
        for metric, value in system.metrics.items():
            x = np.array([v for v in scores[metric].values() if not np.isnan(v)])
            assert value.mean == pytest.approx(x.mean() if len(x) else np.nan, nan_ok=True)
            assert value.n == len(x)
            if len(x) > 1:
                assert value.stderr == pytest.approx(x.std(ddof=1) / np.sqrt(len(x)))


def test_a_stop_in_the_middle_of_answering_keeps_whole_batches(recipe, monkeypatch) -> None:
    asked, answer = [], Protocol.answer

    def stopping(self, model, batch):
        if len(asked) == 1:
            raise KeyboardInterrupt
        asked.append(batch)
        return answer(self, model, batch)

    change = ["evaluation.temperature=0.9", "evaluation.batch_size=4"]
    monkeypatch.setattr(Protocol, "answer", stopping)
    assert command("evaluate", recipe, *change) not in (0, 2)
    stopped = experiment(recipe, change)
    artefact = answers(stopped, systems.systems(stopped)[0])
    place = artefact.directory
    assert f"of `{artefact.title}` 1 batch of answers. The same command goes on from there." in kept_of_artefact(artefact, stopped.root)
    assert len((place / "answers.batches").read_text().splitlines()) == 1
    monkeypatch.setattr(Protocol, "answer", lambda self, model, batch: asked.append(batch) or answer(self, model, batch))
    assert command("evaluate", recipe, *change) == 0
    assert sum(map(len, asked[:2])) == 6, "two batches of the teacher's answers, none of them twice"
    assert len(read_jsonl(place / "answers.jsonl")) == 6
    assert not (place / "answers.batches").exists()


def test_tables_of_temperatures_and_tasks_have_one_line_for_each_method(recipe, capsys) -> None:
    data = recipe.parent / "tasks"
    (data / "dolly").mkdir(parents=True)
    (data / "dolly/test.jsonl").write_text("".join(json.dumps({"instruction": f"Name {i}", "output": "A"}) + "\n" for i in range(3)))
    assert command("run", recipe, SEEDS) == 0
    capsys.readouterr()
    assert command("evaluate", recipe, SEEDS, "--temperatures", "1", "--tasks", "dolly", "--data-dir", data, "--seeds", 1) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:4]] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    methods = ["sft", "sft_continued", "distilled"]
    assert [name for name, t, _ in lines if t == "1"] == ["teacher", *methods]
    assert [name for task, name, _ in lines if task == "dolly"] == ["teacher", "start", *methods]
    own = next(cells for cells in lines if cells[:2] == ["distilled", "1"])
    (shown,) = (s for s in collect(experiment(recipe, [SEEDS])).systems if s.name == "distilled")
    assert own[2] == format_estimate(shown.metrics["teacher_nll"])
    (folder,) = (recipe.parent / "run/tasks").iterdir()
    rows = [(row["system"], row["method"], row["seed"]) for row in read_jsonl(folder / "tasks.jsonl")]
    assert rows[-2:] == [("distilled, seed 3", "distilled", 3), ("distilled, seed 4", "distilled", 4)]
