"""save and load: a posterior and its module in one file."""

import json
import math
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
import xarray as xr

from pyrox_ppl._files import replace_when_written
from pyrox_ppl._version import __version__
from pyrox_ppl.posterior._names import dtype_name, dtype_of
from pyrox_ppl.posterior._rebuild import rebuild
from pyrox_ppl.posterior._recalibrate import Recalibration
from pyrox_ppl.posterior._structure import describe
from pyrox_ppl.posterior._tree_file import digest_of, open_tree, write_tree

_FORMAT = 2
_MODULE = "module"
_RECALIBRATION = "pyrox_ppl_recalibration"


class Saved(NamedTuple):
    """The contents of a file.

    Attributes:
        posterior: The DataTree.
        module: The module with its stored values, or None.
        name: The root of the module's names, if one was given.
        recalibration: What :func:`~pyrox_ppl.recalibrate` fitted, or None.

    Example:
        >>> import jax.numpy as jnp, tempfile, pyrox_ppl as px
        >>> tree = px.to_datatree({"a": jnp.arange(5.0)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     px.save(f"{folder}/fit.nc", tree, name="net")
        ...     saved = px.load(f"{folder}/fit.nc")
        >>> saved.module, saved.name
        (None, 'net')
    """

    posterior: xr.DataTree
    module: Any
    name: str | None
    recalibration: Recalibration | None = None


def save(
    path: str | os.PathLike[str],
    posterior: xr.DataTree,
    module: Any = None,
    *,
    name: str | None = None,
    recalibration: Recalibration | None = None,
) -> None:
    """Write a posterior and its module into one file.

    The file is written beside its place and moved there when it is whole, so an
    interrupted save leaves the previous file as it was. It contains a digest of every
    array and attribute.

    Args:
        path: Where to; ``.nc`` makes a netCDF file (any netCDF-4 reader opens it),
            ``.zip`` (say ``fit.zarr.zip``) a zipped zarr store.
        posterior: A DataTree of :func:`~pyrox_ppl.to_datatree`.
        module: The module as the model read it, or a tuple of it and what belongs to it
            (``(module, state)`` with an ``eqx.nn.State``). Its arrays are stored as
            they are; its classes and functions by their names, which the process that
            loads it must be able to import.
        name: The root of the module's names, if ``bind`` was given one.
        recalibration: What :func:`~pyrox_ppl.recalibrate` fitted, to be applied to
            later predictions.

    Raises:
        TypeError: If `posterior` is not a DataTree, or `recalibration` not one.
        ValueError: If the suffix is neither of these, if the module holds something
            without a name, such as a lambda, or if the format cannot keep the tree as
            it is.
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
    if not isinstance(posterior, xr.DataTree):
        raise TypeError(
            "save takes a path, a DataTree of `to_datatree` and a module, in this "
            f"order, got {type(posterior).__name__} as the tree."
        )
    if recalibration is not None and not isinstance(recalibration, Recalibration):
        raise TypeError(
            "recalibration is what px.recalibrate returns, got "
            f"{type(recalibration).__name__}."
        )
    # The encoding of the file that the tree came from may not suit this one.
    tree = posterior.map_over_datasets(xr.Dataset.drop_encoding)
    if _MODULE in tree.children:
        raise ValueError(
            f"save puts the module into the group {_MODULE!r}, and the tree has one of "
            "that name: rename it."
        )
    if module is not None:
        tree[_MODULE] = xr.DataTree(_module_dataset(module))
    tree.attrs.update(
        pyrox_ppl_format=_FORMAT,
        saved_by=f"pyrox_ppl {__version__}",
        equinox_version=eqx.__version__,
    )
    if name is not None:
        tree.attrs["module_name"] = name
    if recalibration is not None:
        tree.attrs[_RECALIBRATION] = recalibration.to_json()
    tree.attrs["digest"] = digest_of(tree)
    with replace_when_written(path) as temporary:
        write_tree(tree, temporary)
        with open_tree(temporary) as written:
            if digest_of(written) != tree.attrs["digest"]:
                raise ValueError(
                    f"{path.suffix} does not keep every array and attribute of this "
                    "tree as it is: try the other suffix (.nc, .zip), or leave out "
                    "what you added to the tree."
                )


def load(path: str | os.PathLike[str]) -> Saved:
    """Read what :func:`save` wrote.

    On the same machine and versions, predictions are bit by bit those before saving.
    Classes and functions of the module are imported by the names in the file: load only
    files that you trust.

    Args:
        path: The file.

    Returns:
        A `Saved`: ``posterior``, ``module``, ``name`` and ``recalibration``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated or damaged, if :func:`save` did not write
            it, if a class of the module is not found or its fields have changed, or if
            the module needs x64 (``jax_enable_x64``) and it is off.

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
        with open_tree(path) as file:
            tree = file.load()
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} cannot be read: it is truncated or damaged, or not in the format "
            f"of its suffix ({type(error).__name__}: {error})."
        ) from error
    if "pyrox_ppl_format" not in tree.attrs:
        raise ValueError(
            f"{path} was not written by pyrox_ppl.save: open it with "
            "`xarray.open_datatree`."
        )
    if int(tree.attrs["pyrox_ppl_format"]) > _FORMAT:
        raise ValueError(
            f"{path} was written by {tree.attrs['saved_by']} in a newer format than "
            f"this version ({__version__}) reads: update pyrox_ppl."
        )
    if int(tree.attrs["pyrox_ppl_format"]) < _FORMAT:
        raise ValueError(
            f"{path} was written by {tree.attrs['saved_by']} in an older format: open "
            "its draws with `xarray.open_datatree`, or load it with that version."
        )
    if tree.attrs.pop("digest", None) != digest_of(tree):
        raise ValueError(
            f"{path} is damaged: its arrays or attributes differ from those that were "
            "saved."
        )
    module = None
    if _MODULE in tree.children:
        module = _module_of(tree.children[_MODULE].to_dataset())
        tree = tree.drop_nodes(_MODULE)
    name = tree.attrs.pop("module_name", None)
    for attr in ("pyrox_ppl_format", "saved_by", "equinox_version"):
        tree.attrs.pop(attr)
    text = tree.attrs.pop(_RECALIBRATION, None)
    recalibration = None if text is None else Recalibration.from_json(text)
    return Saved(tree, module, name, recalibration)


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".nc", ".zip"):
        raise ValueError(
            f"{path.name!r} must end in .nc (netCDF) or .zip (zipped zarr): the suffix "
            "chooses the format."
        )


def _module_dataset(module: Any) -> xr.Dataset:
    """The arrays of a module, joined to one variable for each dtype.

    A file with hundreds of small variables takes many seconds. A dtype that the formats
    lack is stored as bytes.
    """
    description, arrays = describe(module)
    parts: dict[str, list[np.ndarray]] = {}
    for array in arrays:
        flat = np.ascontiguousarray(array).reshape(-1)
        name = _variable(array.dtype)
        if name == "bytes":
            flat = np.frombuffer(flat.tobytes(), np.uint8)
        parts.setdefault(name, []).append(flat)
    variables = {
        name: (f"{name}_entry", np.concatenate(flats))
        for name, flats in parts.items()
        if sum(map(len, flats))
    }
    attrs = {
        "structure": description,
        "dtypes": json.dumps([dtype_name(array.dtype, "") for array in arrays]),
        "shapes": json.dumps([array.shape for array in arrays]),
    }
    return xr.Dataset(variables, attrs=attrs)


def _module_of(dataset: xr.Dataset) -> Any:
    whole = {str(name): variable.values for name, variable in dataset.items()}
    done = dict.fromkeys(whole, 0)
    arrays = []
    kinds = zip(
        map(dtype_of, json.loads(dataset.attrs["dtypes"])),
        json.loads(dataset.attrs["shapes"]),
        strict=True,
    )
    for dtype, shape in kinds:
        name, size = _variable(dtype), math.prod(shape)
        if size * dtype.itemsize == 0:
            arrays.append(np.zeros(shape, dtype))
            continue
        length = size * dtype.itemsize if name == "bytes" else size
        part = whole[name][done[name] : done[name] + length]
        done[name] += length
        if name == "bytes":
            part = np.frombuffer(part.tobytes(), dtype)
        arrays.append(part.reshape(shape).copy())
    return rebuild(dataset.attrs["structure"], arrays)


def _variable(dtype: np.dtype) -> str:
    """The variable that holds the arrays of a dtype."""
    is_known = dtype.kind in "fiu" and dtype.isnative and dtype.itemsize in (4, 8)
    return dtype.name if is_known else "bytes"
