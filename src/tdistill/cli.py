"""Define the command line: parse the arguments, call the library, exit. Nothing heavy is imported before it is needed."""

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tdistill.runtime.errors import OutputError, TdistillError, shown
from tdistill.runtime.stops import watched

if TYPE_CHECKING:
    from tdistill.experiment.experiment import Experiment

TASK_SEEDS = 5  # answers to every prompt of the tasks
EXIT_UNFIT, EXIT_USAGE, EXIT_BROKEN_PIPE = 1, 2, 141  # the last is 128 + SIGPIPE, as for other programs

app = typer.Typer(
    help="Distil a language model: prompts → teacher roll-outs → student → evaluation → report.\n\n"
    "Start with: tdistill run recipes/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file, such as recipes/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Options of the recipe to change, such as train.objective.alpha=10 output_dir=runs/b."),
]

Workers = Annotated[int, typer.Option(min=1, help="Number of students to train side by side, each in a process of its own.")]


@app.command()
def run(recipe: RecipeArgument, overrides: Overrides = None, *, workers: Workers = 1) -> None:
    """Run every stage of a recipe, and print the result. A stage that is complete for the same settings is skipped."""
    from tdistill.experiment.graph import WAY

    current = _stages(recipe, overrides, *WAY, workers=workers)
    _show(current)


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    *,
    device: Annotated[
        str | None, typer.Option(help="Plan for this device: h100, h200, a100, l40s, rtx4090, cpu. Default: this machine, measured.")
    ] = None,
    response_length: Annotated[
        float | None, typer.Option(min=1, help="Mean length of a response in tokens. Default: the recipe's limit.")
    ] = None,
    candidates: Annotated[
        float | None, typer.Option(min=1, help="Mean number of candidates of a token. Default: typical for the recipe's p.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the plan to this file, as JSON.")] = None,
) -> None:
    """Say what each stage will take: memory, disk, tokens and time; and what does not fit. No weight is loaded. Status 1: it does not fit."""
    from rich.console import Console

    from tdistill.pages.terminal import print_document

    current = _open(recipe, overrides, claims=False)
    from tdistill.planning.pages import plan_document
    from tdistill.planning.planner import Expected, write_plan
    from tdistill.planning.planner import plan as plan_recipe

    planned = plan_recipe(current, device, Expected(response_length, candidates))
    print_document(Console(), plan_document(planned))
    if json is not None:
        write_plan(_output(json), planned)
    if planned.unfit:
        raise typer.Exit(EXIT_UNFIT)


@app.command()
def rollout(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Let the teacher answer the prompts, record its top-p candidates, and make the student's start."""
    _stages(recipe, overrides, "models", "rollout")


@app.command()
def sft(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Fine-tune the student's start on the roll-outs, or on human answers."""
    _stages(recipe, overrides, "sft")


@app.command()
def train(recipe: RecipeArgument, overrides: Overrides = None, *, workers: Workers = 1) -> None:
    """Train the student and the recipe's baselines, each with its own objective and with every seed."""
    _stages(recipe, overrides, "train", workers=workers)


@app.command()
def evaluate(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    *,
    tasks: Annotated[
        str | None, typer.Option(help="Also evaluate on these tasks, separated by commas: dolly, selfinst, vicuna, sni, unni, gsm8k.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Directory of the tasks' files: DIR/dolly/test.jsonl and so on.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of answers to every prompt of the tasks. Default: 5.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Largest number of prompts of a task; they are a fixed random subset. Default: all.")
    ] = None,
    max_prompt_length: Annotated[int | None, typer.Option(min=1, help="Longest prompt of the tasks, in tokens. Default: the recipe's.")] = None,
    temperatures: Annotated[
        str | None, typer.Option(help="Also evaluate at these sampling temperatures, separated by commas: 0.5,0.7,1.")
    ] = None,
    split: Annotated[
        Literal["test", "valid"] | None, typer.Option(help="Prompts on which --temperatures are measured: valid, to choose one. Default: test.")
    ] = None,
    lm_eval: Annotated[str | None, typer.Option(help="Also evaluate on these tasks of lm-eval, separated by commas.")] = None,
    lm_eval_include_path: Annotated[Path | None, typer.Option(help="Directory with lm-eval tasks of your own.")] = None,
) -> None:
    """Evaluate the teacher and every student on the test prompts, and optionally at other temperatures and on named tasks."""
    from tdistill.experiment.graph import execute
    from tdistill.experiment.lm_eval import LmEvalOptions, LmEvalRun
    from tdistill.experiment.tasks import TaskOptions, TaskRun
    from tdistill.experiment.temperatures import TemperatureRun

    if split is not None and temperatures is None:
        raise TdistillError(
            "--split says on which prompts --temperatures are measured: give both, such as --temperatures 0.5,0.7,1 --split valid."
        )
    _refuse_unread({"--seeds": seeds, "--max-prompt-length": max_prompt_length}, "--tasks", tasks, data_dir)
    _refuse_unread({"--limit": limit}, "--tasks or --lm-eval", tasks, data_dir, lm_eval)
    _refuse_unread({"--lm-eval-include-path": lm_eval_include_path}, "--lm-eval", lm_eval)
    current = _open(recipe, overrides)
    measures: dict[str, Any] = {}
    if {tasks, data_dir} != {None}:
        measures["tasks"] = TaskRun(current, TaskOptions(tasks or "", data_dir, seeds or TASK_SEEDS, limit, max_prompt_length))
    if temperatures is not None:
        measures["temperatures"] = TemperatureRun(current, temperatures, split or "test")
    if lm_eval is not None:
        measures["lm-eval"] = LmEvalRun(current, LmEvalOptions(lm_eval, lm_eval_include_path, limit))
    execute(current, "evaluate")
    for name in ("temperatures", "tasks", "lm-eval"):
        if name in measures:
            typer.echo(f"\n{measures[name].report()}")


@app.command()
def report(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Write report.md and report.html, and print the table of results."""
    current = _stages(recipe, overrides, "report")
    _show(current)


@app.command()
def sparsity(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Show how many tokens hold the teacher's probability mass, and what each p costs and hides; recommend one p."""
    current = _stages(recipe, overrides, "models", "rollout", "sparsity")
    from tdistill.experiment.sparsity import PAGES, sparsity

    artefact = sparsity(current)
    markdown, page = (artefact.directory / name for name in PAGES)
    typer.echo(f"{current.notes(artefact)['reason']}\n\npage: {page}\n      {markdown}")


@app.command()
def sample(
    student: Annotated[Path, typer.Argument(help="Directory of a saved student, or of any other model.")],
    prompt: Annotated[str, typer.Argument(help="The question.")],
    *,
    temperature: Annotated[float, typer.Option(min=0.01, max=1000, help="Temperature of sampling.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0, help="Probability mass of the nucleus that tokens are sampled from.")] = 0.8,
    max_completion_length: Annotated[int, typer.Option(min=1, max=1_000_000, help="Longest answer, in tokens.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling: another seed gives another answer.")] = 0,
) -> None:
    """Ask a saved model one question, and print its answer."""
    from tdistill.experiment.sample import answer

    typer.echo(answer(student, prompt, temperature, top_p, max_completion_length, seed))


@app.command()
def judge(
    answers_a: Annotated[Path, typer.Argument(help="Answers of the first system: answers/KEY/answers.jsonl.")],
    answers_b: Annotated[Path, typer.Argument(help="Answers of the second system to the same prompts.")],
    *,
    base_url: Annotated[str, typer.Option(help="Address of an OpenAI-compatible server, such as http://localhost:8000/v1.")],
    model: Annotated[str, typer.Option(help="Name of the judge model on that server.")],
    output: Annotated[
        Path | None, typer.Option(help="Summary file, ending in .json; the verdicts go beside it. Default: runs/judge/A-vs-B-KEY.json.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Prompts that were answered. Default: the test prompts of the evaluation's recipe.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Largest number of prompts to judge. Default: all.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply, in tokens. A judge that reasons needs more.")] = 512,
    price_per_million_input: Annotated[float | None, typer.Option(min=0, help="Price of a million input tokens, to show the cost.")] = None,
    price_per_million_output: Annotated[float | None, typer.Option(min=0, help="Price of a million output tokens, to show the cost.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Number of requests at the same time.")] = 4,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for a reply.")] = 120.0,
    api_key_env: Annotated[str, typer.Option(help="Name of the environment variable that holds the key.")] = "OPENAI_API_KEY",
    yes: Annotated[bool, typer.Option("--yes", help="Send the requests without asking first.")] = False,
) -> None:
    """Let a judge model compare the answers of two systems, each pair in both orders; print the win rate and the position bias."""
    from rich.console import Console

    from tdistill.judge.judging import JudgeSettings, Judging
    from tdistill.pages.terminal import print_table
    from tdistill.runtime.progress import say

    prices, target = (price_per_million_input, price_per_million_output), _output(output) if output else None
    settings = JudgeSettings(base_url, model, target, prompts, limit, max_tokens, *prices, concurrency, timeout, api_key_env)
    judging = Judging(answers_a, answers_b, settings)
    say(judging.plan())
    if judging.to_ask and not yes:
        if not sys.stdin.isatty():
            raise TdistillError("Nothing was sent: there is no terminal to agree on. Give --yes to send the requests above.")
        typer.confirm("Send them?", abort=True, err=True)
    summary, console = judging.run(), Console()
    print_table(console, judging.table(summary))
    console.print(f"summary: {judging.output}\nverdicts: {judging.journal.path}", soft_wrap=True, highlight=False)
    if summary.unanswered:
        say(f"{summary.unanswered} requests got no reply, and their pairs are left out: the same command asks for them again.")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Output directories of `tdistill run`, or RUN/evaluation/KEY.")],
    *,
    output: Annotated[Path, typer.Option(help="Directory for the pages.")] = Path("runs/compare"),
    baseline: Annotated[
        str | None, typer.Option(help="Method that differences are taken to. Default: sft_continued, if the runs have it.")
    ] = None,
) -> None:
    """Compare the methods of finished runs, pooled over seeds: quality by time, tokens and steps."""
    from rich.console import Console

    from tdistill.compare.comparing import compare as compare_runs
    from tdistill.compare.pages import comparison_document, write
    from tdistill.pages.terminal import print_document

    comparison, console = compare_runs(runs, baseline), Console()
    markdown, page = write(comparison, _output(output))
    print_document(console, comparison_document(comparison))
    console.print(f"\npage: {page}\n      {markdown}", soft_wrap=True, highlight=False, markup=False)


@app.command()
def theory(
    output_dir: Annotated[Path, typer.Argument(metavar="[OUTPUT_DIR]", help="Directory for the report.")] = Path("runs/theory"),
    *,
    instances: Annotated[int, typer.Option(min=1, help="Number of random MDPs on which the propositions are checked.")] = 20_000,
    mdps: Annotated[int, typer.Option(min=1, help="Number of random MDPs behind each curve of gaps.")] = 200,
    bias_mdps: Annotated[int, typer.Option(min=1, help="Number of random MDPs behind each point of the bias of α.")] = 20,
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of seeds of the compounding-error experiment, and of token trees of the estimator study.")
    ] = 5,
    steps: Annotated[
        int, typer.Option(min=1, help="Training steps of each student in that experiment, and most steps of the study's solver.")
    ] = 300,
    horizon: Annotated[
        list[int] | None, typer.Option(min=1, help="Tokens of a text; give it again for each length. Default: 2 4 8 16 32.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 0,
) -> None:
    """Check the paper's propositions exactly on small MDPs, and measure what they leave open."""
    from rich.console import Console

    from tdistill.pages.terminal import print_table
    from tdistill.theory.checks import TheorySettings, run_theory
    from tdistill.theory.report import propositions_table

    output_dir = _output(output_dir)
    sizes = {"horizons": tuple(horizon)} if horizon else {}
    settings = TheorySettings(instances=instances, mdps=mdps, bias_mdps=bias_mdps, seeds=seeds, steps=steps, seed=seed, **sizes)
    data, console = run_theory(output_dir, settings), Console()
    print_table(console, propositions_table(data["propositions"]))
    console.print(f"\nreport: {output_dir / 'theory.html'}\n        {output_dir / 'theory.md'}", soft_wrap=True, highlight=False)


def _refuse_unread(given: dict[str, Any], reader: str, *readers: Any) -> None:
    """Refuse options of a measurement that is not asked for, since nothing would read them."""
    unread = [option for option, value in given.items() if value is not None]
    if unread and all(value is None for value in readers):
        raise TdistillError(f"{unread[0]} belongs to {reader}, which is not given: give both, or leave it out.")


def _output(path: Path) -> Path:
    """Return the path of an output, with ``~`` expanded: shells do not expand it in ``--output=~/x``."""
    from tdistill.runtime.paths import local_path

    return local_path(str(path), OutputError)


def _open(recipe: Path, overrides: list[str] | None, *stages: str, claims: bool = True) -> "Experiment":
    """Read a recipe, check what can be checked before long work, and claim its output directory."""
    from tdistill.experiment.recipe_checks import open_recipe

    loaded = open_recipe(recipe, overrides)
    from transformers.utils import logging

    logging.disable_progress_bar()  # ours are enough
    from tdistill.experiment.experiment import Experiment
    from tdistill.experiment.preflight import preflight

    current = Experiment(loaded)
    preflight(current, stages)
    if claims:
        current.prepare()
    return current


def _stages(recipe: Path, overrides: list[str] | None, *names: str, workers: int = 1) -> "Experiment":
    from tdistill.experiment.graph import execute

    current = _open(recipe, overrides, *names)
    if names == ("sft",) and current.recipe.sft is None:
        raise TdistillError("The recipe has no sft section.")
    for name in names:
        execute(current, name, workers)
    return current


def _show(current: "Experiment") -> None:
    from tdistill.experiment.report import show

    for line in show(current):
        typer.echo(line)


def main() -> None:
    """Run the command line. An error that a user can act on is printed without a traceback, with status 2; a stop has status 128 + signal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without a letter must not cost the result
            stream.reconfigure(errors="backslashreplace")
    with watched():
        try:
            _run_app()
        except TdistillError as error:
            from tdistill.runtime.processes import process_label

            typer.echo(f"tdistill: error{process_label()}: {shown(str(error))}", err=True)
            sys.exit(EXIT_USAGE)


def _run_app() -> None:
    """Run the command. A closed standard output ends it without a message, a full disk with one. Results that were written are kept."""
    from tdistill.runtime.disk import FAILING, FULL
    from tdistill.runtime.locks import release_all

    status: Any = 0
    try:
        app()
    except SystemExit as stop:
        if stop.code == 1 and isinstance(stop.__context__, BrokenPipeError):  # how typer and rich end
            _silence_output()
            sys.exit(EXIT_BROKEN_PIPE)
        status = stop.code
    except OSError as error:
        if error.filename is not None or error.errno not in (*FULL, *FAILING):  # what writes files says so itself
            raise
        raise _output_error(error) from error
    finally:
        release_all()
    if not status:  # after an error the launcher ends the others, who may still wait for this process
        from tdistill.runtime.processes import part

        part()
    _flush_output()
    sys.exit(status)


def _flush_output() -> None:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _silence_output()
        sys.exit(EXIT_BROKEN_PIPE)
    except OSError as error:
        raise _output_error(error) from error


def _output_error(error: OSError) -> OutputError:
    _silence_output()
    return OutputError(f"Can't write to standard output: {error.strerror}. What was made is kept.")


def _silence_output() -> None:
    # Otherwise the interpreter tries again at its end, and complains.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    main()
