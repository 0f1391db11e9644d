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
from tdistill.recipe.schema import OnPolicyConfig
from tdistill.runtime.errors import ConfigError

# (round, its prompts) → what the student, as it is when asked, wrote for them, scored by the teacher.
RollOut = Callable[[int, list[TokenizedPrompt]], RolloutDataset]


@dataclass(frozen=True)
class RunLength:
    """Hold the length of a training run.

    Args:
        steps: optimizer steps of the run.
        batch_size: examples of an optimizer step.

    Raises:
        ConfigError: one of them is below 1.
    """

    steps: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ConfigError(f"A run needs a step and an example, got steps={self.steps} and batch_size={self.batch_size}.")


class MixedDataset(Dataset):
    """Hold all examples of a run in sequence: example k belongs to step k // batch_size. Read it in order.

    ``DistillTrainer`` takes the length of its run from it. An epoch is, as without a mixture, as many steps as one pass over ``expert``.

    A round of the student's roll-outs is asked for when its first example is read. The data loader reads one batch ahead, so that
    round is rolled out by the student of one step earlier. All else is fixed when the data set is made.

    Args:
        expert: the teacher's or human responses; their prompts are those that the student answers.
        on_policy: how the two are mixed. With ``replay`` = 2 every response is used about twice, so each round generates half as many.
        length: steps of the run, and examples of a step.
        seed: seed of the draws.
        roll_out: makes a round; not called with ``lmbda`` = 0.
        corpus: adds a window of text to every example (``window_ids``), each once before any comes again.

    Raises:
        ConfigError: the student is to write a share of the responses, and there is no ``roll_out``.
    """

    def __init__(
        self,
        expert: RolloutDataset,
        on_policy: OnPolicyConfig,
        length: RunLength,
        seed: int,
        roll_out: RollOut | None = None,
        corpus: PackedCorpus | None = None,
    ):
        self.expert, self.teacher_top_p = expert, expert.teacher_top_p
        self.steps, self.batch_size = length.steps, length.batch_size
        self._roll_out, self._pools = roll_out, dict[int, RolloutDataset]()
        rng, examples = np.random.default_rng(seed), length.steps * length.batch_size
        self._student, self._selects = rng.random(examples) < on_policy.lmbda, on_policy.best_of > 1
        if roll_out is None and self._student.any():
            raise ConfigError(f"lmbda={on_policy.lmbda} asks for the student's own responses, but roll_out is None: pass StudentRollouts.")
        span = (on_policy.refresh_steps or length.steps) * length.batch_size
        self._round = np.arange(examples) // span
        self._row = np.zeros(examples, np.int64)  # in the expert's data, or in the round's pool
        self._source = self._round.copy()  # the round whose pool the row lies in
        self._row[~self._student] = _cycle(rng, len(expert), int((~self._student).sum()))
        self._plan_rounds(rng, on_policy.replay)
        self._corpus, self._window = corpus, _cycle(rng, len(corpus), examples) if corpus is not None else np.zeros(0, np.int64)

    def _plan_rounds(self, rng: np.random.Generator, replay: int) -> None:
        """Draw the prompts of every round, and for each example of the student's the round and the row that it is read from."""
        prompts = self.expert.prompts()
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
    def has_own_text(self) -> bool:
        """Tell whether some responses are written by the student."""
        return bool(self._student.any())

    @property
    def has_other(self) -> bool:
        """Tell whether some responses are not the expert's. The best of several answers of the student count as the expert's."""
        return self.has_own_text and not self._selects

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
