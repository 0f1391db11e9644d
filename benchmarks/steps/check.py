"""Train and check every method of a recipe on a step task, and write one row for each student.

`python benchmarks/steps/check.py RECIPE --rows FILE [--split valid|test] [--workers N] [--only NAME,…] [KEY=VALUE …]` trains what `bench.py`
would train. Every student answers greedily and at temperature 1, and the task's checker judges the answers; the task is that of the
``models.json`` beside the recipe's teacher. A row holds for each problem whether the answer is right, the share of right steps and of the
easy way, and log q(y) − log p(y) of the answer y at temperature 1: its mean is the reverse KL of whole texts in nats. The teacher and the SFT
student have a row each. A student that has a row is not trained again.

`--rates 1e-3,3e-3` trains every method at each learning rate, as NAME@RATE, and `--choose FILE` writes the rate with the most right greedy
answers. If several have as many, the share of right steps at temperature 1 decides.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from task import Task, Verdict
from tasks import task_of

sys.path.append(str(Path(__file__).parents[1]))
from bench import Bench, Measure, bench_parser, make_rows, measured_systems
from bench_rows import Scores, rounded
from doc_tables import estimate as shown
from doc_tables import table
from small_llama import MODEL_INFO
from told import script
from transformers.utils.logging import disable_progress_bar

from tdistill.evaluation.answer_files import ANSWERS, SCORES, AnswerBounds, read_answers, read_scores
from tdistill.evaluation.metrics import TEACHER
from tdistill.experiment.answers import answers, protocol, sampling_of
from tdistill.experiment.artefact import Artefact
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.on_demand import make_missing
from tdistill.experiment.systems import System
from tdistill.recipe.schema import Recipe, Sampling
from tdistill.runtime.errors import ConfigError, OutputError
from tdistill.runtime.files import read_json, read_jsonl, write_json, write_jsonl
from tdistill.statistics.estimate import estimate
from tdistill.statistics.pooling import pooled

GREEDY, SAMPLED = "greedy", "sampled"
SHOWN = ("right_greedy", "right_sampled", "steps_right_sampled", "easy_share_sampled", "reverse_kl_text")


def samplings(experiment: Experiment) -> dict[str, Sampling]:
    """Return how systems answer: the most likely token always, and a token from the whole distribution."""
    whole = sampling_of(experiment).model_copy(update={"temperature": 1.0, "top_p": 1.0, "top_k": 0})
    return {GREEDY: whole.model_copy(update={"top_k": 1}), SAMPLED: whole}


def checked_answers(experiment: Experiment, system: System, split: str) -> list[Artefact]:
    """Return a system's answers of each kind."""
    return [answers(experiment, system, split, sampling) for sampling in samplings(experiment).values()]


def checked_scores(experiment: Experiment, system: System, split: str) -> Scores:
    """Return the scores of a system's answers by the checker: metric → prompt → value."""
    task, scores = task_beside(experiment.recipe), dict[str, dict[str, float]]()
    for kind, sampling in samplings(experiment).items():
        artefact, asked = answers(experiment, system, split, sampling), protocol(experiment, split, sampling)
        expected = [(p.prompt.prompt_id, 0) for p in asked.prompts]
        records = {r["prompt_id"]: r for r in read_answers(artefact.directory / ANSWERS, expected, AnswerBounds.of(asked))}
        verdicts = {
            p.prompt.prompt_id: task.check(p.prompt.text, records[p.prompt.prompt_id]["text"], records[p.prompt.prompt_id]["finished"])
            for p in asked.prompts
        }
        scores |= {f"{name}_{kind}": values for name, values in verdict_scores(verdicts).items()}
        if kind == SAMPLED:
            nll = read_scores(artefact.directory / SCORES)["teacher_nll"]
            scores["reverse_kl_text"] = {p: r["own_logp"] + nll[p] * len(r["tokens"]) for p, r in records.items()}
            scores["length"] = {p: float(len(r["tokens"])) for p, r in records.items()}
    return scores


def verdict_scores(verdicts: Mapping[str, Verdict]) -> dict[str, dict[str, float]]:
    """Return metric → prompt → value. An answer in which no way can be read has no share of the easy way."""
    return {
        "right": {p: float(v.right) for p, v in verdicts.items()},
        "steps_right": {p: v.steps_right / v.steps for p, v in verdicts.items()},
        "easy_share": {p: v.easy_share for p, v in verdicts.items() if v.easy_share is not None},
    }


MEASURE = Measure(checked_answers, checked_scores)


def task_beside(recipe: Recipe) -> Task:
    """Return the task that a recipe's teacher was made for.

    Raises:
        ConfigError: the teacher was not made by ``make_models.py``, or its task has no checker.
    """
    path = Path(recipe.teacher.teacher_model_name_or_path).parent / MODEL_INFO
    if not path.is_file():
        raise ConfigError(f"{path} does not exist, so nothing can check answers: make the teacher with benchmarks/steps/make_models.py.")
    settings = dict(read_json(path, OutputError)["task"])
    return task_of(settings.pop("name"), settings)


def check_recipe(recipe: Recipe, task: Task) -> None:
    """Check that answers of a recipe can be right and have a likelihood.

    Raises:
        ConfigError: answers are too short for the task, or there are several for each prompt.
    """
    needed = task.longest_answer() + 1
    for section in ("rollout", "evaluation"):
        longest = getattr(recipe, section).max_completion_length
        if longest < needed:
            raise ConfigError(
                f"An answer of {task.name} with steps={task.steps} has up to {needed} tokens, and {section}.max_completion_length is "
                f"{longest}: raise it."
            )
    if recipe.evaluation.num_generations != 1:
        raise ConfigError(
            f"A problem is answered once of each kind: set evaluation.num_generations=1, got {recipe.evaluation.num_generations}."
        )


def reference_rows(asked: Bench) -> list[dict[str, Any]]:
    """Measure the teacher and the SFT student, and return their rows."""
    experiment = asked.first
    found = [(system, about) for system, about in measured_systems(experiment) if "method" not in about]
    make_missing(experiment, [part for system, _ in found for part in asked.measure.artefacts(experiment, system, asked.split)])
    rows = []
    for system, about in found:
        scores = asked.measure.scores(experiment, system, asked.split)
        manifest = experiment.manifest(system.artefact)
        rows.append(
            {
                **about,
                "method": system.name,
                "seed": None,
                "objective": "" if system.name == TEACHER else "nll",
                "arguments": experiment.recipe.sft.arguments if experiment.recipe.sft and system.name != TEACHER else {},
                "split": asked.split,
                "recipe": experiment.recipe.model_dump(exclude={"train": {"baselines", "seeds"}}),
                "training_seconds": manifest.seconds if manifest and system.name != TEACHER else None,
                "metrics": {metric: asdict(estimate(list(values.values()))) for metric, values in scores.items() if values},
                "scores": rounded(scores),
            }
        )
    return rows


def add_references(asked: Bench, path: Path, task: Task) -> list[dict[str, Any]]:
    """Add the rows of teacher and SFT student to a file that has none, say in every row what the task is, and return these two rows."""
    rows = read_jsonl(path)
    if not any(row["method"] == TEACHER for row in rows):
        rows += reference_rows(asked)
    about = {"task": task.settings(), "best_reverse_kl": task.best_reverse_kl()}
    write_jsonl(path, [row | about for row in sorted(rows, key=lambda r: (r["method"], r["seed"] or 0))])
    return [row for row in rows if row["seed"] is None]


def chosen_rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return method → the rate with the most right greedy answers, then the most right steps at temperature 1.

    A rate at which it diverged is left out.
    """
    best: dict[str, tuple[float, float, float]] = {}
    for row in rows:
        if row.get("diverged"):
            continue
        name, _, rate = row["method"].partition("@")
        found = (row["metrics"]["right_greedy"]["mean"], row["metrics"]["steps_right_sampled"]["mean"], float(rate))
        best[name] = max(found, best.get(name, found), key=lambda f: f[:2])
    return {name: rate for name, (_, _, rate) in best.items()}


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with a line for each method, the best first: the mean over seeds and problems ± its standard error."""
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    lines = []
    for name, own in by_method.items():
        finished = {row["seed"]: row["scores"] for row in own if not row.get("diverged")}
        means = {m: pooled({seed: s[m] for seed, s in finished.items() if s[m]}) for m in SHOWN if any(s[m] for s in finished.values())}
        seconds = [row["training_seconds"] for row in own if row.get("training_seconds")]
        cells = [shown(means[m].mean, means[m].stderr, 3) if m in means else "–" for m in SHOWN]
        spent = f"{sum(seconds) / len(seconds):.1f}" if seconds else "–"
        lines.append((means[SHOWN[0]].mean if means else -1.0, [f"`{name}`", str(len(finished)), *cells, spent]))
    head = ["method", "seeds", "right, greedy", "right, T = 1", "right steps, T = 1", "easy way", "reverse KL of a text", "seconds"]
    return table(head, [line for _, line in sorted(lines, key=lambda found: -found[0])])


def main() -> None:
    options = bench_parser(__doc__).parse_intermixed_args()
    asked = Bench(options, options.rates, MEASURE)
    task = task_beside(asked.first.recipe)
    check_recipe(asked.first.recipe, task)
    rows = make_rows(asked, options.rows, options.workers)
    print(summary([*add_references(asked, options.rows, task), *rows]))
    if options.choose:
        write_json(options.choose, chosen_rates(rows))


if __name__ == "__main__":
    disable_progress_bar()
    with script():
        main()
