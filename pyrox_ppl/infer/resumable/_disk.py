"""Files that are on the disk when a call returns, a lock, a full disk, zarr."""

import contextlib
import errno
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOCK = "lock"


def write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush(path: Path) -> None:
    """See that a file, or the entries of a directory, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no such call for directories
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_tree(root: Path) -> None:
    for path in [root, *root.rglob("*")]:
        flush(path)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out; the lock falls with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (path / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"another process is working on {path}: wait for it, or give this run "
                "a path of its own."
            ) from error
        except OSError as error:
            warnings.warn(
                f"{path} cannot be locked ({error}): see to it that no other process "
                "works on it.",
                stacklevel=4,
            )
        yield


@contextlib.contextmanager
def full_disk(path: Path, progress: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"no space for the next commit to {path}. What was committed stands "
            f"({progress}): free some space and start again with the same arguments",
        ) from error


def import_zarr() -> Any:
    """Zarr, which is an optional extra.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise ImportError(
            "a run on disk needs zarr, which is not installed: "
            'pip install "pyrox-ppl[io]".'
        ) from error
    return zarr
