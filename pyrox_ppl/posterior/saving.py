"""save and load: a posterior and its module in one file."""

import hashlib
import json
import os
import tempfile
import uuid
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import ml_dtypes
import numpy as np
import xarray as xr

from pyrox_ppl._version import __version__
from pyrox_ppl.posterior._structure import describe, rebuild

_FORMAT = 1
_MODULE = "module"


class Saved(NamedTuple):
    """What a file held.

    Attributes:
        posterior: The DataTree.
        module: The module with its stored values, or None.
        name: The root of the module's names, if one was given.
    """

    posterior: xr.DataTree
    module: Any
    name: str | None


def save(
    path: str | os.PathLike[str],
    posterior: xr.DataTree,
    module: eqx.Module | None = None,
    *,
    name: str | None = None,
) -> None:
    """Write a posterior, and the module that it is of, into one file.

    The file is written beside and moved in place when it is whole: an interrupted save
    leaves the previous file as it was. A digest of every array goes with it.

    Args:
        path: Where to; ``.nc`` makes a netCDF file (any netCDF-4 reader opens it),
            ``.zip`` (say ``fit.zarr.zip``) a zipped zarr store.
        posterior: A DataTree of :func:`~pyrox_ppl.to_datatree`.
        module: The module as the model read it. Its arrays are stored as they are; its
            classes and functions by their names, which the process that loads it must
            be able to import.
        name: The root of the module's names, if ``bind`` was given one.

    Raises:
        ValueError: If the suffix is neither, or if the module holds something without
            a name, such as a lambda.
        ImportError: If the library for the format is not installed.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, tempfile, pyrox_ppl as px
        >>> linear = eqx.nn.Linear(2, 1, key=jax.random.key(0))
        >>> tree = px.to_datatree({"linear.bias": jnp.arange(5.0)[:, None]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     px.save(f"{folder}/fit.nc", tree, linear)
        ...     saved = px.load(f"{folder}/fit.nc")
        >>> px.predict(saved.module, saved.posterior, jnp.zeros((1, 2))).mean.item()
        2.0
    """
    path = Path(path)
    _check_suffix(path)
    tree = posterior.copy()
    if _MODULE in tree.children:
        raise ValueError(f"the group {_MODULE!r} is where save puts the module.")
    if module is not None:
        tree[_MODULE] = xr.DataTree(_module_dataset(module))
    tree.attrs.update(
        pyrox_ppl_format=_FORMAT,
        saved_by=f"pyrox_ppl {__version__}",
        equinox_version=eqx.__version__,
        digest=_digest(tree),
    )
    if name is not None:
        tree.attrs["module_name"] = name
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{path.suffix}")
    try:
        _write(tree, temporary)
        with temporary.open("rb") as whole:
            os.fsync(whole.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> Saved:
    """Read what :func:`save` wrote.

    Predictions of what was loaded are those of what was saved, bit by bit, on the same
    machine and versions. Classes and functions of the module are imported by the names
    in the file: load files that you trust.

    Args:
        path: The file.

    Returns:
        A `Saved`: ``posterior``, ``module`` and ``name``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated or damaged, if :func:`save` did not write
            it, or if a class of the module is not to be found.

    Example:
        >>> import jax.numpy as jnp, tempfile, pyrox_ppl as px
        >>> tree = px.to_datatree({"a": jnp.arange(5.0)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     px.save(f"{folder}/fit.nc", tree)
        ...     px.load(f"{folder}/fit.nc").posterior["posterior"]["a"].values.tolist()
        [[0.0, 1.0, 2.0, 3.0, 4.0]]
    """
    path = Path(path)
    _check_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        tree = _read(path)
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} cannot be read: it is truncated or damaged, or no file of its "
            f"suffix ({type(error).__name__}: {error})."
        ) from error
    if "pyrox_ppl_format" not in tree.attrs:
        raise ValueError(
            f"{path} was not written by pyrox_ppl.save: open it with "
            "`xarray.open_datatree`."
        )
    if int(tree.attrs["pyrox_ppl_format"]) > _FORMAT:
        raise ValueError(
            f"{path} was written by {tree.attrs['saved_by']}, in a format that this "
            f"version ({__version__}) does not know: update pyrox_ppl."
        )
    if tree.attrs.pop("digest") != _digest(tree):
        raise ValueError(
            f"{path} is damaged: its arrays are not those that were saved."
        )
    module = None
    if _MODULE in tree.children:
        module = _module_of(tree.children[_MODULE].to_dataset())
        tree = tree.drop_nodes(_MODULE)
    name = tree.attrs.pop("module_name", None)
    for attr in ("pyrox_ppl_format", "saved_by", "equinox_version"):
        tree.attrs.pop(attr)
    return Saved(tree, module, name)


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".nc", ".zip"):
        raise ValueError(
            f"{path.name!r} must end in .nc (netCDF) or .zip (zipped zarr), which says "
            "the format."
        )


def _write(tree: xr.DataTree, path: Path) -> None:
    if path.suffix == ".nc":
        tree.to_netcdf(path, engine="h5netcdf")
        return
    # Zarr writes its metadata twice, which a zip file cannot take: a folder first.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        tree.to_zarr(folder, consolidated=False)
        with zipfile.ZipFile(path, "w") as packed:
            for part in sorted(Path(folder).rglob("*")):
                if part.is_file():
                    packed.write(part, part.relative_to(folder))


def _read(path: Path) -> xr.DataTree:
    if path.suffix == ".nc":
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            return tree.load()
    from zarr.storage import ZipStore

    store = ZipStore(path, mode="r")
    try:
        with xr.open_datatree(store, engine="zarr", consolidated=False) as tree:  # pyright: ignore[reportArgumentType] - xarray takes a store, and its annotation does not say so
            return tree.load()
    finally:
        store.close()


def _digest(tree: xr.DataTree) -> str:
    """Of the names, shapes and bytes of every array."""
    digest = hashlib.blake2b(digest_size=16)
    for node in sorted(tree.subtree, key=lambda node: node.path):
        dataset = node.to_dataset(inherit=False)
        for name in sorted(map(str, dataset.variables)):
            array = np.ascontiguousarray(dataset[name].values)
            head = [node.path, name, array.dtype.name, list(dataset[name].shape)]
            digest.update(json.dumps(head).encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def _module_dataset(module: eqx.Module) -> xr.Dataset:
    """The arrays of a module; a dtype that the formats lack goes as bytes."""
    description, arrays = describe(module)
    variables, dtypes, shapes = {}, [], []
    for index, array in enumerate(arrays):
        dtypes.append(array.dtype.name)
        shapes.append(array.shape)
        if array.dtype.kind not in "fiub" or array.dtype.itemsize == 2:
            array = np.frombuffer(array.tobytes(), np.uint8)
        dims = [f"array_{index}_dim_{axis}" for axis in range(array.ndim)]
        variables[f"array_{index}"] = (dims, array)
    attrs = {
        "structure": description,
        "dtypes": json.dumps(dtypes),
        "shapes": json.dumps(shapes),
    }
    return xr.Dataset(variables, attrs=attrs)


def _module_of(dataset: xr.Dataset) -> Any:
    arrays = []
    kinds = zip(
        json.loads(dataset.attrs["dtypes"]),
        json.loads(dataset.attrs["shapes"]),
        strict=True,
    )
    for index, (name, shape) in enumerate(kinds):
        array = dataset[f"array_{index}"].values
        dtype = np.dtype(getattr(ml_dtypes, name, name))
        if array.dtype != dtype:
            array = np.frombuffer(array.tobytes(), dtype)
        arrays.append(array.reshape(shape))
    return rebuild(dataset.attrs["structure"], arrays)
