"""The one way through the house: models → rollout → sft → train → evaluate → report.

Every stage writes into ``output_dir/STAGE/KEY``, where KEY is a hash of all that shapes its content. So a rerun skips what is
complete for the same settings, other settings never overwrite anything, and going back to old ones finds the old results.
"""

import errno
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

import tdistill
from tdistill import run_files
from tdistill.config import Recipe
from tdistill.errors import ConfigError, OutputError
from tdistill.files import write_json
from tdistill.models import ModelSource, find_model, model_fingerprint
from tdistill.processes import is_main_process, process_count, wait_for_everyone
from tdistill.progress import say
from tdistill.recipe_text import dump_yaml
from tdistill.run_files import STAGE_FILE, read_stage_file, sealed
from tdistill.secrets_guard import without_secrets

MARKER = ".tdistill"
# torch.save does not say why it could not write.
TORCH_CANT_WRITE = ("PytorchStreamWriter failed writing", "inline_container.cc", "iostream error")


@dataclass(frozen=True)
class StageSpec:
    """A stage: the stages it reads, what shapes its content beside them, and the work."""

    after: tuple[str, ...]
    settings: Callable[["Run"], dict[str, Any]]
    work: Callable[["Run", Path], dict[str, Any]]  # returns notes for stage.json
    on_demand: bool = False  # not a part of `tdistill run`
    parallel: bool = False  # several processes may share it; the others run in one


class Run:
    """A recipe with the places of its stages."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.root = Path(recipe.output_dir).expanduser()
        self._keys: dict[str, str] = {}
        self._records: dict[str, dict[str, Any]] = {}  # of complete stages

    @cached_property
    def stages(self) -> dict[str, StageSpec]:
        """Every stage the recipe has, in order."""
        from tdistill.stages import STAGES

        return {k: v for k, v in STAGES.items() if k != "sft" or self.recipe.sft is not None}

    @property
    def way(self) -> list[str]:
        """What `tdistill run` does, in order."""
        return [name for name, spec in self.stages.items() if not spec.on_demand]

    @cached_property
    def teacher_source(self) -> ModelSource:
        """Where the teacher's files are."""
        return find_model(self.recipe.teacher.teacher_model_name_or_path)

    @cached_property
    def teacher_fingerprint(self) -> str:
        """Of the teacher's configuration and weights."""
        return model_fingerprint(self.teacher_source)

    def key(self, stage: str) -> str:
        """12 hex digits over the stage's settings and those of all stages before it."""
        if stage not in self._keys:
            spec = self.stages[stage]
            content = {"settings": spec.settings(self), "after": self._read_by(stage)}
            self._keys[stage] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        return self._keys[stage]

    def _read_by(self, stage: str) -> dict[str, str]:
        """The stages whose content it reads, and their keys."""
        return {s: self.key(s) for s in self.stages[stage].after if s in self.stages}

    def directory(self, stage: str) -> Path:
        """Where a stage's content lies, or will."""
        return self.root / stage / self.key(stage)

    def is_complete(self, stage: str) -> bool:
        """Return whether the stage has finished with these settings.

        Raises:
            OutputError: it has, but its ``stage.json`` or a file that it made is damaged, altered or missing. Making these anew in
                silence could take hours, and could hide that results on a page came from other files.
        """
        if run_files.is_complete(self.directory(stage)):
            self.read_stage(stage)
            return True
        return False

    def prepare(self) -> None:
        """Claim the output directory and save the resolved recipe.

        Raises:
            ConfigError: the directory holds something else, or can't be made.
        """
        if self.root.exists() and (not self.root.is_dir() or (any(self.root.iterdir()) and not (self.root / MARKER).exists())):
            raise ConfigError(f"output_dir {self.root} holds something else. Choose an empty or new directory: output_dir=runs/NAME")
        if not is_main_process():
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / MARKER).write_text("An output directory of tdistill.\n")
        except OSError as error:
            raise ConfigError(f"Can't write to output_dir {self.root}: {error.strerror}.") from error
        (self.root / "recipe.yaml").write_text(resolved_yaml(self.recipe), encoding="utf-8")

    def execute(self, stage: str) -> bool:
        """Run one stage unless it is complete; False if it was skipped.

        Raises:
            ConfigError: a stage that it reads has not run.
        """
        spec, directory = self.stages[stage], self.directory(stage)
        for before in spec.after:
            if before in self.stages and not self.is_complete(before):
                raise ConfigError(
                    f"`{stage}` reads what `{before}` makes, which is not complete: "
                    f"`tdistill {_command(before)} RECIPE` first, or `tdistill run RECIPE`."
                )
        if self.is_complete(stage):
            say(f"{stage}: complete, skipped ({directory})")
            return False
        if process_count() > 1 and not spec.parallel:
            raise ConfigError(
                f"`{stage}` runs in one process, and this is one of {process_count()}: complete it without `accelerate launch` first "
                f"(`tdistill {_command(stage)} RECIPE`), then launch `tdistill train RECIPE`."
            )
        say(f"{stage} → {directory}")
        directory.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with disk_errors(directory):
            notes = spec.work(self, directory)
        record = {
            "stage": stage,
            "key": self.key(stage),
            "after": self._read_by(stage),
            "seconds": time.perf_counter() - started,
            "peak_memory_bytes": peak_memory_bytes(),
            "notes": notes,
            "provenance": provenance(self.recipe),
        }
        if is_main_process():
            write_json(directory / STAGE_FILE, sealed(record, directory))
        wait_for_everyone()
        return True

    def read_stage(self, stage: str) -> dict[str, Any]:
        """Return what a complete stage noted.

        Raises:
            OutputError: see ``run_files.read_stage_file``.
        """
        if stage not in self._records:
            self._records[stage] = read_stage_file(self.directory(stage))
        return self._records[stage]


def _command(stage: str) -> str:
    return "rollout" if stage == "models" else stage


@contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Turn a full disk, in whose words it may come, into ``OutputError``."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _disk_is_full(error):
            raise
        raise OutputError(
            f"The disk is full: can't write to {directory} ({error}). Free some space, or move output_dir, and run again: what is "
            "complete is kept, and training goes on from its last whole checkpoint."
        ) from error


def _disk_is_full(error: Exception) -> bool:
    # safetensors and torch.save say in words of their own what an OSError says by number.
    numbers = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    text = str(error)
    return (
        (isinstance(error, OSError) and error.errno in numbers)
        or any(f"os error {n}" in text or os.strerror(n) in text for n in numbers)
        or any(words in text for words in TORCH_CANT_WRITE)
    )


def resolved_yaml(recipe: Recipe) -> str:
    """Return the recipe with every default filled in, as YAML without secrets."""
    return dump_yaml(without_secrets(recipe.model_dump()))


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def provenance(recipe: Recipe) -> dict[str, Any]:
    """Versions, git commit, machine and seed: what a number needs beside its recipe."""
    import torch
    import transformers

    return {
        "tdistill": tdistill.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {_device()}",
        "git_commit": _git_commit(),
        "seed": recipe.seed,
        "recipe": without_secrets(recipe.model_dump()),
    }


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _git_commit() -> str:
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, timeout=10, check=False
        )
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"
