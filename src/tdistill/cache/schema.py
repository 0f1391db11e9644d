"""Define what a roll-out cache holds: Parquet shards with one response in a row, and the form of its ``manifest.json``."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import ConfigDict, Field, ValidationError

from tdistill.mdp.candidates import Ragged
from tdistill.recipe.schema import RolloutConfig
from tdistill.runtime.errors import CacheError
from tdistill.runtime.files import read_json
from tdistill.runtime.forms import Count, Form, Name, Positive, check_form

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
SETTINGS_KEY = b"tdistill.settings"  # the settings stand in the metadata of every shard
ADVICE = f"Delete {MANIFEST} and run `tdistill rollout` again: it makes the file anew from whole shards."
ORIGINS = ("teacher", "student", "mixed", "selected", "human")
# Settings that only say in which order and in which files the work is done. Earlier versions wrote them into every shard.
PLAN = ("batch_size", "shard_batches")
SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("origin", pa.string()),  # one of ORIGINS
        ("policy_id", pa.string()),  # fingerprint of the model that wrote the response
        ("prompt_ids", pa.list_(pa.uint32())),
        ("response_ids", pa.list_(pa.uint32())),
        ("finished", pa.bool_()),  # ended by an end-of-text token, not by the length limit
        ("text", pa.string()),
        ("candidate_count", pa.list_(pa.int32())),  # per token: |A_p|
        ("kept_mass", pa.list_(pa.float32())),  # per token: the teacher's mass on A_p
        ("token_logp", pa.list_(pa.float32())),  # per token: the teacher's log-prob of it, true
        ("behaviour_logp", pa.list_(pa.float32())),  # per token: under the distribution it was sampled from; null for human text
        ("candidate_ids", pa.list_(pa.uint32())),  # ragged, concatenated over tokens, descending per token
        ("candidate_logp", pa.list_(pa.float16())),
    ]
)


@dataclass(frozen=True)
class Response:
    """Hold one response to a prompt, of T tokens, and what is known about each token."""

    prompt_id: str
    sample_index: int
    prompt_ids: tuple[int, ...]
    response_ids: list[int]
    finished: bool  # the last token ends the text
    token_logp: list[float]  # [T] log-prob of the token, at temperature 1, under the model that was asked
    behaviour_logp: list[float] | None  # [T] under the distribution it was sampled from; None for text that was only scored
    candidates: Ragged | None = None  # of T states; None where none were asked for

    @property
    def text_ids(self) -> list[int]:
        """Return the tokens of the text: all but the one that ends a finished response."""
        return self.response_ids[:-1] if self.finished else self.response_ids


def to_row(response: Response, origin: str, policy_id: str, text: str) -> dict[str, Any]:
    """Return a response as a row of a shard.

    Raises:
        CacheError: it was made without candidates.
    """
    found = response.candidates
    if found is None:
        raise CacheError(f"The response to prompt {response.prompt_id} has no candidates: a cache holds them for every token.")
    return {
        "prompt_id": response.prompt_id,
        "sample_index": response.sample_index,
        "origin": origin,
        "policy_id": policy_id if origin != "human" else "human",
        "prompt_ids": response.prompt_ids,
        "response_ids": response.response_ids,
        "finished": response.finished,
        "text": text,
        "candidate_count": found.counts.tolist(),
        "kept_mass": found.kept_mass.tolist(),
        "token_logp": response.token_logp,
        "behaviour_logp": response.behaviour_logp,
        "candidate_ids": found.ids.tolist(),
        "candidate_logp": found.logp.astype(np.float16),
    }


def candidates_of(table: pa.Table, index: int) -> Ragged:
    """Return the candidates of one row of a table, log-probs and masses in float64."""
    return Ragged(
        ids=list_of(table, "candidate_ids", index, np.int64),
        logp=list_of(table, "candidate_logp", index, np.float64),
        counts=list_of(table, "candidate_count", index, np.int64),
        kept_mass=list_of(table, "kept_mass", index, np.float64),
    )


def list_of(table: pa.Table, column: str, index: int, dtype: Any) -> np.ndarray:
    """Return the list in one row of a table's column."""
    return table[column][index].values.to_numpy(zero_copy_only=False).astype(dtype)


@dataclass(frozen=True)
class CacheManifest:
    """Describe a finished cache. ``settings`` is all that shaped its content; ``plan`` notes the batches in which it was made."""

    settings: dict[str, Any]
    counts: dict[str, int]
    shards: dict[str, str]  # file → SHA-256
    tdistill_version: str
    candidate_logp_max_error: float  # nats: half the spacing of float16 at the least probable candidate
    schema_version: int = SCHEMA_VERSION
    plan: dict[str, int] | None = None

    @property
    def teacher_top_p(self) -> float:
        """Return the p that the cache was made with: it serves every p up to it."""
        return float(self.settings["teacher_top_p"])

    @property
    def rollout(self) -> RolloutConfig:
        """Return the section of a recipe that makes this cache.

        Raises:
            CacheError: its values lie outside what a recipe may set.
        """
        known = {**self.settings, **(self.plan or {})}
        try:
            return RolloutConfig(**{name: known[name] for name in RolloutConfig.model_fields if known.get(name) is not None})
        except ValidationError as error:
            raise CacheError(f"The settings in {MANIFEST} are none that a recipe can set: {error.errors()[0]['msg']}. {ADVICE}") from error

    @property
    def checksum(self) -> str:
        """Return one SHA-256 over the shards' checksums: equal exactly if the content is."""
        return hashlib.sha256(json.dumps(self.shards, sort_keys=True).encode()).hexdigest()


class SettingsForm(Form):
    """Declare the settings of a cache that its readers need."""

    teacher_top_p: float = Field(gt=0, lt=1)
    max_candidates: Positive | None
    max_completion_length: Positive
    num_generations: Positive
    batch_size: Positive | None = None
    shard_batches: Positive | None = None
    temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)
    top_k: Count
    seed: int
    eos_ids: list[Count] = Field(min_length=1)
    prompts: list[Name] = Field(min_length=1)
    origin: Literal["teacher", "student", "mixed", "selected", "human"] = "teacher"
    teacher: Name = "unknown"
    tokenizer: Name = "unknown"
    template: Name = "unknown"


class PlanForm(Form):
    """Declare the note on the batches in which a cache was made."""

    model_config = ConfigDict(extra="forbid")

    batch_size: Positive
    shard_batches: Positive


class CountsForm(Form):
    """Declare how much a cache holds."""

    model_config = ConfigDict(extra="forbid")

    responses: Positive
    finished: Count
    tokens: Positive
    candidates: Positive


class CacheManifestForm(Form):
    """Declare the form of the whole file."""

    model_config = ConfigDict(extra="forbid")

    settings: SettingsForm
    counts: CountsForm
    shards: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(min_length=1)
    tdistill_version: Name
    candidate_logp_max_error: float = Field(ge=0)
    schema_version: Literal[1]
    plan: PlanForm | None = None


def read_manifest_file(path: Path) -> dict[str, Any]:
    """Read a manifest and check its form.

    Raises:
        CacheError: it can't be read, is of another schema, or malformed; the place is named.
    """
    raw = read_json(path, CacheError, ADVICE)
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise CacheError(f"{path.parent} has cache schema {version}; this tdistill reads {SCHEMA_VERSION}.")
    check_form(raw, CacheManifestForm, str(path), CacheError, ADVICE)
    # No other names: a name with a path in it could lead anywhere.
    wrong = sorted(raw["shards"].keys() ^ {shard_name(i) for i in range(len(raw["shards"]))})[:3]
    if wrong or len(set(raw["shards"].values())) < len(raw["shards"]):
        problem = f"not {', '.join(map(repr, wrong))}" if wrong else "each another file"
        raise CacheError(f"{path}: `shards` must name {shard_name(0)} and so on, {problem}. {ADVICE}")
    return raw


def shard_name(index: int) -> str:
    """Return the file name of the index-th shard."""
    return f"shard-{index:05d}.parquet"


def content_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that shape a cache's content: all but those of the plan."""
    return {key: value for key, value in settings.items() if key not in PLAN}


def canonical(settings: dict[str, Any]) -> bytes:
    """Return the settings that shape the content as bytes, to compare them."""
    return json.dumps(content_settings(settings), sort_keys=True).encode()
