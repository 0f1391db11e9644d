"""Random ragged batches, as ``Steps`` for the library and as ``oracles.Response`` for the truth, and the checks all share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import oracles
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad

from tdistill.mdp.candidates import spread_tail
from tdistill.mdp.steps import Steps
from tdistill.objectives import ObjectiveOutput

EVERY_NEED = frozenset({"log_z", "max", "taken", "value", "action_value", "behaviour", "expert", "dense", "uniform"})
Loss = Callable[[Steps], ObjectiveOutput]


@dataclass(frozen=True)
class World:
    """B responses over a small vocabulary, with the student's and the teacher's whole rows. T is the longest length."""

    logits: Tensor  # [B, T, V] the student, a float64 leaf
    value: Tensor  # [B, T] the value head, a float64 leaf; w(s,a) is made of it, see ``action_value``
    teacher_logp: Tensor  # [B, T, V]
    tokens: Tensor  # [B, T]
    lengths: tuple[int, ...]
    finished: tuple[bool, ...]
    p: float
    behaviour_logp: Tensor  # [B, T] of the token taken, under the distribution that it was drawn from
    expert: tuple[bool, ...]  # written by the teacher, not by the student

    def responses(self) -> list[oracles.Response]:
        out = []
        for b, length in enumerate(self.lengths):
            teacher = self.teacher_logp[b, :length].tolist()
            out.append(
                oracles.Response(
                    logits=[list(row.unbind()) for row in self.logits[b, :length]],
                    teacher=teacher,
                    tokens=self.tokens[b, :length].tolist(),
                    finished=self.finished[b],
                    candidates=[oracles.top_p_set(row, self.p) for row in teacher],
                    value=list(self.value[b, :length].unbind()),
                    action_value=[list(row.unbind()) for row in self.action_value[b, :length]],
                    expert=self.expert[b],
                    behaviour=self.behaviour_logp[b, :length].tolist(),
                )
            )
        return out

    @property
    def action_value(self) -> Tensor:
        """[B, T, V] w(s,a) = v(s)·(1 + a/4) − a/3: different for every token, with a gradient of its own for v."""
        a = torch.arange(self.logits.shape[-1], dtype=self.value.dtype)
        return self.value.unsqueeze(-1) * (1 + a / 4) - a / 3

    @property
    def mask(self) -> Tensor:
        return torch.arange(self.tokens.shape[1]) < torch.tensor(self.lengths).unsqueeze(-1)


def make_world(
    seed: int = 0,
    lengths: Sequence[int] = (3, 2),
    finished: Sequence[bool] = (True, False),
    vocab: int = 5,
    p: float = 0.8,
    scale: float = 1.5,
    off_support: float = 0.3,
    expert: Sequence[bool] | None = None,
) -> World:
    """Random rows of a teacher and a student; a share of the tokens taken lies outside A_p wherever something does."""
    g = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths), vocab)
    teacher = (scale * torch.randn(shape, generator=g, dtype=torch.float64)).log_softmax(-1)
    tokens = torch.zeros(shape[:2], dtype=torch.long)
    for b, t in torch.ones(shape[:2]).nonzero().tolist():
        inside = oracles.top_p_set(teacher[b, t].tolist(), p)
        outside = [a for a in range(vocab) if a not in inside]
        pool = outside if outside and torch.rand((), generator=g) < off_support else inside
        tokens[b, t] = pool[int(torch.randint(len(pool), (), generator=g))]
    return World(
        logits=(scale * torch.randn(shape, generator=g, dtype=torch.float64)).requires_grad_(),
        value=torch.randn(shape[:2], generator=g, dtype=torch.float64).requires_grad_(),
        teacher_logp=teacher,
        tokens=tokens,
        lengths=tuple(lengths),
        finished=tuple(finished),
        p=p,
        behaviour_logp=-torch.rand(shape[:2], generator=g, dtype=torch.float64) * 3.0,
        expert=(True,) * len(lengths) if expert is None else tuple(expert),
    )


@st.composite
def worlds(draw: st.DrawFn, vocab: int = 6) -> World:
    """Ragged batches of every shape: one to three responses of one to four tokens, finished or cut off."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    finished = [draw(st.booleans()) for _ in lengths]
    expert = [draw(st.booleans()) for _ in lengths]
    p = draw(st.sampled_from([0.05, 0.5, 0.8, 0.95, 1.0]))
    return make_world(draw(st.integers(0, 10_000)), lengths, finished, vocab=vocab, p=p, expert=expert)


def steps_of(
    world: World,
    needs: frozenset[str] = EVERY_NEED,
    pad_t: int = 0,
    pad_k: int = 0,
    junk: float = 7.5,
    dtype: torch.dtype = torch.float64,
    vocab_size: int | None = None,
) -> Steps:
    """The batch as a head hands it over; padded slots hold a live logit or ``junk``, never anything convenient."""
    (n_b, n_t, vocab), exists = world.logits.shape, world.mask
    sets = [[oracles.top_p_set(row, world.p) for row in rows] for rows in world.teacher_logp.tolist()]
    width = max(len(sets[b][t]) for b, t in exists.nonzero().tolist()) + pad_k
    ids = torch.zeros(n_b, n_t, width, dtype=torch.long)
    legal, a_t = torch.zeros_like(ids, dtype=torch.bool), torch.full((n_b, n_t), -1)
    for b, t in exists.nonzero().tolist():
        inside, token = sets[b][t], int(world.tokens[b, t])
        ids[b, t, : len(inside)] = torch.tensor(inside)
        legal[b, t, : len(inside)] = True
        a_t[b, t] = inside.index(token) if token in inside else -1
    terminal = exists & (torch.arange(n_t) == torch.tensor(world.lengths).unsqueeze(-1) - 1)
    terminal &= torch.tensor(world.finished).unsqueeze(-1)
    logits, taken = world.logits.to(dtype), world.tokens.unsqueeze(-1)

    def in_t(x: Tensor, fill: float | bool = junk) -> Tensor:
        return pad(x, (0, 0) * (x.dim() - 2) + (0, pad_t), value=fill)

    steps = Steps(
        q_t=in_t(logits.gather(-1, ids)),
        log_z_t=in_t(logits.logsumexp(-1)) if "log_z" in needs else None,
        max_t=in_t(logits.amax(-1)) if "max" in needs else None,
        teacher_logp_t=in_t(world.teacher_logp.to(dtype).gather(-1, ids).masked_fill(~legal, -torch.inf), -torch.inf),
        legal_t=in_t(legal, False),
        a_t=in_t(a_t, -1),
        mask_t=in_t(exists, False),
        terminal_t=in_t(terminal, False),
        taken_logit_t=in_t(logits.gather(-1, taken).squeeze(-1)) if "taken" in needs else None,
        teacher_taken_logp_t=in_t(world.teacher_logp.to(dtype).gather(-1, taken).squeeze(-1)),
        behaviour_logp_t=in_t(world.behaviour_logp.to(dtype)) if "behaviour" in needs else None,
        value_t=in_t(world.value.to(dtype)) if "value" in needs else None,
        action_value_t=in_t(world.action_value.to(dtype).gather(-1, ids)) if "action_value" in needs else None,
        expert_t=in_t(torch.tensor(world.expert).unsqueeze(-1).expand(n_b, n_t), True) if "expert" in needs else None,
        vocab_size=vocab if vocab_size is None else vocab_size,
    )

    def over_vocabulary(logp: Tensor) -> Steps:
        return replace(
            steps,
            q_t=in_t(logits),
            teacher_logp_t=logp,
            legal_t=in_t(exists.unsqueeze(-1).expand(n_b, n_t, vocab).contiguous(), False),
            a_t=in_t(world.tokens.where(exists, -1), -1),
            action_value_t=None,  # which is of the candidates
        )

    uniform = spread_tail(steps.teacher_logp_t, in_t(ids, 0), steps.legal_t, vocab)
    return replace(
        steps,
        dense=over_vocabulary(in_t(world.teacher_logp.to(dtype))) if "dense" in needs else None,
        uniform=over_vocabulary(uniform) if "uniform" in needs else None,
    )


def with_even_tail(world: World) -> World:
    """The same, with a teacher whose mass outside A_p is spread evenly there: all of it is known from its candidates."""
    return replace(world, teacher_logp=steps_of(world).uniform.teacher_logp_t)


def loss_and_grads(world: World, loss: Loss, **build: object) -> tuple[Tensor, Tensor, Tensor]:
    """Masked per-step loss [B, T], and the gradients of its sum for the logits [B, T, V] and the value head [B, T]."""
    steps = steps_of(world, **build)  # type: ignore[arg-type]
    loss_t = torch.where(steps.mask_t, loss(steps).loss_t, 0.0)
    grads = torch.autograd.grad(loss_t.sum(), (world.logits, world.value), allow_unused=True, materialize_grads=True)
    return loss_t[:, : world.tokens.shape[1]].detach(), *grads


def oracle_loss_and_grads(world: World, oracle: Callable[[oracles.Response], list[Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """The same three from an oracle that gives one scalar per step of a response."""
    loss_t = torch.zeros(world.tokens.shape, dtype=torch.float64)
    total = 0.0 * (world.logits.sum() + world.value.sum())
    for b, response in enumerate(world.responses()):
        for t, scalar in enumerate(oracle(response)):
            loss_t[b, t] = scalar.item()
            total = total + scalar
    return loss_t, *torch.autograd.grad(total, (world.logits, world.value))


def assert_equals_oracle(
    world: World, loss: Loss, oracle: Callable[[oracles.Response], list[Tensor]], dtype: torch.dtype = torch.float64
) -> None:
    """Value and gradients: to 1e-9 in float64, to 1e-5 in float32."""
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    ours, truth = loss_and_grads(world, loss, dtype=dtype), oracle_loss_and_grads(world, oracle)
    for name, got, want in zip(("loss", "logit gradient", "value gradient"), ours, truth, strict=True):
        torch.testing.assert_close(got.double(), want, atol=tolerance, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def assert_padding_invariant(world: World, loss: Loss, pad_t: int, pad_k: int, junk: float) -> None:
    """Padding along T and K, whatever it holds, changes neither loss nor gradient."""
    plain = loss_and_grads(world, loss)
    padded = loss_and_grads(world, loss, pad_t=pad_t, pad_k=pad_k, junk=junk)
    for got, want in zip(padded, plain, strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)


def assert_masked_gradient_is_zero(world: World, loss: Loss) -> None:
    """Every slot off A_p, and every field at a step that is padding, gets exactly zero gradient."""
    built = steps_of(world, EVERY_NEED - {"dense", "uniform"}, pad_t=2, pad_k=2)
    names = ("q_t", "log_z_t", "max_t", "taken_logit_t", "value_t", "action_value_t")
    leaves = {name: getattr(built, name).detach().requires_grad_() for name in names}
    steps = replace(built, **leaves)
    loss_t = loss(steps).loss_t
    total = torch.where(steps.mask_t, loss_t, 0.0).sum()
    grads = torch.autograd.grad(total, leaves.values(), allow_unused=True, materialize_grads=True)
    for name, grad in zip(names, grads, strict=True):
        assert grad[~(steps.legal_t if grad.dim() == 3 else steps.mask_t)].eq(0).all(), name


def extreme_world(seed: int, lengths: Sequence[int] = (4, 3)) -> World:
    """Every logit of student and teacher, and every value, is +1e4 or −1e4."""
    world = make_world(seed, lengths, vocab=6, off_support=0.3, expert=[b % 2 == 0 for b in range(len(lengths))])
    signs = [1e4 * torch.sign(x.detach()) for x in (world.logits, world.value, world.teacher_logp - world.teacher_logp.mean())]
    return replace(world, logits=signs[0].requires_grad_(), value=signs[1].requires_grad_(), teacher_logp=signs[2].log_softmax(-1))


def assert_finite_at_extremes(loss: Loss, seeds: int = 3) -> None:
    """Logits of ±1e4 give finite losses and gradients in both precisions."""
    for seed in range(seeds):
        for dtype in (torch.float32, torch.float64):
            assert all(x.isfinite().all() for x in loss_and_grads(extreme_world(seed), loss, dtype=dtype)), (seed, dtype)


def assert_gradcheck(world: World, loss: Loss) -> None:
    """Autograd equals finite differences."""

    def total(logits: Tensor, value: Tensor) -> Tensor:
        steps = steps_of(replace(world, logits=logits, value=value))
        return torch.where(steps.mask_t, loss(steps).loss_t, 0.0)

    assert torch.autograd.gradcheck(total, (world.logits, world.value), eps=1e-6, atol=1e-6)
