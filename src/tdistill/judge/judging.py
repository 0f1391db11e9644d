"""Ask a judge model which of two systems' answers it prefers, in both orders (``tdistill judge``)."""

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from tdistill.judge.client import ChatClient, Endpoint, EndpointDownError, Retries
from tdistill.judge.cost import Cost, Prices
from tdistill.judge.journal import Journal
from tdistill.judge.pairs import Answers, Joined, Question, find_prompts, join, questions, read_answers
from tdistill.judge.protocol import DEFAULT_KEY_VARIABLE, check_url, key_warning, read_key
from tdistill.judge.score import Summary, parse_verdict, summarise
from tdistill.judge.summary import RESULT, result_json, summary_table
from tdistill.pages.tables import Table
from tdistill.runtime.errors import ConfigError, JudgeError, OutputError, visible
from tdistill.runtime.files import read_json, write_json
from tdistill.runtime.locks import Lock, hold
from tdistill.runtime.progress import Bar, bar, say
from tdistill.runtime.stops import keeping

MAX_TOKENS = 512  # of a reply: three sentences and a verdict
TIMEOUT_S, CONCURRENCY = 120.0, 4
RETRIES = Retries()
MOST_FAILURES_IN_A_ROW = 3  # requests given up one after the other: the server is down, and the rest can wait
OUTPUT_DIRECTORY, DIGEST_LENGTH = Path("runs/judge"), 12
NOTE_WIDTH = 60


@dataclass(frozen=True)
class JudgeSettings:
    """Set which judge is asked, how, and where the result goes."""

    base_url: str
    model: str
    output: Path | None = None
    prompts: str | None = None
    limit: int | None = None
    max_tokens: int = MAX_TOKENS
    price_input: float | None = None  # per million tokens
    price_output: float | None = None
    concurrency: int = CONCURRENCY
    timeout_s: float = TIMEOUT_S
    api_key_env: str = DEFAULT_KEY_VARIABLE


class Judging:
    """Open two answer files and list the questions to a judge. Nothing is sent before ``run``.

    Raises:
        TdistillError: the answers, the prompts, the address, the key's variable or the output can't be used.
    """

    def __init__(self, path_a: Path, path_b: Path, settings: JudgeSettings):
        self._prices = Prices.given(settings.price_input, settings.price_output)
        _check_numbers(settings)
        self.settings, self.base_url = settings, check_url(settings.base_url)
        self._key = read_key(settings.api_key_env)
        self.a, self.b = read_answers(path_a), read_answers(path_b)
        self.prompts_source = find_prompts((self.a, self.b), settings.prompts)
        self.joined: Joined = join(self.a, self.b, self.prompts_source, settings.limit)
        if path_a.samefile(path_b):
            raise ConfigError(f"{path_a} and {path_b} are the same file: give the answers of two systems.")
        self.questions = questions(self.joined.pairs, settings.model)
        self.output = check_output(settings.output or default_output(self.a, self.b, settings.model))
        self._lock = lock_output(self.output)  # before the journal is read: its last line may be cut
        self.journal = Journal(self.output.with_suffix(".jsonl"))
        open_questions = (q for q in self.questions if not self.journal.answers(q.key, settings.max_tokens))
        self.to_ask: list[Question] = list({q.key: q for q in open_questions}.values())

    def plan(self) -> str:
        """Describe what will be sent and what it may cost."""
        s, left = self.settings, self.joined.left_out
        cost = Cost.estimated([q.content for q in self.to_ask], s.max_tokens, self._prices)
        key = f"key from {s.api_key_env}" if self._key else f"no key ({s.api_key_env} is not set)"
        lines = [
            f"judge     {s.model} at {self.base_url}, {key}",
            f"A         {self.a.name} ({self.a.path})",
            f"B         {self.b.name} ({self.b.path})",
            f"prompts   {self.joined.prompts} from {self.prompts_source}; {len(self.joined.pairs)} pairs of answers",
            "left out  " + (", ".join(f"{n} {name.replace('_', ' ')}" for name, n in left.items() if n) or "none"),
            f"requests  {len(self.to_ask)}, each pair in both orders; {self._kept()} verdicts are in {self.journal.path} already",
        ]
        warning = key_warning(self.base_url, self._key)
        return "\n".join(lines + (cost.lines() if self.to_ask else []) + ([warning] if warning and self.to_ask else []))

    def run(self) -> Summary:
        """Ask the questions that have no verdict yet, and write the summary.

        Raises:
            JudgeError: the endpoint refuses, or is down; verdicts that came are kept.
            OutputError: the disk is full or can't be written.
        """
        if self.to_ask:
            self._ask_all()
        summary = summarise(self.questions, self.journal.rows)
        try:
            write_json(self.output, {**self._facts(), **result_json(summary, self._cost())})
        except OSError as error:
            raise OutputError(f"Can't write {self.output}: {error.strerror}. The verdicts are kept; run again.") from error
        return summary

    def table(self, summary: Summary) -> Table:
        """Return the summary as a table for the terminal."""
        return summary_table(f"{self.a.name} against {self.b.name}", self.settings.model, summary, self._cost())

    def _ask_all(self) -> None:
        s = self.settings
        client = ChatClient(Endpoint(self.base_url, s.model, self._key, s.max_tokens, s.timeout_s, s.concurrency), RETRIES)
        try:
            done = len(self.questions) - len(self.to_ask)
            with client, keeping(self._rest), bar("judge", len(self.questions), "verdicts", done) as progress:
                self._watch(client, progress)
        except JudgeError as error:
            raise JudgeError(f"{str(error).rstrip('.')}. {self._rest()}") from None
        for name in sorted({"temperature", "seed"} - client.options.keys()):
            say(f"The server does not take `{name}`: it was left out.")

    def _watch(self, client: ChatClient, progress: Bar) -> None:
        """Count the verdicts as they come. The threads write them down themselves, so that every paid reply is kept after any stop."""
        failed_in_a_row, without_verdict = 0, 0
        enough = min(MOST_FAILURES_IN_A_ROW, len(self.to_ask))
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            futures = [pool.submit(self._ask, client, question, progress) for question in self.to_ask]
            try:
                for future in as_completed(futures):
                    try:
                        without_verdict += future.result() is None
                    except EndpointDownError:
                        failed_in_a_row += 1
                        if failed_in_a_row == enough:
                            raise
                    else:
                        failed_in_a_row = 0
                        progress.advance()
                        progress.note(f"no verdict: {without_verdict}" if without_verdict else "")
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                # Leaving the block waits for what is in flight and paid for, but nobody who presses Ctrl-C wants to wait.
                client.stop() if isinstance(error, JudgeError) else client.abort()
                raise

    def _ask(self, client: ChatClient, question: Question, progress: Bar) -> str | None:
        reply = client.complete(question.content, lambda text: progress.note(escape(text[:NOTE_WIDTH])))
        verdict, failure = parse_verdict(reply)
        self.journal.append(
            {
                "key": question.key,
                "prompt_id": question.prompt_id,
                "sample_index": question.sample_index,
                "order": question.order,
                "verdict": verdict,
                "failure": failure,
                "reply": reply.refusal or reply.content,
                "served_model": reply.served_model,
                "base_url": self.base_url,
                "prompt_tokens": reply.prompt_tokens,
                "completion_tokens": reply.completion_tokens,
                "max_tokens": self.settings.max_tokens,
                "options": client.options,
            }
        )
        return verdict

    def _rest(self) -> str:
        return f"{self._kept()} of {len(self.questions)} verdicts are kept: the same command asks for the rest."

    def _kept(self) -> int:
        return sum(self.journal.answers(q.key, self.settings.max_tokens) for q in self.questions)

    def _rows(self) -> list[dict[str, Any]]:
        return [self.journal.rows[q.key] for q in self.questions if q.key in self.journal.rows]

    def _cost(self) -> Cost:
        return Cost.reported(self._rows(), self._prices)

    def _facts(self) -> dict[str, Any]:
        options = {json.dumps(row["options"], sort_keys=True): row["options"] for row in self._rows()}
        return {
            "a": {"name": self.a.name, "answers": str(self.a.path)},
            "b": {"name": self.b.name, "answers": str(self.b.path)},
            "prompts": {"source": self.prompts_source, "judged": self.joined.prompts, **self.joined.left_out},
            "judge": {
                "model": self.settings.model,
                "base_url": self.base_url,
                # A server of another address is asked by the same model's name: each verdict says where it came from.
                "base_urls_of_verdicts": sorted({row["base_url"] for row in self._rows() if row.get("base_url")}),
                "served_models": sorted({row["served_model"] for row in self._rows() if row["served_model"]}),
                "options": list(options.values()),
            },
            "verdicts": self.journal.path.name,
        }


def default_output(a: Answers, b: Answers, model: str) -> Path:
    """Return ``runs/judge/A-vs-B-KEY.json``. KEY depends on the model and both files' answers, so no other comparison overwrites it."""
    content = repr([model, sorted(a.texts.items()), sorted(b.texts.items())])
    return OUTPUT_DIRECTORY / f"{a.name}-vs-{b.name}-{hashlib.sha256(content.encode()).hexdigest()[:DIGEST_LENGTH]}.json"


def lock_output(path: Path) -> Lock:
    """Make a summary's directory, and lock the summary and its verdicts for this process.

    Raises:
        OutputError: another process writes them, or they can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return hold(path.with_name(f".{path.stem}.lock"), f"--output {path}")
    except OSError as error:
        raise OutputError(f"Can't make {path.parent} or write there: {error.strerror}. Choose another --output.") from error


def _check_numbers(settings: JudgeSettings) -> None:
    if not math.isfinite(settings.timeout_s):
        raise ConfigError(f"--timeout must be a number, got {settings.timeout_s}.")
    if not settings.model.strip() or visible(settings.model) != settings.model:
        raise ConfigError(f"--model must be the name of a model as the server knows it, got {settings.model!r:.80}.")


def check_output(path: Path) -> Path:
    """Check that a summary may be written to ``path``, and return it.

    Raises:
        ConfigError: it does not end in .json, is no possible name, or holds something else.
    """
    if path.suffix != ".json":
        raise ConfigError(f"--output must end in .json (the verdicts go beside it, into .jsonl), got {path}.")
    try:
        if not path.exists():
            return path
        found = read_json(path, ConfigError)
    except ConfigError:
        found = None
    except OSError as error:
        raise ConfigError(f"{path} can't be used as --output: {error.strerror}.") from error
    if not isinstance(found, dict) or RESULT not in found:
        raise ConfigError(f"{path} holds something else than a judge's summary: choose another --output.")
    return path
