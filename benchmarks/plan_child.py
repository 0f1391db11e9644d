"""Run one stage of a recipe in a process of its own, and say when its imports are done and when it is over.

`python benchmarks/plan_child.py RECIPE STAGE` writes a line before the stage and one after it. The parent reads this process's memory.
"""

import sys

import peft  # noqa: F401  # imported here, as all others: what an import takes is no part of a plan
import torch
import transformers.models.llama.modeling_llama  # noqa: F401

from tdistill.experiment import graph
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.training import trainer  # noqa: F401


def main() -> None:
    recipe, stage = sys.argv[1:]
    experiment = Experiment(open_recipe(recipe))
    experiment.prepare()
    torch.randn(64, 64, requires_grad=True).matmul(torch.randn(64, 64)).sum().backward()  # buffers of the matrix products
    print("begins", flush=True)
    graph.execute(experiment, stage)
    print("ended", flush=True)


if __name__ == "__main__":
    main()
