"""Hold an experiment: a recipe, its output directory, and what several artefacts read."""

from collections.abc import Callable, Collection
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, TypeVar

from tdistill.data.overlap import held_out_prompts
from tdistill.data.prompts import Prompt
from tdistill.experiment.artefact import Artefact, Manifest, read
from tdistill.experiment.provenance import resolved_yaml
from tdistill.models.find import ModelSource, find_model
from tdistill.recipe.schema import Recipe
from tdistill.runtime.errors import ConfigError, OutputError, visible
from tdistill.runtime.files import write_text
from tdistill.runtime.locks import LOCK, Lock, hold
from tdistill.runtime.processes import is_main_process

MARKER, RECIPE_FILE, LATEST, EVALUATION = ".tdistill", "recipe.yaml", "latest", "evaluation"
SPLITS = ("train", "valid", "test")
Value = TypeVar("Value")


class Experiment:
    """Hold a recipe and the artefacts that it describes."""

    def __init__(self, recipe: Recipe, only: Collection[str] = ()):
        """Describe what a recipe makes.

        Args:
            recipe: what is asked for.
            only: names of the methods that are trained and measured; by default all.
        """
        self.recipe = recipe
        self.only = frozenset(only) or frozenset(recipe.train.methods())
        self.root = _expanded(recipe.output_dir)
        self.memo: dict[Any, Any] = {}
        self._lock: Lock | None = None
        self._manifests: dict[Path, Manifest] = {}
        self._prompts: dict[str, list[Prompt]] = {}

    @cached_property
    def teacher_source(self) -> ModelSource:
        """Return where the teacher's files are."""
        return find_model(self.recipe.teacher.teacher_model_name_or_path)

    def prompts(self, split: str) -> list[Prompt]:
        """Return the prompts of a split as they are used, before they are tokenised. They are read once.

        Raises:
            DataError: see ``held_out_prompts``.
        """
        if split not in self._prompts:
            self._prompts[split] = held_out_prompts(self.recipe.data, split)
        return self._prompts[split]

    def manifest(self, artefact: Artefact) -> Manifest | None:
        """Return the manifest of a complete artefact, or None. The files of a complete one are checked once.

        Raises:
            OutputError: see ``artefact.read``.
        """
        if artefact.directory not in self._manifests:
            found = read(artefact)
            if found is None:
                return None
            self._manifests[artefact.directory] = found
        return self._manifests[artefact.directory]

    def is_complete(self, artefact: Artefact) -> bool:
        """Return whether an artefact is complete; see ``manifest``."""
        return self.manifest(artefact) is not None

    def notes(self, artefact: Artefact) -> dict[str, Any]:
        """Return the notes of a complete artefact.

        Raises:
            OutputError: it is not complete, or see ``artefact.read``.
        """
        found = self.manifest(artefact)
        if found is None:
            raise OutputError(f"{artefact.directory} ({artefact.title}) is not complete: `tdistill run RECIPE` completes it.")
        return found.notes

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
            self._write_recipe()
        except (OSError, ValueError) as error:  # a ValueError: a NUL byte
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ConfigError(f"Can't write to output_dir {visible(str(self.root))}: {reason}. Choose another: output_dir=runs/NAME") from error

    def _write_recipe(self) -> None:
        """Save the resolved recipe. If it is another than before, ``latest/evaluation`` goes: it may not be this one's."""
        path, link, text = self.root / RECIPE_FILE, self.root / LATEST / EVALUATION, resolved_yaml(self.recipe)
        if link.is_symlink() and not (path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text):
            link.unlink()
        write_text(path, text)

    def _is_ours(self) -> bool:
        # A kill may have left the directory before it got its marker.
        names = [path.name for path in self.root.iterdir()]
        return MARKER in names or all(name.startswith(MARKER) for name in names)


def once(find: Callable[[Experiment], Value]) -> Callable[[Experiment], Value]:
    """Call a function once for each experiment, and return the same value afterwards."""

    @wraps(find)
    def found(experiment: Experiment) -> Value:
        if find not in experiment.memo:
            experiment.memo[find] = find(experiment)
        return experiment.memo[find]

    return found


def _expanded(output_dir: str) -> Path:
    try:
        return Path(output_dir).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"output_dir {output_dir!r:.300} names the home of a user who does not exist. Write ./~… for a name with ~."
        ) from error
