"""Measure a recipe's students on named tasks, whose prompts the recipe does not know.

`python benchmarks/tasks.py RECIPE --only NAME,… --tasks selfinst,vicuna,sni --data-dir DIR --limit 50 --rows FILE [KEY=VALUE …]` measures the
teacher, the SFT student and the students that `bench.py` trained, as `tdistill evaluate --tasks` does, and writes one row for each system and
task, with the scores of every prompt. What stands in ``--rows`` is kept and not measured again.
"""

from pathlib import Path

from bench import Bench, check_rows, measured_systems, parser
from bench_rows import rounded

from tdistill.evaluation.answer_files import SCORES
from tdistill.evaluation.task_scores import read_record
from tdistill.experiment.on_demand import make_missing
from tdistill.experiment.tasks import TaskOptions, TaskRun
from tdistill.runtime.files import read_jsonl, write_jsonl
from tdistill.runtime.progress import say


def main() -> None:
    made = parser(__doc__, "--tasks", "names, separated by commas")
    made.add_argument("--data-dir", type=Path, required=True)
    made.add_argument("--limit", type=int, help="prompts for each task: a subset that is the same for all")
    made.add_argument("--max-prompt-length", type=int, help="tokens; by default the recipe's")
    made.add_argument("--generations", type=int, default=1, help="answers for each prompt")
    options = made.parse_intermixed_args()
    experiment = Bench(options).first
    asked = TaskOptions(options.tasks, options.data_dir, options.generations, options.limit, options.max_prompt_length)
    run = TaskRun(experiment, asked)
    rows = read_jsonl(options.rows) if options.rows.exists() else []
    check_rows(options.rows, rows, run.settings)
    there = {(r["system"], r["task"]) for r in rows}
    units = [(s, about, task) for s, about in measured_systems(experiment) for task in run.tasks if (about["system"], task.name) not in there]
    make_missing(experiment, [run.artefact(task, system) for system, _, task in units])
    for system, about, task in units:
        record = read_record(run.artefact(task, system).directory / SCORES)
        own = {k: v for k, v in record.items() if k not in ("method", "seed")}  # which students alone have in a row
        rows.append(own | about | {"scores": rounded(record["scores"])})
    write_jsonl(options.rows, rows)
    say(f"{len(units)} of {len(rows)} rows are new → {options.rows}")


if __name__ == "__main__":
    main()
