"""Write the card that is saved with every student."""

from pathlib import Path

import yaml

import tdistill
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.provenance import resolved_yaml
from tdistill.pages.text import escape_markdown, fenced
from tdistill.runtime.errors import visible
from tdistill.runtime.files import write_text

CARD_FILE = "README.md"
CARD = """---
{front}---
# {title}: {name}

A student of {teacher} distilled with tdistill {version}.

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
{recipe}
"""


def write_model_card(directory: Path, experiment: Experiment, student: tuple[str, int], objective: str, metrics: dict[str, float]) -> None:
    """Write ``README.md`` into a student's directory. Every text of the recipe is escaped: none becomes front matter, Markdown or HTML.

    Args:
        directory: the student's.
        experiment: says what the student was made from.
        student: name and seed.
        objective: one line.
        metrics: of the last validation.
    """
    recipe = experiment.recipe
    (name, seed), section, teacher = student, recipe.student, recipe.teacher.teacher_model_name_or_path
    start = (
        f"layers {section.keep_layers or f'{section.num_hidden_layers} outer ones'} of the teacher"
        if section.init == "prune"
        else str(section.student_model_name_or_path)
    )
    rows = "\n".join(f"- {escape_markdown(k)}: {v:.4f}" for k, v in metrics.items() if isinstance(v, float) and k != "epoch")
    about = {"library_name": "transformers", "tags": ["distillation", "tdistill"], "base_model": visible(teacher)}
    texts = {
        "title": recipe.title,
        "name": name,
        "teacher": teacher,
        "objective": objective,
        "start": start,
        "data": recipe.data.train,
        "valid": recipe.data.valid,
    }
    card = CARD.format(
        front=yaml.safe_dump(about, sort_keys=False, allow_unicode=True),
        version=tdistill.__version__,
        p=recipe.train.teacher_top_p or recipe.rollout.teacher_top_p,
        seed=seed,
        metrics=rows,
        recipe=fenced(resolved_yaml(recipe), "yaml"),
        **{key: escape_markdown(text) for key, text in texts.items()},
    )
    write_text(directory / CARD_FILE, card)
