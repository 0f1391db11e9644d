import os
import shutil
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import places
import pytest
import torch
from processes_under_test import start, wait_for
from safetensors.torch import save_file
from test_cli import call, flat, no_file_over

from tdistill.experiment import provenance
from tdistill.experiment.artefact import MANIFEST, build
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.graph import execute, is_complete
from tdistill.experiment.models import teacher
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.runtime.disk import disk_errors
from tdistill.runtime.errors import ConfigError, OutputError
from tdistill.runtime.files import read_jsonl, remove_partial, replacing, sync_tree, write_jsonl, write_text


def writers(directory: Path) -> dict:
    """Every way by which files come below an output directory."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    tensor = torch.zeros(10_000)
    return {
        "text": lambda: write_text(directory / "x.txt", "y" * 40_000),
        "safetensors": lambda: save_file({"x": tensor}, directory / "x.safetensors"),
        "torch": lambda: torch.save(tensor, directory / "x.pt"),
        "parquet": lambda: pq.write_table(pa.table({"x": np.random.default_rng(0).random(10_000)}), directory / "x.parquet"),
        "mkdir": lambda: (directory / "sub").mkdir(),
    }


@pytest.mark.parametrize("name", ["text", "safetensors", "torch", "parquet", "mkdir"])
def test_whoever_writes_into_a_directory_that_is_gone_the_error_says_so(name, tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    write = writers(directory)[name]
    directory.rmdir()
    with pytest.raises(OutputError, match="Can't write"), disk_errors(directory):
        write()


@pytest.mark.parametrize("name", ["text", "safetensors", "torch", "mkdir"])
def test_a_file_in_the_place_of_a_directory_is_an_error_of_the_output(name, tmp_path):
    directory = tmp_path / "run"
    directory.write_text("a file")
    with pytest.raises(OutputError, match="Can't write"), disk_errors(directory):
        writers(directory)[name]()


@pytest.mark.parametrize("name", ["text", "safetensors", "torch", "parquet"])
def test_a_full_disk_is_named_whoever_meets_it(name, tmp_path):
    with no_file_over(2_000), pytest.raises(OutputError, match="The disk is full"), disk_errors(tmp_path):
        writers(tmp_path)[name]()


def test_a_name_that_is_too_long_is_an_error_of_the_output(tmp_path):
    with pytest.raises(OutputError, match="File name too long"), disk_errors(tmp_path):
        write_text(tmp_path / ("x" * 300), "")


def test_a_missing_file_below_the_output_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"models\.json: No such file"), disk_errors(tmp_path):
        (tmp_path / "models.json").read_text()


def test_bugs_and_files_elsewhere_stay_what_they_are(tmp_path):
    for error in (RuntimeError("shapes differ"), ValueError("no"), FileNotFoundError(2, "No such file", "/elsewhere/x"), KeyError("x")):
        with pytest.raises(type(error)) as caught, disk_errors(tmp_path):
            raise error
        assert caught.value is error


BAD_PLACES = {
    "a NUL byte": ("run\0x", "null byte"),
    "a user who is not there": ("~nouserofthisname/run", "names the home of a user who does not exist"),
    "a device": ("/dev/null", "holds something else"),
    "below a device": ("/dev/null/run", "Not a directory"),
    "a name too long": ("x" * 300, "File name too long"),
    "below a file": ("{tmp}/file/run", "Not a directory"),
    "a file": ("{tmp}/file", "holds something else"),
    "a link to nothing": ("{tmp}/dangling", "which does not exist. Make that directory first"),
    "a directory where nothing can be made": ("/proc/self/run", "Can't write to output_dir"),
}


@pytest.mark.parametrize("name", BAD_PLACES)
def test_an_output_directory_that_can_not_be_is_refused(name, tiny_recipe, tmp_path):
    place, message = BAD_PLACES[name]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=message):
        Experiment(open_recipe(tiny_recipe).model_copy(update={"output_dir": place.format(tmp=tmp_path)})).prepare()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("mode", [0o000, 0o500])
def test_a_directory_without_permissions_is_refused(mode, tiny_recipe, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=mode)
    with pytest.raises(ConfigError, match="Permission denied"):
        Experiment(open_recipe(tiny_recipe).model_copy(update={"output_dir": str(locked)})).prepare()


def test_the_home_directory_is_meant_by_a_tilde(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    places.experiment(tiny_recipe, ["output_dir=~/runs/a"]).prepare()
    assert (tmp_path / "home" / "runs" / "a" / ".tdistill").exists()


@pytest.mark.parametrize("deleted", ["root", "artefact"])
def test_an_artefact_whose_directory_was_replaced_while_it_was_made_is_not_complete(deleted, tiny_recipe):
    run = places.experiment(tiny_recipe)
    run.prepare()

    def replaced_meanwhile(directory: Path) -> dict:
        shutil.rmtree(run.root if deleted == "root" else directory)
        directory.mkdir(parents=True)  # as a library that makes what is missing
        return {}

    with pytest.raises(OutputError, match="deleted or replaced while"):
        build(replace(teacher(run), make=replaced_meanwhile), {}, nullcontext())
    assert not is_complete(run, "models")


def test_an_artefact_begins_without_the_files_that_a_kill_left(tiny_recipe):
    left = places.teacher(tiny_recipe) / "tokenizer.json.0123456789ab.partial"
    run = places.experiment(tiny_recipe)
    run.prepare()
    left.parent.mkdir(parents=True)
    left.write_text("half")
    execute(run, "models")
    assert not left.exists()


def test_an_artefact_is_marked_complete_after_its_files_are_on_the_disk(tiny_recipe, monkeypatch):
    order = []
    fsync = os.fsync

    def recorded(handle: int) -> None:
        order.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    directory = places.start(places.made(tiny_recipe))
    (mark,) = [i for i, name in enumerate(order) if name.startswith(f"{directory}/{MANIFEST}")]
    for file in (p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST):
        assert str(file) in order[:mark], file


@pytest.mark.parametrize("failure", ["slow", "none", "garbled"])
def test_a_git_that_fails_costs_no_training(failure, tmp_path, monkeypatch):
    script = {"slow": "sleep 60", "none": "exit 1", "garbled": "printf 'v\\377'"}[failure]
    git = tmp_path / "git"
    git.write_text(f"#!/bin/sh\n{script}\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.3)
    assert provenance._git_commit() == {"slow": "unknown", "none": "unknown", "garbled": "v\ufffd"}[failure]


def test_a_file_that_vanishes_while_it_is_synchronised_is_no_error(tmp_path):
    (tmp_path / "a").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "sub").mkdir()
    sync_tree(tmp_path)
    remove_partial(tmp_path)


def test_half_of_a_surrogate_pair_is_written_and_read_back(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [{"text": "a\ud800b"}])
    assert read_jsonl(tmp_path / "x.jsonl") == [{"text": "a\ud800b"}]
    write_text(tmp_path / "x.md", "a\ud800b")
    assert (tmp_path / "x.md").read_text() == "a\\ud800b"


def test_an_error_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="bytes"), replacing(tmp_path / "x") as handle:
        handle.write("half")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["rollouts/*/shard-*.parquet", "students/*/checkpoints/checkpoint-*", "answers/*"])
def test_an_output_directory_deleted_while_a_run_writes_there_ends_it_with_an_error(pattern, tiny_recipe):
    root = tiny_recipe.parent / "run"
    process = start("run", tiny_recipe)
    wait_for(process, lambda: next(root.glob(pattern), None) is not None)
    process.send_signal(signal.SIGSTOP)
    shutil.rmtree(root)
    process.send_signal(signal.SIGCONT)
    errors = process.communicate()[1].decode()
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    assert "was deleted or replaced" in flat(errors)


def test_a_file_in_the_place_of_an_artefact_is_named(tiny_recipe, monkeypatch, capsys):
    directory = places.teacher(tiny_recipe)
    directory.parent.mkdir(parents=True)
    directory.write_text("a file in the place of an artefact")
    (directory.parent.parent / ".tdistill").write_text("")
    code, _, errors = call(monkeypatch, capsys, "rollout", tiny_recipe)
    assert code == 2
    assert "Traceback" not in errors
    assert f"Can't write or read {directory}: File exists" in flat(errors)
