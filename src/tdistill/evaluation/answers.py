"""Record what a system writes on prompts that it never saw, and score it with the teacher."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tdistill.cache.schema import Response
from tdistill.data.prompts import TokenizedPrompt
from tdistill.evaluation.metrics import distinct_n, rouge_l, rouge_scorer
from tdistill.models.forward import step_logp
from tdistill.models.layout import pad_pairs
from tdistill.models.vocabulary import Vocabulary
from tdistill.recipe.schema import Sampling
from tdistill.runtime.errors import ModelError
from tdistill.runtime.progress import bar
from tdistill.teachers.rollouts import batch_plan
from tdistill.teachers.transformers import generate_batch

# Responses whose [T, V] log-probs are in memory at once, of teacher and student: 50 of them took 10 GB.
SCORED_AT_ONCE = 8
ANSWER_METRICS = ("rouge_l", "teacher_nll", "entropy", "distinct_2", "mean_length")
MAY_BE_UNDEFINED = "distinct_2"

Batch = Sequence[tuple[TokenizedPrompt, int]]
Scores = Mapping[str, Mapping[str, float]]  # metric → prompt id → value


@dataclass(frozen=True)
class Protocol:
    """Hold how all systems answer the same prompts."""

    prompts: Sequence[TokenizedPrompt]
    sampling: Sampling
    num_generations: int  # answers per prompt
    tokenizer: PreTrainedTokenizerBase
    eos_ids: Sequence[int]
    vocab_size: int

    def plan(self, batch_size: int) -> list[list[tuple[TokenizedPrompt, int]]]:
        """Return all (prompt, sample index) pairs in batches."""
        return batch_plan([(p, i) for p in self.prompts for i in range(self.num_generations)], batch_size)

    def answer(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, Any]]:
        """Return a model's answers to a batch, as ``answer_record`` makes them."""
        rows = generate_batch(model, batch, self.sampling, Vocabulary(self.vocab_size, self.eos_ids))
        return [answer_record(row, self.tokenizer) for row in rows]


def answer_record(row: Response, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the record of an answer; ``own_logp`` is the sum of its tokens' log-probs under the distribution that it was drawn from."""
    return {
        "prompt_id": row.prompt_id,
        "sample_index": row.sample_index,
        "tokens": row.response_ids,
        "finished": row.finished,
        "text": tokenizer.decode(row.text_ids, skip_special_tokens=True),
        "own_logp": sum(row.behaviour_logp or []),
    }


def entropy_of(record: Mapping[str, Any]) -> float | None:
    """Return −log q per token of an answer, which estimates the entropy of the q that it was drawn from; None if the answer has no
    ``own_logp``.
    """
    return -record["own_logp"] / len(record["tokens"]) if "own_logp" in record else None


def answer_metrics(
    records: Sequence[Mapping[str, Any]],
    protocol: Protocol,
    references: Mapping[str, Sequence[str]],
    load_teacher: Callable[[], PreTrainedModel],
    title: str,
) -> dict[str, dict[str, float]]:
    """Return metrics for each prompt, averaged over its answers: ROUGE-L, teacher NLL per token, entropy per token, distinct-2, length in
    tokens.

    Teacher NLL includes the end-of-text token, so that stopping where the teacher would counts. The entropy is that of the
    distribution drawn from, by the answer's own log-prob under it: teacher NLL − entropy estimates its KL to the teacher. ROUGE-L
    is left out for prompts without a reference, the entropy for answers written before it was recorded.
    """
    by_id, scorer, teacher = {p.prompt.prompt_id: p for p in protocol.prompts}, rouge_scorer(), load_teacher()
    values: dict[str, dict[str, list[float]]] = {}
    with bar(title, len(records), "answers") as progress:
        for start in range(0, len(records), SCORED_AT_ONCE):
            chunk = records[start : start + SCORED_AT_ONCE]
            scored = teacher_nll(teacher, [(by_id[r["prompt_id"]], r["tokens"]) for r in chunk], protocol.vocab_size)
            for record, nll in zip(chunk, scored, strict=True):
                own = values.setdefault(record["prompt_id"], {k: [] for k in ANSWER_METRICS})
                own["teacher_nll"].append(float(nll.mean()))
                if (entropy := entropy_of(record)) is not None:
                    own["entropy"].append(entropy)
                own["distinct_2"].append(distinct_n(record["text"]))
                own["mean_length"].append(float(len(record["tokens"])))
                if references.get(record["prompt_id"]):
                    own["rouge_l"].append(rouge_l(record["text"], references[record["prompt_id"]], scorer))
            progress.advance(len(chunk))
    return {n: {pid: sum(v[n]) / len(v[n]) for pid, v in values.items() if v[n]} for n in ANSWER_METRICS}


@torch.inference_mode()
def teacher_nll(teacher: PreTrainedModel, batch: Sequence[tuple[TokenizedPrompt, Sequence[int]]], vocab_size: int) -> list[np.ndarray]:
    """Return −log π* of every token of the given (prompt, response ids), one float64 array for each response.

    Raises:
        ModelError: the teacher's logits are not finite; the prompt is named.
    """
    padded = pad_pairs([p.ids for p, _ in batch], [r for _, r in batch])
    inputs, attention, taken, _ = (x.to(teacher.device) for x in padded)
    names = [p.prompt.prompt_id for p, _ in batch]
    logp = step_logp(teacher, inputs, attention, taken.shape[1], vocab_size, names).gather(-1, taken.unsqueeze(-1)).squeeze(-1)
    values = -logp.double().cpu().numpy()
    return [row[: len(response)] for row, (_, response) in zip(values, batch, strict=True)]


def check_finite(scores: Scores, name: str) -> None:
    """Check that every score is a finite number, before it is written down as a result.

    Raises:
        ModelError: one is not. Only distinct-2 may be undefined, for an answer of fewer than two words.
    """
    for metric, values in scores.items():
        for prompt_id, value in values.items():
            if not math.isfinite(value) and metric != MAY_BE_UNDEFINED:
                raise ModelError(
                    f"{metric} of {name} on prompt {prompt_id!r} is {value}: the log-probs of {name} or of the teacher are not finite there. "
                    "No scores were written. Look at that model's weights, or evaluate with evaluation.dtype: float32."
                )
