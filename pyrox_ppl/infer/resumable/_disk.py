"""What a run needs of a disk: durable files, sealed JSON, a lock, clear errors."""

import contextlib
import errno
import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyrox_ppl._files import flush

LOCK = "lock"


# The files between a user's call and a warning. Python skips the files whose names
# begin with one of these and are longer.
_NOT_THE_USERS = (
    str(Path(__file__).parents[2]),
    contextlib.__file__.removesuffix(".py"),
)


def warn_user(message: str) -> None:
    """Warn at the line of the user's that called the package."""
    warnings.warn(message, skip_file_prefixes=_NOT_THE_USERS, stacklevel=2)


def write(path: Path, content: bytes | memoryview) -> None:
    """Write a file; it is on the disk when the call returns."""
    path.write_bytes(content)
    flush(path)


def flush_tree(root: Path) -> None:
    """Make sure that a directory and all that is in it are on the disk."""
    for path in [root, *root.rglob("*")]:
        flush(path)


def remove(path: Path) -> None:
    """Delete a file, or a directory with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def seal(content: dict[str, Any]) -> bytes:
    """Write a dictionary as JSON, with its hash."""
    whole = {"sha256": _hash(content), "content": content}
    return json.dumps(whole, indent=1).encode()


def unseal(file: Path) -> dict[str, Any]:
    """Read a dictionary that :func:`seal` wrote.

    Raises:
        ValueError: If the file cannot be read, or its hash does not match.
    """
    try:
        whole = json.loads(file.read_bytes())
        content = whole["content"]
        if _hash(content) != whole["sha256"]:
            raise ValueError("its checksum does not match")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"{file} is damaged ({error}). Nothing was changed. Restore it from a "
            "copy, or start again under a new path."
        ) from error
    return content


def _hash(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out; the lock ends with the process, however it ends."""
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
            warn_user(
                f"{path} cannot be locked ({error}): make sure that no other process "
                "works on it."
            )
        yield


@contextlib.contextmanager
def full_disk_explained(path: Path, progress: dict[str, Any]) -> Iterator[None]:
    """Say, where the disk is full, what was committed and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"no space for the next commit to {path}. What was committed is safe "
            f"({progress}): free some space and start again with the same arguments",
        ) from error


def import_zarr() -> Any:
    """Import zarr, which is an optional extra.

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
