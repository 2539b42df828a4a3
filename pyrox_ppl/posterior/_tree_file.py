"""A DataTree in a file: netCDF or zipped zarr, and a digest of what it holds."""

import contextlib
import hashlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import xarray as xr


def write_tree(tree: xr.DataTree, path: Path) -> None:
    """Write a tree in the format of the path's suffix."""
    if path.suffix == ".nc":
        tree.to_netcdf(path, engine="h5netcdf")
        return
    # Zarr writes its metadata twice, which a zip file cannot hold: a folder first.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        _rename(tree, _escape).to_zarr(folder, consolidated=False)
        with zipfile.ZipFile(path, "w") as packed:
            for part in sorted(Path(folder).rglob("*")):
                if part.is_file():
                    packed.write(part, part.relative_to(folder))


@contextlib.contextmanager
def open_tree(path: Path) -> Iterator[xr.DataTree]:
    """Open the tree in a file, whose arrays are read when they are used."""
    if path.suffix == ".nc":
        with xr.open_datatree(path, engine="h5netcdf", cache=False) as tree:
            yield tree
        return
    from zarr.storage import ZipStore

    store: Any = ZipStore(path, mode="r")  # xarray's annotation does not know it
    try:
        with xr.open_datatree(
            store, engine="zarr", consolidated=False, cache=False
        ) as tree:
            yield _rename(tree, unquote)
    finally:
        store.close()


def _escape(name: str) -> str:
    r"""Replace ``\``, which zarr reads as ``/``."""
    return name.replace("%", "%25").replace("\\", "%5C")


def _rename(tree: xr.DataTree, rename: Callable[[str], str]) -> xr.DataTree:
    """Rename the variables and axes of a tree."""
    datasets = {}
    for node in tree.subtree:
        dataset = node.to_dataset(inherit=False)
        names = [str(name) for name in {*dataset.variables, *dataset.dims}]
        new = {name: rename(name) for name in names if rename(name) != name}
        datasets[node.path] = dataset.rename(new)
    return xr.DataTree.from_dict(datasets)


def digest_of(tree: xr.DataTree) -> str:
    """A hash of every array and attribute that is the same before and after a file.

    Formats change byte order, strings, units of time and lists of one element, so each
    of these is hashed in one form.
    """
    digest = hashlib.blake2b(digest_size=16)
    for node in sorted(tree.subtree, key=lambda node: node.path):
        dataset = node.to_dataset(inherit=False)
        attrs = {k: v for k, v in dataset.attrs.items() if k != "digest"}
        digest.update(json.dumps([node.path, _attrs(attrs)]).encode())
        for name in sorted(map(str, dataset.variables)):
            variable = dataset[name].variable
            kind, content = _content(variable.values)
            head = [name, kind, variable.dims, variable.shape, _attrs(variable.attrs)]
            digest.update(json.dumps(head).encode())
            digest.update(content)
    return digest.hexdigest()


def _content(values: Any) -> tuple[str, bytes]:
    """The kind of an array and its bytes, native ones; of strings, their letters."""
    array = np.asarray(values)
    if array.dtype.kind in "OUST":
        words = [w.decode() if isinstance(w, bytes) else str(w) for w in array.ravel()]
        return "string", json.dumps(words).encode()
    if array.dtype.kind in "mM":  # a format has its own unit
        array = array.astype(f"{array.dtype.kind}8[ns]").view(np.int64)
    array = array.astype(array.dtype.newbyteorder("="), order="C")
    return array.dtype.name, array.tobytes()


def _attrs(value: Any) -> Any:
    """An attribute as JSON, where a list of one is the one, as netCDF has it."""
    if isinstance(value, dict):
        return sorted([str(key), _attrs(item)] for key, item in value.items())
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return _attrs(value[0]) if len(value) == 1 else [_attrs(v) for v in value]
    return value if isinstance(value, str | int | float | None) else str(value)
