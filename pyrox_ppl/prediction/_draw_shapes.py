"""Draws that do not fit the sites of a model with the arguments that it has now."""

from typing import Any

import numpy as np


def check_draw(site: dict[str, Any], value: Any) -> None:
    """Refuse a draw that stands in for a site of another shape, as it is put there.

    Inside a ``scan`` the draws of all steps are along one more axis, and may be of
    fewer steps; what is outside of one, `check_draws` tells.

    Raises:
        ValueError: If the shapes differ.
    """
    shape, expected = np.shape(value), _shape(site)
    if shape != expected and (site["type"] != "sample" or shape[1:] != expected):
        raise _mismatch(site, shape)


def check_draws(trace: dict[str, Any], draws: Any) -> None:
    """The same of all sites of a run, when it is known which are inside a ``scan``."""
    for name in draws:
        site = trace.get(name, {"type": None})
        if site["type"] == "sample" and not site.get("_control_flow_done"):
            shape = np.shape(site["value"])
            if shape not in ((), _shape(site)):
                raise _mismatch(site, shape)


def _shape(site: dict[str, Any]) -> tuple[int, ...]:
    """Of one draw of a sample site, or of what a deterministic one was computed as."""
    is_sample = site["type"] == "sample"
    return site["fn"].shape() if is_sample else np.shape(site["value"])


def _mismatch(site: dict[str, Any], shape: tuple[int, ...]) -> ValueError:
    # JAX takes the last member for one that is not there, without a word.
    plates = {f.name: f.size for f in site.get("cond_indep_stack") or ()}
    name = site["name"]
    return ValueError(
        f"a draw of {name!r} has shape {shape}, and the model with these arguments "
        f"has {name!r} of shape {_shape(site)}"
        + (f", on the plates {plates}" if plates else "")
        + ": the draws are of other members or rows than these. Leave the site out "
        "of a dictionary of draws to `predict`, which then draws it from its prior "
        "(new groups), or give the draws of these members alone (draws[:, members])."
    )
