"""Measure a recipe's students at several decoding temperatures.

`python benchmarks/temperatures.py RECIPE --only NAME,… --split valid --temperatures 0.5,0.7,1 --rows FILE [KEY=VALUE …]` measures the teacher,
the SFT student and every student that `bench.py` trained, and writes one row for each system and temperature, with the scores of every
prompt. What stands in ``--rows`` is kept and not measured again.
"""

from bench import Bench, check_rows, measured_systems, parser
from bench_rows import rounded
from told import script

from tdistill.evaluation.answer_files import SCORES, read_scores
from tdistill.experiment.answers import answers, sampling_of
from tdistill.experiment.on_demand import make_missing
from tdistill.experiment.provenance import provenance
from tdistill.experiment.temperatures import parse_temperatures
from tdistill.runtime.files import read_jsonl, write_jsonl
from tdistill.runtime.progress import say


def main() -> None:
    options = parser(__doc__, "--temperatures", "separated by commas").parse_intermixed_args()
    experiment = Bench(options).first
    section = experiment.recipe.evaluation
    settings = section.model_dump(include={"batch_size", "dtype", "max_completion_length", "num_generations", "reference", "top_p"})
    settings |= {"split": options.split, "sampling_seed": section.seed}
    rows = read_jsonl(options.rows) if options.rows.exists() else []
    check_rows(options.rows, rows, settings)
    there, wanted = {(r["system"], r["temperature"]) for r in rows}, parse_temperatures(options.temperatures)
    units = [(system, about, t) for system, about in measured_systems(experiment) for t in wanted if (about["system"], t) not in there]
    found = [answers(experiment, system, options.split, sampling_of(experiment, t)) for system, _, t in units]
    make_missing(experiment, found)
    common = settings | {"provenance": provenance(experiment.recipe)}
    for (_, about, t), artefact in zip(units, found, strict=True):
        scores = read_scores(artefact.directory / SCORES)
        rows.append({"temperature": t} | about | common | {"scores": rounded(scores)})
    write_jsonl(options.rows, sorted(rows, key=lambda r: (r["system"], r["temperature"])))
    say(f"{len(units)} of {len(rows)} rows are new → {options.rows}")


if __name__ == "__main__":
    with script():
        main()
