"""Define what a training run may have beside its objective."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tdistill.data.corpus import PackedCorpus
from tdistill.data.dataset import RolloutDataset
from tdistill.data.mixed import Mixture
from tdistill.teachers.generate import Sampling
from tdistill.training.language_modelling import LanguageModelling
from tdistill.training.on_policy import StudentRollouts, StudentSampling
from tdistill.training.value import ValueSettings


@dataclass(frozen=True)
class OnPolicy:
    """Set how the student writes a part of its training text."""

    mixture: Mixture
    sampling: StudentSampling
    dtype: torch.dtype  # to write in

    def rollouts(
        self,
        model: PreTrainedModel,
        teacher: Callable[[], PreTrainedModel],
        tokenizer: PreTrainedTokenizerBase,
        expert: RolloutDataset,
        directory: Path,
        seed: int,
        vocab_size: int | None = None,
        run: str = "",
    ) -> StudentRollouts:
        """Return the object that makes the rounds of student roll-outs."""
        return StudentRollouts(model, teacher, tokenizer, expert, directory, self.sampling, self.dtype, seed, vocab_size, run)


@dataclass(frozen=True)
class Extras:
    """Hold what a training run may have beside its objective."""

    on_policy: OnPolicy | None = None  # the student's own roll-outs; they lie in ``rollouts`` below the student's directory
    value: ValueSettings = field(default_factory=ValueSettings)  # of the value head and the target network
    lm: LanguageModelling | None = None  # the language-modelling term, on windows of ``corpus``
    corpus: PackedCorpus | None = None
    peft: dict[str, Any] | None = None  # train LoRA adapters, by these arguments of ``peft.LoraConfig``
    merge: bool = False  # save the whole model with its adapters merged, not the adapters
    early_stopping_patience: int | None = None  # validations without a better one, after which the run stops
    log_completions: int = 0  # validation prompts that the student answers at every validation, see ``LogCompletions``
    sampling: Sampling = field(default_factory=Sampling)  # of those answers
    keep_checkpoints: bool = False
    vocab_size: int | None = None  # V; by default from the tokenizer and the student's head
    trust_remote_code: bool = False  # for the student's own code
