"""Arrays of any JAX dtype, PRNG keys among them, as plain NumPy arrays and back."""

import hashlib
import re
from functools import partial
from typing import Any
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np

# File systems allow 255 bytes for a name; this leaves room for the hash.
_LONGEST = 200
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def is_key(leaf: Any) -> bool:
    """Whether an array, or its shape and dtype, holds typed PRNG keys."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def check_key(rng_key: Any, call: str) -> None:
    """Raise a TypeError that shows the right call if a user passed something else."""
    # Keys of the old kind, jax.random.PRNGKey, are plain arrays.
    if not is_key(rng_key) and getattr(rng_key, "dtype", None) != np.uint32:
        raise TypeError(
            "rng_key must be a PRNG key, such as jax.random.key(0), and is "
            f"{rng_key!r:.60} ({type(rng_key).__name__}): call {call}."
        )


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
    """Undo :func:`to_numpy`: the leaf again, in the dtype of `like`."""
    if is_key(like):
        impl = jax.random.key_impl(jnp.zeros((), like.dtype))
        return jax.random.wrap_key_data(jnp.asarray(array), impl=impl)
    return jnp.asarray(array.view(like.dtype))


def stored_as(like: Any) -> tuple[tuple[int, ...], str]:
    """The shape and dtype in which :func:`to_numpy` stores an array."""
    if is_key(like):
        like = jax.eval_shape(jax.random.key_data, like)
    dtype = np.dtype(like.dtype)
    if dtype.kind == "V":
        dtype = np.dtype(f"u{dtype.itemsize}")
    return tuple(like.shape), dtype.name


def strong(tree: Any) -> Any:
    """Convert every leaf to the strongly typed array that would come back from disk.

    It is a copy, which nothing else holds.
    """
    tree = jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(lambda leaf: from_numpy(to_numpy(leaf), leaf), tree)


def copy_arrays(tree: Any) -> Any:
    """Copies that nothing else holds, so that a program may take their memory."""
    return jax.tree.map(partial(jax.device_put, may_alias=False), tree)


def digest(*parts: Any) -> str:
    """Hash the contents of arrays and the printed form of everything else.

    Two trees have the same hash if and only if they have the same structure and, bit
    for bit, the same arrays. An array may be on disk (a memory map, a zarr array): it
    is read in blocks of rows. A function counts by its qualified name.
    """
    sha = hashlib.sha256()
    leaves, structure = jax.tree.flatten(parts)
    sha.update(_ADDRESS.sub("", str(structure)).encode())
    for leaf in leaves:
        if _is_array_like(leaf):
            _add_array(sha, leaf)
        else:
            sha.update(_printed(leaf).encode())
    return sha.hexdigest()[:16]


def flat(tree: Any) -> tuple[list[str], list[Any]]:
    """The leaves of a tree, named by their paths: only "/" separates the parts."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = ["/".join(_file_name(key) for key in path) for path, _ in leaves]
    return names, [leaf for _, leaf in leaves]


def _file_name(key: Any) -> str:
    """Turn a key into the name of a file; a long name is cut and ends in its hash."""
    name = quote(jax.tree_util.keystr((key,), simple=True), safe=" []()~")
    # Zarr reserves its metadata file, names of dots, and two leading underscores.
    if name.startswith("__") or not name.strip(".") or name == "zarr.json":
        name = f"%{ord(name[0]):02X}{name[1:]}" if name else "%"
    if len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _is_array_like(leaf: Any) -> bool:
    names = ("shape", "dtype", "__getitem__")
    return not isinstance(leaf, type) and all(hasattr(leaf, name) for name in names)


def _printed(leaf: Any) -> str:
    if isinstance(leaf, bool | int | float | complex | str | bytes):
        return f"{type(leaf).__name__} {leaf!r}"
    name = getattr(leaf, "__qualname__", None)
    return f"{type(leaf).__module__}.{type(leaf).__qualname__} {name}"


def _add_array(sha: Any, array: Any, rows: int = 1 << 16) -> None:
    """Add an array to a hash, one on disk without holding a copy of it."""
    sha.update(f"{array.dtype}{array.shape}".encode())
    if isinstance(array, jax.Array | np.generic):
        array = to_numpy(array)
    if array.dtype.hasobject:
        sha.update(repr(np.asarray(array).tolist()).encode())
        return
    array = array if array.shape else np.asarray(array)[None]
    for start in range(0, array.shape[0], rows):
        block = np.ascontiguousarray(array[start : start + rows])
        sha.update(block.reshape(-1).view(np.uint8).data)
