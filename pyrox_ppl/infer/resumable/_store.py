"""A run on disk: draws that grow block by block, a state, and one atomic commit.

A directory holds

- ``draws.zarr``: one array per field, all of its final shape, in chunks of one block;
- ``state-<n>.npz``: the arrays to go on from;
- ``manifest.json``: what of it counts, with the hash of every block and of itself.

A block's chunks and the state are written and flushed first; then the manifest that
names them replaces the one before by a rename, which is atomic. A process that dies
before the rename has committed nothing, one that dies after it everything. No array
is unpickled.
"""

import contextlib
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from pyrox_ppl.infer._arrays import digest
from pyrox_ppl.infer.resumable._disk import (
    LOCK,
    flush,
    flush_tree,
    full_disk,
    import_zarr,
    locked,
    remove,
    write,
)
from pyrox_ppl.infer.resumable._manifest import (
    FORMAT,
    MANIFEST,
    PREVIOUS,
    read_manifest,
    sealed,
    spare,
)

_DRAWS = "draws.zarr"


def reached(point: str) -> None:
    """Do nothing: the place where a test makes a commit fail."""


class RunStore:
    """An open run: locked, its manifest read and checked.

    Attributes:
        path: The directory.
        progress: How far the committed run has come: numbers by name.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self._manifest = manifest

    @property
    def progress(self) -> dict[str, Any]:
        return self._manifest["progress"]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the run was begun with."""
        return self._manifest["fingerprint"]

    @classmethod
    @contextlib.contextmanager
    def begin(
        cls,
        path: Path,
        *,
        fingerprint: dict[str, Any],
        progress: dict[str, Any],
        state: list[np.ndarray],
        fields: dict[str, tuple[tuple[int, ...], str]],
        axis: int = 0,
        block: int = 1,
    ) -> Iterator[Self]:
        """Make the directory, whole or not at all, and open it.

        Args:
            path: The directory, which does not exist or is empty.
            fingerprint: What the run must be continued with.
            progress: How far it is: numbers by name.
            state: The arrays to go on from.
            fields: The final shape and the dtype of every array that grows.
            axis: The axis along which they grow.
            block: How many entries along it make a block.
        """
        making = path.with_name(f"{path.name}.creating")
        making.mkdir(parents=True, exist_ok=True)
        manifest = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "fields": {n: [list(s), d] for n, (s, d) in fields.items()},
            "axis": axis,
            "block": block,
            "blocks": [],
            "commit": -1,
        }
        with locked(making):
            with full_disk(path, {}):
                for leftover in making.iterdir():
                    if leftover.name != LOCK:
                        remove(leftover)
                group = import_zarr().open_group(making / _DRAWS, mode="w")
                for name, (shape, dtype) in fields.items():
                    chunks = [max(size, 1) for size in shape]
                    chunks[axis] = block
                    group.create_array(
                        name,
                        shape=shape,
                        dtype=dtype,
                        chunks=tuple(chunks),
                        chunk_key_encoding={"name": "default", "separator": "."},
                    )
                flush_tree(making / _DRAWS)
                store = cls(making, manifest)
                store._write_manifest(progress, state, [])
                reached("created")
                os.replace(making, path)
                flush(path.parent)
            store.path = path
            yield store

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path) -> Iterator[Self]:
        """Open a run that was begun before.

        Raises:
            ValueError: If the directory is not a run, or its manifest is damaged.
        """
        if not (path / MANIFEST).is_file():
            raise ValueError(
                f"{path} has no {MANIFEST}: it is not a run that was begun here, or "
                "its manifest was removed. Nothing in it was changed. Give a new path"
                f"{spare(path)}."
            )
        with locked(path):
            yield cls(path, read_manifest(path))

    def state(self) -> list[np.ndarray]:
        """The committed state.

        Raises:
            ValueError: If its file is missing or damaged.
        """
        entry = self._manifest["state"]
        file = self.path / entry["file"]
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ValueError(
                self._damage(file.name, f"cannot be read: {error}")
            ) from error
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise ValueError(self._damage(file.name, "is truncated or altered"))
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return [arrays[f"{i:05d}"] for i in range(len(arrays.files))]
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise ValueError(
                self._damage(file.name, f"is no archive: {error}")
            ) from error

    def commit(
        self,
        progress: dict[str, Any],
        state: list[np.ndarray],
        rows: dict[str, np.ndarray] | None = None,
    ) -> None:
        """Add a block (the last may be short), the state and the progress: all or none.

        Raises:
            OSError: If the disk is full; what was committed before stands.
        """
        with full_disk(self.path, self.progress):
            blocks = list(self._manifest["blocks"])
            if rows is not None:
                self._write_block(len(blocks), rows)
                blocks.append(digest(dict(rows)))
            self._write_manifest(progress, state, blocks)

    def read(self, count: int) -> dict[str, np.ndarray]:
        """The first `count` committed entries of every field, every block verified.

        Raises:
            ValueError: If a block is missing, truncated or altered; it is named.
        """
        group = self._group("r")
        axis, block = self._manifest["axis"], self._manifest["block"]
        result = {}
        for name, (shape, dtype) in self._manifest["fields"].items():
            shape = [*shape[:axis], count, *shape[axis + 1 :]]
            result[name] = np.zeros(shape, dtype)
        for index, expected in enumerate(self._manifest["blocks"]):
            part = _slice(axis, index * block, min((index + 1) * block, count))
            rows = {}
            for name, whole in result.items():
                try:
                    rows[name] = np.asarray(group[name][part])
                except (ValueError, RuntimeError, OSError, KeyError) as error:
                    raise ValueError(self._damaged_block(index, name, error)) from error
                whole[part] = rows[name]
            if digest(rows) != expected:
                raise ValueError(self._damaged_block(index, "its arrays", "altered"))
        return result

    def _write_block(self, index: int, rows: dict[str, np.ndarray]) -> None:
        group = self._group("r+")
        axis, block = self._manifest["axis"], self._manifest["block"]
        for name, value in rows.items():
            array = group[name]
            start = index * block
            array[_slice(axis, start, start + value.shape[axis])] = value
            reached("draws")
            place = [0] * value.ndim
            place[axis] = index
            chunk = self.path / _DRAWS / name
            chunk = chunk / array.metadata.encode_chunk_key(tuple(place))
            if chunk.exists():  # zarr writes no chunk that holds only zeros
                flush(chunk)
                flush(chunk.parent)
        reached("draws flushed")

    def _write_manifest(
        self, progress: dict[str, Any], state: list[np.ndarray], blocks: list[str]
    ) -> None:
        number = self._manifest["commit"] + 1
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {f"{i:05d}": array for i, array in enumerate(state)}
        np.savez(buffer, **arrays)
        content = buffer.getvalue()
        name = f"state-{number}.npz"
        write(self.path / name, content)
        reached("state")
        new = {
            **self._manifest,
            "progress": progress,
            "blocks": blocks,
            "commit": number,
            "state": {"file": name, "sha256": hashlib.sha256(content).hexdigest()},
        }
        whole = sealed(new)
        manifest, previous = self.path / MANIFEST, self.path / PREVIOUS
        if manifest.exists():
            # A spare: nothing depends on it, so it need not be on the disk by now.
            previous.with_suffix(".tmp").write_bytes(manifest.read_bytes())
            os.replace(previous.with_suffix(".tmp"), previous)
        reached("previous")
        write(manifest.with_suffix(".tmp"), whole)
        reached("manifest")
        os.replace(manifest.with_suffix(".tmp"), manifest)
        reached("renamed")
        flush(self.path)
        self._manifest = new
        # Of the states only those stay that this manifest and the previous one name.
        for file in self.path.glob("state-*.npz"):
            if file.name not in (name, f"state-{number - 1}.npz"):
                file.unlink()
        reached("committed")

    def _group(self, mode: Any) -> Any:
        try:
            return import_zarr().open_group(self.path / _DRAWS, mode=mode)
        except (FileNotFoundError, ValueError, KeyError) as error:
            raise ValueError(
                self._damage(_DRAWS, f"cannot be opened: {error}")
            ) from error

    def _damaged_block(self, index: int, name: str, why: Any) -> str:
        total = len(self._manifest["blocks"])
        return self._damage(
            f"block {index} of {total} in {_DRAWS} ({name})",
            f"is missing, truncated or altered ({why})",
        )

    def _damage(self, what: str, how: str) -> str:
        return (
            f"{self.path}: {what} {how}. Nothing was changed. Restore it from a copy, "
            f"or start again under a new path{spare(self.path)}."
        )


def _slice(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, slice(start, stop))
