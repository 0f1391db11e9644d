"""Time whole steps from the cache beside the SFT step of transformers' Trainer on the same tokens, for `step_parts.py`."""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments

from tdistill.data.collate import DistillCollator
from tdistill.data.dataset import RolloutDataset
from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.objectives import bind
from tdistill.recipe.schema import HeadConfig
from tdistill.training.arguments import training_arguments
from tdistill.training.schedule import ByLength
from tdistill.training.trainer import DistillTrainer

BATCH, SEED, WARMUP, IGNORED = 8, 0, 1, -100
ARGUMENTS: dict[str, Any] = {
    "per_device_train_batch_size": BATCH, "optim": "adamw_torch_fused", "learning_rate": 1e-6, "save_strategy": "no", "eval_strategy": "no",
}  # fmt: skip
# Objective → its term, and the heads that it is timed with.
OBJECTIVES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "nll": ({"name": "nll"}, ("full", "chunked")),
    "reverse_kl": ({"name": "reverse_kl"}, ("full", "chunked", "sampled")),
    "forward_kl, projected": ({"name": "forward_kl", "support": "proj"}, ("candidates",)),  # no partition function
}


def sft_batch(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return the batch that an SFT trainer makes: prompt and response in one row, padded on the right, labels on the response."""
    rows = [torch.cat([torch.from_numpy(e["input_ids"]), torch.from_numpy(e["response_ids"])]) for e in examples]
    labels = [row.clone() for row in rows]
    for row, example in zip(labels, examples, strict=True):
        row[: len(example["input_ids"])] = IGNORED
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": pad(rows, batch_first=True), "attention_mask": mask, "labels": pad(labels, batch_first=True, padding_value=IGNORED)}


def student(directory: Path, vocab: int | None, attention: str | None = None) -> PreTrainedModel:
    """Return the student; with ``vocab`` the same body, of random weights, with so many tokens."""
    if vocab is None:
        return load_model(find_model(str(directory)), attn_implementation=attention).train()
    torch.manual_seed(SEED)
    config = AutoConfig.from_pretrained(directory, vocab_size=vocab)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()


class Stepper:
    """Take whole steps: forward, backward, clipping and the optimizer, which all share: they train one language model."""

    def __init__(self, trainer: Trainer, model: Any, optimizer: torch.optim.Optimizer):
        self.trainer, self.model, self.optimizer = trainer, model, optimizer

    def seconds(self, batch: dict[str, Tensor]) -> float:
        """Take one step and return its time: that of this process, so that other work on the machine does not count."""
        count = (batch["labels"] != IGNORED).sum()
        started = time.process_time()
        self.trainer.training_step(self.model, dict(batch), count)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.model.zero_grad()
        return time.process_time() - started


def steppers(data: RolloutDataset, directory: Path, work: str, options: argparse.Namespace) -> dict[str, Stepper]:
    """Return what is timed: the plain Trainer first, then every objective, with one model among them all."""
    given = ARGUMENTS | {"bf16": options.bf16}
    lm = student(directory, options.vocab)
    rows = lm.get_output_embeddings().weight.shape[0]
    plain = Trainer(lm, TrainingArguments(output_dir=work, use_cpu=True, report_to="none", disable_tqdm=True, **given))
    optimizer = plain.create_optimizer()
    found = {"Trainer": Stepper(plain, lm, optimizer)}
    for name, (term, heads) in OBJECTIVES.items():
        for head in heads:
            args = training_arguments(given, work, SEED)
            trainer = DistillTrainer(lm, args, bind(term), data, vocab_size=rows, head=HeadConfig(name=head))
            found[f"{name}, {head}"] = Stepper(trainer, trainer.model, optimizer)
    return found


def whole_steps(cache: Path, directory: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each objective: its step's time ÷ that of the plain Trainer on the same examples."""
    data = RolloutDataset(cache)
    order = list(ByLength(data.lengths(), BATCH, SEED, lambda: 0)) if options.grouped else torch.randperm(len(data)).tolist()
    with tempfile.TemporaryDirectory() as work:
        timed = steppers(data, directory, work, options)
        collate, times = DistillCollator(), {name: [] for name in timed}
        for start in range(0, BATCH * (options.only + WARMUP), BATCH):
            examples = [data[i] for i in order[start : start + BATCH]]
            batches = {True: sft_batch(examples), False: collate(examples)}
            for name, stepper in timed.items():
                times[name].append(stepper.seconds(batches[name == "Trainer"]))
    plain = times.pop("Trainer")[WARMUP:]
    facts = {"vocab": options.vocab, "bf16": options.bf16, "seconds_of_trainer": quantiles(plain, n=4)}
    for name, own in times.items():
        yield {"kind": "step", "name": name, "ratio": quantiles([a / b for a, b in zip(own[WARMUP:], plain, strict=True)], n=4), **facts}
