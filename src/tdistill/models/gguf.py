"""Read the metadata of a GGUF file in milliseconds, so that layers and context are checked before anything long starts.

The package ``gguf`` reads the tokenizer's arrays entry by entry, which takes seconds. Format: the GGUF specification of ggml, v2 and v3.
Every length in the file is compared with the number of bytes that are left, so that a damaged length can't cost more time or memory than
the file has bytes.
"""

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tdistill.runtime.errors import ModelError

MAGIC, VERSIONS = b"GGUF", (2, 3)
# Type id → struct format of the scalar types; the other two are text and arrays.
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
ALIGNMENT = 32  # of tensors, unless the file states another
_K = dict(
    zip(
        (10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 21, 22, 23, 29, 34, 35),
        (84, 110, 144, 176, 210, 292, 66, 74, 98, 50, 110, 82, 136, 56, 54, 66),
        strict=True,
    )
)
_32 = {2: 18, 3: 20, 6: 22, 7: 24, 8: 34, 9: 40, 20: 18, 39: 17}
_1 = {0: 4, 1: 2, 24: 1, 25: 2, 26: 4, 27: 8, 28: 8, 30: 2}
# Tensor type → how many numbers a block holds, and its bytes.
BLOCKS = {kind: (count, size) for count, kinds in ((256, _K), (32, _32), (1, _1)) for kind, size in kinds.items()}
LEAST_ENTRY, LEAST_TENSOR, LEAST_ELEMENT = 13, 24, 8  # bytes of the shortest metadata entry, tensor entry and text or array
DEEPEST = 4  # arrays in arrays; files of today have none
LONGEST_TEXT = 1 << 20  # of a key or a single text; a long chat template has 20 kB
MOST_LAYERS, MOST_CONTEXT = 100_000, 1 << 40
ADVICE = "Download or convert it again."

Scalar = int | float | bool | str


class _DamagedError(Exception):
    """Report a file that no GGUF writer can have written."""


def read_scalars(path: Path) -> dict[str, Scalar]:
    """Return every metadata entry that is a number or a text, by its key, such as ``llama.block_count``.

    Raises:
        ModelError: the file can't be read, is no GGUF file of a version known here, or its header is truncated or damaged.
    """
    with _opened(path) as file:
        return _Header(path, file).scalars()


def metadata_bytes(path: Path) -> bytes:
    """Return the bytes of a GGUF file before its weights: configuration, tokenizer, chat template, and the tensors' names and types.

    Raises:
        ModelError: see ``read_scalars``.
    """
    with _opened(path) as file:
        _Header(path, file).scalars()
        end = file.tell()
        file.seek(0)
        return file.read(end)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except (_DamagedError, struct.error, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is truncated or damaged: its metadata can't be read ({error}). {ADVICE}") from error
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}.") from error


def gguf_config(path: Path) -> dict[str, int]:
    """Return ``num_hidden_layers`` and ``max_position_embeddings`` of a GGUF model; a value that the file does not state is left out.

    Raises:
        ModelError: see ``read_scalars``; or the file names no architecture, or one of the two is not a whole number above 0.
    """
    scalars = read_scalars(path)
    architecture = scalars.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise ModelError(f"{path} names no architecture (general.architecture is {architecture!r:.60}): it is no language model. {ADVICE}")
    found = {}
    for name, key, most in (("num_hidden_layers", "block_count", MOST_LAYERS), ("max_position_embeddings", "context_length", MOST_CONTEXT)):
        value = scalars.get(f"{architecture}.{key}")
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ModelError(f"{path}: {architecture}.{key} must be a whole number from 1 to {most}, got {value!r:.60}. {ADVICE}")
        found[name] = value
    return found


class _Header:
    """Read a file's header in one pass."""

    def __init__(self, path: Path, file: BinaryIO):
        self._path, self._file = path, file
        self._size = path.stat().st_size
        if file.read(4) != MAGIC:
            raise ModelError(f"{path} is no GGUF file: it does not begin with {MAGIC.decode()}.")

    def scalars(self) -> dict[str, Scalar]:
        version = self._number("<I")
        if version not in VERSIONS:
            other = " It is big-endian: convert it to little-endian." if version in [v << 24 for v in VERSIONS] else ""
            raise ModelError(f"{self._path} is GGUF version {version}; versions {VERSIONS} can be read.{other}")
        tensors = self._count(LEAST_TENSOR, "tensors")
        found: dict[str, Scalar] = {}
        keys: set[str] = set()
        for _ in range(self._count(LEAST_ENTRY, "metadata entries")):
            key, kind = self._text("a key"), self._number("<I")
            if key in keys:
                raise _DamagedError(f"the key {key!r:.60} stands twice")
            keys.add(key)
            if kind == ARRAY:
                self._skip_array(1)
            elif kind == STRING:
                found[key] = self._text(f"{key!r:.60}")
            else:
                found[key] = self._scalar(kind, key)
        self._check_tensors(tensors, found.get("general.alignment", ALIGNMENT))
        return found

    def _scalar(self, kind: int, key: str) -> Scalar:
        if kind not in SCALARS:
            raise _DamagedError(f"{key!r:.60} has type {kind}, which GGUF does not have")
        if SCALARS[kind] == "<?":  # struct takes any byte for true
            byte = self._number("<B")
            if byte > 1:
                raise _DamagedError(f"{key!r:.60} is a truth value of {byte}")
            return bool(byte)
        return struct.unpack(SCALARS[kind], self._read(struct.calcsize(SCALARS[kind])))[0]

    def _check_tensors(self, count: int, alignment: Scalar) -> None:
        """Check that tensors have names of their own, lie one after the other as ggml asks, and end inside the file."""
        if isinstance(alignment, bool) or not isinstance(alignment, int) or alignment < 1:
            raise _DamagedError(f"general.alignment is {alignment!r:.60}")
        names: set[str] = set()
        tensors = []
        for _ in range(count):
            name, size, offset = self._tensor()
            if name in names:
                raise _DamagedError(f"tensor {name!r:.60} stands twice")
            names.add(name)
            tensors.append((offset, size, name))
        left = self._size - _aligned(self._file.tell(), alignment)
        expected: int | None = 0
        for offset, size, name in sorted(tensors, key=lambda t: t[0]):
            if expected is not None and offset != expected:
                raise _DamagedError(f"tensor {name!r:.60} begins at {offset}, and the one before it ends at {expected}")
            if offset + (size or 1) > left:
                raise _DamagedError(f"tensor {name!r:.60} ends after {offset + (size or 1)} bytes of weights, and the file has {left}")
            expected = None if size is None or expected is None else _aligned(offset + size, alignment)

    def _tensor(self) -> tuple[str, int | None, int]:
        """Return a tensor's name, its size in bytes (None for a type that is not known here), and where it begins."""
        name, dimensions = self._text("a tensor's name"), self._number("<I")
        if dimensions > 4:
            raise _DamagedError(f"tensor {name!r:.60} has {dimensions} dimensions")
        shape = struct.unpack(f"<{dimensions}Q", self._read(8 * dimensions))
        kind, offset = self._number("<I"), self._number("<Q")
        if kind not in BLOCKS:
            return name, None, offset
        block, size = BLOCKS[kind]
        entries = math.prod(shape)
        if entries == 0 or (shape and shape[0] % block):
            raise _DamagedError(f"tensor {name!r:.60} has the shape {shape}, whose rows are no multiple of {block}")
        return name, entries // block * size, offset

    def _skip_array(self, depth: int) -> None:
        if depth > DEEPEST:
            raise _DamagedError(f"arrays stand in arrays more than {DEEPEST} deep")
        kind = self._number("<I")
        if kind in SCALARS:
            size = struct.calcsize(SCALARS[kind])
            self._skip(self._count(size, "numbers in an array") * size)
            return
        if kind not in (STRING, ARRAY):
            raise _DamagedError(f"an array has entries of type {kind}, which GGUF does not have")
        for _ in range(self._count(LEAST_ELEMENT, "entries in an array")):
            if kind == STRING:
                self._skip(self._number("<Q"))
            else:
                self._skip_array(depth + 1)

    def _left(self) -> int:
        return self._size - self._file.tell()

    def _count(self, least_bytes: int, what: str) -> int:
        count = self._number("<Q")
        if count * least_bytes > self._left():
            raise _DamagedError(f"it states {count} {what}, and {self._left()} bytes are left")
        return count

    def _skip(self, length: int) -> None:
        if length > self._left():
            raise _DamagedError(f"{length} bytes should follow, and {self._left()} do")
        self._file.seek(length, 1)

    def _number(self, form: str) -> int:
        return struct.unpack(form, self._read(struct.calcsize(form)))[0]

    def _text(self, what: str) -> str:
        length = self._number("<Q")
        if length > LONGEST_TEXT:
            raise _DamagedError(f"{what} has {length} bytes")
        return self._read(length).decode("utf-8")

    def _read(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) < length:
            raise _DamagedError(f"{length} bytes should follow, and {len(data)} do")
        return data


def _aligned(place: int, alignment: int) -> int:
    return -(-place // alignment) * alignment
