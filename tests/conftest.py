import os

os.environ["HF_HUB_OFFLINE"] = "1"

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fuzz.summary import pytest_terminal_summary  # noqa: F401
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tdistill.cli import main

torch.set_num_threads(1)

EOS = "<eos>"
SIZES = {"train": 12, "valid": 6, "test": 6}


def command(*argv: Any) -> int:
    """Run `tdistill ARGV...` and return its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tdistill", *map(str, argv)])
        with pytest.raises(SystemExit) as stop:
            main()
    return stop.value.code or 0


def save_tiny_model(directory: Path, seed: int = 0, extra_tokens: int = 0) -> Path:
    """A byte-level Llama with random weights, scaled up so that its distributions are narrow and it sometimes stops."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, EOS, *(f"<x{i}>" for i in range(extra_tokens))])}
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=304,  # more rows than tokens: the padding rows must carry no mass
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=vocab[EOS],
        pad_token_id=vocab[EOS],
        initializer_range=0.15,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight *= 4.0
        model.lm_head.weight[vocab[EOS]] *= 2.0
    model.save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny_teacher"))


@pytest.fixture(scope="session")
def other_teacher(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("other_teacher"), seed=1)


def tiny_recipe_dict(teacher: Path, directory: Path) -> dict:
    data = {}
    for split, size in SIZES.items():
        path = directory / f"{split}.jsonl"
        lines = [json.dumps({"prompt": f"{split} question {i}" + "?" * (i % 5), "completion": f"answer {i}"}) for i in range(size)]
        path.write_text("\n".join(lines) + "\n")
        data[split] = str(path)
    arguments = {
        "max_steps": 4,
        "eval_steps": 2,
        "save_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
    }
    return {
        "title": "tiny",
        "output_dir": str(directory / "run"),
        "seed": 3,
        "data": {**data, "max_prompt_length": 128},
        "teacher": {"teacher_model_name_or_path": str(teacher), "dtype": "float32"},
        "student": {"init": "prune", "num_hidden_layers": 2},
        "rollout": {"teacher_top_p": 0.8, "max_completion_length": 12, "batch_size": 2, "shard_batches": 2},
        "sft": {"arguments": dict(arguments)},
        "train": {
            "objective": {"name": "iq_learn", "alpha": 10.0, "anchor": "tail"},
            "baselines": {"sft_continued": {"objective": {"name": "nll"}, "arguments": {"max_steps": 3}}},
            "arguments": dict(arguments),
        },
        "evaluation": {"dtype": "float32", "top_p": 0.8, "batch_size": 4, "num_samples_shown": 2},
    }


@pytest.fixture
def tiny_recipe(tmp_path, tiny_teacher):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe_dict(tiny_teacher, tmp_path)))
    return path
