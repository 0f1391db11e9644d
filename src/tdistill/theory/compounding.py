"""Measure compounding errors exactly: a student too small for its teacher, trained by every kind of objective, over growing horizons.

Students learn from sampled text through ``Steps``, as language models do, and are judged without sampling: the regret is
KL(student‖teacher) of whole texts of H tokens, Σ_t E_{s_t~student} KL(q‖p)(s_t), which is the soft return lost on the reward
log π*(a|s).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from tdistill.mdp.steps import Steps
from tdistill.mdp.tabular import top_p_set
from tdistill.objectives import bind
from tdistill.theory.instances import Road

TOP_P = 0.9
TOKENS = 2048  # of text per seed at every horizon, so that a long horizon has fewer texts
LEARNING_RATE = 0.2
REFRESH = 2  # steps between new roll-outs where a student learns from its own text
EXACT_STEPS = 4  # times as many steps for the exact references, whose steps are cheap
GAMMA = 0.99
MAX_N = 8  # longest window of path_consistency

Data = Literal["teacher", "student", "exact_states", "exact"]


@dataclass(frozen=True)
class Learner:
    """Hold an objective and the text it learns from. Exact methods have no objective: they minimise the regret's own terms."""

    objective: dict[str, Any] | None
    data: Data = "teacher"


_TD: dict[str, Any] = {"gamma": GAMMA, "anchor": "tail"}
_IQ: dict[str, Any] = {"name": "iq_learn", **_TD, "gauge": "lse", "estimator": "expected", "q_min": None}
_PATHS: dict[str, Any] = {"name": "path_consistency", **_TD, "max_n": MAX_N}
METHODS: dict[str, Learner] = {
    "forward_kl": Learner({"name": "forward_kl"}),
    "reverse_kl": Learner({"name": "reverse_kl"}),
    "iq_learn α=1": Learner({**_IQ, "alpha": 1.0}),
    "iq_learn α=10": Learner({**_IQ, "alpha": 10.0}),
    "iq_learn α=10 γ=0": Learner({**_IQ, "alpha": 10.0, "gamma": 0.0}),
    "iq_learn α=100": Learner({**_IQ, "alpha": 100.0}),
    "csil": Learner({"name": "csil", **_TD}),
    "q_lambda": Learner({"name": "q_lambda", **_TD}),
    "path_consistency": Learner(_PATHS),
    "actor_critic": Learner({"name": "actor_critic", "gamma": GAMMA, "center": 0.0}),
    "reverse_kl, own text": Learner({"name": "reverse_kl"}, "student"),
    "path_consistency, own text": Learner(_PATHS, "student"),
    "actor_critic, own text": Learner({"name": "actor_critic", "gamma": GAMMA, "center": 0.0}, "student"),
    "exact, states only": Learner(None, "exact_states"),
    "exact, looking ahead": Learner(None, "exact"),
}


@dataclass(frozen=True)
class Paths:
    """Hold B texts of H tokens for each of E seeds."""

    states: Tensor  # [E, B, H]
    tokens: Tensor  # [E, B, H]
    behaviour_logp: Tensor  # [E, B, H] of the policy that wrote them


def sample_paths(g: Generator, road: Road, logp: Tensor, horizon: int, n_paths: int) -> Paths:
    """Sample texts of exactly ``horizon`` tokens, the last of which ends them."""
    n_seeds = len(logp)
    rows = torch.arange(n_seeds).unsqueeze(-1)
    state = torch.multinomial(road.start, n_paths, replacement=True, generator=g)
    cumulative = logp.exp().cumsum(-1)
    states, tokens = [], []
    for _ in range(horizon):
        u = torch.rand(n_seeds, n_paths, 1, generator=g, dtype=torch.float64)
        token = (u > cumulative[rows, state]).sum(-1).clamp(max=logp.shape[-1] - 1)
        states.append(state)
        tokens.append(token)
        state = road.successor[rows, state, token]
    s, a = torch.stack(states, -1), torch.stack(tokens, -1)
    return Paths(s, a, logp[rows.unsqueeze(-1), s, a])


@dataclass(frozen=True)
class LinearStudent:
    """Compute logits and value linearly from the features of a state. It has fewer features than there are states, so it is too small."""

    weight: Tensor  # [E, D, A]
    value_weight: Tensor  # [E, D, 1]

    def logits(self, road: Road) -> Tensor:
        """Return the logits [E, S, A]."""
        return road.features @ self.weight

    def value(self, road: Road) -> Tensor:
        """Return the values [E, S]."""
        return (road.features @ self.value_weight).squeeze(-1)


def new_student(road: Road) -> LinearStudent:
    """Return a student of all zeros: the uniform policy, V = 0."""
    n_seeds, _, n_features = road.features.shape
    weight = torch.zeros(n_seeds, n_features, road.teacher_logp.shape[-1], dtype=torch.float64, requires_grad=True)
    return LinearStudent(weight, torch.zeros(n_seeds, n_features, 1, dtype=torch.float64, requires_grad=True))


@dataclass(frozen=True)
class CandidateTable:
    """Hold A_p of every state, by descending teacher probability, padded to the widest."""

    ids: Tensor  # [E, S, K]
    legal: Tensor  # [E, S, K]
    teacher_logp: Tensor  # [E, S, K]


def candidate_table(road: Road, p: float = TOP_P) -> CandidateTable:
    """Return the table of A_p."""
    kept = top_p_set(road.teacher_logp.exp(), torch.full(road.teacher_logp.shape[:-1], p, dtype=torch.float64))
    logp, ids = road.teacher_logp.masked_fill(~kept, -torch.inf).sort(-1, descending=True)
    width = int(kept.sum(-1).max())
    return CandidateTable(ids[..., :width], logp[..., :width] > -torch.inf, logp[..., :width])


def steps_of(road: Road, table: CandidateTable, paths: Paths, student: LinearStudent) -> Steps:
    """Return the paths as objectives see them: [E·B, H, K] on A_p, every text finished by its last token."""
    n_states, horizon = road.teacher_logp.shape[1], paths.states.shape[-1]
    logits = student.logits(road)
    index = (paths.states + n_states * torch.arange(len(logits)).view(-1, 1, 1)).view(-1, horizon)
    token = paths.tokens.view(-1, horizon)

    def at(x: Tensor) -> Tensor:
        return x.flatten(0, 1)[index]

    is_taken = (at(table.ids) == token.unsqueeze(-1)) & at(table.legal)
    a_t = torch.where(is_taken.any(-1), is_taken.int().argmax(-1), -1)
    terminal = torch.zeros_like(token, dtype=torch.bool)
    terminal[:, -1] = True
    return Steps(
        q_t=at(logits.gather(-1, table.ids)),
        log_z_t=at(logits.logsumexp(-1)),
        max_t=at(logits.amax(-1)),
        teacher_logp_t=at(table.teacher_logp),
        legal_t=at(table.legal),
        a_t=a_t,
        mask_t=torch.ones_like(terminal),
        terminal_t=terminal,
        taken_logit_t=at(logits).gather(-1, token.unsqueeze(-1)).squeeze(-1),
        behaviour_logp_t=paths.behaviour_logp.view(-1, horizon),
        value_t=at(student.value(road)),
        vocab_size=logits.shape[-1],
    )


@dataclass(frozen=True)
class Outcome:
    """Hold what a policy loses against the teacher over H tokens, exactly, for each seed [E]."""

    regret: Tensor  # KL(student‖teacher) of whole texts, nats
    return_lost: Tensor  # of the task's reward, without entropy
    off_road: Tensor  # share of its tokens written off the road
    cloning_error: Tensor  # KL(student‖teacher) per token on the *teacher's* states


def _walk(road: Road, logp: Tensor, horizon: int, x: Tensor, detach: bool = False) -> Tensor:
    """Return [E, C] Σ_t Σ_s d_t(s) x(s) of C columns x [E, S, C], with d_t the state distribution of ``logp`` after t tokens."""
    d, total = road.start, torch.zeros((), dtype=torch.float64)
    prob = logp.exp()
    for _ in range(horizon):
        total = total + (d.unsqueeze(-1) * x).sum(-2)
        flow = (d.unsqueeze(-1) * prob).flatten(1)
        d = torch.zeros_like(d).scatter_add(1, road.successor.flatten(1), flow)
        d = d.detach() if detach else d
    return total


def outcome(road: Road, logits: Tensor, horizon: int) -> Outcome:
    """Evaluate a student by dynamic programming."""
    logp, teacher = logits.log_softmax(-1), road.teacher_logp
    kl = (logp.exp() * (logp - teacher)).sum(-1)
    off = (road.start == 0).double()

    def columns(policy: Tensor) -> Tensor:
        return torch.stack([kl, (policy.exp() * road.reward).sum(-1), off], -1)

    mine = _walk(road, logp, horizon, columns(logp))
    theirs = _walk(road, teacher, horizon, columns(teacher))
    return Outcome(mine[:, 0], theirs[:, 1] - mine[:, 1], mine[:, 2] / horizon, theirs[:, 0] / horizon)


def exact_loss(road: Road, student: LinearStudent, horizon: int, look_ahead: bool) -> Tensor:
    """Return the regret per token, summed over seeds; without ``look_ahead`` the states visited carry no gradient."""
    logp = student.logits(road).log_softmax(-1)
    kl = (logp.exp() * (logp - road.teacher_logp)).sum(-1, keepdim=True)
    return _walk(road, logp, horizon, kl, detach=not look_ahead).sum() / horizon


def train_learner(road: Road, learner: Learner, horizon: int, n_steps: int, seed: int) -> Tensor:
    """Return logits [E, S, A] of students trained by ``learner`` on texts of ``horizon`` tokens: Adam, all texts at once, cosine rate.

    Seeds are trained side by side: Adam acts on each parameter alone, so they do not interact.
    """
    g = Generator().manual_seed(seed)
    student, table, n_paths = new_student(road), candidate_table(road), max(TOKENS // horizon, 1)
    paths = sample_paths(g, road, road.teacher_logp, horizon, n_paths)
    loss = bind(learner.objective) if learner.objective else None
    n_steps = n_steps if loss else EXACT_STEPS * n_steps
    optimiser = torch.optim.Adam([student.weight, student.value_weight], lr=LEARNING_RATE)
    for step in range(n_steps):
        for group in optimiser.param_groups:
            group["lr"] = 0.5 * LEARNING_RATE * (1.0 + math.cos(math.pi * step / n_steps))
        if learner.data == "student" and step % REFRESH == 0:
            paths = sample_paths(g, road, student.logits(road).detach().log_softmax(-1), horizon, n_paths)
        optimiser.zero_grad()
        if loss is None:
            exact_loss(road, student, horizon, look_ahead=learner.data == "exact").backward()
        else:
            # A mean per seed, as if each were trained alone.
            (loss(steps_of(road, table, paths, student)).loss_t.sum() / (n_paths * horizon)).backward()
        optimiser.step()
    return student.logits(road).detach()
