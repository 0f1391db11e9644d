"""Train the students of World 0, all seeds at once, by an objective of the library."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from ring_student import Students, World
from ring_world import Measured, Policy, Ring, Texts, measure, sample_texts, table_policy
from torch import Tensor, nn

from tdistill.objectives import bind

CLIP = 1.0  # of each student's gradient norm
VALUE_NEEDS = frozenset({"value", "action_value"})


@dataclass(frozen=True)
class Setting:
    """Set the world and the student. Everything but the method."""

    ring: Ring = field(default_factory=Ring)
    width: int = 44
    top_p: float = 1.0
    texts: int | None = None  # number of different teacher texts; None: new ones at each step
    sft_steps: int = 500
    sft_rate: float = 3e-3
    train_steps: int = 500
    batch: int = 64


@dataclass(frozen=True)
class Method:
    """Set how a student is trained after SFT."""

    objective: Any  # as a recipe writes it
    text: Literal["teacher", "own", "mixed"] = "teacher"
    best_of: int = 1  # texts written for each start, of which the teacher's likeliest is kept (own text)
    times: int = 1  # multiple of the setting's steps
    warmup_steps: int = 100  # first steps, in which the value head learns alone, if the objective has one
    value_rate: float = 1e-2
    detach: bool = True  # keep the value head's gradient out of the body


@dataclass(frozen=True)
class Point:
    """Hold what was measured after some steps."""

    step: int
    seconds: float  # of training, without measuring
    measured: Measured


def run_sft(setting: Setting, seeds: list[int]) -> Students:
    """Return students that learnt the teacher's text token by token."""
    students = Students(setting.ring, setting.width, seeds)
    for _ in train(students, World(setting.ring, tuple(seeds)), setting, Method({"name": "nll"}), setting.sft_rate, setting.sft_steps):
        pass
    return students


def train(students: Students, world: World, setting: Setting, method: Method, rate: float, steps: int) -> Iterator[Point]:
    """Train students in place. Yield measurements of them, ten times during training and at the end. The learning rate falls to 0 linearly.

    The loss of each student is its mean over its own steps, so that no student's gradient depends on the others.
    """
    objective = bind(method.objective)
    students.detach = method.detach
    warmup = method.warmup_steps if objective.needs & VALUE_NEEDS else 0
    optimizer = torch.optim.Adam([{"params": students.body, "lr": rate}, {"params": students.head, "lr": method.value_rate}])
    rng = torch.Generator().manual_seed(sum(world.seeds))
    source = TextSource(world, setting, method, rng)
    seconds, every = 0.0, max(1, steps // 10)
    for step in range(steps):
        started = time.perf_counter()
        texts, expert = source.draw(students)
        optimizer.param_groups[0]["lr"] = 0.0 if step < warmup else rate * (1.0 - (step - warmup) / (steps - warmup))
        optimizer.zero_grad()
        loss_t = objective(world.steps(students, texts, objective.needs, expert)).loss_t
        (loss_t.sum() / (loss_t.numel() / len(world.seeds))).backward()
        for parameters in (students.body, students.head):
            clip_each(parameters)
        optimizer.step()
        seconds += time.perf_counter() - started
        if (step + 1) % every == 0 or step + 1 == steps:
            yield Point(step + 1, seconds, measure(setting.ring, students.table(setting.ring), world.teacher, world.right))


def clip_each(parameters: list[nn.Parameter]) -> None:
    """Scale the gradient of each student to a norm of at most ``CLIP``."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if grads:
        norm = torch.stack([g.square().flatten(1).sum(1) for g in grads]).sum(0).sqrt()
        for grad in grads:
            grad.mul_((CLIP / norm.clamp(min=CLIP)).reshape(-1, *[1] * (grad.dim() - 1)))


class TextSource:
    """Draw the texts of a step: of the teachers, of the students, or half and half."""

    def __init__(self, world: World, setting: Setting, method: Method, rng: torch.Generator):
        self.world, self.setting, self.method, self.rng = world, setting, method, rng
        pool_rng = torch.Generator().manual_seed(1 + sum(world.seeds))  # SFT and the method learn from the same texts
        self.pool = None if setting.texts is None else self._written(table_policy(world.teacher), setting.texts, pool_rng)

    def draw(self, students: Students) -> tuple[Texts, Tensor]:
        """Return the texts of each world, and which of them are to be imitated, [B]: the teacher's, and the best of the students' own."""
        own = {"teacher": 0, "own": self.setting.batch, "mixed": self.setting.batch // 2}[self.method.text]
        parts = [self._own(students, own)] if own else []
        parts += [self._teacher(self.setting.batch - own)] if own < self.setting.batch else []
        return (parts[0] if len(parts) == 1 else parts[0].join(parts[1])), (torch.arange(self.setting.batch) >= own) | (self.method.best_of > 1)

    def _teacher(self, count: int) -> Texts:
        if self.pool is None:
            return self._written(table_policy(self.world.teacher), count, self.rng)
        return self.pool.take(torch.randint(self.pool.key.shape[1], (len(self.world.seeds), count), generator=self.rng))

    def _own(self, students: Students, count: int) -> Texts:
        texts = self._written(students.policy, count, self.rng, self.method.best_of)
        if self.method.best_of == 1:
            return texts
        worlds = torch.arange(len(self.world.seeds))[:, None, None]
        state = (worlds, texts.key.unsqueeze(-1).expand(texts.token_t.shape), texts.symbol_t, texts.kind_t, texts.token_t)
        likely = self.world.teacher[state].sum(-1).unflatten(1, (count, self.method.best_of))
        return texts.take(likely.argmax(-1) + self.method.best_of * torch.arange(count))

    def _written(self, policy: Policy, count: int, rng: torch.Generator, answers: int = 1) -> Texts:
        return sample_texts(self.setting.ring, policy, (len(self.world.seeds), count), rng, answers)
