"""Run the stages in order: models → rollout → sft → train → evaluate → report.

Every stage writes into ``output_dir/STAGE/KEY``, where KEY is a hash of all that shapes its content. So a rerun skips what is
complete for the same settings, other settings never overwrite anything, and going back to old ones finds the old results.
"""

import hashlib
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import tdistill
from tdistill.experiment import run_files
from tdistill.experiment.kept import kept_of_run, kept_of_stage
from tdistill.experiment.run_files import STAGE_FILE, read_stage_file, sealed
from tdistill.models.find import ModelSource, find_model
from tdistill.models.fingerprint import weights_fingerprint
from tdistill.recipe.schema import Recipe
from tdistill.recipe.text import dump_yaml
from tdistill.runtime.disk import disk_errors, staying
from tdistill.runtime.errors import ConfigError, visible
from tdistill.runtime.files import remove_partial, sync_tree, write_json, write_text
from tdistill.runtime.locks import LOCK, Lock, hold
from tdistill.runtime.processes import is_main_process, process_count, wait_for_everyone
from tdistill.runtime.progress import say
from tdistill.runtime.secrets_guard import without_secrets
from tdistill.runtime.stops import keeping

MARKER, RECIPE_FILE = ".tdistill", "recipe.yaml"
GIT_SECONDS = 10.0  # a slower git is done without


@dataclass(frozen=True)
class StageSpec:
    """Describe a stage: the stages it reads, its other settings, and the work."""

    after: tuple[str, ...]
    settings: Callable[["Run"], dict[str, Any]]
    work: Callable[["Run", Path], dict[str, Any]]  # returns notes for stage.json
    on_demand: bool = False  # not a part of `tdistill run`
    parallel: bool = False  # several processes may share it; the others run in one


class Run:
    """Hold a recipe and the places of its stages."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.root = _expanded(recipe.output_dir)
        self._lock: Lock | None = None
        self._keys: dict[str, str] = {}
        self._records: dict[str, dict[str, Any]] = {}  # of complete stages

    @cached_property
    def stages(self) -> dict[str, StageSpec]:
        """Return every stage that the recipe has, in order."""
        from tdistill.experiment.graph import STAGES

        return {k: v for k, v in STAGES.items() if k != "sft" or self.recipe.sft is not None}

    @property
    def way(self) -> list[str]:
        """Return the stages that `tdistill run` runs, in order."""
        return [name for name, spec in self.stages.items() if not spec.on_demand]

    @cached_property
    def teacher_source(self) -> ModelSource:
        """Return where the teacher's files are."""
        return find_model(self.recipe.teacher.teacher_model_name_or_path)

    @cached_property
    def teacher_fingerprint(self) -> str:
        """Return the fingerprint of the teacher's configuration and weights."""
        return weights_fingerprint(self.teacher_source)

    def key(self, stage: str) -> str:
        """Return 12 hex digits of a hash over the stage's settings and those of all stages before it."""
        if stage not in self._keys:
            spec = self.stages[stage]
            content = {"settings": spec.settings(self), "after": self._read_by(stage)}
            self._keys[stage] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        return self._keys[stage]

    def _read_by(self, stage: str) -> dict[str, str]:
        """Return the stages whose content a stage reads, and their keys."""
        return {s: self.key(s) for s in self.stages[stage].after if s in self.stages}

    def directory(self, stage: str) -> Path:
        """Return the directory of a stage's content, whether it exists yet or not."""
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
        """Claim the output directory for this process and save the resolved recipe. The claim ends with this object.

        Raises:
            ConfigError: the directory holds something else, or can't be made.
            OutputError: another process is writing there.
        """
        try:
            if self.root.is_symlink() and not self.root.exists():
                raise ConfigError(
                    f"output_dir {self.root} is a link to {self.root.readlink()}, which does not exist. Make that directory first."
                )
            if self.root.exists() and (not self.root.is_dir() or not self._is_ours()):
                raise ConfigError(f"output_dir {self.root} holds something else. Choose an empty or new directory: output_dir=runs/NAME")
            if not is_main_process():
                return
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = hold(self.root / LOCK, f"output_dir {self.root}")
            if not (self.root / MARKER).exists():
                write_text(self.root / MARKER, "An output directory of tdistill.\n")
            write_text(self.root / RECIPE_FILE, resolved_yaml(self.recipe))
        except (OSError, ValueError) as error:  # a ValueError: a NUL byte
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ConfigError(f"Can't write to output_dir {visible(str(self.root))}: {reason}. Choose another: output_dir=runs/NAME") from error

    def _is_ours(self) -> bool:
        # A kill may have left the directory before it got its marker.
        names = [path.name for path in self.root.iterdir()]
        return MARKER in names or all(name.startswith(MARKER) for name in names)

    def execute(self, stage: str) -> bool:
        """Run one stage unless it is complete; False if it was skipped.

        Raises:
            ConfigError: a stage that it reads has not run.
            OutputError: the disk is full, can't be written, or the directory was deleted in between.
        """
        directory = self.directory(stage)
        with disk_errors(directory), keeping(partial(kept_of_run, self.root)):
            self._check_inputs(stage)
            if self.is_complete(stage):
                say(f"{stage}: complete, skipped ({directory})")
                return False
            self._check_processes(stage)
            say(f"{stage} → {directory}")
            self._work(stage, directory)
            return True

    def _check_inputs(self, stage: str) -> None:
        for before in self.stages[stage].after:
            if before in self.stages and not self.is_complete(before):
                raise ConfigError(
                    f"`{stage}` reads what `{before}` makes, which is not complete: "
                    f"`tdistill {_command(before)} RECIPE` first, or `tdistill run RECIPE`."
                )

    def _check_processes(self, stage: str) -> None:
        if process_count() > 1 and not self.stages[stage].parallel:
            raise ConfigError(
                f"`{stage}` runs in one process, and this is one of {process_count()}: complete it without `accelerate launch` first "
                f"(`tdistill {_command(stage)} RECIPE`), then launch `tdistill train RECIPE`."
            )

    def _work(self, stage: str, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        if is_main_process():
            remove_partial(directory)
        facts, started = provenance(self.recipe), time.perf_counter()
        with keeping(partial(kept_of_stage, stage, self.root, directory)), staying(directory, stage):
            notes = self.stages[stage].work(self, directory)
            if is_main_process():
                sync_tree(directory)
        record = {
            "stage": stage,
            "key": self.key(stage),
            "after": self._read_by(stage),
            "seconds": time.perf_counter() - started,
            "peak_memory_bytes": peak_memory_bytes(),
            "notes": notes,
            "provenance": facts,
        }
        if is_main_process():
            write_json(directory / STAGE_FILE, sealed(record, directory))
        wait_for_everyone()

    def read_stage(self, stage: str) -> dict[str, Any]:
        """Return what a complete stage noted.

        Raises:
            OutputError: see ``run_files.read_stage_file``.
        """
        if stage not in self._records:
            self._records[stage] = read_stage_file(self.directory(stage))
        return self._records[stage]


def _expanded(output_dir: str) -> Path:
    try:
        return Path(output_dir).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"output_dir {output_dir!r:.300} names the home of a user who does not exist. Write ./~… for a name with ~."
        ) from error


def _command(stage: str) -> str:
    return "rollout" if stage == "models" else stage


def resolved_yaml(recipe: Recipe) -> str:
    """Return the recipe with every default filled in, as YAML without secrets."""
    return dump_yaml(without_secrets(recipe.model_dump()))


def peak_memory_bytes() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def provenance(recipe: Recipe) -> dict[str, Any]:
    """Return versions, git commit, machine and seed: what a number needs beside its recipe."""
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
            ["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, errors="replace", timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):  # no git, or a slow disk
        return "unknown"
    return found.stdout.strip() or "unknown"
