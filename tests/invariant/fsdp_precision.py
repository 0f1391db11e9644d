"""`torchrun fsdp_precision.py START TRAIN VALID`: what a student under FSDP2 in bfloat16 returns, against float64 from its gathered weights."""

import sys
from pathlib import Path
from typing import Any

import torch
from fsdp_on_cpu import shard_on_cpu
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from tdistill.data.dataset import RolloutDataset
from tdistill.models.student import StudentModel
from tdistill.objectives import bind
from tdistill.training.batch import student_inputs
from tdistill.training.trainer import DistillTrainer

NEEDS = frozenset({"value", "action_value", "log_z", "max", "taken"})


def trained(start: Path, *rollouts: Path) -> DistillTrainer:
    """Train two steps, so that everything is sharded and the value head is not 0."""
    tokenizer = AutoTokenizer.from_pretrained(start)
    student = StudentModel(AutoModelForCausalLM.from_pretrained(start), action_values=True)
    generator = torch.Generator().manual_seed(0)
    assert student.value_head is not None
    with torch.no_grad():
        for parameter in student.value_head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    args = TrainingArguments(
        "unused", bf16=True, use_cpu=True, max_steps=2, per_device_train_batch_size=4, report_to="none", save_strategy="no", disable_tqdm=True
    )
    data = (RolloutDataset(directory, 0.8, ("teacher",)) for directory in rollouts)
    trainer = DistillTrainer(student, args, bind("mean_actor_critic"), *data, tokenizer)
    trainer.train()
    return trainer


def check(trainer: DistillTrainer) -> None:
    """Compare one forward with float64."""
    student, seen = trainer.model, {}
    assert isinstance(student, FSDPModule)
    assert isinstance(student.value_head, FSDPModule)
    student.value_head.state.register_forward_hook(lambda _, inputs, __: seen.update(hidden=inputs[0].detach()))
    inputs = trainer._prepare_inputs(next(iter(trainer.get_eval_dataloader())))
    given: dict[str, Any] = {**student_inputs(inputs), "needs": NEEDS, "vocab_size": trainer.vocab_size}
    given |= {"candidate_ids": None}  # every token is a candidate
    with trainer.compute_loss_context_manager():
        out = {key: value.detach() for key, value in student(**given).items()}
    assert {value.dtype for value in out.values()} == {torch.float32}, {key: value.dtype for key, value in out.items()}
    weights = trainer.accelerator.get_state_dict(student)
    if not trainer.accelerator.is_main_process:
        return
    logits, hidden = out["q_t"].double(), seen["hidden"].double()
    close(out["log_z_t"], logits.logsumexp(-1), 1e-6)
    close(out["max_t"], logits.amax(-1), 0.0)
    head = {name: weights[f"value_head.{name}"].double() for name in ("state.weight", "state.bias", "action.weight")}
    value = hidden @ head["state.weight"].squeeze(0) + head["state.bias"]
    close(out["value_t"], value, 1e-5)
    embeddings = weights["lm.lm_head.weight"].bfloat16().double()  # as the head of the language model computes
    advantage = hidden @ head["action.weight"].T @ embeddings.T / embeddings.shape[-1]
    close(out["action_value_t"], (value.unsqueeze(-1) + advantage)[..., : trainer.vocab_size], 1e-5)
    assert {weights[name].dtype for name in weights} == {torch.float32}
    assert float((value - value.bfloat16().double()).abs().max()) > 1e-3, "bfloat16 would pass"
    print("every output is float32")


def close(got: torch.Tensor, want: torch.Tensor, within: float) -> None:
    gap = float(((got.double() - want).abs() / want.abs().clamp_min(1.0)).max())
    assert gap <= within, gap


if __name__ == "__main__":
    torch.set_num_threads(1)
    shard_on_cpu()
    check(trained(*map(Path, sys.argv[1:])))
