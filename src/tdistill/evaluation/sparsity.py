"""Measure how concentrated a teacher is on its own text, and what each p and each rule keeps, costs and hides."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from tdistill.data.dataset import RolloutDataset
from tdistill.evaluation.held_out import state_logp
from tdistill.mdp.candidates import nucleus_mask, rule_mask, top_p_candidates
from tdistill.recipe.schema import CandidateRule
from tdistill.runtime.forms import Form, Positive

ROUNDING = 1e-2  # of sums of probabilities
TOP_KS = (1, 2, 3, 5, 7, 10, 20, 50, 100, 200, 500, 1000)
TOP_PS = (0.5, 0.8, 0.9, 0.95)


class SparsityForm(Form):
    """Declare the form of a file that holds what ``summary`` returns."""

    n_tokens: Positive
    vocab_size: Positive
    top_k_mass: dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,9}$")], Annotated[float, Field(ge=0.0, le=1.0 + ROUNDING)]]
    sizes: dict[Annotated[str, Field(pattern=r"^(0\.[0-9]+|1\.0)$")], list[Positive]]


@dataclass(frozen=True)
class StateSparsity:
    """Hold one entry for each state. ``cuts``: "p=.8" or "adaptive 0.001" → arrays of |A|, kept mass m, and hidden information, each [N]."""

    vocab_size: int
    position: np.ndarray  # of the token in its response, from 0
    entropy: np.ndarray  # of the teacher, nats
    top_k_mass: dict[int, float]  # k → mean mass of the k most probable tokens
    cuts: dict[str, dict[str, np.ndarray]]


def measure_sparsity(
    teacher: PreTrainedModel, dataset: RolloutDataset, vocab_size: int, batch_size: int, rules: Sequence[CandidateRule] = ()
) -> StateSparsity:
    """Measure every state of a data set, with the teacher online."""
    return sparsity_of(state_logp(teacher, dataset, vocab_size, batch_size, "teacher's sparsity"), vocab_size, rules=rules)


@torch.inference_mode()
def sparsity_of(
    batches: Iterable[tuple[Tensor, Tensor]], vocab_size: int, top_ps: Sequence[float] = TOP_PS, rules: Sequence[CandidateRule] = ()
) -> StateSparsity:
    """Compute the sparsity from batches of log-probs [B, T, V] over the whole vocabulary and masks [B, T] of existing states.

    Hidden is (1 − m)·H(π* outside A), in nats: what a tail bucket does not see of the teacher's information, H(π*) in all. The
    rules cut the widest of ``top_ps``.
    """
    ks = [k for k in TOP_KS if k <= vocab_size]
    positions, entropies, mass = [], [], torch.zeros(len(ks), dtype=torch.float64)
    cuts: dict[str, dict[str, list[Tensor]]] = {}
    for logp, mask in batches:
        positions.append(mask.nonzero()[:, 1])
        states = logp[mask]
        top = states.topk(ks[-1], dim=-1).values
        mass += top.double().exp().cumsum(-1)[:, [k - 1 for k in ks]].sum(0)
        entropy = -(states.exp() * states).double().sum(-1)
        entropies.append(entropy)
        widest = top_p_candidates(states, max(top_ps)).logp  # a full sort of [tokens, V] takes ten times as long
        masks = {f"p={p:g}": nucleus_mask(widest, p) for p in top_ps}
        masks |= {f"{rule.name} {rule.value:g}": rule_mask(rule, widest) for rule in rules}
        for name, kept in masks.items():
            for key, value in _cut(widest, kept, entropy).items():
                cuts.setdefault(name, {}).setdefault(key, []).append(value)
    entropy = torch.cat(entropies)
    return StateSparsity(
        vocab_size=vocab_size,
        position=torch.cat(positions).numpy(),
        entropy=entropy.numpy(),
        top_k_mass={k: float(m) / len(entropy) for k, m in zip(ks, mass, strict=True)},
        cuts={name: {key: torch.cat(v).numpy() for key, v in arrays.items()} for name, arrays in cuts.items()},
    )


def _cut(sorted_logp: Tensor, kept: Tensor, entropy: Tensor) -> dict[str, Tensor]:
    p = torch.where(kept, sorted_logp, -torch.inf).double().exp()
    inside = -torch.where(kept, p * sorted_logp.double(), 0.0).sum(-1)
    m = p.sum(-1).clamp(max=1.0)
    tail = 1.0 - m
    # −Σ_tail π log π + (1−m) log(1−m) = (1−m)·H(π* | tail)
    hidden = (entropy - inside + torch.where(tail > 0, tail * tail.log(), 0.0)).clamp(min=0.0)
    return {"size": kept.sum(-1), "mass": m, "hidden": hidden}


def summary(found: StateSparsity, top_ps: Sequence[float] = TOP_PS) -> dict[str, object]:
    """Return what a run's report shows: the mass of the top k, and |A_p| of every state."""
    sizes = {p: found.cuts[f"p={p:g}"]["size"].tolist() for p in top_ps}
    return {"n_tokens": len(found.entropy), "vocab_size": found.vocab_size, "top_k_mass": found.top_k_mass, "sizes": sizes}
