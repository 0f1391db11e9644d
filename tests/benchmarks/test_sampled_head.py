import sys
from pathlib import Path

import places
import pytest
from conftest import command

from tdistill.runtime.files import read_jsonl

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_estimate_gets_better_with_more_samples_and_is_exact_with_all(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import sampled_head

    for stage in ("rollout", "sft"):
        assert command(stage, tiny_recipe) == 0
    rows = tmp_path / "rows.jsonl"
    student, cache = places.sft(tiny_recipe), places.rollout(tiny_recipe)
    monkeypatch.setattr(sampled_head, "SAMPLES", (4, 64, 4096))
    monkeypatch.setattr(sampled_head, "OBJECTIVES", ("reverse_kl",))
    monkeypatch.setattr(sys, "argv", ["sampled_head.py", str(student), str(cache), "--rows", str(rows), "--draws", "6", "--responses", "4"])
    sampled_head.main()
    few, more, every = read_jsonl(rows)
    assert few["log_z_rms"] > more["log_z_rms"] > 0.0
    assert few["gradient_noise"] > more["gradient_noise"] > 0.0
    assert every["log_z_rms"] < 1e-5
    assert every["gradient_noise"] < 1e-4
    assert abs(every["loss_bias"]) < 1e-5
    for name in ("sampled_head", "told"):
        sys.modules.pop(name, None)
