"""Score existing text with the teacher: the same candidates and log-probs that generation records."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from tdistill.data.prompts import TokenizedPrompt
from tdistill.mdp.candidates import Candidates, top_p_candidates
from tdistill.models.forward import step_logp
from tdistill.models.layout import pad_pairs
from tdistill.teachers.checks import check_ids, check_response
from tdistill.teachers.generate import Generated


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
