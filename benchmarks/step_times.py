"""Measure for every objective on a recipe's own cache whether it trains, and what a step of it costs beside one of `nll`.

`python benchmarks/step_times.py RECIPE [KEY.SUB=VALUE …] [--rows FILE]` takes the recipe's SFT student and trains it 20 steps by each
objective, on the same batches. After every step the same weights do one forward and backward of `nll` on the same batch: the ratio of
the two times is what is reported, since a machine's speed drifts and a ratio does not. The optimizer's step is in neither. An
objective's own loss is its mean on the batches it trained on, before and after. What stands in `--rows` is not measured again.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdistill.data.collate import DistillCollator
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.graph import execute
from tdistill.experiment.models import load_teacher, vocab_size
from tdistill.experiment.provenance import provenance
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.experiment.rollouts import dataset
from tdistill.experiment.students import start_of_training
from tdistill.models.find import find_model
from tdistill.models.head.run import HeadCall
from tdistill.models.load import load_model
from tdistill.models.student import StudentModel
from tdistill.objectives import OBJECTIVES, BoundObjective, bind
from tdistill.recipe.schema import MethodConfig
from tdistill.runtime.files import write_jsonl
from tdistill.runtime.progress import bar
from tdistill.training.batch import BatchSteps, OnlineTeacher, objective_loss, student_inputs

STEPS, BATCH, LEARNING_RATE, WARMUP = 20, 4, 1e-4, 5
# Sums over a whole response: at 1e-4 they rise.
GENTLER = {"path_consistency": 1e-5, "q_lambda": 1e-5}
# A policy gradient's loss is a surrogate that need not fall: of these, the reverse KL that they descend is measured too.
SURROGATES, YARDSTICK = {"actor_critic", "mean_actor_critic", "minillm"}, bind("reverse_kl")
ALIASES = {"bellman_distill"}
OVER_VOCABULARY = {"uniform": ("reverse_kl", "actor_critic"), "dense": ("forward_kl", "reverse_kl")}
OTHERS = {f"{name} ({support})": {"name": name, "support": support} for support, names in OVER_VOCABULARY.items() for name in names}


def methods() -> dict[str, dict[str, Any]]:
    """Return every objective at its defaults, held at the tail where it has an anchor; and some over the whole vocabulary."""
    own = {}
    for name in OBJECTIVES.keys() - ALIASES:
        own[name] = {"name": name, **({"anchor": "tail"} if OBJECTIVES[name].anchor else {})}
    return {name: own[name] for name in sorted(own, key=lambda n: (n != "nll", n))} | OTHERS


def main() -> None:
    options = _options()
    experiment = Experiment(open_recipe(options.recipe, options.override))
    experiment.prepare()
    for stage in ("models", "rollout", "sft"):
        execute(experiment, stage)
    data = dataset(experiment, "train", MethodConfig(objective={"name": "nll"}, teacher_top_p=experiment.recipe.train.teacher_top_p))
    batches = [DistillCollator()([data[i] for i in range(BATCH * s, BATCH * (s + 1))]) for s in range(STEPS)]
    rows = _read(options.rows)
    measure = Measure(OnlineTeacher(load_teacher(experiment), vocab_size(experiment)), vocab_size(experiment), batches)
    made = provenance(experiment.recipe)
    facts = {"p": data.teacher_top_p, "batch": BATCH} | {k: made[k] for k in ("machine", "git_commit", "torch", "transformers", "seed")}
    for name, term in methods().items():
        if name not in rows:
            objective = bind(term)
            lm = load_model(find_model(str(start_of_training(experiment).directory))).train()
            student = StudentModel.for_needs(lm, objective.needs)
            rate = GENTLER.get(name, LEARNING_RATE)
            with bar(name, STEPS, "step") as progress:
                found = measure.train(student, objective, rate, progress.advance)
            rows[name] = {"objective": objective.describe(), "learning_rate": rate, **found, **facts}
            if options.rows:
                write_jsonl(options.rows, [{"method": k, **v} for k, v in rows.items()])
    print("\n".join(table(rows)))


@dataclass(frozen=True)
class Measure:
    """Measure objectives on the same batches."""

    teacher: OnlineTeacher
    vocab: int
    batches: list[dict[str, Tensor]]

    def train(self, student: StudentModel, objective: BoundObjective, rate: float, tick: Callable[[int], None]) -> dict[str, Any]:
        """Train a student one step on every batch, and return losses, gradient norms and times of it."""
        loss_of, nll, kl = (partial(self.loss, student, o) for o in (objective, bind("nll"), YARDSTICK))
        optimizer = torch.optim.AdamW(student.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))
        before = _mean(loss_of, self.batches)
        kl_before = _mean(kl, self.batches) if objective.name in SURROGATES else None
        ratios, seconds, norms = [], [], []
        for batch in self.batches:
            own = _timed(loss_of, batch)
            norms.append(float(torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            other = _timed(nll, batch)
            optimizer.zero_grad()
            ratios.append(own / other)
            seconds.append(own)
            tick(1)
        return {
            "loss_before": before,
            "loss_after": _mean(loss_of, self.batches),
            "reverse_kl_before": kl_before,
            "reverse_kl_after": _mean(kl, self.batches) if objective.name in SURROGATES else None,
            "grad_norm_max": max(norms),
            "finite": all(map(torch.isfinite, map(torch.tensor, [*norms, before]))),
            "seconds": statistics.median(seconds),
            "ratio_to_nll": statistics.median(ratios),
            "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
        }

    def loss(self, student: StudentModel, objective: BoundObjective, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean loss of a valid step."""
        online = None
        if "dense" in objective.needs:
            online = self.teacher.read(batch["input_ids"], batch["attention_mask"], batch["taken_ids"].shape[1])
        given = {**student_inputs(batch), "vocab_size": self.vocab}
        loss = objective_loss(objective, BatchSteps(batch, self.vocab, objective.needs, online), given["valid"].sum())
        with torch.autocast("cpu", torch.bfloat16):
            return student(**given, needs=objective.needs, call=HeadCall(loss, objective.scope))["loss"]


def _timed(loss_of: Callable[[dict[str, Tensor]], Tensor], batch: dict[str, Tensor]) -> float:
    started = time.perf_counter()
    loss_of(batch).backward()
    return time.perf_counter() - started


@torch.no_grad()
def _mean(loss_of: Callable[[dict[str, Tensor]], Tensor], batches: list[dict[str, Tensor]]) -> float:
    return statistics.fmean(float(loss_of(batch)) for batch in batches)


def table(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| objective | learning rate | own loss before → after | reverse KL | largest grad-norm | step time ÷ `nll`'s, median (quartiles) |"
    yield "|---|---|---|---|---|---|"
    for name, row in rows.items():
        low, high = row["ratio_quartiles"]
        losses, kls = (_fell(row, key) for key in ("loss", "reverse_kl"))
        ratio = f"{row['ratio_to_nll']:.2f} ({low:.2f}–{high:.2f})"
        yield f"| `{name}` | {row['learning_rate']:g} | {losses} | {kls} | {row['grad_norm_max']:.3g} | {ratio} |"


def _fell(row: dict[str, Any], key: str) -> str:
    before, after = row.get(f"{key}_before"), row.get(f"{key}_after")
    return "" if before is None or after is None else f"{before:.4g} → {after:.4g}"


def _read(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is None or not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line.pop("method"): line for line in lines}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("override", nargs="*", help="KEY.SUB=VALUE")
    parser.add_argument("--rows", type=Path, help="keep the rows here")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
