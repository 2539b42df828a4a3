"""Arrays of any JAX dtype, PRNG keys among them, as plain NumPy arrays and back."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

# File systems take 255 bytes, of which the chunks of an array need none.
_LONGEST = 200
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def is_key(leaf: Any) -> bool:
    """Whether an array, or its shape and dtype, is of typed PRNG keys."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def is_sharded(leaf: Any) -> bool:
    """Whether an array lies on several devices."""
    return isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1


def to_numpy(leaf: Any) -> np.ndarray:
    """A leaf in a dtype that any file format knows: keys and bfloat16 as bits."""
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(jax.device_get(leaf))
    if array.dtype.kind == "V":
        return array.view(f"u{array.dtype.itemsize}")
    return array


def from_numpy(array: np.ndarray, like: Any) -> jax.Array:
    """The leaf that :func:`to_numpy` was given, which had the dtype of `like`."""
    if is_key(like):
        impl = jax.random.key_impl(jnp.zeros((), like.dtype))
        return jax.random.wrap_key_data(jnp.asarray(array), impl=impl)
    return jnp.asarray(array.view(like.dtype))


def stored_as(like: Any) -> tuple[tuple[int, ...], str]:
    """The shape and dtype of what :func:`to_numpy` makes of an array."""
    if is_key(like):
        like = jax.eval_shape(jax.random.key_data, like)
    dtype = np.dtype(like.dtype)
    if dtype.kind == "V":
        dtype = np.dtype(f"u{dtype.itemsize}")
    return tuple(like.shape), dtype.name


def strong(tree: Any) -> Any:
    """A tree of arrays without weak types, as it would come back from disk."""
    tree = jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(lambda leaf: from_numpy(to_numpy(leaf), leaf), tree)


def digest(*parts: Any) -> str:
    """A hash of the contents of arrays and of everything else's printed form.

    Two trees have the same one if and only if they have the same structure and, bit
    for bit, the same arrays. A function counts by its qualified name.
    """
    sha = hashlib.sha256()
    leaves, structure = jax.tree.flatten(parts)
    sha.update(_ADDRESS.sub("", str(structure)).encode())
    for leaf in leaves:
        if is_key(leaf) or eqx.is_array(leaf) or isinstance(leaf, np.generic):
            array = np.ascontiguousarray(to_numpy(leaf))
            sha.update(f"{leaf.dtype}{array.shape}".encode())
            sha.update(array.reshape(-1).view(np.uint8).data)
        elif isinstance(leaf, np.ndarray):
            _update_in_blocks(sha, leaf)
        else:
            sha.update(_printed(leaf).encode())
    return sha.hexdigest()[:16]


def flat(tree: Any) -> tuple[list[str], list[Any]]:
    """The leaves of a tree and their paths, as paths of files: no other slash in it."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = ["/".join(_file_name(key) for key in path) for path, _ in leaves]
    return names, [leaf for _, leaf in leaves]


def _file_name(key: Any) -> str:
    """A key as the name of a file: a long one, in bytes, ends in its hash."""
    name = quote(jax.tree_util.keystr((key,), simple=True), safe=" []()~")
    # What zarr keeps for itself: metadata, and names of dots or with two underscores.
    if name.startswith("__") or not name.strip(".") or name == "zarr.json":
        name = f"%{ord(name[0]):02X}{name[1:]}" if name else "%"
    if len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def canonical(value: Mapping[str, Any]) -> str:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest_rows(array: Any) -> str:
    """The hash of an array's contents, read in blocks of rows: it may be on disk."""
    sha = hashlib.sha256()
    _update_in_blocks(sha, array)
    return sha.hexdigest()[:16]


def _printed(leaf: Any) -> str:
    if isinstance(leaf, bool | int | float | complex | str | bytes):
        return f"{type(leaf).__name__} {leaf!r}"
    name = getattr(leaf, "__qualname__", None)
    return f"{type(leaf).__module__}.{type(leaf).__qualname__} {name}"


def _update_in_blocks(sha: Any, array: Any, rows: int = 1 << 16) -> None:
    """Hash an array, one on disk too, without holding a copy of it."""
    sha.update(f"{array.dtype}{array.shape}".encode())
    if array.ndim == 0 or array.dtype.hasobject:
        sha.update(repr(np.asarray(array).tolist()).encode())
        return
    for start in range(0, array.shape[0], rows):
        block = np.ascontiguousarray(array[start : start + rows])
        sha.update(block.reshape(-1).view(np.uint8).data)
