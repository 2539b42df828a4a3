"""Files that are whole or absent: written beside their place, then moved there."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replace_when_written(path: Path) -> Iterator[Path]:
    """Yield a temporary path, and move that file to `path` if the block succeeds.

    If the block raises or the process dies, the previous file stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        # The content must be on the disk before the name is: after a power cut the name
        # would otherwise stand for an empty file.
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a directory, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no such call for directories
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
