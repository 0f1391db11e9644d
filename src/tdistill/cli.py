"""The command line: parse, call, exit. Nothing heavy is imported before it is needed."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tdistill.errors import TdistillError

EXIT_USAGE = 2

app = typer.Typer(
    help="Distil a language model: prompts → teacher roll-outs → student → evaluation → report.\n\n"
    "Start with: tdistill run recipes/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="a recipe, such as recipes/quickstart.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.SUB=VALUE]...", help="change any option of the recipe, e.g. train.objective.alpha=10 output_dir=runs/b"),
]


@app.command()
def run(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Run all stages, skipping those already complete for the same settings, and print the result."""
    current = _open(recipe, overrides)
    for stage in current.stages:
        current.execute(stage)
    _show(current)


@app.command()
def rollout(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Let the teacher answer the prompts, recording its top-p candidates; make the student's start."""
    _stages(recipe, overrides, "models", "rollout")


@app.command()
def sft(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Fine-tune the student's start on the roll-outs (or human answers)."""
    _stages(recipe, overrides, "sft")


@app.command()
def train(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Distil: train the student, and the recipe's baselines, by their objectives."""
    _stages(recipe, overrides, "train")


@app.command()
def evaluate(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Measure teacher, start, SFT student, baselines and distilled student on the test prompts."""
    _stages(recipe, overrides, "evaluate")


@app.command()
def report(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Write report.md and report.html, and print the table."""
    current = _stages(recipe, overrides, "report")
    _show(current)


@app.command()
def sample(
    student: Annotated[Path, typer.Argument(help="a saved student (or any model directory)")],
    prompt: Annotated[str, typer.Argument(help="what to ask")],
    temperature: Annotated[float, typer.Option(min=0.01, help="of sampling")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0, help="nucleus of sampling")] = 0.8,
    max_completion_length: Annotated[int, typer.Option(min=1, help="tokens")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="another seed, another answer")] = 0,
) -> None:
    """Ask a checkpoint something."""
    from tdistill.sample import answer

    typer.echo(answer(student, prompt, temperature, top_p, max_completion_length, seed))


def _open(recipe: Path, overrides: list[str] | None) -> Any:
    from tdistill.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    from transformers.utils import logging

    logging.disable_progress_bar()  # ours are enough
    from tdistill.pipeline import Run
    from tdistill.preflight import preflight

    current = Run(loaded)
    preflight(current)
    current.prepare()
    return current


def _stages(recipe: Path, overrides: list[str] | None, *names: str) -> Any:
    current = _open(recipe, overrides)
    for name in names:
        if name not in current.stages:
            raise TdistillError(f"The recipe has no {name} section.")
        current.execute(name)
    return current


def _show(current: Any) -> None:
    from rich.console import Console

    from tdistill.report.collect import collect
    from tdistill.report.tables import comparison_table, quality_table, to_rich

    data, console = collect(current), Console()
    console.print(to_rich(quality_table(data.systems)))
    console.print(to_rich(comparison_table(data.comparisons)))
    directory = current.directory("report")
    console.print(f"\nreport: {directory / 'report.html'}\n        {directory / 'report.md'}", soft_wrap=True, highlight=False)
    console.print(f"student: {current.directory('train') / 'distilled'}", soft_wrap=True, highlight=False)


def main() -> None:
    """Entry point: errors a user can act on are printed without a traceback, with exit status 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except TdistillError as error:
        typer.echo(f"tdistill: error: {error}", err=True)
        sys.exit(EXIT_USAGE)


if __name__ == "__main__":
    main()
