"""Several processes on one run (`accelerate launch`, `torchrun`): who writes, and who waits."""

import os


def process_count() -> int:
    """Processes that this one was launched with."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """This process writes the files and talks to the terminal."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_everyone() -> None:
    """Go on when every process has come here."""
    if process_count() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()
