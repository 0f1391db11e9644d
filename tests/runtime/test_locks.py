import errno
import fcntl
import json
import os
import signal
import threading
import time
from pathlib import Path

import places
import pytest
import yaml
from processes_under_test import finish, matches, script, start, wait_for
from test_cli import flat, refused, results

from tdistill.runtime.errors import OutputError
from tdistill.runtime.locks import GRACE_S, LOCK, gone_directory, held_directories, hold, release_all

HOLDER = """
import os, sys, time
from pathlib import Path
from tdistill.runtime.locks import hold
sys.argv = ["tdistill", "run", "recipe.yaml", "train.arguments.hub_token=secret"]
lock = hold(Path({path!r}), "it")
if {forks}:
    if os.fork() == 0:
        time.sleep(60)  # a worker that outlives its parent
        os._exit(0)
print("ready", flush=True)
time.sleep(60)
"""


def holder(directory: Path, forks: bool = False):
    return script(HOLDER.format(path=str(directory / LOCK), forks=forks))


@pytest.fixture(autouse=True)
def nothing_held():
    yield
    release_all()


def test_a_second_process_is_told_who_writes_there(tiny_recipe, monkeypatch, capsys):
    root = tiny_recipe.parent / "run"
    root.mkdir()
    process = holder(root)
    (tiny_recipe.parent / "link").symlink_to(root)
    monkeypatch.chdir(tiny_recipe.parent)
    for name in (str(root), "run", "link", "./link/../run"):
        said = refused(monkeypatch, capsys, "rollout", tiny_recipe, f"output_dir={name}")
        assert f"is in use by process {process.pid} on " in said
        assert "(`tdistill run recipe.yaml`)" in said
        assert "secret" not in said
    assert [p.name for p in root.iterdir()] == [LOCK], "the second wrote nothing"
    process.kill()
    process.wait()


@pytest.mark.parametrize("forks", [False, True])
def test_a_killed_process_leaves_no_lock_nor_do_its_children(forks, tmp_path):
    process = holder(tmp_path, forks)
    with pytest.raises(OutputError, match=f"process {process.pid} on "):
        hold(tmp_path / LOCK, "it")
    process.send_signal(signal.SIGKILL)
    process.wait()
    lock = hold(tmp_path / LOCK, "it")
    assert json.loads((tmp_path / LOCK).read_text() or "{}").get("pid", os.getpid()) == os.getpid()
    lock.release()
    assert not (tmp_path / LOCK).exists()
    if forks:
        os.killpg(process.pid, signal.SIGKILL)


def test_a_process_that_is_ending_is_waited_for(tmp_path):
    process = holder(tmp_path)
    ending = threading.Timer(GRACE_S / 4, process.kill)
    ending.start()
    lock = hold(tmp_path / LOCK, "it")
    ending.join()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    lock.release()
    process.wait()


def test_one_process_may_hold_a_directory_twice_and_keeps_it_until_both_are_over(tmp_path):
    first, second = hold(tmp_path / LOCK, "it"), hold(tmp_path / LOCK, "it")
    first.release()
    first.release()
    path = str(tmp_path / LOCK)
    other = f"from pathlib import Path\nfrom tdistill.runtime.locks import hold\nprint('ready', flush=True)\nhold(Path({path!r}), 'it')\n"
    process = script(other)
    assert b"OutputError" in process.communicate()[1], "it is still held"
    second.release()
    process = script(other)
    assert process.communicate()[1] == b""


def test_the_claim_of_a_run_ends_with_the_run(tiny_recipe):
    run = places.experiment(tiny_recipe)
    run.prepare()
    assert (run.root / LOCK).exists()
    del run
    assert not (tiny_recipe.parent / "run" / LOCK).exists()


def test_an_old_claim_that_ends_late_leaves_a_new_one_alone(tmp_path):
    old = hold(tmp_path / LOCK, "it")
    release_all()
    new = hold(tmp_path / LOCK, "it")
    old.release()
    assert gone_directory() is None
    assert held_directories() == [tmp_path]
    assert (tmp_path / LOCK).exists()
    new.release()


def test_a_directory_that_was_deleted_or_replaced_is_noticed(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    lock = hold(directory / LOCK, "it")
    assert gone_directory() is None
    directory.rename(tmp_path / "elsewhere")
    directory.mkdir()
    assert gone_directory() == directory
    lock.release()
    assert gone_directory() is None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_the_run_goes_on(number, tmp_path, monkeypatch, capsys):
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", no_locks)  # there is no such file system here
    hold(tmp_path / LOCK, "it")
    assert held_directories() == []
    assert "has no file locks" in flat(capsys.readouterr().err)


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        hold(tmp_path / LOCK, "it")
    assert not (tmp_path / "precious").exists()


@pytest.mark.parametrize("left", [[], [LOCK], [LOCK, ".tdistill.0123456789ab.partial"]])
def test_a_directory_whose_first_process_was_killed_before_its_marker_is_taken(left, tiny_recipe):
    root = tiny_recipe.parent / "run"
    root.mkdir()
    for name in left:
        (root / name).write_text("")
    places.experiment(tiny_recipe).prepare()
    assert (root / ".tdistill").exists()


def test_theory_and_compare_take_their_output_too(tmp_path, monkeypatch, capsys):
    process = holder(tmp_path)
    assert f"is in use by process {process.pid}" in refused(monkeypatch, capsys, "theory", tmp_path)
    process.kill()
    process.wait()


@pytest.mark.slow
def test_two_runs_at_once_do_not_disturb_each_other(tiny_recipe):
    """The second is refused, the first is killed, the third goes on, and all is as in an undisturbed run."""
    recipe = yaml.safe_load(tiny_recipe.read_text())
    recipe["sft"]["arguments"] |= {"max_steps": 100, "eval_steps": 50, "save_steps": 50}
    tiny_recipe.write_text(yaml.safe_dump(recipe))
    root, undisturbed = tiny_recipe.parent / "run", tiny_recipe.parent / "undisturbed"
    finish("run", tiny_recipe, f"output_dir={undisturbed}")
    titles = places.titles(undisturbed)
    for pattern in (f"{titles['roll-outs of train']}/shard-00000.parquet", f"{titles['sft']}/checkpoints/checkpoint-50/tdistill.complete"):
        first = start("run", tiny_recipe)
        wait_for(first, matches(root, pattern))
        first.send_signal(signal.SIGSTOP)  # so that it holds the lock for as long as the test likes
        second = start("run", tiny_recipe)
        errors = second.communicate()[1].decode()
        assert second.returncode == 2, errors
        assert f"in use by process {first.pid}" in flat(errors)
        assert "Traceback" not in errors
        first.kill()
        first.wait()
        time.sleep(0.1)
    finish("run", tiny_recipe)
    assert results(root) == results(undisturbed)
