"""Print the result rows of a finished run as JSON lines: `python benchmarks/rows.py RECIPE [KEY=VALUE]... > docs/results/NAME.jsonl`."""

import json
import sys
from dataclasses import asdict

from tdistill.experiment.artefact import read_manifest
from tdistill.experiment.evaluation import evaluation
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.experiment.report import collect


def main() -> None:
    experiment = Experiment(open_recipe(sys.argv[1], sys.argv[2:]))
    data, measured = collect(experiment), read_manifest(evaluation(experiment).directory)
    for system in data.systems:
        row = {"system": system.name, "objective": system.description, "parameters": system.parameters}
        row |= {"metrics": {k: asdict(v) for k, v in system.metrics.items()}, "provenance": measured.provenance}
        print(json.dumps(row, sort_keys=True, ensure_ascii=False))
    for d in data.differences:
        print(json.dumps({"a": d.a, "b": d.b, "metric": d.metric, "paired_difference": asdict(d.value.difference)}, sort_keys=True))
    for stage in data.stages:
        print(json.dumps({"stage": stage.name, "seconds": stage.seconds, "peak_memory_bytes": stage.peak_memory_bytes}, sort_keys=True))


if __name__ == "__main__":
    main()
