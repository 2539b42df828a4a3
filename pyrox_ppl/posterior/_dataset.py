"""One group of a DataTree: arrays with the names of their axes."""

from collections.abc import Collection
from typing import Any

import jax
import numpy as np
import numpyro
import xarray as xr
from arviz_base import dict_to_dataset

from pyrox_ppl.posterior._axes import DRAWS, free, safe
from pyrox_ppl.posterior._mask import keep_observed
from pyrox_ppl.posterior._model import ModelSites
from pyrox_ppl.prediction._trained import path_of

# Groups that have no chain and draw; groups whose axes are no site's.
STATIC = (
    "observed_data",
    "constant_data",
    "predictions_constant_data",
    "params",
    "guide_params",
)
PLAIN = ("constant_data", "predictions_constant_data")


def dataset(group: str, values: dict[str, Any], sites: ModelSites) -> xr.Dataset:
    """One group, its data axes named after plates and parameters."""
    drawn = group not in STATIC
    leading = 2 if drawn else 0
    flat = _flat(values)
    taken = {safe(name) for name in flat}
    if drawn and taken & set(DRAWS):
        raise ValueError(
            f"the sites {sorted(taken & set(DRAWS))} have the name of an axis of the "
            "draws, and would be lost in a DataTree: rename them in the model."
        )
    arrays, dims, originals = {}, {}, {}
    coords: dict[str, tuple[str, np.ndarray]] = {}
    for name, value in flat.items():
        key = safe(name)
        if key in arrays:
            raise ValueError(
                f"the sites {originals[key]!r} and {name!r} have one name in a "
                "DataTree, which cannot hold '/': rename one of them."
            )
        originals[key] = name
        arrays[key] = widen(np.asarray(value))
        ndim = arrays[key].ndim - leading
        if group.endswith("sample_stats") or group in PLAIN:
            dims[key] = [free(f"{key}_dim_{axis}", taken) for axis in range(ndim)]
            continue
        if group == "log_prior":
            dims[key] = sites.plates_of(name)
            continue
        own = sites.dims(name, ndim, taken)
        # A density is of an event, in which other groups may lack single values.
        of_values = {} if group == "log_likelihood" else sites.inside
        mask = of_values.get(name, sites.masks.get(name))
        if mask is not None:
            along = "element" if name in of_values else "entry"
            arrays[key], own, entries = _observed(
                arrays[key], own, mask, leading, key, along, sites.taken | taken
            )
            coords |= entries
        dims[key] = own
    out = dict_to_dataset(
        arrays,
        dims=dims,
        sample_dims=["chain", "draw"] if drawn else [],
        inference_library=numpyro,
    )
    for key, name in originals.items():
        if group not in PLAIN:
            out[key].attrs.update(sites.attrs(name))
        if name not in values or (group == "params" and name not in sites.trained):
            out[key].attrs["nested"] = 1
    return out.assign_coords(coords)


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Arrays by name; those of a pytree (a ``param`` of a network) by their paths."""
    flat = {}
    for name, value in values.items():
        for path, leaf in jax.tree_util.tree_flatten_with_path(value)[0]:
            flat[path_of(name, path)] = leaf
    return flat


def _observed(
    array: np.ndarray,
    dims: list[str],
    mask: np.ndarray,
    leading: int,
    name: str,
    along: str,
    taken: Collection[str],
) -> tuple[np.ndarray, list[str], dict[str, tuple[str, np.ndarray]]]:
    """The observed entries along one axis, with their places on the axes they had.

    The axes of plates keep their names for whatever else is on them, so the places are
    called after site and plate.
    """
    entry = free(f"{name}_{along}", taken)
    places = {
        free(f"{name}_{dim}", taken): (entry, index)
        for dim, index in zip(dims, np.argwhere(mask).T, strict=False)
    }
    kept = keep_observed(array, mask, leading)
    return kept, [entry, *dims[mask.ndim :]], places


def widen(array: np.ndarray) -> np.ndarray:
    """Make a dtype that netCDF and ArviZ can take: bfloat16 and float16 to float32."""
    narrow = array.dtype.itemsize < 4 and jax.numpy.issubdtype(array.dtype, np.floating)
    return array.astype(np.float32) if narrow else array
