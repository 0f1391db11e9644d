"""Make the tables and figures of the documentation from docs/results/*: `python benchmarks/results.py` writes them again.

A table stands between `<!-- table NAME -->` and `<!-- end -->` on any page. ± is one standard error over training seeds and prompts, and
p-values are of the hierarchical bootstrap, as in `tdistill compare`. `--check` writes nothing and fails if a page or a figure is not what the
rows say.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from algorithm_tables import algorithm_table
from decoding import ahead_table, at_equal_entropy, curves, decoding_table, equal_entropy_table, one_temperature_table, written_by_compare
from gains import gains_table, lookahead_plot, noise_table
from head_tables import costs_table, libraries_table, sizes_table, vocabulary_plot, ways_table
from plan_table import errors_table, plan_table
from pooled_methods import (
    CLONING,
    ablations_table,
    details_table,
    dots,
    merge_tasks,
    methods,
    methods_table,
    pairs_table,
    rates_table,
    seconds_table,
    starts_table,
    tasks_table,
)
from positions import excess_table, exposure_plot, own_text_table
from quickstart_tables import (
    against_table,
    batches_table,
    demo_table,
    differences_table,
    objectives_table,
    selection_table,
    stages_table,
    steps_table,
)
from sampled_tables import estimate_table, noise_by_objective_table
from step_tables import TABLES as STEP_TABLES
from turn_tables import kinds_table, turns_plot, turns_table

from tdistill.compare.frontier import frontier_plot
from tdistill.objectives import OBJECTIVES
from tdistill.pages.svg import plot_file
from tdistill.runtime.files import read_jsonl, write_text

sys.path.append(str(Path(__file__).parent / "steps"))
import check_pages
import ring_pages

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES, DATA, IMAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], DOCS / "results", DOCS / "images"
BLOCK = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


HEAD = "head.jsonl"
RING, CHECKED = "steps-ring.jsonl.xz", ("arithmetic", "prices")
DEMO, REAL, FAST, OBJECTIVES_ROWS = "quickstart.jsonl", "real.jsonl.xz", "fast.jsonl.xz", "quickstart-objectives.jsonl"


@cache
def rows_of(name: str) -> list[dict[str, Any]]:
    """Read the rows of a file in docs/results."""
    return read_jsonl(DATA / name)


def own_results(objective: str) -> str:
    """Return the table of an algorithm's page."""
    tested = {"fast": rows_of(FAST), "real": rows_of(REAL)}
    shown = ("sft_continued@0.0001", "mac_gamma_09@0.0001")
    validated = [row for row in rows_of("real-valid.jsonl.xz") if row["method"] in shown]
    return algorithm_table(objective, tested, {"real, validation": validated})


# What looking ahead adds to cloning on the same support, and both against the field's cloning.
PAIRS = {
    "ac_gamma_09": ("reverse_kl", "jsd", "forward_kl"),
    "ac_dense_gamma_09": ("reverse_kl_dense",),
    "ac_uniform_gamma_09": ("reverse_kl_uniform", "reverse_kl_dense", "jsd", "forward_kl"),
    "reverse_kl_uniform": ("reverse_kl", "reverse_kl_dense", "jsd"),
    "bd_tail_100": ("bd_tail_100_gamma_0",),
}
FAST_PAIRS = {
    "ac_gamma_09": ("reverse_kl", "jsd"),
    "ac_dense_gamma_09": ("reverse_kl_dense", "jsd"),
    "ac_own_gamma_09": ("reverse_kl_own", "jsd"),
    "ac_jsd_gamma_09": ("jsd",),
    "bd_tail_10": ("bd_tail_10_gamma_0",),
    "bd": ("sft_continued",),
}
TASK_PAIRS = {"ac_gamma_09": ("reverse_kl",), "ac_uniform_gamma_09": ("reverse_kl_uniform",)}
OWN_CLONING = {
    "ac_gamma_09": "reverse_kl",
    "ac_jsd_gamma_09": "jsd",
    "ac_jsd_uniform_gamma_09": "jsd_uniform",
    "ac_uniform_gamma_09": "reverse_kl_uniform",
    "ac_dense_gamma_09": "reverse_kl_dense",
    "ac_own_gamma_09": "reverse_kl_own",
}
LONGER = {"jsd_long": "jsd", "ac_uniform_gamma_09_long": "ac_uniform_gamma_09"}
TESTED, VALIDATED, FAST_TESTED = "real-temperatures-test.jsonl.xz", "real-temperatures.jsonl.xz", "fast-temperatures.jsonl.xz"
READ_FIRST = ("teacher_nll", "rouge_l", "reverse_kl")
THEN = ("forward_kl", "reverse_kl", "distinct_2", "mean_length")
REAL_HEADS = "real-heads.jsonl.xz"
TABLES: dict[str, Callable[[], str]] = {
    "demo": lambda: demo_table(rows_of(DEMO), ("teacher_nll", "reverse_kl", "rouge_l", "distinct_2")),
    "demo-more": lambda: demo_table(rows_of(DEMO), ("forward_kl", "student_mass", "entropy", "mean_length")),
    "demo-differences": lambda: differences_table(rows_of(DEMO), "distilled", "sft_continued"),
    "demo-stages": lambda: stages_table(rows_of(DEMO)),
    "selfinst": lambda: demo_table(rows_of("quickstart-selfinst.jsonl"), ("teacher_nll", "reverse_kl", "forward_kl", "rouge_l", "distinct_2")),
    "selfinst-differences": lambda: differences_table(rows_of("quickstart-selfinst.jsonl"), "distilled", "sft_continued"),
    "quickstart-entropy": lambda: equal_entropy_table(written_by_compare(rows_of("quickstart-entropy.jsonl"))),
    "objectives": lambda: objectives_table(rows_of(OBJECTIVES_ROWS), ("teacher_nll", "forward_kl", "rouge_l", "distinct_2")),
    "objectives-against": lambda: against_table(rows_of(OBJECTIVES_ROWS), ("teacher_nll", "forward_kl", "rouge_l", "distinct_2")),
    "selection": lambda: selection_table(rows_of("quickstart-selection.jsonl")),
    "step-times": lambda: steps_table(rows_of("step-times.jsonl")),
    "head": lambda: costs_table(rows_of(HEAD)),
    "head-sizes": lambda: sizes_table(rows_of(HEAD)),
    "head-libraries": lambda: libraries_table(rows_of(HEAD)),
    "candidate-rows": lambda: ways_table(rows_of("candidate-rows.jsonl")),
    "sampled-head": lambda: estimate_table(rows_of("sampled-head.jsonl"), "reverse_kl"),
    "sampled-head-noise": lambda: noise_by_objective_table(rows_of("sampled-head.jsonl")),
    "real-heads": lambda: methods_table(rows_of(REAL_HEADS), "reverse_kl", ("forward_kl", "reverse_kl", "teacher_nll")),
    "plan-errors": lambda: errors_table(rows_of("plan.jsonl")),
    "plan-train": lambda: plan_table(rows_of("plan.jsonl"), "train"),
    "batch-plan": lambda: batches_table(rows_of("batch_plan.jsonl")),
    "real": lambda: methods_table(rows_of(REAL), "jsd", READ_FIRST),
    "real-more": lambda: methods_table(rows_of(REAL), "jsd", ("forward_kl", "distinct_2", "mean_length"), ("rouge_l",)),
    "real-starts": lambda: starts_table(rows_of(REAL)),
    "real-pairs": lambda: pairs_table(rows_of(REAL), PAIRS, ("teacher_nll", "rouge_l", "distinct_2", "forward_kl")),
    "real-seconds": lambda: seconds_table(rows_of(REAL), 19, "forward_kl"),
    "real-entropy": lambda: equal_entropy_table(at_equal_entropy(rows_of(TESTED), "jsd")),
    "real-entropy-0.85": lambda: one_temperature_table(at_equal_entropy(rows_of(TESTED), "jsd"), 0.85),
    "real-entropy-ahead": lambda: ahead_table(rows_of(TESTED), OWN_CLONING),
    "real-entropy-valid": lambda: equal_entropy_table(at_equal_entropy(rows_of(VALIDATED), "jsd")),
    "real-entropy-ahead-valid": lambda: ahead_table(rows_of(VALIDATED), OWN_CLONING),
    "real-long": lambda: equal_entropy_table(at_equal_entropy(trained_for_longer(), "jsd_long")),
    "real-long-gain": lambda: ahead_table(trained_for_longer(), LONGER),
    "real-tasks-nll": lambda: tasks_table(rows_of("real-tasks.jsonl.xz"), "jsd", "teacher_nll"),
    "real-tasks-rouge": lambda: tasks_table(rows_of("real-tasks.jsonl.xz"), "jsd", "rouge_l"),
    "real-tasks-ahead": lambda: pairs_table(merge_tasks(rows_of("real-tasks.jsonl.xz")), TASK_PAIRS, ("teacher_nll", "rouge_l")),
    "real-valid": lambda: rates_table(rows_of("real-valid.jsonl.xz"), "jsd@0.0001", ("teacher_nll", "rouge_l", "distinct_2")),
    "real-temperatures": lambda: decoding_table(rows_of(TESTED)),
    "real-exposure": lambda: own_text_table(rows_of("real-exposure.jsonl"), "reverse_kl"),
    "real-exposure-nll": lambda: excess_table(rows_of("real-exposure.jsonl")),
    "fast": lambda: methods_table(rows_of(FAST), best_cloning(rows_of(FAST)), READ_FIRST),
    "fast-more": lambda: details_table(rows_of(FAST), THEN),
    "fast-pairs": lambda: pairs_table(rows_of(FAST), FAST_PAIRS, ("teacher_nll", "rouge_l", "reverse_kl", "mean_length")),
    "fast-exposure": lambda: own_text_table(rows_of("fast-exposure.jsonl"), "reverse_kl"),
    "fast-exposure-nll": lambda: excess_table(rows_of("fast-exposure.jsonl")),
    "fast-bd-ablations": lambda: ablations_table(bd_ablations(), "bd_tail_10"),
    "fast-entropy": lambda: equal_entropy_table(at_equal_entropy(rows_of(FAST_TESTED), "jsd")),
    "fast-entropy-ahead": lambda: ahead_table(rows_of(FAST_TESTED), OWN_CLONING),
    "fast-ac-ablations": lambda: ablations_table(ac_ablations(), "ac_dense_gamma_09"),
    "fast-lm": lambda: ablations_table(lm_ablations(), "ac_dense_gamma_09"),
    "lookahead": lambda: gains_table(rows_of("lookahead.jsonl")),
    "lookahead-noise": lambda: noise_table(rows_of("lookahead.jsonl")),
    "turns": lambda: turns_table(turns()),
    "turns-text": lambda: kinds_table(turns()["text"]),
    **{f"results-{name}": partial(own_results, name) for name in OBJECTIVES},
    "steps-prices-entropy": lambda: equal_entropy_table(at_equal_entropy(rows_of("steps-prices-temperatures.jsonl.xz"), "jsd")),
    "steps-arithmetic-critic": lambda: check_pages.methods_table(rows_of("steps-arithmetic-critic.jsonl.xz")),
    "steps-price-lists-entropy": lambda: equal_entropy_table(at_equal_entropy(rows_of("steps-price-lists-temperatures.jsonl.xz"), "jsd")),
    "steps-price-lists-ample": lambda: check_pages.methods_table(rows_of("steps-price-lists-ample.jsonl.xz")),
    "steps-price-lists-share-0.1": lambda: check_pages.methods_table(rows_of("steps-price-lists-share-0.1.jsonl.xz")),
    **check_pages.tables("price-lists", partial(rows_of, "steps-price-lists.jsonl.xz"), check_pages.FIRST_OF_LISTS),
    "steps-arithmetic-knobs": lambda: check_pages.knob_table(arithmetic_settings()),
    "steps-arithmetic-knobs-T1": lambda: check_pages.knob_table(arithmetic_settings(), "right_sampled"),
    "steps-arithmetic-p-1": lambda: check_pages.methods_table(rows_of("steps-arithmetic-p-1.jsonl.xz")),
    **ring_pages.tables(partial(rows_of, RING)),
    **{name: lambda made=made: made(rows_of("step-parts.jsonl")) for name, made in STEP_TABLES.items()},
    **{key: made for task in CHECKED for key, made in check_pages.tables(task, partial(rows_of, f"steps-{task}.jsonl.xz")).items()},
}
REAL_EXPOSED = ("reverse_kl", "ac_gamma_09", "jsd", "reverse_kl_uniform", "ac_uniform_gamma_09")
EXPOSED = ("sft_continued", "forward_kl_dense", "jsd", "reverse_kl", "ac_centred", "bd_tail_10")
FIGURES = {
    "real-methods": lambda: dots(
        "real-methods",
        "A real pair, test prompts: mean ± 2 standard errors over seeds and prompts, in the order of teacher NLL.",
        rows_of("real.jsonl.xz"),
        ("teacher_nll", "rouge_l"),
        {"teacher_nll": 3.8},
    ),
    "real-frontier": lambda: frontier_plot(
        "real-frontier",
        "A real pair, test prompts: each method through its decoding temperatures, the lowest at the left; mean ± 1 standard error.",
        curves(
            [r for r in rows_of("real-temperatures-test.jsonl.xz") if "method" in r or r["temperature"] <= 1]
        ),  # hotter, they squeeze the rest
    ),
    "fast-exposure": lambda: exposure_plot("fast-exposure", rows_of("fast-exposure.jsonl"), EXPOSED),
    "real-exposure": lambda: exposure_plot("real-exposure", rows_of("real-exposure.jsonl"), REAL_EXPOSED, block=16),
    "lookahead": lambda: lookahead_plot(rows_of("lookahead.jsonl")),
    "head": lambda: vocabulary_plot(rows_of(HEAD)),
    "turns": lambda: turns_plot({pair: rows for pair, rows in turns().items() if pair != "word problems"}),  # nothing to gain there
    "fast-methods": lambda: dots(
        "fast-methods",
        "Fast bench, test prompts: mean ± 2 standard errors over seeds and prompts, in the order of teacher NLL.",
        rows_of("fast.jsonl.xz"),
        ("teacher_nll", "rouge_l"),
        {"teacher_nll": 6.0},
    ),
    **ring_pages.figures(partial(rows_of, RING)),
}


def arithmetic_settings() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of World 1 by the setting that was changed."""
    changed = {
        "H = 4": "H-4",
        "H = 4, `center: 1`": "H-4-center-1",
        "H = 8": "H-8",
        "teacher's share .2": "share-0.2",
        "teacher's share .2, 1,200 steps": "share-0.2-long",
        "p = .5": "p-0.5",
        "p = .5, `center: 1`": "p-0.5-center-1",
        "p = 1": "p-1",
        "student of width 8": "hopeless",
        "student of width 128, two layers": "ample",
    }
    return {"as in the other tables": rows_of("steps-arithmetic.jsonl.xz")} | {
        title: rows_of(f"steps-arithmetic-{name}.jsonl.xz") for title, name in changed.items()
    }


def turns() -> dict[str, list[dict[str, Any]]]:
    """Return the states that were played out, by pair."""
    names = {"text": "real", "arithmetic": "arithmetic", "shopping stories": "prices", "word problems": "word-problems"}
    return {pair: rows_of(f"turns-{name}.jsonl.xz") for pair, name in names.items()}


def trained_for_longer() -> list[dict[str, Any]]:
    """Return the students of four times the steps, those of the usual steps with the same seeds, and the teacher."""
    long = [r for r in rows_of("real-long-temperatures.jsonl.xz") if "method" in r]
    short, seeds = {r["method"].removesuffix("_long") for r in long}, {r["seed"] for r in long}
    others = rows_of("real-temperatures-test.jsonl.xz")
    return long + [r for r in others if r["system"] == "teacher" or (r.get("method") in short and r["seed"] in seeds)]


def ac_ablations() -> list[dict[str, Any]]:
    """Return the rows at the roll-outs' own p, and those at another p, which have it in their name."""
    return rows_of("fast-ac-ablations.jsonl.xz") + _renamed("fast-ac-p-{}.jsonl.xz", ("0.5", "0.8"))


def lm_ablations() -> list[dict[str, Any]]:
    """Return the rows without and with a language-modelling term."""
    with_term = [row | {"method": f"{row['method']}, LM term"} for row in rows_of("fast-lm-0.5.jsonl.xz")]
    return rows_of("fast-lm-0.jsonl.xz") + with_term


def _renamed(pattern: str, values: Sequence[str]) -> list[dict[str, Any]]:
    rows = [row for p in values for row in rows_of(pattern.format(p))]
    return [row | {"method": f"{row['method']}, p = {row['recipe']['train']['teacher_top_p']:g}"} for row in rows]


def bd_ablations() -> list[dict[str, Any]]:
    """Return the rows at the roll-outs' own p, and those of the base at another p, which have it in their name."""
    return rows_of("fast-bd-ablations.jsonl.xz") + _renamed("fast-bd-p-{}.jsonl.xz", ("0.5", "0.8", "1.0"))


def best_cloning(rows: Sequence[dict[str, Any]]) -> str:
    """Return the cloning method with the lowest teacher NLL."""
    return next(m.name for m in methods(rows) if m.kind == CLONING)


def page(text: str) -> str:
    """Return a page with every table made again."""
    return BLOCK.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if something would change")
    check = parser.parse_args().check
    wanted = {path: page(path.read_text(encoding="utf-8")) for path in PAGES}
    wanted |= {IMAGES / f"{name}.svg": plot_file(figure()) + "\n" for name, figure in FIGURES.items()}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(path.relative_to(DOCS.parent))
        if not check:
            write_text(path, wanted[path])
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
