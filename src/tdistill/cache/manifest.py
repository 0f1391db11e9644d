"""Declare the form of a cache's ``manifest.json``."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from tdistill.runtime.errors import CacheError
from tdistill.runtime.files import read_json
from tdistill.runtime.forms import Count, Form, Name, Positive, check_form

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
ADVICE = f"Delete {MANIFEST} and run `tdistill rollout` again: it makes the file anew from whole shards."


class SettingsForm(Form):
    """Declare the settings of a cache that its readers need."""

    teacher_top_p: float = Field(gt=0, le=1)
    max_candidates: Positive | None
    max_completion_length: Positive
    num_generations: Positive
    batch_size: Positive
    shard_batches: Positive
    temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)
    top_k: Count
    seed: int
    eos_ids: list[Count] = Field(min_length=1)
    prompts: list[Name] = Field(min_length=1)
    origin: Literal["teacher", "student", "mixed", "human"] = "teacher"
    teacher: Name = "unknown"
    tokenizer: Name = "unknown"
    template: Name = "unknown"


class CountsForm(Form):
    """Declare how much a cache holds."""

    model_config = ConfigDict(extra="forbid")

    responses: Positive
    finished: Count
    tokens: Positive
    candidates: Positive


class ManifestForm(Form):
    """Declare the form of the whole file."""

    model_config = ConfigDict(extra="forbid")

    settings: SettingsForm
    counts: CountsForm
    shards: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(min_length=1)
    tdistill_version: Name
    candidate_logp_max_error: float = Field(ge=0)
    schema_version: Literal[1]


def read_manifest_file(path: Path) -> dict[str, Any]:
    """Read a manifest and check its form.

    Raises:
        CacheError: it can't be read, is of another schema, or malformed; the place is named.
    """
    raw = read_json(path, CacheError, ADVICE)
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise CacheError(f"{path.parent} has cache schema {version}; this tdistill reads {SCHEMA_VERSION}.")
    check_form(raw, ManifestForm, str(path), CacheError, ADVICE)
    # No other names: a name with a path in it could lead anywhere.
    wrong = sorted(raw["shards"].keys() ^ {shard_name(i) for i in range(len(raw["shards"]))})[:3]
    if wrong or len(set(raw["shards"].values())) < len(raw["shards"]):
        problem = f"not {', '.join(map(repr, wrong))}" if wrong else "each another file"
        raise CacheError(f"{path}: `shards` must name {shard_name(0)} and so on, {problem}. {ADVICE}")
    return raw


def shard_name(index: int) -> str:
    """Return the file name of the index-th shard."""
    return f"shard-{index:05d}.parquet"
