"""Measure exposure bias: a student against the teacher on its own text, token by token, and beyond the length that it was trained on.

`python benchmarks/exposure.py RECIPE --only NAME,… --split test --length 128 --rows FILE [KEY=VALUE …]` takes the students that `bench.py`
trained, lets them and the teacher answer the prompts in up to ``--length`` tokens, and writes one row each: for each index of a token the
sum of the teacher's NLL of the token, the sum of the exact KL(student‖teacher) in the state before it, which is what looking ahead is to
lower, and the count. What stands in ``--rows`` is kept. At index t only texts of more than t tokens count.
"""

from typing import Any

import numpy as np
import torch
from bench import Bench, measured_systems, parser
from told import script

from tdistill.evaluation.answers import SCORED_AT_ONCE, Protocol
from tdistill.experiment.answers import protocol, sampling_of
from tdistill.experiment.provenance import provenance
from tdistill.experiment.systems import load_own_teacher, load_system
from tdistill.models.forward import step_logp
from tdistill.models.layout import pad_pairs
from tdistill.runtime.files import read_jsonl, write_jsonl
from tdistill.runtime.progress import bar, say


def main() -> None:
    options = parser(__doc__, "--length", "largest number of tokens of an answer").parse_intermixed_args()
    experiment, length = Bench(options).first, int(options.length)
    sampling = sampling_of(experiment)
    longer = sampling.model_copy(update={"max_completion_length": length})
    shared, batch_size = protocol(experiment, options.split, longer), experiment.recipe.evaluation.batch_size
    rows = read_jsonl(options.rows) if options.rows.exists() else []
    there = {(r["system"], r["length"], r["split"]) for r in rows}
    for system, about in measured_systems(experiment):
        if (about["system"], length, options.split) in there:
            continue
        records = answered(load_system(experiment, system), shared, batch_size, about["system"])
        found = by_position(load_system(experiment, system), load_own_teacher(experiment), shared, records)
        where = {"length": length, "split": options.split, "trained_length": sampling.max_completion_length}
        rows.append(where | about | found | {"provenance": provenance(experiment.recipe)})
        write_jsonl(options.rows, rows)
        count = sum(found["count"])
        say(f"{about['system']}: NLL {sum(found['nll']) / count:.3f}, KL {sum(found['kl']) / count:.3f} nats a token, {count:.0f} tokens")


def answered(model: Any, shared: Protocol, batch_size: int, title: str) -> list[dict[str, Any]]:
    """Return the model's answers to all prompts."""
    plan, records = shared.plan(batch_size), []
    with bar(f"{title}: answers", sum(map(len, plan)), "answers") as progress:
        for batch in plan:
            records += shared.answer(model, batch)
            progress.advance(len(batch))
    return records


def by_position(model: Any, teacher: Any, shared: Protocol, records: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return NLL, KL and count, summed over the answers for each token index."""
    prompts = {p.prompt.prompt_id: p for p in shared.prompts}
    records.sort(key=lambda r: len(r["tokens"]))
    sums = np.zeros((3, shared.sampling.max_completion_length))
    for start in range(0, len(records), SCORED_AT_ONCE):
        chunk = records[start : start + SCORED_AT_ONCE]
        inputs, attention, taken, mask = pad_pairs([prompts[r["prompt_id"]].ids for r in chunk], [r["tokens"] for r in chunk])
        logq, logp = (step_logp(m, inputs, attention, taken.shape[1], shared.vocab_size) for m in (model, teacher))
        nll = -logp.gather(-1, taken.unsqueeze(-1)).squeeze(-1)
        kl = (logq.exp() * (logq - logp)).sum(-1)
        for row, values in zip(sums, (nll, kl, torch.ones_like(nll)), strict=True):
            row[: taken.shape[1]] += torch.where(mask, values, 0.0).double().sum(0).numpy()
    return {name: [float(f"{x:.6g}") for x in row] for name, row in zip(("nll", "kl", "count"), sums, strict=True)}


if __name__ == "__main__":
    with script():
        main()
