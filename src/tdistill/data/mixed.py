"""Mix the expert's responses and the student's own, in the order of training."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from tdistill.data.corpus import PackedCorpus
from tdistill.data.dataset import RolloutDataset
from tdistill.data.prompts import TokenizedPrompt
from tdistill.runtime.errors import ConfigError

# (round, its prompts) → what the student, as it is when asked, wrote for them, scored by the teacher.
RollOut = Callable[[int, list[TokenizedPrompt]], RolloutDataset]


@dataclass(frozen=True)
class Mixture:
    """Set the share of training text that the student writes, and how often it writes anew.

    Args:
        lmbda: share of the student's responses, drawn for each example; GKD's λ (Agarwal et al. 2024).
        refresh_steps: optimizer steps between roll-outs of the student as it then is; None: once, by the start.
        replay: number of rounds to sample from, the newest included. With ``replay=2`` every response is used about twice, so each
            round generates half as many.

    Raises:
        ConfigError: a value is out of range.
    """

    lmbda: float
    refresh_steps: int | None = None
    replay: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.lmbda <= 1.0:
            raise ConfigError(f"lmbda must lie in [0, 1], got {self.lmbda}: it is the student's share of the responses.")
        if self.replay < 1 or (self.refresh_steps is not None and self.refresh_steps < 1):
            raise ConfigError(f"refresh_steps and replay must be 1 or more, got {self.refresh_steps} and {self.replay}.")


class MixedDataset(Dataset):
    """Hold all examples of a run in sequence: example k belongs to step k // batch_size. Read it in order.

    ``DistillTrainer`` takes the length of its run from it. An epoch is, as without a mixture, as many steps as one pass over ``expert``.

    A round of the student's roll-outs is asked for when its first example is read. The data loader reads one batch ahead, so that
    round is rolled out by the student of one step earlier. All else is fixed when the data set is made.

    Args:
        expert: the teacher's or human responses; their prompts are those that the student answers.
        roll_out: makes a round; not called with ``lmbda`` = 0.
        mixture: how the two are mixed.
        steps: optimizer steps of the run.
        batch_size: examples an optimizer step.
        seed: seed of the draws.
        corpus: adds a window of text to every example (``window_ids``), each once before any comes again.

    Raises:
        ConfigError: no step, no example, or a share of the student's and nobody who makes its roll-outs.
    """

    def __init__(
        self,
        expert: RolloutDataset,
        roll_out: RollOut | None,
        mixture: Mixture,
        steps: int,
        batch_size: int,
        seed: int,
        corpus: PackedCorpus | None = None,
    ):
        if steps < 1 or batch_size < 1:
            raise ConfigError(f"A run needs a step and an example, got steps={steps} and batch_size={batch_size}.")
        self.expert, self.teacher_top_p = expert, expert.teacher_top_p
        self.steps, self.batch_size = steps, batch_size
        self._roll_out, self._mixture = roll_out, mixture
        self._pools: dict[int, RolloutDataset] = {}
        rng, examples = np.random.default_rng(seed), steps * batch_size
        self._student = rng.random(examples) < mixture.lmbda
        if roll_out is None and self._student.any():
            raise ConfigError(f"lmbda={mixture.lmbda} asks for the student's own responses, but roll_out is None: pass StudentRollouts.")
        span = (mixture.refresh_steps or steps) * batch_size
        self._round = np.arange(examples) // span
        self._row = np.zeros(examples, np.int64)  # in the expert's data, or in the round's pool
        self._source = self._round.copy()  # the round whose pool the row lies in
        self._row[~self._student] = _cycle(rng, len(expert), int((~self._student).sum()))
        self._plan_rounds(rng)
        self._corpus, self._window = corpus, _cycle(rng, len(corpus), examples) if corpus is not None else np.zeros(0, np.int64)

    def _plan_rounds(self, rng: np.random.Generator) -> None:
        prompts, replay = self.expert.prompts(), self._mixture.replay
        wanted = [int((self._student & (self._round == r)).sum()) for r in range(int(self._round[-1]) + 1)]
        sizes = [min(math.ceil(n / replay), len(prompts)) for n in wanted]
        order = _cycle(rng, len(prompts), sum(sizes))
        self._prompts = [[prompts[i] for i in part] for part in np.split(order, np.cumsum(sizes)[:-1])]
        for r, n in enumerate(wanted):
            recent = range(max(0, r - replay + 1), r + 1)
            pool = np.array([(source, row) for source in recent for row in range(sizes[source])], np.int64).reshape(-1, 2)
            drawn = pool[_cycle(rng, len(pool), n)] if n else pool[:0]
            here = self._student & (self._round == r)
            self._source[here], self._row[here] = drawn[:, 0], drawn[:, 1]

    @property
    def has_other(self) -> bool:
        """Tell whether some responses are the student's."""
        return bool(self._student.any())

    @property
    def has_windows(self) -> bool:
        """Tell whether every example has a window of text."""
        return self._corpus is not None

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {**self._data(index)[int(self._row[index])], "row": index}
        if self._corpus is not None:
            example["window_ids"] = self._corpus[int(self._window[index])]
        return example

    def prompt_id(self, index: int) -> str:
        """Return the id of the prompt that an example answers."""
        return self._data(index).prompt_id(int(self._row[index]))

    def _data(self, index: int) -> RolloutDataset:
        if not self._student[index]:
            return self.expert
        source = int(self._source[index])
        if source not in self._pools:
            assert self._roll_out is not None
            self._pools[source] = self._roll_out(source, self._prompts[source])
        return self._pools[source]


def _cycle(rng: np.random.Generator, n: int, count: int) -> np.ndarray:
    """Draw ``count`` indices below n without replacement; start over when all are drawn."""
    return np.concatenate([rng.permutation(n) for _ in range(math.ceil(count / n))])[:count] if count else np.zeros(0, np.int64)
