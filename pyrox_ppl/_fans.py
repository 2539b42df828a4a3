"""How many inputs an output of a layer sums over, how many outputs an input reaches."""

import math
from typing import Any, Literal

import equinox as eqx

NormPart = Literal["scale", "shift"]

_NORM_LAYERS = (
    eqx.nn.BatchNorm,
    eqx.nn.GroupNorm,
    eqx.nn.LayerNorm,
    eqx.nn.RMSNorm,
)
_NORM_PARTS: dict[str | int, NormPart] = {"weight": "scale", "bias": "shift"}


def norm_part(node: Any, name: str | int) -> NormPart | None:
    """What a field is to its normalisation layer, if the node is one."""
    return _NORM_PARTS.get(name) if isinstance(node, _NORM_LAYERS) else None


def fan_in_of(node: Any, name: str | int, value: Any, weight: Any) -> int:
    """How many inputs one output sums over, through one field of a layer.

    Args:
        node: The layer.
        name: The name of the field.
        value: What the field holds.
        weight: The ``weight`` of the layer, if it has one.
    """
    if norm_part(node, name) is not None or isinstance(node, eqx.nn.Embedding):
        return 1
    own, sibling = (
        _product(_shape_in_layer(node, field, array))
        for field, array in ((name, value), ("weight", weight))
    )
    # A convolution's bias has trailing axes of size 1, whose product is no fan-in.
    count = ((sibling or own) if name == "bias" else (own or sibling)) or 1
    if isinstance(node, eqx.nn.ConvTranspose):
        # Between its inputs are zeros: an output meets one tap of each `stride`.
        return _per_place(count, node.stride)
    return count


def fan_out_of(node: Any, name: str | int, value: Any) -> int:
    """How many outputs one input reaches, through one field of a layer."""
    if not eqx.is_inexact_array(value) or norm_part(node, name) is not None:
        return 1
    if isinstance(node, eqx.nn.Embedding):
        return value.shape[-1]
    count = fan_out_of_shape(_shape_in_layer(node, name, value))
    if name != "weight" or not isinstance(node, eqx.nn.Conv | eqx.nn.ConvTranspose):
        return count
    count //= node.groups
    return _per_place(count, node.stride) if isinstance(node, eqx.nn.Conv) else count


def fan_out_of_shape(shape: tuple[int, ...]) -> int:
    """The first axis times all but the first two, as ``eqx.nn.Linear`` stores it."""
    out, *rest = shape or (1,)
    return out * math.prod(rest[1:])


def _per_place(count: int, stride: tuple[int, ...]) -> int:
    return max(1, round(count / math.prod(stride)))


def _shape_in_layer(node: Any, name: str | int, value: Any) -> tuple[int, ...]:
    """The shape of a field without the axes of layers that ``eqx.filter_vmap`` stacks.

    Nothing but the class of a layer tells such an axis from one of the weight itself.
    """
    if not eqx.is_inexact_array(value):
        return ()
    of_weight = _rank_of_weight(node)
    if of_weight is None or not str(name).startswith(("weight", "bias")):
        return value.shape
    rank = of_weight - str(name).startswith("bias")
    return value.shape[max(0, value.ndim - rank) :]


def _rank_of_weight(node: Any) -> int | None:
    """How many axes one layer's weight has; None if the class does not say."""
    match node:
        case eqx.nn.Conv() | eqx.nn.ConvTranspose():
            return node.num_spatial_dims + 2
        case eqx.nn.Linear() | eqx.nn.GRUCell() | eqx.nn.LSTMCell():
            return 2
    shape = getattr(getattr(node, "weight", None), "shape", ())
    sizes = tuple(
        getattr(node, field, None) for field in ("out_features", "in_features")
    )
    return 2 if shape[-2:] == sizes else None


def _product(shape: tuple[int, ...]) -> int | None:
    """The product of all axes but the first; None for less than two axes."""
    return math.prod(shape[1:]) if len(shape) >= 2 else None
