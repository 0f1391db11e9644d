"""Exposure bias: what the teacher thinks of a student's own text, token by token, and beyond the length that it was trained on.

`python benchmarks/exposure.py BENCH --only NAME,… --seeds 0-4 --split test --length 128 --rows FILE [KEY=VALUE …]` takes students that
`bench.py` trained, lets them and the teacher answer the prompts in up to ``--length`` tokens, and writes one row each: sum and count of the
teacher's NLL per index of a token. What is in ``--rows`` is kept. At index t only texts that are so long count.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import bench
import numpy as np

from tdistill.evaluation.answers import write_answers
from tdistill.evaluation.run import SCORED_AT_ONCE, EvaluatedSystem, Protocol
from tdistill.evaluation.task_scores import teacher_nll
from tdistill.files import read_jsonl, write_jsonl
from tdistill.models import find_model, load_model
from tdistill.pipeline import provenance
from tdistill.progress import say
from tdistill.rollout.generate import Sampling
from tdistill.stages.evaluate import protocol
from tdistill.stages.models import load_teacher
from tdistill.stages.train import start_directory


def main() -> None:
    parser = bench.parser(__doc__)
    parser.add_argument("--length", type=int, required=True, help="tokens of an answer at most")
    options = parser.parse_intermixed_args()
    asked = bench.Bench(options)
    shared, dtype = protocol(asked.run, options.split), asked.run.recipe.evaluation.dtype
    teacher = load_teacher(asked.run, dtype)
    rows = read_jsonl(options.rows) if options.rows.exists() else []
    there = {(r["system"], r["length"], r["split"]) for r in rows}
    for system, about in systems(asked):
        if (system.name, options.length, options.split) in there:
            continue
        model = teacher if system.name == "teacher" else system.load()
        sums, counts = by_position(model, teacher, shared, options.length, system.name)
        where = {"system": system.name, "length": options.length, "split": options.split, "trained_length": shared.max_completion_length}
        nll = {"sum": [float(f"{x:.6g}") for x in sums], "count": counts.tolist()}
        rows.append(where | about | nll | {"provenance": provenance(asked.run.recipe)})
        write_jsonl(options.rows, rows)
        say(f"{system.name}: {sums.sum() / counts.sum():.3f} nats a token")


def systems(asked: bench.Bench) -> Iterator[tuple[EvaluatedSystem, dict[str, Any]]]:
    """The teacher, the SFT student, and every method and seed that is trained."""
    load = partial(load_model, dtype=asked.run.recipe.evaluation.dtype)
    yield EvaluatedSystem("teacher", "", lambda: None), {}
    yield EvaluatedSystem("sft", "", lambda: load(find_model(str(start_directory(asked.run))))), {}
    for name, seed in asked.units():
        directory = asked.root / f"{name}-{seed}"
        if (directory / bench.objectives.TRAINED).exists():
            yield EvaluatedSystem(directory.name, "", partial(load, find_model(str(directory)))), {"method": name, "seed": seed}


def by_position(model: Any, teacher: Any, shared: Protocol, length: int, title: str) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count of the teacher's NLL at each token index of the model's answers, sampled as the protocol says but for their length."""
    c = shared.config
    sampling = Sampling(c.temperature, c.top_p, 0, length, shared.sampling.seed)
    answers = (model, shared.tokenizer, shared.prompts, sampling, c.num_generations, c.batch_size, shared.eos_ids)
    records = write_answers(*answers, f"{title}: answers")
    prompts = {p.prompt.prompt_id: p for p in shared.prompts}
    records.sort(key=lambda r: len(r["tokens"]))
    sums, counts = np.zeros(length), np.zeros(length, dtype=np.int64)
    for start in range(0, len(records), SCORED_AT_ONCE):
        chunk = [(prompts[r["prompt_id"]], r["tokens"]) for r in records[start : start + SCORED_AT_ONCE]]
        for nll in teacher_nll(teacher, chunk, len(shared.tokenizer)):
            sums[: len(nll)] += nll
            counts[: len(nll)] += 1
    return sums, counts


if __name__ == "__main__":
    main()
