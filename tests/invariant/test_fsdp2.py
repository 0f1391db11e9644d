"""Real FSDP2 on two CPU processes, through the command line: sharded as the bare model is, and the same student as one process makes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest
import launching
import places
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

FIVE_DIGITS = 1e-5
WHOLE, HALF = (f"train.arguments.per_device_train_batch_size={size}" for size in (8, 4))
EVERY_STEP = ["train.arguments.eval_steps=1", "train.arguments.save_steps=1"]
STATE_VALUE = "train.objective={name: actor_critic, gamma: 0.9}"
HEADS = {
    "full": ["train.objective={name: reverse_kl}", "train.head=full"],
    "chunked": ["train.objective={name: reverse_kl}"],
    "chunked, with a value head": [STATE_VALUE],
    "candidates": ["train.objective={name: csil}"],
    # Two processes draw other tokens than one, unless they draw all.
    "sampled": ["train.objective={name: reverse_kl}", "train.head={name: sampled, samples: 4096}"],
}
ACTION_VALUE = "train.objective={name: mean_actor_critic, gamma: 0.9}"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Path:
    """Roll-outs of sixteen prompts: two whole batches, so that two processes share every batch evenly."""
    directory = tmp_path_factory.mktemp("fsdp2")
    content = conftest.tiny_recipe_dict(tiny_teacher, directory)
    content["train"]["baselines"] = {}
    del content["sft"]
    lines = [json.dumps({"prompt": f"question {i}" + "?" * (i % 5)}) for i in range(16)]
    (directory / "train.jsonl").write_text("\n".join(lines) + "\n")
    content["train"]["arguments"] |= {"eval_steps": 4, "save_steps": 4, "lr_scheduler_type": "constant"}
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    assert conftest.command("rollout", path) == 0
    return path


def distilled(recipe: Path, overrides: list[str]) -> Path:
    return places.student(recipe, overrides)


def in_one_process(recipe: Path, *overrides: str) -> Path:
    """Train with whole batches, unless another test has."""
    asked = [WHOLE, *overrides]
    assert conftest.command("train", recipe, *asked) == 0
    return distilled(recipe, asked)


def sharded(recipe: Path, tmp_path: Path, *overrides: str, **changes: str) -> tuple[Path, list[dict[str, Any]]]:
    """Train with half batches in two processes; the student, and what FSDP2 made of it in each process."""
    asked, facts = [HALF, *overrides], tmp_path / "facts.jsonl"
    shutil.rmtree(distilled(recipe, asked), ignore_errors=True)
    launching.with_fsdp2("train", recipe, *asked, SHARDING_FACTS=str(facts), **changes)
    return distilled(recipe, asked), [json.loads(line) for line in facts.read_text().splitlines()]


def assert_sharded(facts: list[dict[str, Any]], units: list[list[str]]) -> None:
    assert sorted(fact["process"] for fact in facts) == [0, 1]
    for fact in facts:
        assert fact["fsdp2"]
        assert fact["sharded"]
        assert fact["processes"] == 2
        assert fact["units"] == sorted(units)


def llama(prefix: str = "lm.", *more: list[str]) -> list[list[str]]:
    """The units of the tiny student: embeddings, two layers, the last norm with the head, and the rest."""
    own = [[f"{prefix}model.embed_tokens"], [f"{prefix}model.layers.0"], [f"{prefix}model.layers.1"]]
    return [[""], *own, [f"{prefix}model.norm", f"{prefix}lm_head"], *more]


def history(student: Path) -> dict[str, Any]:
    return json.loads((student / "log_history.json").read_text())


def steps(student: Path) -> list[tuple[float, float]]:
    return [(entry["loss"], entry["grad_norm"]) for entry in history(student)["history"] if "loss" in entry]


def assert_same(found: Path, reference: Path, weights_within: float = 2e-3) -> None:
    """Losses, gradient norms and validations to five digits; the files of the same names, and their weights close."""
    for got, want in zip(steps(found), steps(reference), strict=True):
        assert got == pytest.approx(want, rel=FIVE_DIGITS)
    assert history(found)["best_step"] == history(reference)["best_step"]
    assert history(found)["validation"] == pytest.approx(history(reference)["validation"], rel=FIVE_DIGITS)
    assert len(steps(found)) > 1
    names = sorted(path.name for path in reference.glob("*.safetensors"))
    assert names
    assert names == sorted(path.name for path in found.glob("*.safetensors"))
    for name in names:
        mine, theirs = (load_file(directory / name) for directory in (found, reference))
        assert mine.keys() == theirs.keys()
        # Adam divides by the root of tiny second moments: where a gradient is noise, so is its step.
        assert max(float((mine[k] - theirs[k]).abs().max()) for k in mine) <= weights_within


def test_fsdp2_shards_layer_by_layer_and_trains_as_one_process_does(recipe: Path, tmp_path: Path) -> None:
    found, facts = sharded(recipe, tmp_path)
    assert_sharded(facts, llama())
    assert_same(found, in_one_process(recipe))


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_the_heads_weight_is_gathered_once_a_step_however_many_blocks_it_has(head: str, recipe: Path, tmp_path: Path) -> None:
    overrides = HEADS[head]
    reference, gathers = in_one_process(recipe, *overrides), []
    for size in (2**27, 2**14):  # all at once; fifteen tokens of the tiny vocabulary, so that whole responses are computed twice
        count = tmp_path / f"gathers-{size}"
        found, facts = sharded(recipe, tmp_path, *overrides, BLOCK_BYTES=str(size), GATHERS=str(count))
        assert all(fact["fsdp2"] for fact in facts)
        assert_same(found, reference)
        gathers.append(int(count.read_text()))
        (tmp_path / "facts.jsonl").unlink()
    assert gathers[0] == gathers[1] > 0


@pytest.mark.slow
def test_under_fsdp2_the_best_checkpoint_is_saved_and_early_stopping_stops_as_in_one_process(recipe: Path, tmp_path: Path) -> None:
    # The rate is so high that the first validation is the best: what is loaded at the end is not what was trained last.
    overrides = [
        *EVERY_STEP,
        STATE_VALUE,
        "train.value={learning_rate: 0.01, warmup_steps: 2, detach: false}",
        "train.arguments.learning_rate=0.02",
    ]
    overrides += ["train.arguments.max_steps=6", "train.arguments.metric_for_best_model=eval_nll", "train.monitor.early_stopping_patience=2"]
    found, facts = sharded(recipe, tmp_path, *overrides)
    assert_sharded(facts, llama("lm.", ["value_head"]))
    reference = in_one_process(recipe, *overrides)
    assert history(reference)["best_step"] < len(steps(reference)) < 6
    assert_same(found, reference)


@pytest.mark.slow
def test_under_fsdp2_completions_are_logged_that_one_process_logs(recipe: Path, tmp_path: Path) -> None:
    overrides = [*EVERY_STEP, ACTION_VALUE, "train.monitor.log_completions=3"]
    found, facts = sharded(recipe, tmp_path, *overrides)
    assert_sharded(facts, llama("lm.", ["value_head"]))
    reference = in_one_process(recipe, *overrides)
    assert_same(found, reference)
    written = (found / "completions.jsonl").read_text()
    assert written == (reference / "completions.jsonl").read_text()
    assert len(written.splitlines()) == 3 * 5  # one more for the student that is saved


@pytest.mark.slow
def test_under_fsdp2_adapters_are_trained_and_saved_alone(recipe: Path, tmp_path: Path) -> None:
    overrides = [*EVERY_STEP, STATE_VALUE, "train.peft={lora: {r: 4, target_modules: all-linear}}", "train.monitor.log_completions=1"]
    found, facts = sharded(recipe, tmp_path, *overrides)
    assert_sharded(facts, llama("lm.base_model.model.", ["value_head"]))
    reference = in_one_process(recipe, *overrides)
    assert_same(found, reference)
    assert (found / "adapter_model.safetensors").is_file()
    assert (found / "completions.jsonl").read_text() == (reference / "completions.jsonl").read_text()


def pretrained(recipe: Path, directory: Path, model: Any) -> Path:
    """A recipe beside ``recipe`` whose student is ``model``."""
    content = yaml.safe_load(recipe.read_text())
    model.save_pretrained(directory / "student")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(content["teacher"]["teacher_model_name_or_path"]) / name, directory / "student" / name)
    content["student"] = {"init": "pretrained", "student_model_name_or_path": str(directory / "student")}
    content["output_dir"] = str(directory / "run")
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    assert conftest.command("rollout", path) == 0
    return path


def tied(teacher: Path) -> LlamaForCausalLM:
    config = LlamaConfig.from_pretrained(teacher)
    config.tie_word_embeddings, config.num_hidden_layers = True, 2
    return LlamaForCausalLM(config)


def gpt2(teacher: Path) -> GPT2LMHeadModel:
    """Its position embeddings are in no unit but the root. No dropout, whose masks differ by the cut of a batch."""
    like = LlamaConfig.from_pretrained(teacher)
    ends = {"bos_token_id": None, "eos_token_id": like.eos_token_id, "pad_token_id": like.pad_token_id}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=304, n_positions=256, n_embd=32, n_layer=2, n_head=2, **ends, **dropout))


ARCHITECTURES: dict[str, tuple[Callable[[Path], Any], list[list[str]]]] = {
    "tied embeddings": (
        tied,
        [[""], ["lm.model.embed_tokens", "lm.model.norm", "lm.lm_head"], ["lm.model.layers.0"], ["lm.model.layers.1"], ["value_head"]],
    ),
    "gpt2": (
        gpt2,
        [
            [""],
            ["lm.transformer.h.0"],
            ["lm.transformer.h.1"],
            ["lm.transformer.wte", "lm.transformer.ln_f", "lm.lm_head"],
            ["value_head"],
        ],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fsdp2_trains_other_architectures_as_one_process_does(name: str, recipe: Path, tmp_path: Path, tiny_teacher: Path) -> None:
    make, units = ARCHITECTURES[name]
    torch.manual_seed(5)
    own = pretrained(recipe, tmp_path, make(tiny_teacher))
    overrides = [ACTION_VALUE, "train.monitor.log_completions=2"]
    found, facts = sharded(own, tmp_path, *overrides)
    assert_sharded(facts, units)
    reference = in_one_process(own, *overrides)
    assert_same(found, reference)
    assert (found / "completions.jsonl").read_text() == (reference / "completions.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("files", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_a_run_under_fsdp2_that_was_killed_ends_bit_by_bit_as_one_that_was_not(files: str, recipe: Path, tmp_path: Path) -> None:
    overrides = [ACTION_VALUE, "train.arguments.save_steps=2", "train.arguments.eval_steps=2", "train.monitor.keep_checkpoints=true"]
    overrides += ["train.value={learning_rate: 0.01, detach: false}"]
    changes = {"FSDP_STATE_DICT_TYPE": files}
    found, _ = sharded(recipe, tmp_path, *overrides, **changes)
    whole = found.rename(tmp_path / "whole")
    # What a kill after the second step leaves.
    shutil.copytree(whole / "checkpoints" / "checkpoint-2", found / "checkpoints" / "checkpoint-2")
    launching.with_fsdp2("train", recipe, HALF, *overrides, **changes)
    assert_same(found, whole, weights_within=0.0)
    assert history(found)["history"][0]["seconds"] == history(whole)["history"][0]["seconds"], "it began anew"
    if files == "FULL_STATE_DICT":  # the other kind of files needs no second run against one process
        assert_same(found, in_one_process(recipe, *overrides))


@pytest.mark.slow
def test_outputs_and_value_head_are_float32_under_fsdp2_in_bfloat16(recipe: Path) -> None:
    program = str(Path(__file__).with_name("fsdp_precision.py"))
    env = launching.environment("fsdp2", ACCELERATE_MIXED_PRECISION="bf16")
    done = launching.launch([program, *map(str, (places.start(recipe), places.rollout(recipe), places.rollout(recipe, "valid")))], env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every output is float32" in done.stdout


REFUSED = {
    "a target network": (["train.objective={name: csil, target_network: true}"], {}, "target_network=True needs the whole student"),
    "merging": (["train.peft={lora: {r: 4}, merge: true}"], {}, "train.peft.merge: true needs the whole student"),
    "FSDP1": (
        [],
        {"FSDP_VERSION": "1", "FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD", "FSDP_SYNC_MODULE_STATES": "false"},
        "Only FSDP2 is supported, got fsdp_version: 1",
    ),
    "empty weights": ([], {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "fsdp_cpu_ram_efficient_loading: true gives weights to the first"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_work_under_fsdp2_is_refused_before_training(what: str, recipe: Path) -> None:
    overrides, changes, message = REFUSED[what]
    done = launching.launch([str(launching.ON_CPU), "train", str(recipe), HALF, *overrides], launching.environment("fsdp2", **changes))
    assert done.returncode != 0
    assert message in " ".join((done.stdout + done.stderr).split())
    assert "exitcode  : 2" in done.stderr
    assert "[rank" not in done.stderr, "a traceback"
