"""Make the recipes on which a plan is compared with what a run takes: random Llamas of several sizes, and what each recipe changes."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from small_llama import EOS, Size, new_model, save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPREAD = 6.0  # standard deviation of a teacher's logits: its distributions are narrow
PROMPTS = {"train": 24, "valid": 24, "test": 8}
CHARACTERS = 24  # of a prompt, each a token


@dataclass(frozen=True)
class Case:
    """Hold one recipe: its teacher, its vocabulary, the student's layers, the length of answers, and what else differs."""

    vocab: int
    teacher: Size
    layers: int  # of the student
    length: int  # longest answer in tokens
    batch: int = 8
    tied: bool = False
    changes: dict[str, Any] = field(default_factory=dict)  # KEY.SUB → value


def _size(hidden: int, layers: int, heads: int = 8) -> Size:
    return Size(hidden=hidden, layers=layers, steps=0, learning_rate=0.0, heads=heads, positions=1024)


FULL, OBJECTIVE = {"train.head": "full"}, "train.objective"
SAMPLED = {"name": "sampled", "samples": 2048}
LORA = {"lora": {"r": 16, "target_modules": "all-linear"}}
# Without a head of its own a recipe has the cheapest exact one. docs/plan.md says on which of them the formulas were adjusted.
CASES: dict[str, Case] = {
    "8k vocabulary": Case(8_000, _size(512, 10), 8, 64, 16, changes=FULL),
    "150k vocabulary": Case(150_000, _size(256, 4), 2, 64, 4, changes={OBJECTIVE: "forward_kl"}),
    "bfloat16": Case(32_000, _size(512, 10), 6, 64, 8, True, {OBJECTIVE: "jsd", "train.arguments.bf16": True}),
    "accumulation": Case(16_000, _size(640, 8), 6, 96, 4, changes={"train.arguments.gradient_accumulation_steps": 2, **FULL}),
    "target network": Case(32_000, _size(512, 8), 4, 96, 4, changes={OBJECTIVE: {"name": "ls_iq", "target_network": True}}),
    "teacher online": Case(24_000, _size(512, 8), 5, 96, 6, changes={OBJECTIVE: {"name": "reverse_kl", "support": "dense"}}),
    "LoRA and sampled": Case(32_000, _size(768, 6), 6, 96, 8, changes={"train.peft": LORA, "train.head": SAMPLED}),
    "candidates": Case(64_000, _size(384, 6), 4, 96, 8, changes={OBJECTIVE: "sqil"}),
    "checkpointing": Case(16_000, _size(640, 10), 8, 192, 8, changes={"train.arguments.activation_checkpointing": True, **FULL}),
}


def tokenizer_of(vocab: int) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer of so many tokens, most of which no text has."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, EOS, *(f"<x{i}>" for i in range(vocab - len(alphabet) - 1))]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(names)}, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, pad_token=EOS)


def make(case: Case, directory: Path, seed: int = 0) -> Path:
    """Make a case's teacher, prompts and recipe, and return the recipe."""
    tokenizer = tokenizer_of(case.vocab)
    teacher = new_model(tokenizer, case.teacher, seed, tied=case.tied)
    with torch.no_grad():
        teacher.lm_head.weight.normal_(std=SPREAD / case.teacher.hidden**0.5)
    save(teacher, tokenizer, directory / "teacher")
    data = {}
    for split, count in PROMPTS.items():
        data[split] = str(directory / f"{split}.jsonl")
        lines = [json.dumps({"prompt": f"{split} {i:03d} ".ljust(CHARACTERS, "?")}) for i in range(count)]
        Path(data[split]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    steps = {"max_steps": 3, "eval_steps": 3, "save_steps": 3, "logging_steps": 3, "learning_rate": 1e-5}
    recipe = {
        "output_dir": str(directory / "run"),
        "data": {**data, "max_prompt_length": 64},
        "teacher": {"teacher_model_name_or_path": str(directory / "teacher"), "dtype": "float32"},
        "student": {"init": "prune", "num_hidden_layers": case.layers},
        "rollout": {"teacher_top_p": 0.8, "max_candidates": 100, "max_completion_length": case.length, "batch_size": 8},
        "train": {
            "objective": {"name": "iq_learn", "anchor": "tail"},
            "arguments": {**steps, "per_device_train_batch_size": case.batch, "per_device_eval_batch_size": case.batch},
        },
        "evaluation": {"dtype": "float32", "batch_size": 8},
    }
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(merged(recipe, case.changes)), encoding="utf-8")
    return path


def merged(recipe: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe with the changes of a case."""
    for key, value in changes.items():
        *way, last = key.split(".")
        section = recipe
        for name in way:
            section = section[name]
        section[last] = value
    return recipe
