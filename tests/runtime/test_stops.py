import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import places
import pytest
import yaml
from processes_under_test import finish, matches, script, start, stop, wait_for
from test_cli import results

from tdistill.experiment.artefact import MANIFEST, Artefact
from tdistill.experiment.kept import kept_of_artefact
from tdistill.runtime.stops import keeping, stop_line

AT_ONCE_S = 3.0  # on a machine with other work
WATCHED = "from tdistill.runtime.stops import keeping, watched\nimport time, torch\n"


def clean(errors: str) -> bool:
    return "Traceback" not in errors and "Aborted" not in errors and "KeyboardInterrupt" not in errors


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_modules_are_imported_says_that_nothing_was_written(signum, tiny_recipe):
    process = start("run", tiny_recipe)
    time.sleep(0.7)
    stopped = stop(process, signum)
    assert stopped.status == 128 + signum
    assert stopped.errors == f"tdistill: stopped by {signal.Signals(signum).name} before anything was written. The same command starts again.\n"
    assert not (tiny_recipe.parent / "run").exists()


def test_a_stop_inside_one_long_operation_of_torch_is_at_once():
    program = WATCHED + "x = torch.rand(6000, 6000)\nwith watched():\n    print('ready', flush=True)\n    torch.linalg.svd(x)\n"
    stopped = stop(script(program), signal.SIGINT)
    assert stopped.status == 130
    assert stopped.seconds < AT_ONCE_S
    assert clean(stopped.errors)
    assert stopped.line


def test_a_stop_takes_the_workers_of_a_data_loader_along():
    program = (
        WATCHED + "class Slow(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 1000\n"
        "    def __getitem__(self, i): time.sleep(0.05); return i\n"
        "with watched():\n"
        "    for i, _ in enumerate(torch.utils.data.DataLoader(Slow(), num_workers=2)):\n"
        "        if i == 4: print('ready', flush=True)\n"
    )
    process = script(program)
    stopped = stop(process, signal.SIGINT, group=True)
    assert stopped.status == 130
    assert len(stopped.errors.splitlines()) == 1, stopped.errors
    assert stopped.seconds < AT_ONCE_S
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            os.killpg(process.pid, 0)  # the group has a member
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("a worker lives on")


def test_terminating_a_worker_does_not_stop_its_parent():
    program = (
        WATCHED + "import multiprocessing\n"
        "with watched():\n"
        "    worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
        "    worker.start(); worker.terminate(); worker.join()\n"
        "    print('ready', flush=True); print(worker.exitcode, flush=True)\n"
    )
    process = script(program)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out.strip(), errors) == (0, b"-15", b"")


def test_a_second_ctrl_c_ends_at_once_where_the_first_can_not():
    program = WATCHED + "with watched(), keeping(lambda: time.sleep(60) or ''):\n    print('ready', flush=True)\n    time.sleep(60)\n"
    process = script(program)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None
    stopped = stop(process, signal.SIGINT)
    assert stopped.status == 130
    assert stopped.seconds < AT_ONCE_S


def test_a_stop_is_heard_although_another_library_took_the_wakeup_handle():
    program = (
        WATCHED + "import os, signal\n"
        "with watched():\n"
        "    r, w = os.pipe(); os.set_blocking(w, False); signal.set_wakeup_fd(w)\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    assert stop(script(program), signal.SIGTERM).status == 143


def test_a_signal_that_was_ignored_before_stays_ignored():
    def as_nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    process = script(WATCHED + "with watched():\n    print('ready', flush=True)\n    time.sleep(60)\n", before=as_nohup)
    os.kill(process.pid, signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    assert stop(process, signal.SIGTERM).status == 143


def test_a_closed_terminal_ends_the_run_quietly():
    process = script(WATCHED + "with watched():\n    print('ready', flush=True)\n    time.sleep(60)\n")
    stopped = stop(process, signal.SIGHUP)
    assert (stopped.status, stopped.errors) == (129, "")


def test_files_that_are_being_written_go_with_a_stop(tmp_path):
    program = WATCHED + (
        "from pathlib import Path\nfrom tdistill.runtime.files import replacing\n"
        f"with watched(), replacing(Path({str(tmp_path / 'x')!r})) as handle:\n"
        "    handle.write(b'half'); print('ready', flush=True)\n    time.sleep(60)\n"
    )
    process = script(program)
    assert len(list(tmp_path.iterdir())) == 1
    assert stop(process, signal.SIGINT).status == 130
    assert list(tmp_path.iterdir()) == []


def test_a_description_that_can_not_be_read_falls_back_to_the_next():
    def broken() -> str:
        raise FileNotFoundError

    with keeping(lambda: "All is kept."), keeping(broken):
        assert stop_line(signal.SIGINT) == "tdistill: stopped by SIGINT. All is kept."


def test_only_the_first_process_of_a_launch_speaks():
    program = (
        WATCHED
        + "import os\nos.environ |= {'RANK': '1', 'WORLD_SIZE': '2'}\nwith watched():\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    stopped = stop(script(program), signal.SIGINT)
    assert (stopped.status, stopped.errors) == (130, "")


def test_what_is_kept_is_said_by_the_whole_files(tmp_path):
    student = Artefact(tmp_path, "students", "distilled, seed 3", {"seed": 3}, lambda _: {})
    assert "nothing of `distilled, seed 3` was yet" in kept_of_artefact(student, tmp_path)
    for step in (2, 6, 8, 10):
        checkpoint = student.directory / "checkpoints" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text('{"max_steps": 20}')
        if step != 10:
            (checkpoint / "tdistill.complete").write_text("")
    assert "of `distilled, seed 3` the checkpoint at step 8 of 20." in kept_of_artefact(student, tmp_path)
    shards = Artefact(tmp_path, "rollouts", "roll-outs of train", {}, lambda _: {})
    shards.directory.mkdir(parents=True)
    for name in ("shard-00000.parquet", "shard-00001.parquet", "shard-00002.parquet.0123456789ab.partial"):
        (shards.directory / name).write_text("")
    assert "of `roll-outs of train` 2 shards of roll-outs." in kept_of_artefact(shards, tmp_path)


# The artefact that is made and the file of it that is there when the signal is sent, the signal, and what the line names.
MOMENTS = (
    ("teacher", "*", signal.SIGINT, "the same command"),
    ("roll-outs of train", "shard-*.parquet", signal.SIGTERM, "of `roll-outs of train` "),
    ("sft", "checkpoints/checkpoint-2/tdistill.complete", signal.SIGINT, "of 200"),
    ("sft_continued", "checkpoints/checkpoint-2/tdistill.complete", signal.SIGTERM, "of `sft_continued` the checkpoint at step"),
    ("distilled", "checkpoints/checkpoint-2/tdistill.complete", signal.SIGINT, "of `distilled` the checkpoint at step"),
    ("answers of start", "answers.*", signal.SIGTERM, "what was complete in"),
    ("report", "*", signal.SIGINT, "the same command"),
)


@pytest.mark.slow
def test_a_run_stopped_in_every_stage_ends_with_the_undisturbed_runs_results(tiny_recipe):
    recipe = yaml.safe_load(tiny_recipe.read_text())
    for section in ("sft", "train"):
        recipe[section]["arguments"] |= {"max_steps": 200, "eval_steps": 100, "save_steps": 2, "load_best_model_at_end": False}
    recipe["train"]["baselines"]["sft_continued"]["arguments"] = {"max_steps": 100}
    tiny_recipe.write_text(yaml.safe_dump(recipe))
    undisturbed, stopped_often = tiny_recipe.parent / "undisturbed", tiny_recipe.parent / "stopped"
    finish("run", tiny_recipe, f"output_dir={undisturbed}")
    stops, titles = 0, places.titles(undisturbed)
    for title, pattern, signum, words in MOMENTS:
        process = start("run", tiny_recipe, f"output_dir={stopped_often}")
        try:
            wait_for(process, matches(stopped_often, f"{titles[title]}/{pattern}"))
        except AssertionError:
            assert process.returncode == 0, "only a stage that is over in no time may be missed"
            continue
        stopped = stop(process, signum)
        if stopped.status == 0:
            continue
        assert stopped.status == 128 + signum, stopped.errors
        assert clean(stopped.errors)
        assert words.lower() in stopped.line.lower()
        assert stopped.seconds < AT_ONCE_S
        assert not list(stopped_often.rglob("*.partial"))
        stops += 1
    assert stops >= len(MOMENTS) - 1
    finish("run", tiny_recipe, f"output_dir={stopped_often}")
    assert results(stopped_often) == results(undisturbed)


@pytest.mark.slow
def test_every_command_stops_in_one_line(tiny_recipe, tmp_path):
    finish("run", tiny_recipe)
    root = tiny_recipe.parent / "run"
    student = root / places.titles(root)["distilled"]
    commands = {
        "theory": (["theory", tmp_path / "theory"], matches(tmp_path, "theory/.tdistill.lock"), "Give it again."),
        "sample": (["sample", student, "hello"], None, "before anything was written"),
        "compare": (["compare", root, "--output", tmp_path / "compare"], None, "before anything was written"),
        "sparsity": (["sparsity", tiny_recipe], matches(root, ".tdistill.lock"), "What was complete"),
        "evaluate": (
            ["evaluate", tiny_recipe, "--temperatures", ",".join(f"{0.3 + i / 50:g}" for i in range(40))],
            lambda: len(list(root.glob("answers/*/scores.json"))) > 6,
            "The same command goes on from there.",  # during an artefact, and between two
        ),
    }
    for name, (argv, ready, words) in commands.items():
        process = start(*argv)
        if ready is None:
            time.sleep(1.0)
        else:
            wait_for(process, ready)
            time.sleep(0.2)
        stopped = stop(process, signal.SIGINT)
        assert (stopped.status, clean(stopped.errors)) == (130, True), (name, stopped.errors)
        assert words in stopped.line, (name, stopped.line)


@pytest.mark.slow
def test_two_processes_of_a_launcher_say_it_once(tiny_recipe):
    recipe = yaml.safe_load(tiny_recipe.read_text())
    recipe["train"] |= {
        "baselines": {},
        "arguments": {"max_steps": 5000, "save_steps": 5000, "eval_steps": 5000, "per_device_train_batch_size": 1},
    }
    tiny_recipe.write_text(yaml.safe_dump(recipe))
    for stage in ("rollout", "sft"):
        finish(stage, tiny_recipe)
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29651", "-m", "tdistill")
    process = start("train", tiny_recipe, python=launcher)
    wait_for(process, places.student(tiny_recipe).exists)
    time.sleep(3.0)
    stopped = stop(process, signal.SIGINT, group=True)
    assert stopped.status != 0
    assert "of `distilled`" in stopped.line


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["pipe", "full", "none", "ascii"])
def test_a_result_that_can_not_be_printed_costs_no_work(closed, tiny_recipe):
    command = [sys.executable, "-m", "tdistill", "run", str(tiny_recipe)]
    redirection = {"pipe": "| true", "full": "> /dev/full", "none": ">&- 2>&-", "ascii": "> out.txt"}[closed]
    shell = f"set -o pipefail; {'PYTHONIOENCODING=ascii ' if closed == 'ascii' else ''}{' '.join(command)} {redirection}"
    done = subprocess.run(["bash", "-c", shell], cwd=tiny_recipe.parent, capture_output=True, text=True, check=False)
    assert done.returncode == {"pipe": 141, "full": 2, "none": 0, "ascii": 0}[closed], done.stderr
    assert "Traceback" not in done.stderr
    if closed == "full":
        assert "Can't write to standard output: No space left on device" in done.stderr
    assert matches(tiny_recipe.parent / "run", f"report/*/{MANIFEST}")()


@pytest.mark.slow
def test_progress_that_nobody_reads_costs_no_work(tiny_recipe):
    command = f"{sys.executable} -m tdistill run {tiny_recipe} 2>&1 >/dev/null | head -c 10 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "0", done.stderr
    assert Path(next((tiny_recipe.parent / "run").glob(f"report/*/{MANIFEST}"))).is_file()
