"""Train a teacher for a step task, and write it with an untrained student and prompts.

`python benchmarks/steps/make_models.py TASK OUTPUT [KEY=VALUE …]` writes ``teacher``, ``start``, ``train.jsonl``, ``valid.jsonl``,
``test.jsonl`` (different problems) and ``models.json``: the task's settings, the sizes, and how many of the teacher's own texts are right at
temperature 1. KEY=VALUE are settings of the task, such as ``steps=16 easy_share=0.2``.

Files that exist are kept. A teacher that writes too many wrong texts is refused, and the same command trains it further.
"""

import argparse
import random
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

from task import Task, enough
from tasks import TASKS, task_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

sys.path.append(str(Path(__file__).parents[1]))
from small_llama import CHAT_TEMPLATE, EOS, MODEL_INFO, Size, new_model, save, train_model
from told import script

from tdistill.data.prompts import load_prompts, tokenize_prompts
from tdistill.evaluation.answers import Protocol
from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.recipe.overrides import apply_overrides
from tdistill.recipe.schema import Sampling
from tdistill.runtime.errors import ConfigError, OutputError, TrainingError
from tdistill.runtime.files import read_json, write_json, write_jsonl
from tdistill.runtime.progress import say

LEAST_RIGHT = 0.97  # of a teacher's own texts
UNKNOWN = "<unk>"
SPLITS = ("train", "valid", "test")
TEACHER = Size(192, 2, 1500, 3e-3, weight_decay=0.0)
START = Size(16, 1, 0, 0.0, heads=2)  # not trained


@dataclass(frozen=True)
class Plan:
    """Hold the sizes of the models and of the prompt files."""

    teacher: Size = TEACHER
    start: Size = START
    batch: int = 64  # texts of a step
    prompts: tuple[int, int, int] = (1024, 128, 256)  # of train, valid and test
    lessons: int = 0  # problems beside those of train, for the teacher alone
    answers_only: bool = False  # is what the teacher learns; otherwise it learns to write problems too
    sampled: int = 512  # texts that the teacher writes to be checked
    seed: int = 0
    origin: Path | None = None  # directory of another teacher of the same size, from whose weights this one is trained on


def make(task: Task, plan: Plan, output: Path) -> dict[str, Any]:
    """Write all files and return what ``models.json`` holds.

    Raises:
        ConfigError: ``output`` holds models of other settings, a text does not fit into the context, or there are too few problems.
        TrainingError: fewer of the teacher's texts are right than ``LEAST_RIGHT``.
    """
    info = _begin(task, plan, output)
    tokenizer = word_tokenizer(task.words())
    if info["teacher"].get("right", -1.0) < LEAST_RIGHT:
        info["teacher"] = _train_teacher(task, plan, output, tokenizer, info["teacher"].get("rounds", 0))
        write_json(output / MODEL_INFO, info)
    right = info["teacher"]["right"]
    if right < LEAST_RIGHT:
        raise TrainingError(
            f"{right:.1%} of the teacher's own texts are right, and {LEAST_RIGHT:.0%} are needed: the same command trains {output / 'teacher'} "
            "on. If that does not help, give it more width or layers, or make the task smaller."
        )
    if info["start"] != asdict(plan.start):
        save(new_model(tokenizer, plan.start, plan.seed), tokenizer, output / "start")
        info["start"] = asdict(plan.start)
        write_json(output / MODEL_INFO, info)
    return info


def _begin(task: Task, plan: Plan, output: Path) -> dict[str, Any]:
    """Write the prompts if they are not there, and return what ``models.json`` holds so far."""
    rng, own = random.Random(plan.seed), {"task": task.settings(), "seed": plan.seed, "prompts": list(plan.prompts)}
    prompts = task.prompts(sum(plan.prompts), rng)
    enough(prompts, sum(plan.prompts), task.name)
    longest = max(len(p.split()) for p in prompts) + task.longest_answer() + 1
    if longest > min(plan.teacher.positions, plan.start.positions):
        raise ConfigError(
            f"A text of {task.name} with steps={task.steps} has up to {longest} tokens, and the models read "
            f"{min(plan.teacher.positions, plan.start.positions)}: ask for fewer steps, or give --context."
        )
    own["teacher_size"] = {k: v for k, v in asdict(plan.teacher).items() if k in ("hidden", "layers", "heads", "positions")}
    if (output / MODEL_INFO).exists():
        info = read_json(output / MODEL_INFO, OutputError)
        if {key: info.get(key) for key in own} != own:
            raise ConfigError(f"{output} holds models of other settings: choose another directory, or delete it.")
        return info
    output.mkdir(parents=True, exist_ok=True)
    for split, count in zip(SPLITS, plan.prompts, strict=True):
        part, prompts = prompts[:count], prompts[count:]
        write_jsonl(output / f"{split}.jsonl", [{"prompt": p, "completion": task.answer(p, rng)} for p in part])
    info = own | {"teacher": {}, "start": None}
    if plan.origin is not None:
        copytree(plan.origin / "teacher", output / "teacher")
        info["teacher"] = {"rounds": 1, "origin": str(plan.origin)}
    write_json(output / MODEL_INFO, info)
    return info


def _train_teacher(task: Task, plan: Plan, output: Path, tokenizer: PreTrainedTokenizerFast, rounds: int) -> dict[str, Any]:
    """Train the teacher, from the weights of the round before if there is one, and return what is known of it."""
    started, seed = time.perf_counter(), plan.seed + 1000 * rounds
    given = sum(plan.prompts)
    lessons = task.prompts(given + plan.lessons, random.Random(plan.seed))[given:]  # the first ones are those of the files
    prompts = [*(p.text for p in load_prompts(str(output / "train.jsonl"))), *lessons]
    model = load_model(find_model(str(output / "teacher")), "float32") if rounds else new_model(tokenizer, plan.teacher, plan.seed)
    model.set_attn_implementation("eager")  # the fastest under autocast on a CPU
    model = train_model(model, partial(texts, task, prompts, plan), tokenizer, plan.teacher, seed, "teacher")
    save(model, tokenizer, output / "teacher")
    about = {
        **({"origin": str(plan.origin)} if plan.origin else {}),
        **asdict(plan.teacher),
        "right": share_right(model, task, tokenizer, output / "valid.jsonl", plan.sampled),
        "rounds": rounds + 1,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": time.perf_counter() - started,
    }
    say(f"teacher: {about}")
    return about


def texts(task: Task, prompts: list[str], plan: Plan, rng: random.Random) -> list[tuple[str, str]]:
    """Return new right texts of random problems, each as what is given and what is learnt."""
    found = [(prompt, task.answer(prompt, rng)) for prompt in rng.choices(prompts, k=plan.batch)]
    return found if plan.answers_only else [("", f"{prompt} {answer}") for prompt, answer in found]


def share_right(model: Any, task: Task, tokenizer: PreTrainedTokenizerFast, path: Path, count: int) -> float:
    """Return the share of right texts among ``count`` that a model samples at temperature 1."""
    prompts, _ = tokenize_prompts(load_prompts(str(path)), tokenizer, model.config.max_position_embeddings, "refuse")
    sampling = Sampling(max_completion_length=task.longest_answer() + 1)
    asked = Protocol(prompts, sampling, -(-count // len(prompts)), tokenizer, [tokenizer.eos_token_id], len(tokenizer))
    by_id = {p.prompt.prompt_id: p.prompt.text for p in prompts}
    answers = [record for batch in asked.plan(128) for record in asked.answer(model, batch)]
    return sum(task.check(by_id[r["prompt_id"]], r["text"], r["finished"]).right for r in answers) / len(answers)


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each word, whose template is the prompt itself."""
    ids = {word: i for i, word in enumerate([EOS, UNKNOWN, *words])}
    whole = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, eos_token=EOS, pad_token=EOS, unk_token=UNKNOWN)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def main() -> None:
    options = _options()
    settings: dict[str, Any] = {}
    apply_overrides(settings, options.settings)
    task = task_of(options.task, settings)
    both: dict[str, Any] = {"positions": options.context, "init": options.init, "theta": options.theta}
    teacher = Size(*options.teacher, options.teacher_steps, options.teacher_rate, weight_decay=0.0, **both)
    # A head of fewer than 8 dimensions can't tell near positions apart.
    heads = options.student_heads or max(1, min(4, options.student[0] // 8))
    start = Size(*options.student, 0, 0.0, heads=heads, **both)
    own = {name: getattr(options, name) for name in ("lessons", "answers_only", "seed", "origin")}
    make(task, Plan(teacher, start, prompts=tuple(options.prompts), **own), options.output)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help=f"one of {', '.join(TASKS)}")
    parser.add_argument("output", type=Path)
    parser.add_argument("settings", nargs="*", help="KEY=VALUE of the task")
    parser.add_argument("--teacher", type=_size, default=(192, 2), help="width and layers of the teacher, such as 128x2")
    parser.add_argument("--teacher-steps", type=int, default=1500)
    parser.add_argument("--teacher-rate", type=float, default=3e-3)
    parser.add_argument("--student", type=_size, default=(16, 1), help="width and layers of the student")
    parser.add_argument("--student-heads", type=int, help="number of the student's attention heads; by default 4 of at least 8 dimensions")
    parser.add_argument(
        "--init", type=float, default=0.02, help="standard deviation of new weights; about 1/sqrt(width) learns to attend sooner"
    )
    parser.add_argument("--theta", type=float, default=10000.0, help="base of the wavelengths of rotary positions; 100 suits short texts")
    parser.add_argument("--context", type=int, default=256, help="longest text in tokens")
    parser.add_argument("--prompts", type=int, nargs=3, default=(1024, 128, 256), help="number of prompts in train, valid and test")
    parser.add_argument("--lessons", type=int, default=0, help="number of problems beside those of train that the teacher learns from")
    parser.add_argument("--answers-only", action="store_true", help="let the teacher learn answers, and not to write problems")
    parser.add_argument("--origin", type=Path, help="another OUTPUT whose teacher is trained on here: for other shares of the easy way")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_intermixed_args()


def _size(text: str) -> tuple[int, int]:
    width, layers = text.split("x")
    return int(width), int(layers)


if __name__ == "__main__":
    with script():
        main()
