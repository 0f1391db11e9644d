"""Compare `tdistill plan` with what runs take: memory, disk and time of every stage, each in a process of its own.

`python benchmarks/plan.py DIR [--only CASE,…] [--rows FILE] [--planned-only]` makes the recipes of ``plan_recipes`` below DIR, runs
their stages, and writes a row for every stage: planned and measured. What DIR holds is not measured again. ``--planned-only`` measures
nothing: it plans again, to see what a changed formula does.

Memory is the most resident memory of the stage's process, above what it had after its imports: pages of weights that the system maps from
their files count, since a run needs them. "returned": glibc gives freed memory back at once (MALLOC_MMAP_THRESHOLD_=131072), as a GPU's
allocator nearly does. "kept": glibc's defaults.
"""

import argparse
from pathlib import Path
from typing import Any

from plan_measured import STAGES, measure_all, read_measured
from plan_recipes import CASES, make
from told import script

from tdistill.experiment.experiment import Experiment
from tdistill.experiment.provenance import provenance
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.planning.planner import plan
from tdistill.runtime.files import write_jsonl
from tdistill.runtime.progress import say

MEASURED = "measured.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", help="cases, separated by commas; default: all")
    parser.add_argument("--rows", type=Path, default=Path("docs/results/plan.jsonl"))
    parser.add_argument("--planned-only", action="store_true")
    options = parser.parse_args()
    rows = []
    for name in options.only.split(",") if options.only else CASES:
        place = options.directory.resolve() / name.replace(" ", "-")
        if not options.planned_only:
            recipe = place / "recipe.yaml"
            if not recipe.exists():
                place.mkdir(parents=True, exist_ok=True)
                make(CASES[name], place)
            measure_all(recipe, place / "run", place / MEASURED)
        if (place / MEASURED).exists():
            rows += compared(name, place)
    write_jsonl(options.rows, rows)


def compared(name: str, place: Path) -> list[dict[str, Any]]:
    """Return a row for every stage of a case that was measured."""
    measured, experiment = read_measured(place / MEASURED), Experiment(open_recipe(place / "recipe.yaml"))
    planned, before, rows = plan(experiment, "cpu"), 0, []
    for stage in planned.stages:
        key = stage.name.split(" ")[0]
        moment, memory = stage.peak(gpu=False)
        found = measured.get(f"{key} returned")
        if key in STAGES and found is not None:
            kept = measured.get(f"{key} kept", {}).get("resident")
            row = {
                "case": name,
                "stage": key,
                "parameters": planned.facts.student.size.parameters,
                "vocabulary": planned.facts.vocabulary,
                "moment": moment.name,
                "parts": moment.on(gpu=False)[1],
                "memory": {"planned": memory, "measured": found["resident"], "kept": kept},
                "disk": {"planned": before + stage.stays + stage.goes, "measured": found["disk"]},
                "seconds": {"planned": stage.work.seconds, "measured": found["seconds"]},
                "head": experiment.recipe.train.head.name,
                "provenance": {k: v for k, v in provenance(experiment.recipe).items() if k != "recipe"},  # it is in ``plan_recipes``
            }
            rows.append(row)
            say(f"{name}, {key}: planned ÷ measured memory {memory / found['resident']:.2f}, disk {row['disk']['planned'] / found['disk']:.3f}")
        before += stage.stays
    return rows


if __name__ == "__main__":
    with script():
        main()
