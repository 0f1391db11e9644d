"""Build small MDPs: random ones, trees of tokens, a single state that attains the bound, and a road where leaving it is costly."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from tdistill.mdp.tabular import TabularMDP, soft_optimal_q


@dataclass(frozen=True)
class Family:
    """Set the distribution that random MDPs are drawn from."""

    n_states: int
    n_actions: int
    scale: Tensor | float = 2.0  # standard deviation of the rewards: at .1 π* is nearly uniform, at 10 nearly deterministic
    end: float = 0.1  # share of the transitions that end the episode
    stochastic: bool = True  # else every action has one successor


def random_mdps(g: Generator, gamma: Tensor, family: Family) -> TabularMDP:
    """Build one MDP for each entry of ``gamma``: rewards are drawn from N(0, scale²), and successors at random."""
    n, n_states = len(gamma), family.n_states
    reward = torch.randn(n, n_states, family.n_actions, generator=g, dtype=torch.float64)
    reward = reward * torch.as_tensor(family.scale, dtype=torch.float64).expand(n)[:, None, None]
    shape = (n, n_states, family.n_actions, n_states)
    if family.stochastic:
        transition = (3.0 * torch.randn(shape, generator=g, dtype=torch.float64)).softmax(-1)
        ends = family.end * torch.rand(shape[:-1], generator=g, dtype=torch.float64)
    else:
        transition = one_hot(torch.randint(n_states, shape[:-1], generator=g), n_states).double()
        ends = (torch.rand(shape[:-1], generator=g, dtype=torch.float64) < family.end).double()
    return TabularMDP(reward, transition * (1.0 - ends).unsqueeze(-1), gamma)


def from_successors(reward: Tensor, successor: Tensor, gamma: float) -> TabularMDP:
    """Build a deterministic MDP from a table [S, A] of next states, −1 for terminal."""
    n_states = reward.shape[0]
    transition = one_hot(successor.clamp(min=0), n_states).double() * (successor >= 0).unsqueeze(-1)
    return TabularMDP(reward, transition, torch.tensor(gamma, dtype=torch.float64))


def self_loop(reward: Tensor, gamma: float) -> TabularMDP:
    """Build an MDP of one state, in which every action stays there. It attains the bound: Q* − Q*_p = γ/(1−γ)·(−log kept mass)."""
    return from_successors(reward.unsqueeze(0), torch.zeros(1, len(reward), dtype=torch.long), gamma)


def token_tree(g: Generator, vocab: int, depth: int, gamma: float, scale: float = 2.0) -> TabularMDP:
    """Build the MDP of texts of at most ``depth`` tokens. A state is a prefix (state 0 is the empty one); token 0 is EOS; the last token ends
    a text too.
    """
    successor: list[list[int]] = []
    lengths = [0]
    while len(successor) < len(lengths):
        length = lengths[len(successor)]
        row = [-1] * vocab
        if length + 1 < depth:
            row[1:] = range(len(lengths), len(lengths) + vocab - 1)
            lengths += [length + 1] * (vocab - 1)
        successor.append(row)
    reward = scale * torch.randn(len(lengths), vocab, generator=g, dtype=torch.float64)
    return from_successors(reward, torch.tensor(successor), gamma)


@dataclass(frozen=True)
class Road:
    """Hold E token automata, each with its teacher. The teacher stays on the road and seldom sees the states off it."""

    successor: Tensor  # [E, S, A]
    reward: Tensor  # [E, S, A]: ``bonus`` for arriving on the road, plus noise
    teacher_logp: Tensor  # [E, S, A]: soft-optimal for it
    start: Tensor  # [E, S]: uniform on the road
    features: Tensor  # [E, S, D]: all that the student sees of a state


def make_road(seeds: list[int], *, n_road: int = 8, n_off: int = 16, vocab: int = 8, n_features: int = 6, bonus: float = 3.0) -> Road:
    """Build one automaton for each seed. On the road, half of the tokens stay there; off the road, one token of each state leads back.

    A state has fewer features than there are states, so that the student is too small for its teacher.
    """
    parts = [_one_road(seed, n_road, n_off, vocab, n_features, bonus) for seed in seeds]
    successor, reward, features = (torch.stack(x) for x in zip(*parts, strict=True))
    transition = one_hot(successor, n_road + n_off).double()
    mdp = TabularMDP(reward, transition, torch.full((len(seeds),), 0.9, dtype=torch.float64))
    teacher_logp = soft_optimal_q(mdp, mdp.all_actions).log_softmax(-1)
    start = torch.zeros(len(seeds), n_road + n_off, dtype=torch.float64)
    start[:, :n_road] = 1.0 / n_road
    return Road(successor, reward, teacher_logp, start, features)


def _one_road(seed: int, n_road: int, n_off: int, vocab: int, n_features: int, bonus: float) -> tuple[Tensor, Tensor, Tensor]:
    g = Generator().manual_seed(seed)
    n_states = n_road + n_off
    to_road = torch.randint(n_road, (n_states, vocab), generator=g)
    to_off = torch.randint(n_road, n_states, (n_states, vocab), generator=g)
    rank = torch.rand(n_states, vocab, generator=g).argsort(-1)
    ways = torch.where(torch.arange(n_states) < n_road, vocab // 2, 1).unsqueeze(-1)
    stays = rank < ways
    reward = bonus * stays.double() + torch.randn(n_states, vocab, generator=g, dtype=torch.float64)
    features = torch.randn(n_states, n_features, generator=g, dtype=torch.float64) / n_features**0.5
    features[:, 0] = 1.0  # a bias
    return torch.where(stays, to_road, to_off), reward, features
