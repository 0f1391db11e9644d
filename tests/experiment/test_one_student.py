"""Through the command line: what one more baseline, seed or prompt costs, and what a student that diverges or an old directory does."""

import json
import shutil
from pathlib import Path

import places
import pytest
import yaml
from conftest import command, tiny_recipe_dict

from tdistill.compare.comparing import compare
from tdistill.experiment.artefact import MANIFEST
from tdistill.experiment.experiment import LATEST
from tdistill.experiment.graph import is_complete
from tdistill.experiment.students import DIVERGED

SYSTEMS = ("teacher", "start", "sft", "sft_continued", "distilled")
SHOWN = {"evaluation", "report"}
# One step that throws the weights out.
DIVERGES = "{max_steps: 2, eval_steps: 2, save_steps: 2, learning_rate: 1e30, max_grad_norm: 0.0, lr_scheduler_type: constant}"


def measured(*systems: str) -> set[str]:
    return {f"{what} of {system}" for what in ("answers", "divergences") for system in systems}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Path:
    """The recipe of a finished run."""
    directory = tmp_path_factory.mktemp("finished")
    recipe = directory / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe_dict(tiny_teacher, directory)))
    assert command("run", recipe) == 0
    return recipe


class Copy:
    """A finished run that a test may go on with."""

    def __init__(self, finished: Path, directory: Path):
        shutil.copytree(finished.parent, directory, symlinks=True, dirs_exist_ok=True)
        self.recipe, self.root = directory / "recipe.yaml", directory / "run"
        content = yaml.safe_load((finished).read_text())
        content["output_dir"] = str(self.root)
        content["data"] |= {split: str(directory / f"{split}.jsonl") for split in ("train", "valid", "test")}
        self.recipe.write_text(yaml.safe_dump(content))
        self._before = self._files()

    def _files(self) -> dict[Path, int]:
        found = [path for kind in self.root.iterdir() if kind.name != LATEST for path in kind.glob("*/**/*") if path.is_file()]
        return {path.relative_to(self.root): path.stat().st_mtime_ns for path in found}

    def made(self) -> list[str]:
        """The titles of what was made since; all that was there is as it was."""
        now, old = self._files(), self._before
        assert {name: now.get(name) for name in old} == old
        self._before = now
        places_of_new = {Path(*name.parts[:2]) for name in now.keys() - old.keys()}
        return sorted(json.loads((self.root / place / MANIFEST).read_text())["title"] for place in places_of_new)


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Copy:
    return Copy(finished, tmp_path)


def test_the_same_recipe_again_makes_nothing(copy: Copy) -> None:
    assert command("run", copy.recipe) == 0
    assert copy.made() == []


def says_not_evaluated(root: Path) -> bool:
    return any("The recipe that ran last" in note for note in compare([root]).notes)


def test_a_recipe_whose_prompts_lie_elsewhere_is_evaluated_and_one_whose_students_are_new_is_not(copy: Copy) -> None:
    assert command("run", copy.recipe) == 0
    assert not says_not_evaluated(copy.root)
    assert command("train", copy.recipe, "train.baselines={}", "train.seeds=[4]") == 0
    assert says_not_evaluated(copy.root)
    assert command("report", copy.recipe) == 0
    assert not says_not_evaluated(copy.root)


def test_a_renamed_baseline_is_not_trained_again(copy: Copy) -> None:
    assert command("run", copy.recipe, "train.baselines={other: {objective: {name: nll}, arguments: {max_steps: 3}}}") == 0
    assert copy.made() == sorted(SHOWN)


def test_one_more_baseline_trains_one_student_and_measures_one_system(copy: Copy) -> None:
    more = "train.baselines={sft_continued: {objective: {name: nll}, arguments: {max_steps: 3}}, other: {objective: {name: jsd}}}"
    assert command("run", copy.recipe, more) == 0
    assert copy.made() == sorted({"other", *measured("other"), *SHOWN})


def test_one_more_seed_trains_one_student_of_each_method(copy: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("run", copy.recipe, "train.seeds=[3, 4]") == 0
    new = ("sft_continued, seed 4", "distilled, seed 4")
    assert copy.made() == sorted({*new, *measured(*new), *SHOWN})
    said = capsys.readouterr().out
    assert said.count("student: ") == 2
    assert command("run", copy.recipe, "train.seeds=[4]") == 0
    assert copy.made() == sorted(SHOWN), "the other way round nothing is trained either"


def test_one_more_test_prompt_keeps_the_training_roll_outs_and_all_students(copy: Copy) -> None:
    with (copy.recipe.parent / "test.jsonl").open("a") as handle:
        handle.write(json.dumps({"prompt": "one more question", "completion": "x"}) + "\n")
    assert command("run", copy.recipe) == 0
    assert copy.made() == sorted({"roll-outs of test", *measured(*SYSTEMS), "the teacher's concentration", *SHOWN})


@pytest.mark.parametrize("workers", [1, 2])
def test_a_student_that_diverges_leaves_the_others_made_and_is_not_trained_again(
    workers: int, copy: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    baselines = f"train.baselines={{wild: {{objective: {{name: nll}}, arguments: {DIVERGES}}}, other: {{objective: {{name: jsd}}}}}}"
    command_line = ("train", copy.recipe, baselines, "--workers", workers)
    assert command(*command_line) == 2
    said = " ".join(capsys.readouterr().err.split())
    wild, other = (places.student(copy.recipe, [baselines], name) for name in ("wild", "other"))
    assert "error: " in said
    assert "wild: " in said.split("error: ")[1]
    assert "other: " not in said.split("error: ")[1]
    assert (other / MANIFEST).is_file()
    assert not (wild / MANIFEST).exists()
    assert not (wild / "model.safetensors").exists()
    record = wild / DIVERGED
    before = record.stat().st_mtime_ns, (wild / "checkpoints").exists()
    assert command(*command_line) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"delete {wild} to train it again" in said
    assert (record.stat().st_mtime_ns, (wild / "checkpoints").exists()) == before
    record.write_text("{")
    assert command(*command_line) == 2
    assert f"Delete {wild} and run again" in " ".join(capsys.readouterr().err.split())


def test_workers_train_the_same_students_bit_by_bit(copy: Copy, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as this process has
    alone, seeds = Copy(finished, tmp_path / "alone"), "train.seeds=[4, 5]"
    assert command("train", copy.recipe, seeds, "--workers", 2) == 0
    assert command("train", alone.recipe, seeds) == 0
    names = [(name, seed) for name in ("sft_continued", "distilled") for seed in (4, 5)]
    for name, seed in names:
        together, one = (places.student(run.recipe, [seeds], name, seed) for run in (copy, alone))
        assert together.name == one.name
        for file in ("model.safetensors", "config.json", "tokenizer.json"):
            assert (together / file).read_bytes() == (one / file).read_bytes()
    assert copy.made() == alone.made() == sorted(f"{name}, seed {seed}" for name, seed in names)


def test_results_of_an_earlier_version_are_left_alone_and_named(tiny_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tiny_recipe.parent / "run"
    old = {root / stage / "0123456789ab" / "stage.json": f'{{"stage": "{stage}"}}' for stage in ("train", "rollout")}
    for path, content in old.items():
        path.parent.mkdir(parents=True)
        path.write_text(content)
    (root / ".tdistill").write_text("")
    assert command("rollout", tiny_recipe) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"{root} holds results of an earlier tdistill (rollout, train), which are not used and stay as they are." in said
    assert {path: path.read_text() for path in old} == old


def test_people_may_edit_a_model_card(tiny_recipe):
    made = places.made(tiny_recipe, stages=("models", "rollout", "sft", "train"))
    (places.student(made) / "README.md").write_text("my own words")
    assert is_complete(places.experiment(tiny_recipe), "train")


def test_a_recipe_without_sft_goes_through_all_stages(tiny_recipe, capsys):
    assert command("run", tiny_recipe, "sft=null") == 0
    assert "sft" not in {path.name for path in (places.experiment(tiny_recipe, ["sft=null"]).root / LATEST).iterdir()}
    assert command("sft", tiny_recipe, "sft=null") == 2
    assert "no sft section" in capsys.readouterr().err
