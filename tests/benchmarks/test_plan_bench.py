"""A plan is close to what a run takes, and its tables say how close."""

from dataclasses import replace
from pathlib import Path

import pytest

from tdistill.experiment.experiment import Experiment
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.planning.planner import plan

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from plan_measured import measure
    from plan_recipes import CASES, Case, make
    from plan_table import errors_table, plan_table
    from small_llama import Size

SMALL = Case(8_000, Size(hidden=256, layers=5, steps=0, learning_rate=0.0, heads=4, positions=512), 4, 64, 16, changes={"train.head": "full"})


@pytest.mark.slow
def test_training_takes_the_memory_and_the_disk_that_were_planned(tmp_path):
    recipe = make(SMALL, tmp_path)
    experiment = Experiment(open_recipe(recipe))
    planned = {stage.name: stage for stage in plan(experiment, "cpu").stages}
    before = planned["models"].stays
    for stage in ("models", "rollout"):
        measure(recipe, stage, tmp_path / "run", returning=True)
    found = measure(recipe, "train", tmp_path / "run", returning=True)
    train = planned["train distilled"]
    assert found.resident > 250 << 20, "well above what a process has of its own"
    assert train.peak(gpu=False)[1] == pytest.approx(found.resident, rel=0.15)
    assert before + train.stays + train.goes == pytest.approx(found.disk, rel=0.10)


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_a_recipe_that_can_be_planned(name, tmp_path):
    case = CASES[name]
    small = replace(case, vocab=400, teacher=replace(case.teacher, hidden=16, heads=2))
    stages = plan(Experiment(open_recipe(make(small, tmp_path))), "h100").stages
    assert [stage.name for stage in stages] == ["models", "rollout", "train distilled", "evaluate"]


def row(stage: str, planned: int, measured: int, kept: int | None) -> dict:
    sizes = {"memory": {"planned": planned, "measured": measured, "kept": kept}, "disk": {"planned": 10, "measured": 10}}
    return {"case": "a", "stage": stage, "parameters": 10**6, "vocabulary": 1000, **sizes}


def test_the_tables_give_ratios_of_planned_to_measured():
    rows = [row("train", 2 << 20, 4 << 20, 8 << 20), row("train", 4 << 20, 4 << 20, None), row("models", 1, 1, None)]
    assert plan_table(rows, "train").splitlines()[2:] == [
        "| a (1.00M, V = 1.00k) | 2.0 MiB | 4.0 MiB | 0.50 | 0.25 |",
        "| a (1.00M, V = 1.00k) | 4.0 MiB | 4.0 MiB | 1.00 | – |",
    ]
    assert "| `train` | 2 | 0.50 to 1.00 | 1.000 to 1.000 |" in errors_table(rows)
