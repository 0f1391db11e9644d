"""Hash files: the whole file, or an even sample of the blocks of weights that have many gigabytes."""

import hashlib
from pathlib import Path

# A sample has this many blocks of a large file; a file of up to 16 MiB is hashed whole.
SAMPLED_BLOCKS, SAMPLED_BLOCK_BYTES = 256, 1 << 16


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, as 64 hex digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_sampled(digest: "hashlib._Hash", path: Path, start: int = 0) -> None:
    """Add a file's size and an even sample of its blocks to a digest: all of a file of up to 16 MiB.

    Args:
        digest: it is changed in place.
        path: the file.
        start: the bytes before this place do not count.
    """
    size = path.stat().st_size - start
    digest.update(f"{size}\n".encode())
    step = max(SAMPLED_BLOCK_BYTES, size // SAMPLED_BLOCKS)
    with path.open("rb") as handle:
        for offset in range(0, size, step):
            handle.seek(start + offset)
            digest.update(handle.read(min(SAMPLED_BLOCK_BYTES, step)))
