"""The card of a student: one front matter, the texts of the recipe literal, no secret."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import tiny_recipe_dict
from fuzz.mutate import HOSTILE

from tdistill.experiment.experiment import Experiment
from tdistill.experiment.model_card import write_model_card
from tdistill.experiment.provenance import provenance, resolved_yaml
from tdistill.pages.text import escape_markdown
from tdistill.recipe.schema import Recipe
from tdistill.runtime.errors import visible
from tdistill.runtime.secrets_guard import HIDDEN, without_secrets

TEXTS = [
    *(text for text in HOSTILE if isinstance(text, str) and len(text) < 1000),
    "a\nlicense: mit\n---\n# Owned",
    "a: b # c",
    "'quoted\"",
    "```\n<script>alert(1)</script>",
    "````` five",
    "[link](javascript:alert(1)) <img src=x onerror=alert(1)>",
    "| cell | of | a table |",
    "{title} {0}",
]


def card_of(directory: Path, text: str, name: str = "distilled") -> str:
    raw = tiny_recipe_dict(directory / "teacher", directory)
    raw["title"] = raw["teacher"]["teacher_model_name_or_path"] = raw["data"]["train"] = raw["data"]["valid"] = text
    write_model_card(directory, Experiment(Recipe.model_validate(raw)), (name, 3), f"nll({text})", {"eval_loss": 1.5, f"eval_{text}": 2.0})
    return (directory / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text)[:20])
def test_no_text_of_a_recipe_becomes_front_matter_markdown_or_html(text: str, tmp_path: Path) -> None:
    card = card_of(tmp_path, text)
    _, front, body = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)
    assert yaml.safe_load(front) == {"library_name": "transformers", "tags": ["distillation", "tdistill"], "base_model": visible(text)}
    prose, _, recipe = body.partition("\n## Recipe\n")
    assert prose.startswith(f"\n# {escape_markdown(text)}: distilled\n")
    assert not re.search(r"(?<!&lt;)<(?=[a-z/])", prose), "HTML"
    assert prose.count("\n# ") == 1
    assert prose.count("](") == prose.count("\\](") + prose.count("]\\("), "a link"
    fence = re.match("`{3,}", recipe)[0]
    assert recipe.rstrip().endswith(f"\n{fence}")
    inside = recipe.strip().removeprefix(f"{fence}yaml\n").removesuffix(f"\n{fence}")
    assert fence not in inside
    assert visible(str(yaml.safe_load(inside)["title"])) == visible(text)


def test_secrets_are_written_nowhere(tmp_path: Path) -> None:
    raw = tiny_recipe_dict(tmp_path / "teacher", tmp_path)
    raw["train"]["arguments"]["hub_token"] = raw["train"]["baselines"]["sft_continued"]["arguments"]["api_key"] = "hf_secret"
    recipe = Recipe.model_validate(raw)
    write_model_card(tmp_path, Experiment(recipe), ("distilled", 3), "nll", {})
    for text in ((tmp_path / "README.md").read_text(), resolved_yaml(recipe), str(provenance(recipe))):
        assert "hf_secret" not in text
        assert HIDDEN in text


def test_only_texts_under_a_secrets_name_are_hidden() -> None:
    kept = {"num_tokens": "5", "tokenizer": "x", "max_steps": 3, "keys": "a", "token": None, "list": [{"path": "p"}]}
    assert without_secrets(kept) == kept
    hidden = {"hub_token": "a", "b": [{"api_key": "c", "db.password": "d"}], "TOKEN": "e", "aws_secret": "f"}
    found = without_secrets(hidden)
    assert found == {"hub_token": HIDDEN, "b": [{"api_key": HIDDEN, "db.password": HIDDEN}], "TOKEN": HIDDEN, "aws_secret": HIDDEN}
