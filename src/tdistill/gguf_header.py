"""A GGUF file's scalar metadata, read in milliseconds: layers and context are checked before anything long starts.

The package ``gguf`` reads the tokenizer's arrays entry by entry, which takes seconds. Format: the GGUF specification of ggml, v2 and v3.
"""

import struct
from pathlib import Path
from typing import BinaryIO

from tdistill.errors import ModelError

MAGIC, VERSIONS = b"GGUF", (2, 3)
# Type id → struct format of the scalar types; the other two are text and arrays.
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9


def read_scalars(path: Path) -> dict[str, int | float | bool | str]:
    """Every metadata entry that is a number or a text, by its key, such as ``llama.block_count``.

    Raises:
        ModelError: it is no GGUF file of a version known here, or it is truncated.
    """
    found = {}
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise ModelError(f"{path} is no GGUF file: it does not begin with {MAGIC.decode()}.")
        try:
            version = _scalar(file, "<I")
            if version not in VERSIONS:
                raise ModelError(f"{path} is GGUF version {version}; versions {VERSIONS} can be read.")
            _, entries = _scalar(file, "<Q"), _scalar(file, "<Q")
            for _ in range(int(entries)):
                key, kind = _text(file), _scalar(file, "<I")
                if kind == ARRAY:
                    _skip_array(file)
                else:
                    found[key] = _text(file) if kind == STRING else _scalar(file, SCALARS[int(kind)])
        except (struct.error, KeyError, UnicodeDecodeError) as error:
            raise ModelError(f"{path} is truncated or damaged: its metadata can't be read ({error}).") from error
    return found


def gguf_config(path: Path) -> dict[str, int]:
    """``num_hidden_layers`` and ``max_position_embeddings`` of a GGUF model, as far as the file states them.

    Raises:
        ModelError: see ``read_scalars``.
    """
    scalars = read_scalars(path)
    names = {"num_hidden_layers": "block_count", "max_position_embeddings": "context_length"}
    keys = {name: f"{scalars.get('general.architecture')}.{key}" for name, key in names.items()}
    return {name: int(scalars[key]) for name, key in keys.items() if key in scalars}


def _scalar(file: BinaryIO, form: str) -> int | float | bool:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def _text(file: BinaryIO) -> str:
    length = int(_scalar(file, "<Q"))
    data = file.read(length)
    if len(data) < length:
        raise struct.error(f"a text of {length} bytes ends after {len(data)}")
    return data.decode("utf-8")


def _skip_array(file: BinaryIO) -> None:
    kind, length = int(_scalar(file, "<I")), int(_scalar(file, "<Q"))
    if kind in SCALARS:
        file.seek(length * struct.calcsize(SCALARS[kind]), 1)
        return
    for _ in range(length):
        if kind == STRING:
            file.seek(int(_scalar(file, "<Q")), 1)
        else:
            _skip_array(file)
