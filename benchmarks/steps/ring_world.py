"""Define World 0: texts of H steps in which the writer may take an easy or a hard way at every step. All that is measured is exact.

A text starts with a key and a symbol, which are given. Each of its H steps is two tokens: a way, and the next symbol. By the easy way the
next symbol is the following one on a ring, whatever the key. By the hard way it is where the key's permutation leads. A student that is
too small for ``keys`` permutations can go only the easy way well.

A state is (key, symbol, kind): the writer chooses a way (``WAY``), or the symbol after it (``AFTER_EASY``, ``AFTER_HARD``). A policy is a
table of log-probs [S, keys, symbols, 3, V], where S are worlds: each has its own permutations. Tokens: symbols 0…N−1, ``easy`` = N,
``hard`` = N + 1. At a WAY state every token but ``hard`` leads to AFTER_EASY; after a way, a token that is no symbol leaves the symbol as
it is. Both are wrong.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdistill.runtime.errors import ConfigError

WAY, AFTER_EASY, AFTER_HARD = 0, 1, 2
KINDS = 3
# Probability of all tokens at a WAY state that are no way: finite log-probs, and never drawn in practice.
NO_WAY = 1e-6


@dataclass(frozen=True)
class Ring:
    """Set the sizes of a world.

    Raises:
        ConfigError: a size is below 1 (2 for symbols), or a probability outside (0, 1).
    """

    steps: int = 8  # H
    symbols: int = 64  # N
    keys: int = 16  # number of permutations: how much harder the hard way is
    easy_share: float = 0.5  # of the teacher
    right: float = 0.98  # the teacher's probability of the right symbol, by either way

    def __post_init__(self) -> None:
        if min(self.steps, self.keys) < 1 or self.symbols < 2:
            raise ConfigError(f"A ring needs at least 1 step, 1 key and 2 symbols, got {self.steps}, {self.keys} and {self.symbols}.")
        if not (0.0 < self.easy_share < 1.0 and 0.0 < self.right < 1.0):
            raise ConfigError(f"easy_share and right are probabilities inside (0, 1), got {self.easy_share} and {self.right}.")

    @property
    def vocab(self) -> int:
        """Return V: the symbols and the two ways."""
        return self.symbols + 2

    @property
    def tokens(self) -> int:
        """Return the number of tokens of a text."""
        return 2 * self.steps


def right_symbols(ring: Ring, seeds: list[int]) -> Int[Tensor, "S keys symbols 2"]:
    """Return the right next symbol by the easy way (index 0) and by the hard way (1), for one world a seed."""
    easy = (torch.arange(ring.symbols) + 1) % ring.symbols
    worlds = []
    for seed in seeds:
        rng = torch.Generator().manual_seed(seed)
        hard = torch.stack([torch.randperm(ring.symbols, generator=rng) for _ in range(ring.keys)])
        worlds.append(torch.stack([easy.expand_as(hard), hard], -1))
    return torch.stack(worlds)


def teacher_table(ring: Ring, right: Int[Tensor, "S keys symbols 2"]) -> Float[Tensor, "S keys symbols 3 V"]:
    """Return the teacher's log-probs: ``right`` for the right symbol, the rest evenly over the other tokens."""
    *worlds, _ = right.shape
    table = torch.full((*worlds, KINDS, ring.vocab), NO_WAY / ring.symbols)
    table[..., WAY, ring.symbols] = (1.0 - NO_WAY) * ring.easy_share
    table[..., WAY, ring.symbols + 1] = (1.0 - NO_WAY) * (1.0 - ring.easy_share)
    table[..., AFTER_EASY:, :] = (1.0 - ring.right) / (ring.vocab - 1)
    table[..., AFTER_EASY:, :].scatter_(-1, right.unsqueeze(-1), ring.right)
    return table.log()


def after(ring: Ring, symbol: Int[Tensor, "*B"], token: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
    """Return the symbol after a token that was written in the place of a symbol."""
    return torch.where(token < ring.symbols, token, symbol)


def next_symbols(ring: Ring) -> Int[Tensor, "symbols V"]:
    """Return the symbol after each token in the place of a symbol."""
    symbol = torch.arange(ring.symbols).unsqueeze(-1).expand(-1, ring.vocab)
    return after(ring, symbol, torch.arange(ring.vocab).expand_as(symbol))


def check_text(ring: Ring, right: Int[Tensor, "keys symbols 2"], key: int, symbol: int, text: list[int]) -> bool:
    """Tell whether a text is right: H times a way and the symbol that it leads to from the symbol before."""
    if len(text) != ring.tokens:
        return False
    for way, token in zip(text[::2], text[1::2], strict=True):
        if way not in (ring.symbols, ring.symbols + 1) or token != int(right[key, symbol, way - ring.symbols]):
            return False
        symbol = token
    return True


@dataclass(frozen=True)
class Texts:
    """Hold sampled texts of each world: B texts, T = 2H tokens."""

    key: Int[Tensor, "S B"]
    symbol_t: Int[Tensor, "S B T"]  # the last symbol in each state
    kind_t: Int[Tensor, "S B T"]
    token_t: Int[Tensor, "S B T"]
    logp_t: Float[Tensor, "S B T"]  # of the token, under the policy that wrote the text

    def take(self, chosen: Int[Tensor, "S N"]) -> "Texts":
        """Return the chosen texts of each world."""
        worlds = torch.arange(len(chosen)).unsqueeze(-1)
        return Texts(*(getattr(self, field.name)[worlds, chosen] for field in fields(self)))

    def join(self, other: "Texts") -> "Texts":
        """Return these texts, then the others, in each world."""
        return Texts(*(torch.cat([getattr(self, field.name), getattr(other, field.name)], 1) for field in fields(self)))


# Keys, symbols and kinds, each [S, B] → log-probs [S, B, V].
Policy = Callable[[Tensor, Tensor, Tensor], Tensor]


def table_policy(table: Float[Tensor, "S keys symbols 3 V"]) -> Policy:
    """Return the policy that reads a table."""
    worlds = torch.arange(table.shape[0]).unsqueeze(-1)
    return lambda key, symbol, kind: table[worlds, key, symbol, kind]


def sample_texts(ring: Ring, policy: Policy, starts: tuple[int, int], rng: torch.Generator, answers: int = 1) -> Texts:
    """Sample ``answers`` texts of a policy from each start: ``starts`` is (worlds, starts in each), with keys and symbols drawn evenly."""
    key = torch.randint(ring.keys, starts, generator=rng).repeat_interleave(answers, 1)
    symbol = torch.randint(ring.symbols, starts, generator=rng).repeat_interleave(answers, 1)
    kind = torch.full_like(key, WAY)
    columns: list[tuple[Tensor, ...]] = []
    for t in range(ring.tokens):
        logp = policy(key, symbol, kind)
        # The arg-max of log-probs with Gumbel noise is a sample.
        noise = -torch.empty_like(logp).exponential_(generator=rng).log()
        token = (logp + noise).argmax(-1)
        columns.append((symbol, kind, token, logp.gather(-1, token.unsqueeze(-1)).squeeze(-1)))
        if t % 2:
            symbol, kind = after(ring, symbol, token), torch.full_like(key, WAY)
        else:
            kind = torch.where(token == ring.symbols + 1, AFTER_HARD, AFTER_EASY)
    return Texts(key, *(torch.stack(column, -1) for column in zip(*columns, strict=True)))


@dataclass(frozen=True)
class Measured:
    """Hold what is true of a policy in each world, computed without sampling."""

    sampled: Float[Tensor, " S"]  # probability that a text is right
    greedy: Float[Tensor, " S"]  # share of keys and symbols from which the greedy text is right
    right_steps: Float[Tensor, " S"]  # probability that a step is right
    easy_share: Float[Tensor, " S"]  # expected share of steps by the easy way
    kl: Float[Tensor, " S"]  # KL(student ‖ teacher) of whole texts, in nats


def measure(
    ring: Ring,
    table: Float[Tensor, "S keys symbols 3 V"],
    teacher: Float[Tensor, "S keys symbols 3 V"],
    right: Int[Tensor, "S keys symbols 2"],
) -> Measured:
    """Measure a policy by following the probability of each symbol from step to step."""
    q = table.double().exp()
    cost = (q * (table.double() - teacher.double())).sum(-1)
    hard = q[..., WAY, ring.symbols + 1]
    easy = q[..., WAY, ring.symbols]
    right_after = torch.stack([q[..., kind, :].gather(-1, right[..., kind - 1 : kind]).squeeze(-1) for kind in (AFTER_EASY, AFTER_HARD)], -1)
    step_right = easy * right_after[..., 0] + hard * right_after[..., 1]
    step_cost = cost[..., WAY] + (1.0 - hard) * cost[..., AFTER_EASY] + hard * cost[..., AFTER_HARD]
    moves = _moves(ring, q)
    ways = torch.stack([easy * right_after[..., 0], hard * right_after[..., 1]], -1)
    state = torch.full_like(hard, 1.0 / (ring.keys * ring.symbols))
    good, totals = state.clone(), torch.zeros(3, table.shape[0], dtype=torch.double)
    for _ in range(ring.steps):
        totals += torch.stack([(state * x).sum((-1, -2)) for x in (step_right, easy, step_cost)])
        state = torch.einsum("skn,sknm->skm", state, moves)
        good = sum(torch.zeros_like(good).scatter_add_(-1, right[..., way], good * ways[..., way]) for way in (0, 1))
    return Measured(good.sum((-1, -2)), _greedy(ring, table, right), totals[0] / ring.steps, totals[1] / ring.steps, totals[2])


def _moves(ring: Ring, q: Float[Tensor, "S keys symbols 3 V"]) -> Float[Tensor, "S keys symbols symbols"]:
    """Return the probability of the symbol after a step."""
    hard = q[..., WAY, ring.symbols + 1].unsqueeze(-1)
    token = (1.0 - hard) * q[..., AFTER_EASY, :] + hard * q[..., AFTER_HARD, :]
    return torch.zeros((*token.shape[:-1], ring.symbols), dtype=q.dtype).scatter_add_(-1, next_symbols(ring).expand(token.shape), token)


def _greedy(ring: Ring, table: Float[Tensor, "S keys symbols 3 V"], right: Int[Tensor, "S keys symbols 2"]) -> Float[Tensor, " S"]:
    best = table.argmax(-1)
    way, symbols = best[..., WAY], torch.arange(ring.symbols).expand(best.shape[:-1])
    hard = (way == ring.symbols + 1).long()
    token = torch.where(hard == 1, best[..., AFTER_HARD], best[..., AFTER_EASY])
    is_right = (way >= ring.symbols) & (token == right.gather(-1, hard.unsqueeze(-1)).squeeze(-1))
    following = after(ring, symbols, token)
    place, good = symbols, torch.ones_like(is_right)
    for _ in range(ring.steps):
        good = good & is_right.gather(-1, place)
        place = following.gather(-1, place)
    return good.double().mean((-1, -2))


def best_ways(
    ring: Ring, table: Float[Tensor, "S keys symbols 3 V"], teacher: Float[Tensor, "S keys symbols 3 V"]
) -> tuple[Float[Tensor, " S"], Float[Tensor, "H S keys symbols V"]]:
    """Find the choice of ways with the least KL(student ‖ teacher) of whole texts, for a student whose symbols are fixed.

        C_t(a) = KL(q‖p)(state after a) + E_q[W_{t+1}],   W_t = −log Σ_a p(a) exp(−C_t(a)),   q*(a) ∝ p(a) exp(−C_t(a)),   W_H = 0

    Backwards from the end. A tabular student that may choose its ways at each key, symbol and step reaches it.

    Returns:
        The least KL of a text, in nats, for keys and symbols drawn evenly; and the log-probs of the first token of each step.
    """
    q = table.double().exp()
    cost = (q * (table.double() - teacher.double())).sum(-1)
    jump = next_symbols(ring).expand(*q.shape[:2], -1, -1)
    way = torch.full((ring.vocab,), AFTER_EASY)
    way[ring.symbols + 1] = AFTER_HARD
    later, chosen = torch.zeros(q.shape[:3], dtype=torch.double), []
    for _ in range(ring.steps):
        reached = later.unsqueeze(-2).expand(*q.shape[:3], -1).gather(-1, jump)
        to_go = cost + (q * reached.unsqueeze(-2)).sum(-1)  # valid in the two kinds after a way
        weight = teacher[..., WAY, :].double() - to_go[..., way]
        later = -weight.logsumexp(-1)
        chosen.append(weight + later.unsqueeze(-1))
    return later.mean((-1, -2)), torch.stack(chosen[::-1])


def easy_optimum(ring: Ring) -> float:
    """Return H·(−log easy_share), in nats: what it costs a student to take only the easy way, if it takes that way as the teacher does."""
    return -ring.steps * math.log((1.0 - NO_WAY) * ring.easy_share)
