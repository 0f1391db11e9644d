"""Named tasks: students that `bench.py` trained, on prompts which their recipe does not know.

`python benchmarks/tasks.py BENCH --only NAME,… --seeds 17-19 --tasks selfinst,vicuna,sni --data-dir DIR --limit 50 --rows FILE [KEY=VALUE …]`
measures the teacher, the SFT student and every student that is there by `tdistill evaluate --tasks`, and writes one row a system and task
with every prompt's scores. What is in ``--rows`` is kept and not measured again.
"""

from pathlib import Path

import bench

from tdistill.evaluation.tasks import task_names
from tdistill.experiment.tasks import TaskOptions, TaskRun
from tdistill.runtime.files import read_jsonl, write_jsonl
from tdistill.runtime.progress import say


def main() -> None:
    parser = bench.parser(__doc__)
    parser.add_argument("--tasks", required=True, help="names, separated by commas")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="prompts a task: a subset that is the same for all")
    parser.add_argument("--max-prompt-length", type=int, help="tokens; by default the recipe's")
    parser.add_argument("--generations", type=int, default=1, help="answers a prompt")
    options = parser.parse_intermixed_args()
    asked, names = bench.Bench(options), task_names(options.tasks)
    rows = read_jsonl(options.rows) if options.rows.exists() else []
    there = {(r["system"], r["task"]) for r in rows}
    found = {s.name: (s, about) for s, about in bench.systems(asked) if any((s.name, task) not in there for task in names)}
    if found:
        settings = TaskOptions(options.tasks, options.data_dir, options.generations, options.limit, options.max_prompt_length)
        measured = TaskRun(asked.run, settings, [system for system, _ in found.values()], asked.root)
        bench.check_rows(options.rows, rows, measured.settings)
        measured.measure()
        new = (r for r in measured.records() if (r["system"], r["task"]) not in there)
        write_jsonl(options.rows, rows + [r | found[r["system"]][1] | {"scores": bench.rounded(r["scores"])} for r in new])
    say(f"{len(found)} systems measured → {options.rows}")


if __name__ == "__main__":
    main()
