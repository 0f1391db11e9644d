"""Do roll-outs depend on how prompts are batched? The noise of a token does not, but floating-point logits do.

`python benchmarks/batch_plan.py RECIPE [KEY=VALUE]... > docs/results/batch_plan.jsonl` answers the recipe's validation prompts in
batches of several sizes and counts how many responses, and how many tokens before the first difference, equal those of the
recipe's own batch size.
"""

import json
import sys

import torch

from tdistill.experiment.models import models_info, student_tokenizer, teacher_directory, vocab_size
from tdistill.experiment.pipeline import Run, provenance
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.experiment.rollouts import read_prompts
from tdistill.models.load import load_model
from tdistill.models.vocabulary import Vocabulary
from tdistill.teachers.rollouts import batch_plan
from tdistill.teachers.transformers import generate_batch

BATCH_SIZES = (1, 4, 16)


def main() -> None:
    run = Run(open_recipe(sys.argv[1], sys.argv[2:]))
    run.execute("models")
    tokenizer, eos_ids, c = student_tokenizer(run), models_info(run)["eos_ids"], run.recipe.rollout
    prompts, _ = read_prompts(run, "valid", tokenizer)
    vocabulary = Vocabulary(vocab_size(run), eos_ids)
    for dtype in ("float32", "bfloat16"):
        teacher = load_model(teacher_directory(run), dtype)

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
                "provenance": provenance(run.recipe),
            }
            print(json.dumps(row, sort_keys=True), flush=True)


def agreeing(a: list[int], b: list[int]) -> int:
    """Tokens before the first difference."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


if __name__ == "__main__":
    main()
