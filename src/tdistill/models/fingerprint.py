"""Fingerprint a model: one hash for each part that shapes its answers, so that a message can say which part changed.

The hashes depend on the content of the files that loading reads. They do not depend on where the files lie, on their times, or on
other files beside them.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tdistill.models.find import ModelSource, base_of, read_config
from tdistill.models.gguf import metadata_bytes
from tdistill.models.lora import ADAPTER_CONFIG, adapter_weights, is_adapter
from tdistill.models.tokenizer import tokenizer_source
from tdistill.models.weights import weight_files
from tdistill.runtime.errors import ModelError
from tdistill.runtime.files import read_json
from tdistill.runtime.hashes import hash_sampled

DIGITS = 16
TOKENIZER_CONFIG, TEMPLATE_FILE, TEMPLATE_DIRECTORY = "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates"
# The files that tokenizers of transformers read: vocabularies, merges, special and added tokens.
TOKENIZER_PATTERNS = (
    *("tokenizer.json", "tokenizer.*.json", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
    *("vocab.*", "merges.txt", "*.model", "*.tiktoken"),
)
# Keys that say which program wrote a file, or where it lay. The dtype of a configuration is that of the file: loading sets its own.
VOLATILE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")
VOLATILE_TOKENIZER = ("transformers_version", "name_or_path", "tokenizer_file", "chat_template")
VOLATILE_GENERATION = ("transformers_version", "_from_model_config")
VOLATILE_ADAPTER = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")
ADVICE = "Save the model again."


def model_identity(source: ModelSource, trust_remote_code: bool = False) -> dict[str, str]:
    """Return one hash for each part of a model that shapes its answers.

    Args:
        source: from ``find_model``.
        trust_remote_code: the model runs the Python files beside it, so that they count. Code in another repository counts by its name only.

    Returns:
        16 hex digits for each of ``weights`` (an even sample of blocks of files over 16 MiB; adapters and their base),
        ``config`` (of a GGUF file all its metadata), ``tokenizer`` (its files and settings), ``template`` (the chat template),
        ``generation_config`` (the tokens that end a text) and ``code``.

    Raises:
        ModelError: a file is missing or damaged.
    """
    tokenizer = tokenizer_source(source).directory
    spoken = {"tokenizer": _tokenizer(tokenizer), "template": _template(tokenizer)}
    if is_adapter(source.directory):
        base = model_identity(base_of(source), trust_remote_code)
        return base | spoken | {"weights": _hash_json([base["weights"], _adapters(source.directory)])}
    if source.gguf_file:
        path = source.directory / source.gguf_file
        metadata = metadata_bytes(path)
        parts = {"weights": _hash_files([path], start=len(metadata)), "config": _hash(metadata)}
        return parts | spoken | {"generation_config": _hash_json(None), "code": _hash_json([])}
    return {
        "weights": _hash_files(weight_files(source.directory)),
        "config": _hash_json(_without(read_config(source.directory), VOLATILE)),
        **spoken,
        "generation_config": _hash_json(_read_object(source.directory / "generation_config.json", VOLATILE_GENERATION)),
        "code": _code(source.directory) if trust_remote_code else _hash_json([]),
    }


def weights_fingerprint(source: ModelSource) -> str:
    """Return 16 hex digits that change with the weights or the configuration alone: what a roll-out cache states of its teacher.

    The fingerprint of adapters changes with their base model too.

    Raises:
        ModelError: a file is missing or damaged.
    """
    digest = hashlib.sha256()
    if source.gguf_file:
        files = [source.directory / source.gguf_file]
    elif is_adapter(source.directory):
        files = [source.directory / ADAPTER_CONFIG, adapter_weights(source.directory)]
        digest.update(weights_fingerprint(base_of(source)).encode())
    else:
        files = sorted(weight_files(source.directory))
        digest.update(json.dumps(_without(read_config(source.directory), VOLATILE), sort_keys=True).encode())
    for file in files:
        hash_sampled(digest, file)
    return digest.hexdigest()[:DIGITS]


def _adapters(directory: Path) -> list[str]:
    """Return the hashes of a directory's adapters; the path of their base is left out, since the base has a hash of its own."""
    return [_hash_json(_read_object(directory / ADAPTER_CONFIG, VOLATILE_ADAPTER)), _hash_files([adapter_weights(directory)])]


def _tokenizer(directory: Path) -> str:
    files = sorted({path for pattern in TOKENIZER_PATTERNS for path in directory.glob(pattern) if path.is_file()})
    return _hash_json([_read_object(directory / TOKENIZER_CONFIG, VOLATILE_TOKENIZER), _named_hashes(files)])


def _template(directory: Path) -> str:
    """Return the hash of the chat templates. A file of its own takes the place of the key in the tokenizer's configuration."""
    path = directory / TEMPLATE_FILE
    if path.is_file():
        template: Any = _content(path).decode("utf-8", "replace")
    else:
        template = (_read_object(directory / TOKENIZER_CONFIG, ()) or {}).get("chat_template")
    return _hash_json([template, _named_hashes(sorted((directory / TEMPLATE_DIRECTORY).glob("*.jinja")))])


def _code(directory: Path) -> str:
    """Return the hash of the Python files beside a model that names classes of its own; without these names no file is run."""
    files = [directory / "config.json", directory / TOKENIZER_CONFIG]
    runs = any("auto_map" in (_read_object(path, ()) or {}) for path in files)
    return _hash_json(_named_hashes(sorted(directory.glob("*.py"))) if runs else [])


def _read_object(path: Path, volatile: Iterable[str]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    value = read_json(path, ModelError, ADVICE)
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold an object. {ADVICE}")
    return _without(value, volatile)


def _without(value: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in set(keys)}


def _named_hashes(files: Iterable[Path]) -> list[tuple[str, str]]:
    return [(path.name, _hash(_content(path))) for path in files]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}.") from error


def _hash_files(files: Iterable[Path], start: int = 0) -> str:
    digest = hashlib.sha256()
    for path in files:
        hash_sampled(digest, path, start)
    return digest.hexdigest()[:DIGITS]


def _hash_json(value: Any) -> str:
    return _hash(json.dumps(value, sort_keys=True).encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]
