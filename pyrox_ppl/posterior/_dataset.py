"""The groups of a DataTree as datasets: arrays with the names of their axes."""

from typing import Any

import numpy as np
import numpyro
import xarray as xr
from arviz_base import dict_to_dataset

from pyrox_ppl.posterior._axes import DRAWS, free_axis, variable_name
from pyrox_ppl.posterior._model_sites import ModelSites, outcome_attrs
from pyrox_ppl.prediction._draws import CHAIN
from pyrox_ppl.prediction._prediction import widened
from pyrox_ppl.prediction._trained import arrays_by_path

_WITHOUT_DRAWS = (
    "observed_data",
    "constant_data",
    "predictions_constant_data",
    "params",
    "guide_params",
    "linearized_at",
    "uncertainty",
)
# Groups whose variables say what kind of outcome they are.
_OF_OUTCOMES = (
    "observed_data",
    "posterior_predictive",
    "prior_predictive",
    "predictions",
    "uncertainty",
)
# Groups whose values may differ from chain to chain.
_BY_CHAIN = ("params", "guide_params", "linearized_at")
# Groups of arguments, whose axes are not those of a site.
_OF_ARGUMENTS = ("constant_data", "predictions_constant_data")


def make_datasets(
    groups: dict[str, dict[str, Any]],
    sites: ModelSites,
    by_chain: frozenset[str] = frozenset(),
    *,
    is_ensemble: bool = False,
) -> dict[str, xr.Dataset]:
    """The groups that are not empty, their axes named after plates and parameters.

    Values without draws that are named in `by_chain` have a leading axis of chains. An
    ensemble may have more of them than draws.
    """
    return {
        name: _make(
            name,
            values,
            sites,
            by_chain if name in _BY_CHAIN else frozenset(),
            is_ensemble=is_ensemble,
        )
        for name, values in groups.items()
        if values
    }


def make_uncertainty(
    means: dict[str, dict[str, np.ndarray]], number: int, sites: ModelSites
) -> xr.Dataset:
    """The group of what the draws say on average: ``<site>_<part>`` for every part.

    Args:
        means: Part -> site -> array; the part ``"probability"`` of a categorical site
            has a last axis of classes, ``<site>_class``.
        number: The number of draws.
        sites: The sites of the model.
    """
    parts = []
    for part, values in means.items():
        dataset = _make("uncertainty", values, sites, has_classes=part == "probability")
        names = map(str, dataset.data_vars)
        parts.append(dataset.rename({name: f"{name}_{part}" for name in names}))
    whole = xr.merge(parts, compat="override", join="exact", combine_attrs="override")
    return whole.assign_attrs(number_of_draws=number)


def _make(
    group: str,
    values: dict[str, Any],
    sites: ModelSites,
    by_chain: frozenset[str] = frozenset(),
    *,
    has_classes: bool = False,
    is_ensemble: bool = False,
) -> xr.Dataset:
    drawn = group not in _WITHOUT_DRAWS
    leading = 2 if drawn else 0
    flat = arrays_by_path(values)
    taken = {variable_name(name) for name in flat}
    if drawn and taken & set(DRAWS):
        raise ValueError(
            f"the sites {sorted(taken & set(DRAWS))} have the names of axes of the "
            "draws and would be lost in a DataTree: rename them in the model."
        )
    arrays, dims, originals = {}, {}, {}
    coords: dict[str, tuple[str, np.ndarray]] = {}
    for name, value in flat.items():
        key = variable_name(name)
        if key in arrays:
            raise ValueError(
                f"the sites {originals[key]!r} and {name!r} get the same name in a "
                "DataTree, where '/' becomes '.': rename one of them."
            )
        originals[key] = name
        array = np.asarray(value)
        arrays[key] = array.astype(widened(array.dtype), copy=False)
        before = [CHAIN] * (name in by_chain)
        ndim = arrays[key].ndim - leading - len(before)
        if group.endswith("sample_stats") or group in _OF_ARGUMENTS:
            dims[key] = [free_axis(f"{key}_dim_{axis}", taken) for axis in range(ndim)]
            continue
        if group == "log_prior":
            dims[key] = sites.plates_of(name)
            continue
        names = sites.variables | taken
        # The classes of a categorical site are on one more axis than its values.
        more = has_classes and sites.outcomes[name].kind == "categorical"
        own = sites.axis_names(name, ndim - more, taken)
        own += [free_axis(f"{key}_class", names)] * more
        # A mask of single values does not apply to densities, which are of events.
        single = {} if group == "log_likelihood" else sites.element_masks
        mask = single.get(name, sites.masks.get(name))
        if mask is not None:
            arrays[key] = _keep_observed(arrays[key], mask, leading)
            # Plates keep their names for the other sites on them, so the places of the
            # entries are called after site and plate.
            kind = "element" if name in single else "entry"
            entry = free_axis(f"{key}_{kind}", names)
            places = zip(own, np.argwhere(mask).T, strict=False)
            coords |= {
                free_axis(f"{key}_{axis}", names): (entry, place)
                for axis, place in places
            }
            own = [entry, *own[mask.ndim :]]
        dims[key] = before + own
    out = dict_to_dataset(
        arrays,
        dims=dims,
        sample_dims=["chain", "draw"] if drawn else [],
        inference_library=numpyro,
        check_conventions=not is_ensemble,
    )
    for key, name in originals.items():
        if group not in _OF_ARGUMENTS:
            out[key].attrs.update(sites.variable_attrs(name))
        if group in _OF_OUTCOMES:
            out[key].attrs.update(outcome_attrs(sites.outcomes.get(name)))
        if name not in values or (group == "params" and name not in sites.trained):
            out[key].attrs["nested"] = 1
    return out.assign_coords(coords)


def _keep_observed(array: np.ndarray, mask: np.ndarray, leading: int) -> np.ndarray:
    """Flatten the masked axes, which follow `leading` ones, to the observed entries."""
    if mask.ndim == 0:  # a scalar is one entry, or none
        return np.repeat(np.expand_dims(array, leading), int(mask), axis=leading)
    return array[(slice(None),) * leading + np.nonzero(mask)]
