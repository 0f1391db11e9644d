"""Record what a system writes on prompts that it never saw, and score it with the teacher."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tdistill.cache.schema import Response
from tdistill.data.prompts import TokenizedPrompt
from tdistill.evaluation.metrics import distinct_n, rouge_l, rouge_scorer
from tdistill.models.vocabulary import Vocabulary
from tdistill.recipe.schema import ActionSpace, Sampling
from tdistill.runtime.progress import bar
from tdistill.teachers.rollouts import batch_plan
from tdistill.teachers.transformers import generate_batch, score_batch

# Answers are sampled with a seed of their own: the teacher's must not repeat its reference.
EVALUATION_SEED_OFFSET = 1_000_003
# score_batch needs some p; only the token's own log-prob is read here.
SCORED = ActionSpace(teacher_top_p=0.5)
ANSWER_METRICS = ("rouge_l", "teacher_nll", "entropy", "distinct_2", "mean_length")


def write_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[TokenizedPrompt],
    sampling: Sampling,
    num_generations: int,
    batch_size: int,
    eos_ids: Sequence[int],
    vocab_size: int,
    title: str,
) -> list[dict[str, Any]]:
    """Generate one ``answer_record`` for each prompt and sample, in their order."""
    records = []
    plan = batch_plan([(p, i) for p in prompts for i in range(num_generations)], batch_size)
    with bar(title, sum(map(len, plan)), "answers") as progress:
        for batch in plan:
            for row in generate_batch(model, batch, sampling, Vocabulary(vocab_size, eos_ids)):
                records.append(answer_record(row, tokenizer))
            progress.advance(len(batch))
    return sorted(records, key=lambda r: (r["prompt_id"], r["sample_index"]))


def answer_record(row: Response, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the record of an answer; ``own_logp`` is the sum of its tokens' log-probs under the distribution that it was drawn from."""
    return {
        "prompt_id": row.prompt_id,
        "sample_index": row.sample_index,
        "tokens": row.response_ids,
        "finished": row.finished,
        "text": tokenizer.decode(row.text_ids, skip_special_tokens=True),
        "own_logp": sum(row.behaviour_logp or ()),
    }


def entropy_of(record: dict[str, Any]) -> float | None:
    """Return −log q per token of an answer, which estimates the entropy of the q that it was drawn from; None if the answer has no
    ``own_logp``.
    """
    return -record["own_logp"] / len(record["tokens"]) if "own_logp" in record else None


def answer_metrics(
    records: Sequence[dict[str, Any]],
    prompts: Sequence[TokenizedPrompt],
    references: dict[str, list[str]],
    teacher: PreTrainedModel,
    eos_ids: Sequence[int],
    vocab_size: int,
    batch_size: int,
    title: str,
) -> dict[str, dict[str, float]]:
    """Return metrics for each prompt, averaged over its answers: ROUGE-L, teacher NLL per token, entropy per token, distinct-2, length in
    tokens.

    Teacher NLL includes the end-of-text token, so that stopping where the teacher would counts. The entropy is that of the
    distribution drawn from, by the answer's own log-prob under it: teacher NLL − entropy estimates its KL to the teacher. ROUGE-L
    is left out for prompts without a reference, the entropy for answers written before it was recorded.
    """
    by_id, scorer = {p.prompt.prompt_id: p for p in prompts}, rouge_scorer()
    values: dict[str, dict[str, list[float]]] = {}
    with bar(title, len(records), "answers") as progress:
        for start in range(0, len(records), batch_size):
            chunk = records[start : start + batch_size]
            scored = score_batch(teacher, [(by_id[r["prompt_id"]], r["tokens"]) for r in chunk], Vocabulary(vocab_size, eos_ids), SCORED)
            for record, row in zip(chunk, scored, strict=True):
                own = values.setdefault(record["prompt_id"], {k: [] for k in ANSWER_METRICS})
                own["teacher_nll"].append(-sum(row.token_logp) / len(row.token_logp))
                if (entropy := entropy_of(record)) is not None:
                    own["entropy"].append(entropy)
                own["distinct_2"].append(distinct_n(record["text"]))
                own["mean_length"].append(float(len(record["tokens"])))
                if references.get(record["prompt_id"]):
                    own["rouge_l"].append(rouge_l(record["text"], references[record["prompt_id"]], scorer))
            progress.advance(len(chunk))
    return {n: {pid: sum(v[n]) / len(v[n]) for pid, v in values.items() if v[n]} for n in ANSWER_METRICS}
