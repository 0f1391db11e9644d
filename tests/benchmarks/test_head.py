"""The benches of the head: they run at a tiny size, exact heads agree in them, and their measure of memory is right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tdistill.runtime.files import read_jsonl

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("head_inputs", "head_meter", "head_peers", "head_runs", "told")


@pytest.fixture(scope="module")
def scripts():
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(BENCHMARKS)
    import head_meter
    import head_peers
    import head_runs

    yield head_meter, head_peers, head_runs
    patch.undo()
    for name in NAMES:
        sys.modules.pop(name, None)


def run(script: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The rows of the smallest group, with the other libraries that stand in this environment: transformers and PyTorch."""
    path = tmp_path_factory.mktemp("head") / "rows.jsonl"
    done = run("head.py", "--only", "tiny", "--rounds", 1, "--rows", path, "--peers", sys.executable)
    assert done.returncode == 0, done.stderr
    return path


def test_every_objective_is_run_by_every_head_that_can_serve_it(tiny, scripts):
    *_, runs = scripts
    rows = read_jsonl(tiny)
    assert all("error" not in row for row in rows)
    found = {(row["head"], row["objective"]) for row in rows if row["by"] == "tdistill"}
    assert found == {runs.ANCHOR, *runs.keys(tuple(runs.OBJECTIVES), runs.HEADS)}
    assert {("full", name) for name in runs.OBJECTIVES} | {("chunked", name) for name in runs.OBJECTIVES} <= found
    assert {head for head, name in found if name == "reverse_kl, proj"} == {"full", "chunked", "candidates"}
    assert {head for head, name in found if name == "nll"} == {"full", "chunked", "sampled", "transformers"}


def test_exact_heads_give_the_loss_of_the_full_one(tiny):
    rows = [row for row in read_jsonl(tiny) if row["by"] == "tdistill" and row["head"] != "sampled"]
    losses = {row["objective"]: row["loss"] for row in rows if row["head"] == "full"}
    with_values = {"csil", "actor_critic"}  # their value heads begin at random
    for row in rows:
        if row["objective"] not in with_values:
            assert row["loss"] == pytest.approx(losses[row["objective"]], rel=1e-5), row
        assert row["ratio"] > 0


def test_other_libraries_read_the_same_inputs(tiny):
    rows = read_jsonl(tiny)
    ours = next(row["loss"] for row in rows if row["by"] == "tdistill" and row["head"] == "transformers")
    theirs = {row["head"]: row["loss"] for row in rows if row["by"] == "peer"}
    assert {"transformers", "PyTorch linear_cross_entropy"} <= set(theirs)
    assert all(theirs[name] == pytest.approx(ours, rel=1e-5) for name in ("transformers", "PyTorch linear_cross_entropy"))


def test_rows_that_stand_in_the_file_are_not_measured_again(tiny):
    before = tiny.read_bytes()
    done = run("head.py", "--only", "tiny", "--rounds", 1, "--rows", tiny)
    assert (done.returncode, done.stdout) == (0, "")
    assert tiny.read_bytes() == before


def test_a_python_that_is_not_there_is_one_line_and_status_2():
    done = run("head.py", "--only", "tiny", "--peers", "/no/python")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --peers /no/python can't be run")
    assert done.stderr.count("\n") == 1


def test_the_script_for_a_gpu_runs_on_a_cpu(tmp_path):
    size = ("--tokens", 64, "--vocab", 500, "--width", 16, "--rounds", 1, "--dtype", "float32")
    done = run("head_gpu.py", tmp_path / "found.json", "--device", "cpu", *size)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    own = [row for row in found["rows"] if row.get("objective")]
    assert found["device"] == "CPU"
    assert {"transformers", "full", "chunked", "candidates", "sampled"} <= {row["head"] for row in own}
    assert all(row["milliseconds"] > 0 and row["allocated"] > 0 for row in own)


def test_the_largest_memory_is_that_of_the_tensors_that_live_at_once(scripts):
    meter, *_ = scripts
    x, mib = torch.randn(512, 512), 2**20

    def three_then_two():
        a = x + 1
        b = a + 1
        c = b + 1
        del a, b
        return c + 1

    assert meter.largest_memory(three_then_two)["allocated"] == pytest.approx(3 * mib, rel=0.01)


def test_the_memory_of_a_cross_entropy_is_what_its_steps_keep(scripts):
    meter, *_ = scripts
    tokens, vocab, width = 64, 20_000, 8
    hidden, weight = (torch.randn(n, width, requires_grad=True) for n in (tokens, vocab))
    labels = torch.zeros(tokens, dtype=torch.long)
    found = meter.largest_memory(lambda: torch.nn.functional.cross_entropy(hidden @ weight.T, labels).backward())
    copies = found["allocated"] / (4 * tokens * vocab)
    assert copies == pytest.approx(3.0, abs=0.05)  # the log-softmax, its gradient and that of the logits: the logits are gone by then


def test_pages_of_the_process_are_counted_too(scripts):
    meter, *_ = scripts
    mib = 2**20
    found = meter.largest_memory(lambda: torch.ones(32 * mib))  # too large for memory that was freed before
    assert found["allocated"] == 128 * mib
    assert found["resident"] == pytest.approx(128 * mib, rel=0.1)
