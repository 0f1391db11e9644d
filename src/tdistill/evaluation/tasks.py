"""Define the named tasks: where their files are expected, their licence, and what is measured on an answer's text."""

import hashlib
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from rouge_score.rouge_scorer import RougeScorer
from transformers import PreTrainedTokenizerBase

from tdistill.data.prompts import Prompt, TokenizedPrompt, load_prompts, render_prompts
from tdistill.evaluation.metrics import distinct_n, rouge_l
from tdistill.runtime.errors import ConfigError, DataError, nearest
from tdistill.runtime.paths import local_path

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
# --limit takes the prompts whose hash with this seed is least: the same for every system, recipe and training seed.
SUBSET_SEED = 0
NUMBER = re.compile(r"(?<![0-9])-?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")

TextMetric = Callable[[str, Sequence[str]], float]


@dataclass(frozen=True)
class TaskSpec:
    """Describe a set of prompts with reference answers, for evaluation only."""

    stems: tuple[str, ...]  # paths inside the data directory, one of SUFFIXES to be added
    licence: str
    source: str  # where the original is
    hub: str | None = None  # the original on the hub, where its columns bear other names
    extras: tuple[str, ...] = ()  # names in EXTRAS


TASKS: dict[str, TaskSpec] = {
    "dolly": TaskSpec(("dolly/test",), "CC BY-SA 3.0", "databricks-dolly-15k, the 500 test prompts of MiniLLM"),
    "selfinst": TaskSpec(
        ("selfinst/test",), "Apache-2.0", "yizhongw/self-instruct, human_eval/user_oriented_instructions.jsonl", "yizhongw/self_instruct"
    ),
    "vicuna": TaskSpec(("vicuna/test",), "Apache-2.0", "lm-sys/FastChat, the 80 Vicuna questions with GPT-3.5's answers"),
    "sni": TaskSpec(("sni/test",), "Apache-2.0", "allenai/natural-instructions, test tasks with references of 11 GPT-2 tokens or more"),
    "unni": TaskSpec(("unni/test_0_2", "unni/test"), "MIT", "orhonovich/unnatural-instructions, answers of one or two words"),
    "gsm8k": TaskSpec(("gsm8k/test",), "MIT", "openai/grade-school-math, test.jsonl", "openai/gsm8k", ("number_match",)),
}


@dataclass(frozen=True)
class Task:
    """Hold a task as read, with its prompts in the file's order."""

    name: str
    spec: TaskSpec
    file: str  # inside the data directory
    sha256: str
    prompts: tuple[Prompt, ...]

    @property
    def without_reference(self) -> int:
        """Return the number of prompts without a reference."""
        return sum(not p.references for p in self.prompts)


def task_names(text: str) -> tuple[str, ...]:
    """Return the names in a list such as ``"dolly, gsm8k"``, each once.

    Raises:
        ConfigError: none is named, or one is unknown.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError(f"--tasks names no task, got {text!r}. Known: {', '.join(TASKS)}.")
    for name in names:
        if name not in TASKS:
            raise ConfigError(f"Unknown task {name!r}.{nearest(name, TASKS)}")
    return names


def load_task(name: str, data_dir: Path | None) -> Task:
    """Read a task's file. A prompt without a reference is kept: it counts in every metric that needs none.

    Raises:
        ConfigError: no data directory was given.
        DataError: the directory or the file is missing, the file can't be read, or no prompt in it has a reference.
    """
    if data_dir is None:
        raise ConfigError(f"Task {name!r} needs --data-dir DIR, the directory with {TASKS[name].stems[0]}{SUFFIXES[0]}.")
    data_dir = local_path(str(data_dir))
    path = _find(name, data_dir)
    task = Task(
        name,
        TASKS[name],
        path.relative_to(data_dir).as_posix(),
        hashlib.sha256(path.read_bytes()).hexdigest(),
        tuple(load_prompts(str(path))),
    )
    if task.without_reference == len(task.prompts):
        raise DataError(f"{path}: none of its {len(task.prompts)} records has an answer to compare with; expected it in `output`.")
    return task


def _find(name: str, data_dir: Path) -> Path:
    if not data_dir.is_dir():
        raise DataError(f"--data-dir {data_dir} is no directory.")
    spec = TASKS[name]
    candidates = [stem + suffix for stem in spec.stems for suffix in SUFFIXES]
    found = next((data_dir / c for c in candidates if (data_dir / c).is_file()), None)
    if found is None:
        origin = spec.source + (f"; on the hub {spec.hub}" if spec.hub else "")
        raise DataError(
            f"Task {name!r}: {data_dir} has none of {', '.join(candidates)}. Put the prompts there as JSON lines with instruction, "
            f"input and output ({origin}; {spec.licence})."
        )
    return found


def choose_prompts(
    task: Task, tokenizer: PreTrainedTokenizerBase, max_prompt_length: int, overlong: str, limit: int | None
) -> tuple[list[TokenizedPrompt], int]:
    """Return the prompts to answer, and how many were over the length limit.

    ``limit`` takes a random subset of those that fit, which depends on the prompts alone: a smaller limit's lies within a larger's.

    Raises:
        DataError: none fits, or ``overlong="refuse"`` and one does not.
    """
    rendered = [TokenizedPrompt(p, ids) for p, ids in zip(task.prompts, render_prompts(tokenizer, task.prompts), strict=True)]
    fitting = [p for p in rendered if len(p.ids) <= max_prompt_length]
    skipped = len(rendered) - len(fitting)
    if skipped and (overlong == "refuse" or not fitting):
        longest = max(len(p.ids) for p in rendered)
        raise DataError(
            f"Task {task.name!r}: {skipped} of {len(rendered)} prompts are longer than {max_prompt_length} tokens (the longest has "
            f"{longest}). Raise --max-prompt-length{', or set data.overlong: skip' if fitting else ''}."
        )
    if limit is not None and limit < len(fitting):
        kept = {p.prompt.prompt_id for p in sorted(fitting, key=lambda p: _rank(p.prompt.prompt_id))[:limit]}
        fitting = [p for p in fitting if p.prompt.prompt_id in kept]
    return fitting, skipped


def _rank(prompt_id: str) -> str:
    return hashlib.sha256(f"{SUBSET_SEED}|{prompt_id}".encode()).hexdigest()


def normalized(text: str) -> str:
    """Return the text in lower case, without ASCII punctuation, white space as single blanks: as Super-NaturalInstructions compares answers."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 100 if the answer is one of the references, both normalised, else 0."""
    return 100.0 * (normalized(answer) in {normalized(r) for r in references})


def last_number(text: str) -> Decimal | None:
    """Return the last number of a text, with or without commas between thousands. The sign counts unless a digit stands before it."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("$", "")) if found else None


def number_match(answer: str, references: Sequence[str]) -> float:
    """Return 100 if the answer's last number is that of a reference (GSM8K's stands after ``####``), else 0."""
    number = last_number(answer)
    return 100.0 * (number is not None and number in {last_number(r) for r in references})


EXTRAS: Mapping[str, TextMetric] = {"number_match": number_match}


def text_metrics(spec: TaskSpec, answer: str, references: Sequence[str], scorer: RougeScorer) -> dict[str, float]:
    """Return the metrics of an answer's text alone: distinct-2 and, if there are references, ROUGE-L, exact match and the task's extras."""
    values = {"distinct_2": distinct_n(answer)}
    if references:
        values |= {"rouge_l": rouge_l(answer, references, scorer), "exact_match": exact_match(answer, references)}
        values |= {name: EXTRAS[name](answer, references) for name in spec.extras}
    return values
