"""Sample tokens. The noise belongs to the token, not to the batch, so samples are the same under any batch size and after any stop."""

import hashlib

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdistill.mdp.candidates import Candidates, nucleus_mask, top_p_candidates
from tdistill.recipe.schema import Sampling


def token_noise(seed: int, prompt_id: str, sample_index: int, length: int) -> np.ndarray:
    """Return [length] uniforms in [0, 1); the t-th depends on (seed, prompt id, sample index, t) alone (counter-based Philox)."""
    key = hashlib.blake2b(f"{seed}|{prompt_id}|{sample_index}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(length)


def sample_tokens(
    logits: Float[Tensor, "N V"], noise: Float[Tensor, " N"], sampling: Sampling, nucleus: Candidates | None = None
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """Sample one token for each row by inverse CDF; return it and its log-prob under the distribution sampled from.

    The distribution is softmax(logits / temperature), cut to ``top_k`` (0 = no cut), then to the nucleus ``top_p``, then
    renormalised: transformers' order. ``nucleus`` saves the work where it is that distribution's nucleus already.
    """
    ids, logp = _distribution(logits, sampling) if nucleus is None else (nucleus.ids, nucleus.logp)
    cdf = logp.double().exp().cumsum(-1)
    target = (noise.double() * cdf[:, -1]).unsqueeze(-1)
    # The last slot with mass bounds the index: rounding of u·total up to total must not select padding.
    last = (logp > -torch.inf).long().cumsum(-1).argmax(-1)
    slot = torch.minimum((cdf <= target).sum(-1), last).unsqueeze(-1)
    token = slot if ids is None else ids.gather(-1, slot)
    behaviour = logp.gather(-1, slot).squeeze(-1) - cdf[:, -1].log().to(logp.dtype)
    return token.squeeze(-1), behaviour


def _distribution(logits: Tensor, sampling: Sampling) -> tuple[Tensor | None, Tensor]:
    """Return the tokens that can be drawn (None: all, in the order of their ids, which needs no sort) and their log-probs."""
    full = torch.log_softmax(logits / sampling.temperature, -1)
    if sampling.top_k > 0:
        logp, ids = full.topk(min(sampling.top_k, full.shape[-1]), -1)
        logp = logp - logp.logsumexp(-1, keepdim=True)
        return ids, logp.masked_fill(~nucleus_mask(logp, sampling.top_p), -torch.inf)
    if sampling.top_p < 1.0:
        cut = top_p_candidates(full, sampling.top_p)
        return cut.ids, cut.logp
    return None, full
