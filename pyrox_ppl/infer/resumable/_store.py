"""A run on disk: draws that grow block by block, a state, and one atomic commit.

A directory holds

- ``draws.zarr``: one array per field, of its final shape, in chunks of one block;
- ``state-<n>.npz``: the arrays from which the run continues;
- ``manifest.json``: what was committed, with the hash of every block and of itself.

The chunks of a block and the state are written and flushed first. Then a new manifest,
which names them, replaces the old one by a rename, which is atomic. A process that dies
before the rename has committed nothing; one that dies after it has committed
everything. No array is unpickled.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from pyrox_ppl.infer._arrays import digest
from pyrox_ppl.infer.resumable._disk import (
    LOCK,
    flush,
    flush_tree,
    full_disk_explained,
    import_zarr,
    locked,
    remove,
    seal,
    unseal,
    write,
)

_FORMAT = 1
_MANIFEST, _DRAWS = "manifest.json", "draws.zarr"


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
            progress: How far the run has come, by name.
            state: The arrays from which the run continues.
            fields: The final shape and the dtype of every array that grows.
            axis: The axis along which they grow.
            block: How many entries along that axis make a block.
        """
        making = path.with_name(f"{path.name}.creating")
        making.mkdir(parents=True, exist_ok=True)
        manifest = {
            "format": _FORMAT,
            "fingerprint": fingerprint,
            "fields": {n: [list(s), d] for n, (s, d) in fields.items()},
            "axis": axis,
            "block": block,
            "blocks": [],
            "entries": 0,
            "commit": -1,
        }
        with locked(making):
            with full_disk_explained(path, {}):
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
                store._write_manifest(state, progress=progress)
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
        file = path / _MANIFEST
        if not file.is_file():
            raise ValueError(
                f"{path} has no {_MANIFEST}: it is not a run that was begun here, or "
                "its manifest was removed. Nothing in it was changed. Give a new path."
            )
        with locked(path):
            manifest = unseal(file)
            if manifest["format"] != _FORMAT:
                raise ValueError(
                    f"{file} has format {manifest['format']}, and this version of "
                    f"pyrox_ppl reads {_FORMAT}: finish the run with the version that "
                    "began it."
                )
            yield cls(path, manifest)

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
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return [arrays[f"{i:05d}"] for i in range(len(arrays.files))]

    def commit(
        self,
        progress: dict[str, Any],
        state: list[np.ndarray],
        rows: dict[str, np.ndarray] | None = None,
    ) -> None:
        """Add a block (the last may be short), the state and the progress: all or none.

        Raises:
            OSError: If the disk is full; what was committed before is safe.
        """
        with full_disk_explained(self.path, self.progress):
            changes: dict[str, Any] = {"progress": progress}
            if rows:
                blocks = self._manifest["blocks"]
                count = self._write_block(len(blocks), rows)
                changes["blocks"] = [*blocks, digest(dict(rows))]
                changes["entries"] = self._manifest["entries"] + count
            self._write_manifest(state, **changes)

    def read(self) -> dict[str, np.ndarray]:
        """The committed entries of every field; every block is verified.

        Raises:
            ValueError: If a block is missing, truncated or altered; it is named.
        """
        group = self._group("r")
        axis, block = self._manifest["axis"], self._manifest["block"]
        count = self._manifest["entries"]
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

    def _write_block(self, index: int, rows: dict[str, np.ndarray]) -> int:
        """Write a block and flush it; the number of its entries."""
        group = self._group("r+")
        axis, start = self._manifest["axis"], index * self._manifest["block"]
        count = 0
        for name, value in rows.items():
            array, count = group[name], value.shape[axis]
            array[_slice(axis, start, start + count)] = value
            reached("draws")
            place = [0] * value.ndim
            place[axis] = index
            chunk = self.path / _DRAWS / name
            chunk = chunk / array.metadata.encode_chunk_key(tuple(place))
            if chunk.exists():  # zarr writes no chunk that holds only zeros
                flush(chunk)
                flush(chunk.parent)
        reached("draws flushed")
        return count

    def _write_manifest(self, state: list[np.ndarray], **changes: Any) -> None:
        """Write the state, then the manifest that names it: the commit itself."""
        number = self._manifest["commit"] + 1
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {f"{i:05d}": array for i, array in enumerate(state)}
        np.savez(buffer, **arrays)
        name = f"state-{number}.npz"
        with buffer.getbuffer() as content:  # which is not a copy
            write(self.path / name, content)
            entry = {"file": name, "sha256": hashlib.sha256(content).hexdigest()}
        reached("state")
        new = {**self._manifest, **changes, "commit": number, "state": entry}
        manifest = self.path / _MANIFEST
        write(manifest.with_suffix(".tmp"), seal(new))
        reached("manifest")
        os.replace(manifest.with_suffix(".tmp"), manifest)
        reached("renamed")
        flush(self.path)
        self._manifest = new
        # A process that died before its rename leaves a state that no manifest names.
        for file in self.path.glob("state-*.npz"):
            if file.name != name:
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
            "or start again under a new path."
        )


def _slice(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, slice(start, stop))
