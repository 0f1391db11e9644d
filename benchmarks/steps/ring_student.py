"""Define the students of World 0: one small network a world, all trained at once, and the ``Steps`` that objectives read."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from ring_world import KINDS, Ring, Texts, right_symbols, teacher_table
from torch import Tensor, nn

from tdistill.mdp.candidates import top_p_candidates
from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import FIELDS


class Students(nn.Module):
    """Compute logits of S students: relu(key + symbol + kind + b)·W + c, each with parameters of its own.

    A value head on the hidden units gives v(s), and w(s,a) = v(s) + ⟨M h, W_a⟩/width, as ``models.value_head`` does.
    """

    def __init__(self, ring: Ring, width: int, seeds: list[int]):
        super().__init__()
        self.detach = True  # the body gets no gradient from the value head
        shapes = {"key": (ring.keys, width), "symbol": (ring.symbols, width), "kind": (KINDS, width), "output": (width, ring.vocab)}
        for name, shape in shapes.items():
            scale = 1.0 / math.sqrt(3 if name != "output" else width)
            drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + place)) for place, seed in enumerate(seeds)]
            self.register_parameter(name, nn.Parameter(scale * torch.stack(drawn)))
        self.hidden_bias = nn.Parameter(torch.zeros(len(seeds), 1, width))
        self.output_bias = nn.Parameter(torch.zeros(len(seeds), 1, ring.vocab))
        self.value = nn.Parameter(torch.zeros(len(seeds), width, 1))
        self.value_bias = nn.Parameter(torch.zeros(len(seeds), 1, 1))
        self.action_value = nn.Parameter(torch.zeros(len(seeds), width, width))

    @property
    def head(self) -> list[nn.Parameter]:
        """Return the parameters of the value head."""
        return [self.value, self.value_bias, self.action_value]

    @property
    def body(self) -> list[nn.Parameter]:
        """Return the parameters of the policy."""
        return [p for p in self.parameters() if all(p is not q for q in self.head)]

    def hidden(self, key: Tensor, symbol: Tensor, kind: Tensor) -> Float[Tensor, "S N width"]:
        """Return the hidden units of N states a student. The arguments are [S, N]."""
        worlds = torch.arange(key.shape[0]).unsqueeze(-1)
        return (self.key[worlds, key] + self.symbol[worlds, symbol] + self.kind[worlds, kind] + self.hidden_bias).relu()

    def logits(self, hidden: Float[Tensor, "S N width"]) -> Float[Tensor, "S N V"]:
        """Return the logits of all tokens."""
        return hidden @ self.output + self.output_bias

    def state_value(self, hidden: Float[Tensor, "S N width"]) -> Float[Tensor, "S N 1"]:
        """Return v(s)."""
        return (hidden.detach() if self.detach else hidden) @ self.value + self.value_bias

    def action_values(self, hidden: Float[Tensor, "S N width"]) -> Float[Tensor, "S N V"]:
        """Return w(s,a). The output weights get no gradient from it."""
        read = (hidden.detach() if self.detach else hidden) @ self.action_value
        return self.state_value(hidden) + read @ self.output.detach() / hidden.shape[-1]

    @torch.no_grad()
    def policy(self, key: Tensor, symbol: Tensor, kind: Tensor) -> Float[Tensor, "S N V"]:
        """Return the log-probs in N states a student. The arguments are [S, N]."""
        return self.logits(self.hidden(key, symbol, kind)).log_softmax(-1)

    def table(self, ring: Ring) -> Float[Tensor, "S keys symbols 3 V"]:
        """Return the log-probs of every student in every state."""
        count, shape = self.key.shape[0], (ring.keys, ring.symbols, KINDS)
        axes = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
        return self.policy(*(axis.reshape(1, -1).expand(count, -1) for axis in axes)).reshape(count, *shape, -1)


@dataclass(frozen=True)
class World:
    """Hold the worlds of several seeds: their teachers, and the action space A_p of each state."""

    ring: Ring
    seeds: tuple[int, ...]
    top_p: float = 1.0

    @cached_property
    def right(self) -> Tensor:
        """Return the right next symbols, [S, keys, symbols, 2]."""
        return right_symbols(self.ring, list(self.seeds))

    @cached_property
    def teacher(self) -> Tensor:
        """Return the teachers' log-probs, [S, keys, symbols, 3, V]."""
        return teacher_table(self.ring, self.right)

    @cached_property
    def candidates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids, log-probs and legality of the candidates of each state, [S, keys, symbols, 3, K]. At p = 1 they are all tokens."""
        if self.top_p == 1.0:
            ids = torch.arange(self.ring.vocab).expand(self.teacher.shape)
            return ids, self.teacher, torch.ones_like(ids, dtype=torch.bool)
        found = top_p_candidates(self.teacher.reshape(-1, self.ring.vocab), self.top_p)
        ids, logp, legal = (x.reshape(*self.teacher.shape[:-1], -1) for x in (found.ids, found.logp, found.legal))
        return ids, logp, legal

    def steps(self, students: Students, texts: Texts, needs: frozenset[str], expert: Tensor) -> Steps:
        """Return the steps of all texts, [S·B, T].

        Args:
            students: whose logits.
            texts: written by teachers, students or both.
            needs: of the objective: the fields to fill in.
            expert: [B], True where the text is to be imitated.
        """
        worlds, shape = torch.arange(len(self.seeds))[:, None, None], texts.token_t.shape
        state = (worlds, texts.key.unsqueeze(-1).expand(shape), texts.symbol_t, texts.kind_t)
        ids, logp, legal = (x[state].flatten(0, 1) for x in self.candidates)
        hidden = students.hidden(*(x.flatten(1) for x in state[1:]))
        logits = students.logits(hidden).reshape(*shape, -1).flatten(0, 1)
        token = texts.token_t.flatten(0, 1)
        found = legal & (ids == token.unsqueeze(-1))
        terminal = torch.zeros_like(token, dtype=torch.bool)
        terminal[:, -1] = True
        fields: dict[str, Callable[[], Tensor]] = {
            "log_z": lambda: logits.logsumexp(-1),
            "max": lambda: logits.amax(-1),
            "taken": lambda: logits.gather(-1, token.unsqueeze(-1)).squeeze(-1),
            "value": lambda: students.state_value(hidden).reshape(token.shape),
            "action_value": lambda: students.action_values(hidden).reshape(logits.shape).gather(-1, ids),
            "behaviour": lambda: texts.logp_t.flatten(0, 1),
            "expert": lambda: expert.repeat(shape[0]).unsqueeze(-1).expand_as(token),
        }
        return Steps(
            q_t=logits.gather(-1, ids),
            teacher_logp_t=logp,
            legal_t=legal,
            a_t=torch.where(found.any(-1), found.long().argmax(-1), -1),
            mask_t=torch.ones_like(terminal),
            terminal_t=terminal,
            teacher_taken_logp_t=self.teacher[(*state, texts.token_t)].flatten(0, 1),
            vocab_size=self.ring.vocab,
            **{FIELDS[need]: fields[need]() for need in needs & fields.keys()},
        )
