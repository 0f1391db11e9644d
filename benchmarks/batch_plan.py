"""Measure how far roll-outs depend on how prompts are batched. The noise of a token does not, but floating-point logits do.

`python benchmarks/batch_plan.py RECIPE [KEY=VALUE]... > docs/results/batch_plan.jsonl` answers the recipe's validation prompts in
batches of several sizes and counts how many responses, and how many tokens before the first difference, equal those of the
recipe's own batch size.
"""

import json
import sys

import torch

from tdistill.experiment.experiment import Experiment
from tdistill.experiment.graph import execute
from tdistill.experiment.models import teacher_files, teacher_notes, vocab_size
from tdistill.experiment.provenance import provenance
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.experiment.rollouts import read_prompts
from tdistill.models.load import load_model
from tdistill.models.vocabulary import Vocabulary
from tdistill.teachers.rollouts import batch_plan
from tdistill.teachers.transformers import generate_batch

BATCH_SIZES = (1, 4, 16)


def main() -> None:
    experiment = Experiment(open_recipe(sys.argv[1], sys.argv[2:]))
    experiment.prepare()
    execute(experiment, "models")
    prompts, _ = read_prompts(experiment, "valid")
    c, vocabulary = experiment.recipe.rollout, Vocabulary(vocab_size(experiment), teacher_notes(experiment)["eos_ids"])
    for dtype in ("float32", "bfloat16"):
        teacher = load_model(teacher_files(experiment), dtype)

        def answers(size: int, teacher: torch.nn.Module = teacher) -> dict[str, list[int]]:
            batches = batch_plan([(p, 0) for p in prompts], size)
            rows = [row for batch in batches for row in generate_batch(teacher, batch, c, vocabulary)]
            return {row.prompt_id: row.response_ids for row in rows}

        reference = answers(c.batch_size)
        for size in BATCH_SIZES:
            other = answers(size)
            total = sum(map(len, reference.values()))
            row = {
                "dtype": dtype,
                "batch_sizes": [c.batch_size, size],
                "responses": len(reference),
                "tokens": total,
                "equal_responses": sum(reference[k] == other[k] for k in reference) / len(reference),
                "equal_tokens": sum(agreeing(reference[k], other[k]) for k in reference) / total,
                "provenance": provenance(experiment.recipe),
            }
            print(json.dumps(row, sort_keys=True), flush=True)


def agreeing(a: list[int], b: list[int]) -> int:
    """Return the number of tokens before the first difference."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


if __name__ == "__main__":
    main()
