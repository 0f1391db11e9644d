"""Make, find and check artefacts: directories named by a hash of all that shaped them.

An artefact is complete when its manifest says so. The manifest is written last and holds the checksums of the files. This module knows
no stage by name.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from tdistill.experiment.provenance import peak_memory_bytes
from tdistill.runtime.disk import staying
from tdistill.runtime.errors import OutputError
from tdistill.runtime.files import remove_partial, sync_tree, write_json
from tdistill.runtime.forms import Count, Form, Name, check_form, read_form
from tdistill.runtime.hashes import hash_sampled
from tdistill.runtime.locks import hold
from tdistill.runtime.processes import is_main_process, wait_for_everyone

MANIFEST, LOCK, CHECKSUM = "artefact.json", ".lock", "checksum"
KEY_LENGTH = 12  # hex digits
SEED = "seed"  # the name of every setting that is a seed
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, eq=False)
class Artefact:
    """Describe a directory by all that shapes its content.

    Args:
        root: output directory.
        kind: folder below it.
        title: how messages name it. It is not a part of the key.
        settings: plain values that shape the content, beside the inputs.
        make: writes the files into a directory, which may hold what a stopped process left, and returns the notes.
        inputs: name → artefact that is read.
        format: version of what ``make`` writes: raise it when the same settings give other files.
        notes_form: form of the notes, for readers.
        loose: names of files and folders that people may change or delete afterwards. They have no checksum.
        pages: names of files that people may change, but that must be there. They have no checksum. Other files may be added beside them.
        resumes: ``make`` keeps the files that are whole, so that a damaged file can be deleted alone.
        after: removes what is not needed once the artefact is complete. It may be called again.
    """

    root: Path
    kind: str
    title: str
    settings: Mapping[str, Any]
    make: Callable[[Path], Mapping[str, Any]]
    inputs: Mapping[str, "Artefact"] = field(default_factory=dict)
    format: int = 1
    notes_form: Any = dict[str, Any]
    loose: tuple[str, ...] = ()
    pages: tuple[str, ...] = ()
    resumes: bool = False
    after: Callable[[Path], None] = lambda _: None

    @cached_property
    def key(self) -> str:
        """Return 12 hex digits of a hash of kind, format, settings and the inputs' keys."""
        return _digest([self.kind, self.format, self.settings, {name: found.key for name, found in self.inputs.items()}])[:KEY_LENGTH]

    @cached_property
    def group(self) -> str:
        """Return a key that leaves out every seed, also those of the inputs: equal for artefacts that differ by their seeds alone."""
        settings = {k: v for k, v in self.settings.items() if k != SEED}
        return _digest([self.kind, self.format, settings, {name: found.group for name, found in self.inputs.items()}])[:KEY_LENGTH]

    @property
    def directory(self) -> Path:
        """Return where the content lies, whether it exists yet or not."""
        return self.root / self.kind / self.key


class ManifestForm(Form):
    """Declare the form of ``artefact.json``."""

    kind: Name
    key: Name
    group: Name
    title: Name
    settings: dict[str, Any]
    inputs: dict[str, str]
    notes: dict[str, Any]
    seconds: float = Field(ge=0)
    peak_memory_bytes: Count
    provenance: dict[str, Any]
    files: dict[str, Sha256]
    checksum: Sha256


@dataclass(frozen=True)
class Manifest:
    """Hold what an artefact's manifest says."""

    kind: str
    key: str
    group: str
    title: str
    settings: dict[str, Any]
    inputs: dict[str, str]  # name → KIND/KEY
    notes: dict[str, Any]
    seconds: float  # of making it
    peak_memory_bytes: int
    provenance: dict[str, Any]
    files: dict[str, str]  # path → SHA-256 (of large files: of a sample of their blocks)


def has_manifest(directory: Path) -> bool:
    """Return whether a directory has a manifest, whatever is in it."""
    return os.path.lexists(directory / MANIFEST)


def read(artefact: Artefact) -> Manifest | None:
    """Return the manifest of a complete artefact; None if it is not complete.

    Raises:
        OutputError: it was complete, but its manifest or a file is damaged, altered or missing, or a file was added. To make these anew in
            silence could take hours, and could hide that other results were made from other files.
    """
    if not has_manifest(artefact.directory):
        return None
    found = read_manifest(artefact.directory, resumes=artefact.resumes)
    for name in () if artefact.pages else _files(artefact):  # no artefact reads one with pages
        if name not in found.files:
            raise OutputError(
                f"{artefact.directory / name} is no part of what was made there, and may be read in its place. Move it elsewhere."
            )
    for name in artefact.pages:
        if not (artefact.directory / name).is_file():
            raise OutputError(f"{artefact.directory / name} is missing. {_advice(artefact.directory)}")
    check_form(found.notes, artefact.notes_form, f"{artefact.directory / MANIFEST}: `notes`", OutputError, _advice(artefact.directory))
    return found


def read_manifest(directory: Path, resumes: bool = False, copied: bool = False) -> Manifest:
    """Read the manifest of ``…/KIND/KEY``, and check that the files are those that were made.

    Args:
        directory: the artefact's directory.
        resumes: making it again keeps the files that are whole.
        copied: the directory may be a copy that lacks files which are not read, such as weights.

    Raises:
        OutputError: the manifest is missing, damaged or of another directory, or a file is missing or was altered.
    """
    path, advice = directory / MANIFEST, _advice(directory)
    record = read_form(path, ManifestForm, OutputError, advice)
    found = f"{record['kind']}/{record['key']}"
    if found != f"{directory.parent.name}/{directory.name}":
        raise OutputError(f"{path} is that of {found}, not of {directory.parent.name}/{directory.name}. {advice}")
    if _digest({k: v for k, v in record.items() if k != CHECKSUM}) != record[CHECKSUM]:
        raise OutputError(f"{path} was altered or is damaged: it is not what was written. Put the right file back, or d{advice[1:]}")
    for name, checksum in record["files"].items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise OutputError(f"{path}: `files` names {name!r:.80}, which lies outside. {advice}")
        if not (copied and not os.path.lexists(directory / name)):
            _check_file(directory, name, checksum, resumes)
    return Manifest(**{name: record[name] for name in Manifest.__dataclass_fields__})


def build(artefact: Artefact, provenance: Mapping[str, Any], watching: AbstractContextManager[None]) -> Manifest:
    """Make an artefact whose inputs are complete, and write its manifest last.

    Args:
        artefact: what to make.
        provenance: versions, machine and so on, for the manifest.
        watching: entered while files are made, such as what a stop says.

    Raises:
        OutputError: another process makes it, or the directory was deleted in between.
    """
    directory = artefact.directory
    directory.mkdir(parents=True, exist_ok=True)
    lock = hold(directory / LOCK, str(directory)) if is_main_process() else None
    try:
        if is_main_process():
            remove_partial(directory)
        started = time.perf_counter()
        with watching:
            with staying(directory, artefact.title):
                notes = artefact.make(directory)
                if is_main_process():
                    sync_tree(directory)
            if is_main_process():
                write_json(directory / MANIFEST, _sealed(artefact, notes, time.perf_counter() - started, provenance))
    finally:
        if lock is not None:
            lock.release()
    wait_for_everyone()
    return read_manifest(directory)


def _sealed(artefact: Artefact, notes: Mapping[str, Any], seconds: float, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the manifest holds, with one checksum over all of it."""
    record = {
        "kind": artefact.kind,
        "key": artefact.key,
        "group": artefact.group,
        "title": artefact.title,
        "format": artefact.format,
        "settings": artefact.settings,
        "inputs": {name: f"{found.kind}/{found.key}" for name, found in artefact.inputs.items()},
        "notes": notes,
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "provenance": provenance,
        "files": {name: _checksum(artefact.directory / name) for name in _files(artefact)},
    }
    return record | {CHECKSUM: _digest(record)}


def _files(artefact: Artefact) -> Iterator[str]:
    """Yield the paths of the files that later artefacts may read."""
    for path in sorted(artefact.directory.rglob("*")):
        name = path.relative_to(artefact.directory)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden and not set(name.parts) & {*artefact.loose, *artefact.pages} and str(name) != MANIFEST:
            yield str(name)


def _check_file(directory: Path, name: str, checksum: str, resumes: bool) -> None:
    path, problem = directory / name, "is missing"
    try:
        if path.is_file():
            problem = "" if _checksum(path) == checksum else "was altered or is damaged: it is not what was written"
    except OSError as error:
        problem = f"can't be read ({error.strerror})"
    if problem:
        advice = f"delete {path} and {directory / MANIFEST} and run again: the other files are kept." if resumes else _advice(directory, "d")
        raise OutputError(f"{path} {problem}. Put the right file back, or {advice}")


def _advice(directory: Path, first: str = "D") -> str:
    return f"{first}elete {directory} and run again: it alone is made anew."


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    hash_sampled(digest, path)
    return digest.hexdigest()


def _digest(value: Any) -> str:
    """Return the SHA-256 of plain values, equal for what is equal once written as JSON."""
    plain = json.loads(json.dumps(value))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
