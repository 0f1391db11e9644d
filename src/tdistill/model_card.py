"""The card saved with every student."""

from pathlib import Path
from typing import TYPE_CHECKING

import tdistill

if TYPE_CHECKING:
    from tdistill.pipeline import Run

CARD = """---
library_name: transformers
tags: [distillation, tdistill]
base_model: {teacher}
---
# {title}: {name}

A student of `{teacher}` distilled with tdistill {version}.

| | |
|---|---|
| objective | {objective} |
| start | {start} |
| teacher's top-p | {p:g} |
| training prompts | {data} (the teacher's answers; the student inherits the licences of the prompts and of the teacher) |
| seed | {seed} |

Validation, mean per token of {valid} (not the test set):

{metrics}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("PATH")
```

## Recipe
```yaml
{recipe}```
"""


def write_model_card(directory: Path, run: "Run", name: str, objective: str, metrics: dict[str, float]) -> None:
    """Write ``README.md`` into a student's directory."""
    from tdistill.pipeline import resolved_yaml

    recipe = run.recipe
    student = recipe.student
    start = (
        f"layers {student.keep_layers or f'{student.num_hidden_layers} outer ones'} of the teacher"
        if student.init == "prune"
        else str(student.student_model_name_or_path)
    )
    rows = "\n".join(f"- `{k}`: {v:.4f}" for k, v in metrics.items() if isinstance(v, float) and k != "epoch")
    text = CARD.format(
        teacher=recipe.teacher.teacher_model_name_or_path,
        title=recipe.title,
        name=name,
        version=tdistill.__version__,
        objective=objective,
        start=start,
        p=recipe.train.teacher_top_p or recipe.rollout.teacher_top_p,
        data=recipe.data.train,
        valid=recipe.data.valid,
        seed=recipe.seed,
        metrics=rows,
        recipe=resolved_yaml(recipe),
    )
    (directory / "README.md").write_text(text, encoding="utf-8")
