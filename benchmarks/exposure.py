"""Exposure bias: a student against the teacher on its own text, token by token, and beyond the length that it was trained on.

`python benchmarks/exposure.py BENCH --only NAME,… --seeds 0-4 --split test --length 128 --rows FILE [KEY=VALUE …]` takes students that
`bench.py` trained, lets them and the teacher answer the prompts in up to ``--length`` tokens, and writes one row each: per index of a token
the sum of the teacher's NLL of the token, the sum of the exact KL(student‖teacher) in the state before it, which is what looking ahead is
to lower, and the count. What is in ``--rows`` is kept. At index t only texts that are so long count.
"""

from typing import Any

import bench
import numpy as np
import torch

from tdistill.evaluation.answers import write_answers
from tdistill.experiment.evaluation import SCORED_AT_ONCE, Protocol
from tdistill.experiment.models import load_teacher
from tdistill.experiment.pipeline import provenance
from tdistill.experiment.systems import protocol
from tdistill.models.forward import step_logp
from tdistill.models.layout import pad_pairs
from tdistill.recipe.schema import Sampling
from tdistill.runtime.files import read_jsonl, write_jsonl
from tdistill.runtime.progress import say


def main() -> None:
    parser = bench.parser(__doc__)
    parser.add_argument("--length", type=int, required=True, help="tokens of an answer at most")
    options = parser.parse_intermixed_args()
    asked = bench.Bench(options)
    shared, dtype = protocol(asked.run, options.split), asked.run.recipe.evaluation.dtype
    teacher = load_teacher(asked.run, dtype)
    rows = read_jsonl(options.rows) if options.rows.exists() else []
    there = {(r["system"], r["length"], r["split"]) for r in rows}
    for system, about in bench.systems(asked):
        if (system.name, options.length, options.split) in there:
            continue
        model = teacher if system.name == "teacher" else system.load()
        found = by_position(model, teacher, shared, options.length, system.name)
        where = {"system": system.name, "length": options.length, "split": options.split, "trained_length": shared.max_completion_length}
        rows.append(where | about | found | {"provenance": provenance(asked.run.recipe)})
        write_jsonl(options.rows, rows)
        count = sum(found["count"])
        say(f"{system.name}: NLL {sum(found['nll']) / count:.3f}, KL {sum(found['kl']) / count:.3f} nats a token, {count:.0f} tokens")


def by_position(model: Any, teacher: Any, shared: Protocol, length: int, title: str) -> dict[str, list[float]]:
    """Sums per token index over the model's answers, sampled as the protocol says but for their length."""
    c = shared.config
    sampling = Sampling(temperature=c.temperature, top_p=c.top_p, max_completion_length=length, seed=shared.sampling.seed)
    answers = (model, shared.tokenizer, shared.prompts, sampling, c.num_generations, c.batch_size, shared.eos_ids, shared.vocab_size)
    records = write_answers(*answers, f"{title}: answers")
    prompts = {p.prompt.prompt_id: p for p in shared.prompts}
    records.sort(key=lambda r: len(r["tokens"]))
    sums = np.zeros((3, length))
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
    main()
