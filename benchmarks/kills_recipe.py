"""Write a recipe that does everything in seconds: a random teacher of two layers, SFT, own text, a corpus, a value head, a target network."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EOS = "<eos>"
SIZES = {"train": 12, "valid": 4, "test": 4}
WORDS = ["the", "teacher", "writes", "one", "token", "after", "another", "and", "the", "student", "learns", "when", "to", "stop"]


def save_teacher(directory: Path, seed: int = 0) -> Path:
    """Save a byte-level Llama whose distributions are narrow and which sometimes stops."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, EOS])}
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocab) + 7,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=vocab[EOS],
        pad_token_id=vocab[EOS],
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight *= 4.0
        model.lm_head.weight[vocab[EOS]] *= 2.0
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS).save_pretrained(directory)
    return directory


def write_recipe(directory: Path, teacher: Path, schedule: str) -> Path:
    """Write prompts, a corpus and ``recipe-SCHEDULE.yaml``.

    Args:
        directory: where they go.
        teacher: the teacher's directory.
        schedule: ``constant``, or ``default`` for that of transformers.
    """
    data: dict[str, Any] = {"max_prompt_length": 48}
    for split, size in SIZES.items():
        rows = [{"prompt": f"{split} {i}" + "?" * (i % 4)} for i in range(size)]
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data[split] = str(directory / f"{split}.jsonl")
    corpus = directory / "corpus.txt"
    corpus.write_text("\n\n".join(" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))) + "\n")
    arguments: dict[str, Any] = {
        "max_steps": 6,
        "eval_steps": 2,
        "save_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 3e-3,
    }
    if schedule == "constant":
        arguments["lr_scheduler_type"] = "constant"
    own_text = {"lmbda": 0.5, "refresh_steps": 2, "replay": 2, "teacher_mix": 0.2}
    recipe = {
        "title": "kills",
        "output_dir": str(directory / "run"),
        "seed": 5,
        "data": data,
        "teacher": {"teacher_model_name_or_path": str(teacher), "dtype": "float32"},
        "student": {"init": "prune", "num_hidden_layers": 2},
        "rollout": {"teacher_top_p": 0.8, "max_completion_length": 8, "batch_size": 2, "shard_batches": 1},
        "sft": {"arguments": dict(arguments)},
        "train": {
            "objective": {"name": "sqil", "other": "rollouts", "gauge": "learned", "target_network": True, "anchor": "tail"},
            "baselines": {"sft_continued": {"objective": {"name": "nll"}, "arguments": {"max_steps": 4}, "on_policy": {"lmbda": 0.0}}},
            "on_policy": own_text,
            "lm": {"corpus": str(corpus), "lm_coef": 0.3, "window": 32},
            "arguments": dict(arguments),
        },
        "evaluation": {"dtype": "float32", "top_p": 0.8, "batch_size": 4, "num_samples_shown": 2},
    }
    path = directory / f"recipe-{schedule}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
