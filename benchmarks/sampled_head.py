"""Measure bias and noise of what the head `sampled` estimates, over the number of samples, on a trained student and real roll-outs.

`python benchmarks/sampled_head.py STUDENT CACHE --rows FILE [--responses 8] [--draws 16]` reads STUDENT (a model directory) and the first
responses of CACHE (a folder of roll-outs), runs the student's body once, and compares the loss and its gradients under `sampled` with those of
the exact head `chunked`, for many seeds of the draw.

A row has, for one objective and number of samples: `log_z_rms`, the root mean square error of the log-partition at a step, and `log_z_bias`,
its mean error, in nats; `loss_bias`, the mean error of the loss, and `loss_std`, its standard deviation over draws; `gradient_noise`, the size
of the error of one draw's gradient of the head's weight as a share of the gradient's size, and `gradient_bias`, that of the mean of all draws
with the noise that is left in this mean taken out (0 where nothing is left).
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from told import script
from torch import Tensor

from tdistill.data.collate import IGNORED_LABEL, DistillCollator
from tdistill.data.dataset import RolloutDataset
from tdistill.models.find import find_model
from tdistill.models.forward import step_outputs
from tdistill.models.head import run
from tdistill.models.head.contract import Head
from tdistill.models.head.readout import find_after, first_column, replaced_head
from tdistill.models.head.run import Given, HeadCall
from tdistill.models.load import load_model
from tdistill.objectives import bind
from tdistill.runtime.files import write_jsonl
from tdistill.runtime.progress import bar
from tdistill.training.batch import BatchSteps, objective_loss

OBJECTIVES = ("reverse_kl", "jsd", "iq_learn", "nll")
SAMPLES = (64, 256, 1024, 4096, 16384)


def main() -> None:
    options = _options()
    measure = Measure(options.student, options.cache, options.responses)
    rows = []
    with bar("sampled", len(OBJECTIVES) * len(SAMPLES), "row") as progress:
        for objective in OBJECTIVES:
            exact = measure.loss(objective, Head("chunked", measure.after), 0)
            for samples in SAMPLES:
                rows.append({"objective": objective, "samples": samples, **measure.compare(objective, samples, options.draws, exact)})
                progress.advance(1)
    write_jsonl(options.rows, [{**row, **measure.facts, "draws": options.draws} for row in rows])


class Measure:
    """Hold the hidden states of a student on a batch."""

    def __init__(self, student: Path, cache: Path, responses: int):
        lm = load_model(find_model(str(student)), "float32").eval()
        data = RolloutDataset(cache)
        self.batch = DistillCollator()([data[i] for i in range(responses)])
        taken, self.valid = self.batch["taken_ids"], self.batch["labels"] != IGNORED_LABEL
        self.after, head = find_after(lm), lm.get_output_embeddings()
        with torch.no_grad(), replaced_head(lm, first_column) as seen:
            step_outputs(lm, self.batch["input_ids"], self.batch["attention_mask"], taken.shape[1])
        self.hidden = seen[0][:, -taken.shape[1] :].detach()
        self.weight, self.bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
        self.vocab_size = len(self.weight)
        self.facts = {"tokens": int(self.valid.sum()), "vocabulary": self.vocab_size, "p": data.teacher_top_p}

    def given(self, needs: frozenset[str], weight: Tensor) -> Given:
        """Return what a head reads."""
        named = (self.batch["taken_ids"], self.batch["candidate_ids"], self.batch["legal"], self.valid)
        return Given(self.hidden, weight, self.bias, *named, needs, self.vocab_size)

    def loss(self, objective: str, head: Head, seed: int) -> tuple[float, Tensor]:
        """Return the loss, and its gradient with respect to the head's weight."""
        bound, weight = bind(objective), self.weight.clone().requires_grad_()
        loss_of = objective_loss(bound, BatchSteps(self.batch, self.vocab_size, bound.needs), int(self.valid.sum()))
        loss, _ = run.loss(head, self.given(bound.needs, weight), HeadCall(loss_of, bound.scope, seed=seed))
        (gradient,) = torch.autograd.grad(loss, weight)
        return loss.item(), gradient

    @torch.no_grad()
    def log_z(self, head: Head, seed: int) -> Tensor:
        """Return the log-partition at every step that exists."""
        given = self.given(frozenset({"log_z"}), self.weight)
        return run.fields(head, given, HeadCall(seed=seed))["log_z_t"][self.valid].double()

    def compare(self, objective: str, samples: int, draws: int, exact: tuple[float, Tensor]) -> dict[str, Any]:
        """Return a row."""
        head, truth = Head("sampled", self.after, samples), self.log_z(Head("chunked", self.after), 0)
        errors = torch.stack([self.log_z(head, seed) - truth for seed in range(draws)])
        losses, total, squares = [], torch.zeros_like(exact[1]), 0.0
        for seed in range(draws):
            loss, gradient = self.loss(objective, head, seed)
            losses.append(loss - exact[0])
            total += gradient - exact[1]
            squares += float((gradient - exact[1]).square().sum())
        mean = float((total / draws).square().sum())
        noise = (squares / draws - mean) / (draws - 1)  # of the mean over draws
        size = float(exact[1].norm())
        found = torch.tensor(losses, dtype=torch.float64)
        return {
            "log_z_rms": float(errors.square().mean().sqrt()),
            "log_z_bias": float(errors.mean()),
            "loss": exact[0],
            "loss_bias": float(found.mean()),
            "loss_std": float(found.std()),
            "gradient_noise": math.sqrt(squares / draws) / size,
            "gradient_bias": math.sqrt(max(mean - noise, 0.0)) / size,
        }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path, help="model directory")
    parser.add_argument("cache", type=Path, help="folder of roll-outs")
    parser.add_argument("--rows", type=Path, required=True, help="file that is written")
    parser.add_argument("--responses", type=int, default=8, help="responses of the batch")
    parser.add_argument("--draws", type=int, default=16, help="seeds of the draw")
    return parser.parse_args()


if __name__ == "__main__":
    with script():
        main()
