"""Compute a student's exact divergences on held-out teacher text, with the teacher online."""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tdistill.data.collate import IGNORED_LABEL, DistillCollator
from tdistill.data.dataset import RolloutDataset
from tdistill.models.forward import step_logp
from tdistill.objectives.parts.divergence import kl
from tdistill.runtime.progress import bar


@torch.inference_mode()
def held_out_metrics(
    student: PreTrainedModel, teacher: PreTrainedModel, dataset: RolloutDataset, vocab_size: int, batch_size: int, title: str
) -> dict[str, dict[str, float]]:
    """Return for each prompt the mean per token of KL(teacher‖student), KL(student‖teacher), and the student's mass on A_p.

    Both KLs are over the whole vocabulary, at temperature 1.
    """
    sums: dict[str, list[Tensor]] = {}
    for batch in _batches(dataset, batch_size, title):
        p, q, mask = _logp(teacher, batch, vocab_size), _logp(student, batch, vocab_size), batch["labels"] != IGNORED_LABEL
        everywhere = torch.ones((), dtype=torch.bool).expand_as(p)
        mass = torch.where(batch["legal"], q.gather(-1, batch["candidate_ids"]).exp(), 0.0).sum(-1)
        values = {"forward_kl": kl(p, q, everywhere), "reverse_kl": kl(q, p, everywhere), "student_mass": mass}
        for i, row in enumerate(batch["row"].tolist()):
            stats = torch.stack([v[i][mask[i]].double().sum() for v in values.values()] + [mask[i].sum().double()])
            sums.setdefault(dataset.prompt_id(row), []).append(stats)
    out: dict[str, dict[str, float]] = {"forward_kl": {}, "reverse_kl": {}, "student_mass": {}}
    for prompt_id, rows in sums.items():
        *totals, count = torch.stack(rows).sum(0).tolist()
        for name, total in zip(out, totals, strict=True):
            out[name][prompt_id] = total / count
    return out


@torch.inference_mode()
def state_logp(
    model: PreTrainedModel, dataset: RolloutDataset, vocab_size: int, batch_size: int, title: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each batch the log-probs [B, T, V] of a model on recorded text, and the mask [B, T] of existing states."""
    for batch in _batches(dataset, batch_size, title):
        yield _logp(model, batch, vocab_size), batch["labels"] != IGNORED_LABEL


def _batches(dataset: RolloutDataset, batch_size: int, title: str) -> Iterator[dict[str, Tensor]]:
    collate = DistillCollator()
    with bar(title, len(dataset), "responses") as progress:
        for start in range(0, len(dataset), batch_size):
            examples = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
            yield collate(examples)
            progress.advance(len(examples))


def _logp(model: PreTrainedModel, batch: dict[str, Tensor], vocab_size: int) -> Tensor:
    inputs = (batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device))
    return step_logp(model, *inputs, batch["taken_ids"].shape[1], vocab_size).cpu()
