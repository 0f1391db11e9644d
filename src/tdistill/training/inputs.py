"""Define what a training run reads, beside its settings."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tdistill.data.dataset import RolloutDataset
from tdistill.recipe.schema import Sampling


@dataclass(frozen=True)
class FitInputs:
    """Hold what a training run reads.

    Args:
        start: model directory to start from.
        train: examples to learn from.
        valid: examples that choose the best checkpoint, by ``metric_for_best_model``.
        tokenizer: tokenizer of the start; it is saved with the student.
        vocab_size: V, the number of tokens that teacher and student share.
        load_teacher: loads the teacher. It is called only if the run needs the teacher online, or to score text that the student wrote.
        teacher_dtype: the dtype in which the student writes text of its own: the teacher's, as this text stands beside the teacher's.
        sampling: how the student answers prompts for ``monitor.log_completions``.
        trust_remote_code: run the code that lies in the start's directory.
        attn_implementation: what computes the student's attention; None: transformers' default.
    """

    start: Path
    train: RolloutDataset
    valid: RolloutDataset
    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    load_teacher: Callable[[], PreTrainedModel] | None = None
    teacher_dtype: str = "bfloat16"
    sampling: Sampling = field(default_factory=Sampling)
    trust_remote_code: bool = False
    attn_implementation: str | None = None
