"""A hash of a tree: of every array and attribute, whatever a format makes of them."""

import hashlib
import json
from typing import Any

import numpy as np
import xarray as xr


def digest_of(tree: xr.DataTree) -> str:
    """Of every array and attribute, in one form whatever a format makes of it."""
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
