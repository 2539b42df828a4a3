"""The names of a variable's axes: those of plates and of a module's parameters."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from pyrox_ppl._parameter import Parameter

# The axes of draws: no site may have these names.
DRAWS = ("chain", "draw")


def variable_name(site: str) -> str:
    """A site's name as a DataTree can hold it."""
    return site.replace("/", ".")


def free_axis(axis: str, taken: Collection[str]) -> str:
    """A name for an axis that no variable has; xarray would drop that variable."""
    while axis in taken:
        axis = f"{axis}_axis"
    return axis


def plate_labels(trace: Mapping[str, Any]) -> dict[tuple[str, int], str]:
    """A name for each plate and size: a plate of two sizes makes two axes."""
    frames = {
        (frame.name, frame.size)
        for site in trace.values()
        for frame in site.get("cond_indep_stack") or ()
    }
    names = [name for name, _ in frames]
    return {
        (name, size): variable_name(
            name if names.count(name) == 1 else f"{name}_{size}"
        )
        for name, size in frames
    }


def plate_axes(
    name: str, trace: Mapping[str, Any], labels: Mapping[tuple[str, int], str]
) -> tuple[str | None, ...]:
    """The names of a site's axes from the right, None for those on no plate.

    NumPyro does not record how many axes of a deterministic site belong to one member
    of its plates. A module's parameter has its own shape, a non-centred site the event
    of its noise. Otherwise the sizes of the plates decide; where they fit in several
    places, no axis is named.
    """
    site, noise = trace[name], trace.get(f"{name}_decentered")
    shape = np.shape(site["value"])
    frames = site["cond_indep_stack"]
    if site["type"] == "sample":
        events = [site["fn"].event_dim]
    elif site.get("parameter") is not None:
        events = [len(site["parameter"].shape)]
    elif noise is not None and noise["type"] == "sample":
        events = [noise["fn"].event_dim]
    else:
        events = [
            event
            for event in range(len(shape))
            if all(_axis_has_size(shape, event - f.dim - 1, f.size) for f in frames)
        ]
    names: list[str | None] = [None] * len(shape)
    if len(events) == 1:
        for frame in frames:
            axis = events[0] - frame.dim - 1
            if _axis_has_size(shape, axis, frame.size):
                names[axis] = labels[frame.name, frame.size]
    return tuple(names)


def parameter_axes(
    name: str, parameter: Parameter, others: Mapping[str, Parameter]
) -> list[str | None]:
    """The output and the input axes of a module's weight, the output's of its bias.

    The shapes of the two tell which: ``(out, in)`` and ``(out,)`` of a linear
    map, ``(out, in, *kernel)`` and ``(out, 1, ..., 1)`` of a convolution, one shape for
    both of a layer's normalisation.
    """
    module, _, leaf = name.rpartition(".")
    if leaf not in ("weight", "bias"):
        return [None] * len(parameter.shape)
    out, shape = f"{variable_name(module)}.out", parameter.shape
    weight = others.get(f"{module}.weight")
    bias = others.get(f"{module}.bias")
    if weight is not None and bias is not None and not _belong_together(weight, bias):
        return [None] * len(shape)
    rest: list[str | None] = [None] * max(len(shape) - 1, 0)
    if leaf == "bias":
        # A bias whose weight is not among the sites counts as that of a linear map.
        linear = len(shape) == 1 and (parameter.fan_in > 1 or len(parameter.path) > 1)
        return [out, *rest] if weight is not None or linear else [None] * len(shape)
    is_matrix = len(shape) == 2 and shape[1] == parameter.fan_in
    if is_matrix or (bias is not None and len(shape) > 1):
        return [out, f"{variable_name(module)}.in", *rest[1:]]
    return [out] if bias is not None else [None] * len(shape)


def _belong_together(weight: Parameter, bias: Parameter) -> bool:
    """Whether a weight and a bias are those of one layer."""
    rank = len(weight.shape)
    if not rank:
        return False
    ones = (1,) * max(rank - 2, 0)
    return bias.shape == (weight.shape if rank == 1 else (weight.shape[0], *ones))


def _axis_has_size(shape: tuple[int, ...], axis: int, size: int) -> bool:
    """Whether an axis, counted from the right, has a size."""
    return axis < len(shape) and shape[-axis - 1] == size
