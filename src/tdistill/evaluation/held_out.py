"""On held-out teacher text, with the teacher online: exact divergences of a student, and how sparse the teacher is."""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tdistill.data.collate import IGNORED_LABEL, DistillCollator
from tdistill.data.dataset import RolloutDataset
from tdistill.mdp.candidates import nucleus_mask, top_p_candidates
from tdistill.objectives.support import kl
from tdistill.progress import bar
from tdistill.rollout.score import step_logp

SPARSITY_KS = (1, 2, 3, 5, 7, 10, 20, 50, 100, 200, 500, 1000)
SPARSITY_PS = (0.5, 0.8, 0.9, 0.95)


@torch.inference_mode()
def held_out_metrics(
    student: PreTrainedModel, teacher: PreTrainedModel, dataset: RolloutDataset, vocab_size: int, batch_size: int, title: str
) -> dict[str, dict[str, float]]:
    """Per prompt: mean per token of KL(teacher‖student), KL(student‖teacher), and the student's mass on A_p.

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
def teacher_sparsity(teacher: PreTrainedModel, dataset: RolloutDataset, vocab_size: int, batch_size: int) -> dict[str, object]:
    """Mean mass of the k most probable tokens, and |A_p| of every state for several p, over the whole vocabulary."""
    ks = [k for k in SPARSITY_KS if k <= vocab_size]
    mass, count = torch.zeros(len(ks), dtype=torch.float64), 0
    sizes: dict[float, list[int]] = {p: [] for p in SPARSITY_PS}
    for batch in _batches(dataset, batch_size, "teacher's sparsity"):
        logp = _logp(teacher, batch, vocab_size)[batch["labels"] != IGNORED_LABEL]
        top = logp.topk(ks[-1], dim=-1).values
        mass += top.double().exp().cumsum(-1)[:, [k - 1 for k in ks]].sum(0).cpu()
        count += len(top)
        widest = top_p_candidates(logp, max(SPARSITY_PS)).logp  # a full sort of [tokens, V] takes ten times as long
        for p, found in sizes.items():
            found += nucleus_mask(widest, p).sum(-1).tolist()
    top_k = {k: float(m) / count for k, m in zip(ks, mass, strict=True)}
    return {"n_tokens": count, "vocab_size": vocab_size, "top_k_mass": top_k, "sizes": sizes}


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
