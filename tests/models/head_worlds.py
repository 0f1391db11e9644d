"""Small students and ragged batches on which every head is compared with the full one."""

from dataclasses import dataclass
from typing import Any

import torch
from architectures import CONFIGS, ROWS, TOKENS
from torch import Tensor
from transformers import AutoModelForCausalLM

from tdistill.data.collate import IGNORED_LABEL
from tdistill.models.head.run import HeadCall
from tdistill.models.student import StudentModel
from tdistill.objectives import BoundObjective
from tdistill.recipe.schema import HeadConfig
from tdistill.training.batch import BatchSteps, OnlineTeacher, objective_loss, student_inputs

VOCAB = TOKENS
assert VOCAB < ROWS, "some rows of the head are padding"


def language_model(architecture: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Any:
    """A tiny model whose biases and norms are not those of the start. ``scale`` multiplies its head: large ones give extreme logits."""
    torch.manual_seed(seed)
    lm = AutoModelForCausalLM.from_config(CONFIGS[architecture]())
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        lm.get_output_embeddings().weight.mul_(scale)
    return lm.to(dtype).eval()


def batch(lengths: tuple[int, ...] = (5, 1, 7, 3), widest: int = 9, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A batch as the collator makes it: ragged responses, ragged candidates, tokens off A_p, some steps that do not count."""
    g = torch.Generator().manual_seed(seed)
    rows, steps, prompt = len(lengths), max(lengths), 4
    exists = torch.arange(steps) < torch.tensor(lengths).unsqueeze(-1)
    counts = torch.randint(1, widest + 1, (rows, steps), generator=g) * exists
    width = int(counts.max())
    legal = torch.arange(width) < counts.unsqueeze(-1)
    ids = torch.stack([torch.stack([torch.randperm(VOCAB, generator=g)[:width] for _ in range(steps)]) for _ in range(rows)])
    logp = (torch.randn(rows, steps, width, generator=g, dtype=dtype).sort(-1, descending=True).values * 2).log_softmax(-1) - 0.2
    taken = torch.where(torch.rand(rows, steps, generator=g) < 0.7, ids[..., 0], torch.randint(VOCAB, (rows, steps), generator=g))
    text = torch.randint(VOCAB, (rows, prompt), generator=g)
    mask = torch.ones(rows, prompt + steps - 1, dtype=torch.long)
    mask[:, prompt:] = exists[:, :-1]
    terminal = torch.zeros_like(exists)
    for row, length in enumerate(lengths[::2]):
        terminal[2 * row, length - 1] = True
    behaviour = torch.where(exists, -torch.rand(rows, steps, generator=g, dtype=dtype), torch.nan)
    return {
        "input_ids": torch.cat([text, torch.where(exists, taken, 0)[:, :-1]], 1),
        "attention_mask": mask,
        "taken_ids": torch.where(exists, taken, 0),
        "labels": torch.where(exists, taken, IGNORED_LABEL),
        "terminal": terminal,
        "teacher_taken_logp": torch.where(exists, -3 * torch.rand(rows, steps, generator=g, dtype=dtype), 0.0),
        "behaviour_logp": behaviour,
        "expert": torch.arange(rows) % 2 == 0,
        "row": torch.arange(rows),
        "candidate_ids": torch.where(legal, ids, 0),
        "logp": logp.masked_fill(~legal, -torch.inf),
        "legal": legal,
    }


@dataclass(frozen=True)
class Result:
    """What a pass gave: the loss, the metrics of each step, and the gradient of every parameter by name."""

    loss: Tensor
    metrics: dict[str, Tensor]
    gradients: dict[str, Tensor]

    def distance(self, other: "Result") -> float:
        """The largest difference of loss and gradients, as a share of the largest entry of each."""
        pairs = [(self.loss, other.loss), *((g, other.gradients[name]) for name, g in self.gradients.items())]
        return max(float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-3)) for a, b in pairs)


def run(student: StudentModel, given: dict[str, Tensor], objective: BoundObjective, head: str | HeadConfig, **options: Any) -> Result:
    """One forward and backward of a loss. ``teacher``: read it online; ``watched``: needs of the diagnostics; ``seed``: of what is drawn."""
    student.use_head(HeadConfig(name=head) if isinstance(head, str) else head)
    teacher: Any = options.get("teacher")
    read = None
    if teacher is not None:
        read = OnlineTeacher(teacher, VOCAB).read(given["input_ids"], given["attention_mask"], given["taken_ids"].shape[1])
    steps_of = BatchSteps(given, VOCAB, objective.needs, read, options.get("target"))
    watched = options.get("watched", frozenset())
    loss = objective_loss(objective, steps_of, (given["labels"] != IGNORED_LABEL).sum(), bool(watched))
    student.zero_grad()
    call = HeadCall(loss, objective.scope, watched, options.get("seed", 0))
    out = student(**student_inputs(given), vocab_size=VOCAB, needs=objective.needs, call=call)
    if out["loss"].requires_grad:
        (3.0 * out["loss"]).backward()  # the Trainer multiplies and divides a loss before its backward
    gradients = {name: p.grad.clone() / 3.0 for name, p in student.named_parameters() if p.grad is not None}
    return Result(out["loss"].detach(), out["metrics"], gradients)
