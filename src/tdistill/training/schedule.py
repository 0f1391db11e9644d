"""Count the optimizer steps of a run, from a data set and ``TrainingArguments``, and say which examples an epoch reads."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers import TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from tdistill.data.mixed import RunLength
from tdistill.runtime.errors import ConfigError


def examples_per_step(args: TrainingArguments) -> int:
    """Return the number of examples that one optimizer step reads: micro-batch × accumulation × processes."""
    return args.train_batch_size * args.gradient_accumulation_steps * max(args.world_size, 1)


def steps_per_epoch(args: TrainingArguments, examples: int) -> int:
    """Return the number of optimizer steps that the Trainer takes for one pass over ``examples``.

    The last step of an epoch may have fewer examples. ``dataloader_drop_last`` drops a last short batch, and batches that not every
    process has.

    Raises:
        ConfigError: ``dataloader_drop_last`` drops every batch.
    """
    processes = max(args.world_size, 1)
    if args.dataloader_drop_last:
        batches = examples // args.train_batch_size // processes
    else:
        batches = math.ceil(math.ceil(examples / args.train_batch_size) / processes)
    if batches == 0:
        raise ConfigError(
            f"dataloader_drop_last leaves no batch: {examples} training examples are fewer than {args.train_batch_size} for each of "
            f"{processes} processes. Lower per_device_train_batch_size, or set dataloader_drop_last to false."
        )
    return math.ceil(batches / args.gradient_accumulation_steps)


def total_steps(args: TrainingArguments, examples: int) -> int:
    """Return the optimizer steps of a whole run over a data set of ``examples``: ``max_steps``, else ``num_train_epochs`` epochs.

    Raises:
        ConfigError: there is no step to take.
    """
    per_epoch = steps_per_epoch(args, examples)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    if steps < 1:
        raise ConfigError(f"num_train_epochs={args.num_train_epochs} is no step of training: give a number above 0, or max_steps.")
    return steps


def run_length(args: TrainingArguments, examples: int) -> RunLength:
    """Return the length of a run over a data set of ``examples``.

    Raises:
        ConfigError: there is no step to take.
    """
    return RunLength(total_steps(args, examples), examples_per_step(args))


class InOrder(Sampler[int]):
    """Yield the examples of one epoch of a data set that holds a whole run, in order.

    Args:
        per_epoch: examples of a whole epoch. The last epoch may end earlier, with the data set.
        total: examples of the run.
        epoch: returns the number of the epoch that begins, from 0.
    """

    def __init__(self, per_epoch: int, total: int, epoch: Callable[[], int]):
        self._per_epoch, self._total, self._epoch = per_epoch, total, epoch

    def __len__(self) -> int:
        return self._per_epoch

    def __iter__(self) -> Iterator[int]:
        first = self._epoch() * self._per_epoch
        return iter(range(first, min(first + self._per_epoch, self._total)))


class ByLength(Sampler[int]):
    """Yield all examples once an epoch, in random order, but examples of about one length together.

    transformers' own sampler of this kind draws from torch's global noise, so that a resumed run would read another order.

    Args:
        lengths: of every example.
        step_size: examples of an optimizer step.
        seed: of the order.
        epoch: returns the number of the epoch that begins, from 0.
    """

    def __init__(self, lengths: Sequence[int], step_size: int, seed: int, epoch: Callable[[], int]):
        self._lengths, self._step_size, self._seed, self._epoch = list(lengths), step_size, seed, epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        noise = torch.Generator().manual_seed(self._seed + self._epoch())
        return iter(get_length_grouped_indices(self._lengths, self._step_size, generator=noise))
