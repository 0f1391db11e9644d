"""Coordinate the processes of one run (`accelerate launch`, `torchrun`): one writes, all wait for each other, all read the same."""

import os
from typing import TypeVar

from tdistill.runtime.errors import ConfigError

Value = TypeVar("Value")


def process_count() -> int:
    """Return how many processes this one was launched with.

    Raises:
        ConfigError: WORLD_SIZE is no number.
    """
    return _launched_with("WORLD_SIZE", 1)


def process_index() -> int:
    """Return the rank of this process.

    Raises:
        ConfigError: RANK is no number, or not below WORLD_SIZE.
    """
    index = _launched_with("RANK", 0)
    if index >= process_count():
        raise ConfigError(
            f"RANK={index} is not below WORLD_SIZE={process_count()}. torchrun and accelerate set both; for one process, unset both: "
            "env -u RANK -u WORLD_SIZE -u LOCAL_RANK tdistill ..."
        )
    return index


def is_main_process() -> bool:
    """Return True where this process writes the files and talks to the terminal."""
    return process_index() == 0


def process_label() -> str:
    """Return " in process 2 of 4", to follow the word "error"; an empty text in the first process. It never raises."""
    index, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return "" if index == "0" or not index.isdecimal() else f" in process {index} of {count}"


def wait_for_everyone() -> None:
    """Wait until every process has reached this call."""
    if process_count() > 1:
        _join().wait_for_everyone()


def agreed(what: str, value: Value) -> Value:
    """Return ``value`` if it is the same in every process.

    Args:
        what: name of the value, for the message.
        value: what this process read from its own files.

    Raises:
        ConfigError: this process has another value than the first one, so the two read different files.
    """
    if process_count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    _join()
    first = broadcast_object_list([value])[0]
    if first != value:
        raise ConfigError(
            f"Processes do not agree on {what}: the first one has {first}, process {process_index()} has {value}. They must read the same "
            "files: put output_dir on a file system that all machines share."
        )
    return value


def _launched_with(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(f"The environment has {name}={text!r}, which torchrun and accelerate set to a number. For one process, unset it.")
    return int(text)


def _join():  # type: ignore[no-untyped-def]  # accelerate takes a second to import
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def part() -> None:
    """End the connection to the other processes of a launch. One that is left open can crash an interpreter that ends.

    Every process must be past its last exchange with the others.
    """
    if process_count() > 1:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()
