import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import places
import pytest

from tdistill.cli import main
from tdistill.experiment.artefact import MANIFEST


def call(monkeypatch, capsys, *argv: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command line, called in this process."""
    monkeypatch.setattr(sys, "argv", ["tdistill", *map(str, argv)])
    with pytest.raises(SystemExit) as stop:
        main()
    streams = capsys.readouterr()
    return stop.value.code or 0, streams.out, streams.err


def flat(text: str) -> str:
    return " ".join(text.split())


def refused(monkeypatch, capsys, *argv: str) -> str:
    code, out, err = call(monkeypatch, capsys, *argv)
    assert code == 2
    assert "Traceback" not in out + err
    assert err.startswith("tdistill: error: ")
    return flat(err)


BAD_PROMPTS = {
    "empty": (b"", "holds no prompts"),
    "blank": (b"\n\n", "holds no prompts"),
    "no prompt": (b'{"prompt": "a"}\n{"question": "b"}\n', "train.jsonl, line 2: no prompt; expected"),
    "empty prompt": (b'{"prompt": "a"}\n{"prompt": " "}\n', "line 2: `prompt` must be non-empty text"),
    "invalid UTF-8": (b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "train.jsonl, line 2: not UTF-8 (byte 12 is 0xff)"),
    "invalid JSON": (b'{"prompt": "a"}\n{"prompt": \n', "train.jsonl, line 2: not JSON"),
    "no object": (b'{"prompt": "a"}\n[1]\n', "train.jsonl, line 2: expected an object"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
@pytest.mark.parametrize("command", ["run", "rollout"])
def test_bad_prompt_files_are_refused_before_anything_is_written(name, command, tiny_recipe, monkeypatch, capsys):
    content, message = BAD_PROMPTS[name]
    (tiny_recipe.parent / "train.jsonl").write_bytes(content)
    assert message in refused(monkeypatch, capsys, command, tiny_recipe)
    assert not (tiny_recipe.parent / "run").exists()


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_missing_prompt_file_is_named(split, tiny_recipe, monkeypatch, capsys):
    path = tiny_recipe.parent / f"{split}.jsonl"
    path.unlink()
    assert f"No prompt file at {path}" in refused(monkeypatch, capsys, "run", tiny_recipe)


BAD_OVERRIDES = {
    "unknown key": (["rollout.teacher_topp=0.5"], "unknown key 'rollout.teacher_topp'. Did you mean 'teacher_top_p'?"),
    "unknown section": (["rolout.seed=1"], "unknown key 'rolout'. Did you mean 'rollout'?"),
    "unknown training argument": (["train.arguments.learning_rat=1"], "Did you mean 'learning_rate'?"),
    "ill-typed": (["rollout.num_generations=two"], "'rollout.num_generations'"),
    "ill-typed seed": (["seed=1.5"], "'seed'"),
    "p = 0": (["rollout.teacher_top_p=0.0"], "'rollout.teacher_top_p': Input should be greater than 0, got 0.0"),
    "p above 1": (["rollout.teacher_top_p=1.5"], "'rollout.teacher_top_p': Input should be less than or equal to 1, got 1.5"),
    "p above the cache's": (["train.teacher_top_p=0.9"], "'train.teacher_top_p' is 0.9, above the roll-outs' 0.8"),
    "gamma": (["train.objective.gamma=1.5"], "'train.objective': Objective 'iq_learn': gamma=1.5 is not allowed"),
    "alpha": (["train.objective.alpha=-1.0"], "'train.objective': Objective 'iq_learn': alpha=-1.0 is not allowed"),
    "unknown objective": (["train.objective.name=iq_lern"], "Unknown objective 'iq_lern'. Did you mean 'iq_learn'?"),
    "objective argument": (["train.objective.gama=0.5"], "Objective 'iq_learn' has no argument 'gama'. Did you mean 'gamma'?"),
    "no steps of others": (
        ["train.objective={name: sqil, other: rollouts}"],
        "sqil(other=rollouts) learns from steps that are not the expert's: set 'train.on_policy: {lmbda: 0.5}'",
    ),
    "lmbda": (["train.on_policy={lmbda: 1.5}"], "'train.on_policy.lmbda': Input should be less than or equal to 1, got 1.5"),
    "bad baseline": (["train.baselines.sft_continued.objective.name=nl"], "'train.baselines.sft_continued': Unknown objective 'nl'"),
    "bad baseline, alone": (["train.baselines={other: {name: nl}}"], "'train.baselines.other': Unknown objective 'nl'"),
    "baseline's argument": (
        ["train.baselines.sft_continued.arguments={learning_rat: 1e-4}"],
        "'train.baselines.sft_continued.arguments.learning_rat' is no argument",
    ),
    "candidate rule": (["train.candidate_rule={name: adaptiv, value: 0.1}"], "'train.candidate_rule.name'"),
    "candidate rule's value": (["train.candidate_rule={name: top_k, value: 2.5}"], "top_k: value must be a whole number ≥ 1, got 2.5"),
    "candidate rule at p = 1": (
        ["train.candidate_rule={name: top_k, value: 2}", "train.teacher_top_p=1.0"],
        "'train.candidate_rule' cuts cached candidates, but 'train.teacher_top_p' is 1",
    ),
    "too many layers": (["student.num_hidden_layers=9"], "num_hidden_layers=9, but the teacher has 4 layers: ask for 1 to 4"),
    "layer that is not there": (
        ["student.keep_layers=[0, 7]"],
        "student.keep_layers names [7], but the teacher has layers 0 to 3",
    ),
    "no teacher": (["teacher.teacher_model_name_or_path=/nowhere/model"], "No model at '/nowhere/model'"),
    "no override": (["seed"], "Override 'seed' must look like section.key=value"),
}


@pytest.mark.parametrize("name", BAD_OVERRIDES)
def test_bad_settings_are_refused_before_anything_is_written(name, tiny_recipe, monkeypatch, capsys):
    overrides, message = BAD_OVERRIDES[name]
    assert message in refused(monkeypatch, capsys, "run", tiny_recipe, *overrides)
    assert not (tiny_recipe.parent / "run").exists()


def test_an_output_directory_that_holds_something_else_is_left_alone(tiny_recipe, monkeypatch, capsys):
    other = tiny_recipe.parent / "run"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    assert f"output_dir {other} holds something else" in refused(monkeypatch, capsys, "run", tiny_recipe)
    assert [p.name for p in other.iterdir()] == ["thesis.tex"]


def test_a_missing_recipe_is_named(tmp_path, monkeypatch, capsys):
    assert f"No recipe at {tmp_path / 'no.yaml'}" in refused(monkeypatch, capsys, "run", tmp_path / "no.yaml")


def test_a_stage_without_its_inputs_says_which_command_comes_first(tiny_recipe, monkeypatch, capsys):
    assert "`tdistill rollout RECIPE` first" in refused(monkeypatch, capsys, "train", tiny_recipe)


@pytest.mark.parametrize("option", ["--seeds", "--limit", "--max-prompt-length", "--lm-eval-include-path"])
def test_an_option_of_a_measurement_that_is_not_asked_for_is_refused(option, tiny_recipe, monkeypatch, capsys):
    assert f"{option} belongs to --" in refused(monkeypatch, capsys, "evaluate", tiny_recipe, option, "3")
    assert not (tiny_recipe.parent / "run").exists()


def test_a_tilde_that_the_shell_left_is_the_home_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "thesis.tex").write_text("mine")
    assert f"{tmp_path / 'pages'} holds something else" in refused(monkeypatch, capsys, "theory", "~/pages")
    assert "can't be read as a path" in refused(monkeypatch, capsys, "theory", "~nobody-here/pages")
    assert not (tmp_path / "~").exists()


def files_of(root: Path) -> dict[str, int]:
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}


def test_run_makes_everything_and_a_rerun_skips_everything(tiny_recipe, monkeypatch, capsys):
    code, out, err = call(monkeypatch, capsys, "run", tiny_recipe)
    assert code == 0, out + err
    root = tiny_recipe.parent / "run"
    found = places.titles(root)
    systems = {"teacher", "start", "sft", "sft_continued", "distilled"}
    rollouts = {f"roll-outs of {split}" for split in ("train", "valid", "test")}
    measured = {f"{what} of {system}" for what in ("answers", "divergences") for system in systems}
    assert found.keys() == systems | rollouts | measured | {"the teacher's concentration", "evaluation", "report"}
    for directory in found.values():
        for place in json.loads((root / directory / MANIFEST).read_text())["inputs"].values():
            assert (root / place / MANIFEST).is_file(), "an artefact names what it read"
    for title, name in (("sft", "model.safetensors"), ("distilled", "model.safetensors"), ("report", "report.html"), ("report", "report.md")):
        assert (root / found[title] / name).is_file()
    for name, steps in {"distilled": 4, "sft_continued": 3}.items():
        history = json.loads((root / found[name] / "log_history.json").read_text())["history"]
        assert max(entry["step"] for entry in history) == steps
    before = files_of(root)
    code, out, err = call(monkeypatch, capsys, "run", tiny_recipe)
    assert code == 0, out + err
    assert (out + err).count("complete, skipped") == 6
    changed = {name for name, stamp in files_of(root).items() if before.get(name) != stamp}
    assert changed <= {"recipe.yaml"}


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """Writing past ``size`` bytes of any file fails, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Command, the artefact that it makes, a file of it, the share of that file that still fits, and what must not be there afterwards.
FULL_DISKS = (
    ("rollout", "roll-outs of train", "shard-00000.parquet", 0.9, "*"),
    ("sft", "sft", "model.safetensors", 0.9, "checkpoints/*/tdistill.complete"),
    ("sft", "sft", "model.safetensors", 1.5, "checkpoints/*/tdistill.complete"),  # the optimizer's state is twice the model
    ("report", "report", "report.html", 0.9, "report.html"),
)


@pytest.mark.slow
def test_a_full_disk_stops_with_an_error_and_nothing_half_written_counts(tiny_recipe, monkeypatch, capsys):
    root, undisturbed = tiny_recipe.parent / "run", tiny_recipe.parent / "undisturbed"
    assert call(monkeypatch, capsys, "run", tiny_recipe, f"output_dir={undisturbed}")[0] == 0
    titles = places.titles(undisturbed)
    for command, title, written, share, forbidden in FULL_DISKS:
        if command == "rollout":  # its models are larger than its shards: make them first, without a prompt answered
            places.made(tiny_recipe)
        if command == "report":
            for before in ("sft", "train", "evaluate"):
                assert call(monkeypatch, capsys, before, tiny_recipe)[0] == 0
        with no_file_over(int(share * (undisturbed / titles[title] / written).stat().st_size)):
            code, _, errors = call(monkeypatch, capsys, command, tiny_recipe)
        assert (code, "Traceback" in errors) == (2, False), (command, share)
        assert "tdistill: error: The disk is full" in flat(errors), (command, share)
        assert not list((root / titles[title]).glob(forbidden)), (command, share)
        assert not (root / titles[title] / MANIFEST).exists(), (command, share)
        if command == "rollout":
            assert call(monkeypatch, capsys, command, tiny_recipe)[0] == 0
    assert call(monkeypatch, capsys, "run", tiny_recipe)[0] == 0
    assert results(root) == results(undisturbed)


def shell(recipe: Path, output: Path) -> subprocess.Popen:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tdistill", "run", str(recipe), f"output_dir={output}"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill_once(recipe: Path, output: Path, pattern: str) -> bool:
    """Start a run and kill it as soon as something matches; False if it ended before."""
    process = shell(recipe, output)
    while process.poll() is None:
        if next(output.glob(pattern), None) is not None:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return True
        time.sleep(0.002)
    assert process.returncode == 0, process.communicate()[1].decode()
    return False


def results(root: Path) -> dict[str, object]:
    """Everything that a run found out, by the titles of its artefacts: shards, scores, and the weights of the students."""
    found: dict[str, object] = {}
    for title, directory in places.titles(root).items():
        if (root / directory / "manifest.json").exists():
            found[title] = json.loads((root / directory / "manifest.json").read_text())["shards"]
        if (root / directory / "scores.json").exists():
            found[title] = json.loads((root / directory / "scores.json").read_text())
        if directory.parts[0] == "students":
            found[title] = hashlib.sha256((root / directory / "model.safetensors").read_bytes()).hexdigest()
    return found


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_undisturbed_runs_results(tiny_recipe):
    undisturbed, killed = tiny_recipe.parent / "undisturbed", tiny_recipe.parent / "killed"
    process = shell(tiny_recipe, undisturbed)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    titles = places.titles(undisturbed)
    moments = (
        "start/*/model.safetensors",
        f"{titles['roll-outs of train']}/shard-*.parquet",
        f"{titles['roll-outs of test']}/*.partial",
        f"{titles['sft']}/checkpoints/checkpoint-2",
        f"{titles['sft_continued']}/checkpoints/checkpoint-2/tdistill.complete",
        f"{titles['distilled']}/checkpoints/checkpoint-*",
        "answers/*/answers.jsonl",
        "divergences/*/scores.json",
        "report/*",
    )
    kills = [moment.split("/")[0] for moment in moments if kill_once(tiny_recipe, killed, moment)]
    assert set(kills) == {"start", "rollouts", "students", "answers", "divergences", "report"}
    process = shell(tiny_recipe, killed)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    expected = results(undisturbed)
    assert len(expected) == 3 + 3 + 2 * 5
    assert results(killed) == expected


def test_a_student_learns_from_its_own_rollouts_too(tiny_recipe, monkeypatch, capsys):
    mixed = (
        "train.on_policy={lmbda: 0.5, refresh_steps: 2, replay: 2, teacher_mix: 0.2}",
        "train.objective={name: sqil, other: rollouts, gauge: learned, target_network: true, anchor: tail}",
        "train.baselines={own_text: {objective: {name: reverse_kl}, on_policy: {lmbda: 1.0, refresh_steps: 2, replay: 2}},"
        " sft_continued: {objective: {name: nll}, on_policy: {lmbda: 0.0}}}",
    )
    code, _, err = call(monkeypatch, capsys, "run", tiny_recipe, *mixed)
    assert code == 0, err
    run = places.experiment(tiny_recipe, mixed)
    rounds = {
        name: json.loads((places.student(run, name=name) / "log_history.json").read_text())["rollouts"]
        for name in ("distilled", "own_text", "sft_continued")
    }
    assert [r["round"] for r in rounds["distilled"]] == [0, 1]
    assert sum(r["responses"] for r in rounds["own_text"]) >= 4, "four steps of two, each response used about twice"
    assert rounds["sft_continued"] == []
