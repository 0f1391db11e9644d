"""Make the student's own roll-outs while it trains: it answers, the teacher scores, and the result is an ordinary cache."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from tdistill.cache.write import Manifest
from tdistill.data.dataset import RolloutDataset
from tdistill.data.prompts import TokenizedPrompt
from tdistill.experiment.run_files import read_run_file
from tdistill.models.vocabulary import vocabulary_size
from tdistill.runtime.errors import ConfigError
from tdistill.runtime.files import write_json
from tdistill.teachers.generate import Generated, Mixed, Sampling, batch_plan, generate_batch
from tdistill.teachers.rollouts import Capture, cache_settings, write_rollouts
from tdistill.teachers.score import score_batch


@dataclass(frozen=True)
class StudentSampling:
    """Set how the student writes. The defaults are on-policy: what it samples from is π itself."""

    temperature: float = 1.0
    top_p: float = 1.0
    teacher_mix: float = 0.0  # share of the teacher's distribution in every token's; MiniLLM's α


class StudentRollouts:
    """Make the rounds of a ``MixedDataset``, under ``directory/round-NNNN``; existing rounds are read, so that a resumed run goes on.

    Args:
        student: the language model that is being trained; a copy in ``dtype`` of what it is when asked writes.
        load_teacher: scores, and writes along with ``teacher_mix`` > 0; called once, at the first round.
        tokenizer: tokenizer of both models.
        expert: the data set whose cache says how candidates are recorded, how long answers may be, and in which batches.
        directory: where the rounds are written.
        sampling: how the student writes.
        dtype: dtype in which the student generates.
        seed: seed of the noise, which also depends on the round.
        vocab_size: V of the expert's roll-outs; by default from the tokenizer and both models.
        run: what made the student, such as a digest of its start and its settings. A round of another run is refused.

    Raises:
        ConfigError: ``teacher_mix`` outside [0, 1).
    """

    def __init__(
        self,
        student: PreTrainedModel,
        load_teacher: Callable[[], PreTrainedModel],
        tokenizer: PreTrainedTokenizerBase,
        expert: RolloutDataset,
        directory: Path,
        sampling: StudentSampling,
        dtype: torch.dtype,
        seed: int,
        vocab_size: int | None = None,
        run: str = "",
    ):
        self._run = run
        if not 0.0 <= sampling.teacher_mix < 1.0:
            raise ConfigError(f"teacher_mix must lie in [0, 1), got {sampling.teacher_mix}: 0 is the student alone.")
        self._student, self._load_teacher, self._tokenizer, self._dtype = student, load_teacher, tokenizer, dtype
        self._expert, self._directory, self._sampling, self._vocab_size = expert, directory, sampling, vocab_size
        cached = expert.manifest.settings
        self._capture = Capture(**{k: cached[k] for k in Capture.__dataclass_fields__})
        self._drawn = Sampling(sampling.temperature, sampling.top_p, 0, cached["max_completion_length"], seed)
        self._pinned: dict[str, Any] = {k: cached[k] for k in ("teacher", "tokenizer", "template") if k in cached}
        self._teacher: PreTrainedModel | None = None

    @property
    def log(self) -> list[dict[str, float]]:
        """Return what was logged about every round, rounds before a kill included."""
        return [read_run_file(path, dict[str, float]) for path in sorted(self._directory.glob("round-*.json"))]

    def __call__(self, index: int, prompts: Sequence[TokenizedPrompt]) -> RolloutDataset:
        """Make one round, or read it if it exists."""
        started = time.perf_counter()
        manifest = self._write(index, prompts)
        counts = {k: manifest.counts[k] for k in ("responses", "finished", "tokens")}
        about = self._at(index).with_suffix(".json")
        if not about.exists():
            write_json(about, {"round": index, **counts, "seconds": time.perf_counter() - started})
        return RolloutDataset(self._at(index), self._expert.teacher_top_p, ("student", "mixed"), rule=self._expert.rule)

    def _at(self, index: int) -> Path:
        return self._directory / f"round-{index:04d}"

    def _write(self, index: int, prompts: Sequence[TokenizedPrompt]) -> Manifest:
        eos, mix = self._expert.manifest.settings["eos_ids"], self._sampling.teacher_mix
        if self._teacher is None:
            self._teacher = self._load_teacher()
        teacher, policy = self._teacher, self._policy()
        vocab = self._vocab_size or vocabulary_size(self._tokenizer, {"student": policy, "teacher": teacher}, eos)
        mixed = Mixed(teacher, mix) if mix else None
        kept = (self._capture.teacher_top_p, self._capture.max_candidates)

        def answer(batch: Sequence[tuple[TokenizedPrompt, int]]) -> list[Generated]:
            written = generate_batch(policy, batch, self._drawn, eos, vocab, mixed=mixed)
            scored = score_batch(teacher, [(g.prompt, g.tokens) for g in written], eos, vocab, *kept)
            for own, seen in zip(written, scored, strict=True):
                seen.sample_index, seen.behaviour_logp = own.sample_index, own.behaviour_logp
            return scored

        origin = "mixed" if mix else "student"
        settings = cache_settings(self._drawn, self._capture, self._pinned, eos, prompts)
        settings |= {"origin": origin, "round": index, "teacher_mix": mix, "run": self._run}
        # The round stands where a sample's index stands: a prompt asked again is answered with other noise.
        plan = [[(p, index) for p, _ in batch] for batch in batch_plan(prompts, 1, self._capture.batch_size)]
        author = (origin, f"student in round {index}")
        return write_rollouts(plan, answer, self._tokenizer, self._at(index), self._capture.shard_batches, settings, author, None)

    def _policy(self) -> PreTrainedModel:
        return copy.deepcopy(self._student).to(self._dtype).eval().requires_grad_(False)


def check_in_order(args: TrainingArguments) -> None:
    """Raise ``ConfigError`` where the student would be rolled out by a process that is not training it."""
    if args.world_size > 1 or args.dataloader_num_workers > 0:
        raise ConfigError(
            f"Student roll-outs while training need one process and dataloader_num_workers=0, got {args.world_size} processes and "
            f"{args.dataloader_num_workers} workers."
        )
