"""Score existing text with the teacher: the same candidates and log-probs that generation records."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tdistill.data.prompts import TokenizedPrompt
from tdistill.mdp.candidates import Candidates, top_p_candidates
from tdistill.models.layout import pad_pairs, positions
from tdistill.teachers.checks import check_finite, check_ids, check_response
from tdistill.teachers.generate import Generated


@torch.inference_mode()
def step_logp(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, steps: int, vocab_size: int, names: Sequence[str] = ()
) -> Tensor:
    """Return a model's log-probs [B, T, V] at the last ``steps`` columns, float32, over the tokens of its vocabulary.

    Args:
        model: a causal LM.
        input_ids: [B, L] token ids, see ``padding``.
        attention_mask: [B, L] 1 at real tokens.
        steps: T.
        vocab_size: V.
        names: names of the rows, for messages.

    Raises:
        ModelError: logits at a real token are not finite.
    """
    logits = step_logits(model, input_ids, attention_mask, steps)[..., :vocab_size].float()
    check_finite(logits, names, attention_mask[:, -steps:].bool())
    return torch.log_softmax(logits, -1)


def step_logits(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, steps: int) -> Tensor:
    """Return a model's logits [B, T, rows] at the last ``steps`` columns of padded text."""
    out = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=positions(attention_mask),
        logits_to_keep=steps,
        use_cache=False,
    )
    return out.logits[:, -steps:]


@torch.inference_mode()
def score_batch(
    model: PreTrainedModel,
    batch: Sequence[tuple[TokenizedPrompt, Sequence[int]]],
    eos_ids: Sequence[int],
    vocab_size: int,
    candidate_top_p: float,
    max_candidates: int | None = None,
) -> list[Generated]:
    """Return candidates and true log-probs for given (prompt, response ids), as ``generate_batch`` would have recorded them.

    A response is finished when its last token is one of ``eos_ids``. ``behaviour_logp`` stays empty: nobody sampled it here.

    Raises:
        ModelError: a prompt or response has a token outside the vocabulary, or logits are not finite; the prompt is named.
    """
    check_ids(model, [p for p, _ in batch])
    for prompt, response in batch:
        check_response(prompt, response, vocab_size)
    padded = pad_pairs([p.ids for p, _ in batch], [r for _, r in batch])
    inputs, attention, taken, _ = (x.to(model.device) for x in padded)
    logp = step_logp(model, inputs, attention, taken.shape[1], vocab_size, [p.prompt.prompt_id for p, _ in batch])
    token_logp = logp.gather(-1, taken.unsqueeze(-1)).squeeze(-1)
    rows = []
    for i, (prompt, response) in enumerate(batch):
        length = len(response)
        found: Candidates = top_p_candidates(logp[i, :length], candidate_top_p, max_candidates)
        counts = found.counts.tolist()
        rows.append(
            Generated(
                prompt=prompt,
                sample_index=0,
                tokens=[int(x) for x in response],
                behaviour_logp=[],
                token_logp=token_logp[i, :length].tolist(),
                candidate_ids=[found.ids[t, : counts[t]].cpu().numpy() for t in range(length)],
                candidate_logp=[found.logp[t, : counts[t]].cpu().numpy() for t in range(length)],
                kept_mass=found.kept_mass.tolist(),
                finished=int(response[-1]) in set(eos_ids),
            )
        )
    return rows
