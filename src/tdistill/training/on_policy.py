"""Make roll-outs of the student while it trains: it answers, the teacher scores its answers, and the result is an ordinary cache."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from tdistill.cache.schema import CacheManifest, Response
from tdistill.data.dataset import RolloutDataset
from tdistill.data.prompts import TokenizedPrompt
from tdistill.models.vocabulary import Vocabulary
from tdistill.recipe.schema import OnPolicyConfig
from tdistill.runtime.errors import ConfigError, OutputError
from tdistill.runtime.files import write_json
from tdistill.runtime.forms import read_form
from tdistill.teachers.rollouts import RolloutWriter, cache_settings
from tdistill.teachers.transformers import Mixed, generate_batch, score_batch
from tdistill.training.log import train_again


@dataclass(frozen=True)
class Authors:
    """Hold the models that write and score the student's own roll-outs.

    Args:
        student: the language model that is being trained. A copy of it in ``dtype``, as it is when a round is asked for, writes.
        load_teacher: loads the teacher, which scores, and writes along with ``teacher_mix`` > 0. Called once, at the first round.
        tokenizer: tokenizer of both models.
        vocab_size: V, the number of tokens that both models share.
        dtype: dtype in which the student generates.
    """

    student: PreTrainedModel
    load_teacher: Callable[[], PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    dtype: torch.dtype


class StudentRollouts:
    """Make the rounds of a ``MixedDataset``, under ``directory/round-NNNN``. A round that exists is read, so that a resumed run goes on.

    Args:
        authors: the models that write and score.
        expert: the data set whose cache says how candidates are recorded, how long answers may be, and in which batches.
        directory: where the rounds are written.
        on_policy: how the student writes. With the defaults it samples from its own distribution π.
        seed: seed of the noise, which also depends on the round.
        run: what made the student, such as a digest of its start and its settings. A round of another run is refused.
    """

    def __init__(self, authors: Authors, expert: RolloutDataset, directory: Path, on_policy: OnPolicyConfig, seed: int, run: str = ""):
        self._authors, self._expert, self._directory, self._on_policy, self._run = authors, expert, directory, on_policy, run
        cached = expert.manifest.settings
        drawn = {"temperature": on_policy.temperature, "top_p": on_policy.top_p, "top_k": 0, "seed": seed}
        self._rollout = expert.manifest.rollout.model_copy(update=drawn)
        self._pinned: dict[str, Any] = {k: cached[k] for k in ("teacher", "tokenizer", "template") if k in cached}
        self._load_teacher = cache(authors.load_teacher)

    @property
    def log(self) -> list[dict[str, float]]:
        """Return the numbers that were logged about every round, also about rounds before a kill."""
        advice = train_again(self._directory.parent)
        return [read_form(path, dict[str, float], OutputError, advice) for path in sorted(self._directory.glob("round-*.json"))]

    def __call__(self, index: int, prompts: Sequence[TokenizedPrompt]) -> RolloutDataset:
        """Make one round, or read it if it exists."""
        started = time.perf_counter()
        manifest = self._write(index, prompts)
        counts = {k: manifest.counts[k] for k in ("responses", "finished", "tokens")}
        about = self._at(index).with_suffix(".json")
        if not about.exists():
            write_json(about, {"round": index, **counts, "seconds": time.perf_counter() - started})
        return RolloutDataset(self._at(index), self._expert.teacher_top_p, ("student", "mixed", "selected"), rule=self._expert.rule)

    def _at(self, index: int) -> Path:
        return self._directory / f"round-{index:04d}"

    def _write(self, index: int, prompts: Sequence[TokenizedPrompt]) -> CacheManifest:
        eos, mix, count = self._expert.manifest.settings["eos_ids"], self._on_policy.teacher_mix, self._on_policy.best_of
        vocabulary, rollout = Vocabulary(self._authors.vocab_size, eos), self._rollout
        teacher, policy = self._load_teacher(), self._policy()
        mixed = Mixed(teacher, mix) if mix else None

        def answer(batch: Sequence[tuple[TokenizedPrompt, int]]) -> list[Response]:
            asked = [(p, sample * count + i) for p, sample in batch for i in range(count)]
            written = generate_batch(policy, asked, rollout, vocabulary, mixed=mixed)
            scored = score_batch(teacher, [(p, g.response_ids) for (p, _), g in zip(asked, written, strict=True)], vocabulary, rollout)
            pairs = list(zip(written, scored, strict=True))
            kept = [likeliest(pairs[i * count : (i + 1) * count]) for i in range(len(batch))]
            return [
                replace(seen, sample_index=sample, behaviour_logp=own.behaviour_logp)
                for (_, sample), (own, seen) in zip(batch, kept, strict=True)
            ]

        settings = cache_settings(rollout, self._pinned, eos, prompts)
        settings |= {"origin": self._origin(), "round": index, "teacher_mix": mix, "run": self._run}
        writer = RolloutWriter(self._at(index), settings, rollout, self._authors.tokenizer, f"student in round {index}")
        # The round stands where a sample's index stands: a prompt asked again is answered with other noise.
        return writer.write([(p, index) for p in prompts], answer)

    def _origin(self) -> str:
        if self._on_policy.best_of > 1:
            return "selected"
        return "mixed" if self._on_policy.teacher_mix else "student"

    def _policy(self) -> PreTrainedModel:
        return copy.deepcopy(self._authors.student).to(self._authors.dtype).eval().requires_grad_(False)


def likeliest(pairs: Sequence[tuple[Response, Response]]) -> tuple[Response, Response]:
    """Return the pair (as written, as the teacher scored it) whose log-probability per token is the highest under the teacher."""
    return max(pairs, key=lambda pair: sum(pair[1].token_logp) / len(pair[1].token_logp))


def check_in_order(args: TrainingArguments) -> None:
    """Raise ``ConfigError`` where the student would be rolled out by a process that is not training it."""
    if args.world_size > 1 or args.dataloader_num_workers > 0:
        raise ConfigError(
            f"Student roll-outs while training need one process and dataloader_num_workers=0, got {args.world_size} processes and "
            f"{args.dataloader_num_workers} workers."
        )
