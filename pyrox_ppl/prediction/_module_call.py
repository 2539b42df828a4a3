"""A module with its inputs, and how it is called with them at every draw."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from pyrox_ppl._bind import AbstractModule, _mark_bound
from pyrox_ppl._dependence import find_dependence, mark
from pyrox_ppl._dict_order import rebuild, unwrap_dicts
from pyrox_ppl.prediction._points import Points

# What layers raise that lack a key (RuntimeError), a state or a named axis (NameError).
CALL_ERRORS = (TypeError, ValueError, RuntimeError, NameError, LookupError)
EXAMPLE = "call=lambda net, x: jax.vmap(net)(x)"
# Layers of Equinox that take one vector, and the attribute that says of which length.
_WIDTHS = MappingProxyType({eqx.nn.Linear: "in_features", eqx.nn.MLP: "in_size"})


@dataclasses.dataclass(frozen=True, eq=False)
class ModuleCall:
    """A module with all that one call of it needs.

    Attributes:
        module: The module, with its stored values.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        name: The root of its parameters' names; None for that of its class.
        params: Trained values of its parameters.
        call: A function of the module and its arguments to evaluate in its place.
    """

    module: Any
    args: tuple
    kwargs: dict[str, Any]
    name: str | None
    params: Mapping[str, Any] | None
    call: Callable[..., Any] | None = None

    @property
    def takes_all_points(self) -> bool:
        """Whether one call takes all points, as it would in a model."""
        return self.call is not None or isinstance(self.module, AbstractModule)


def evaluate_draws(
    module: Any,
    values: dict[int, jax.Array],
    mode: dict[int, jax.Array],
    points: Points,
    number: int,
    batched: bool,
    call: Callable[..., Any] | None = None,
) -> Any:
    """The values of every draw, one draw after the other; of one where all are alike.

    Args:
        module: The module, with the values that no draw replaces.
        values: The draws of its leaves by position.
        mode: Values of the same leaves, around which the module is linearised, with a
            leading axis: one entry for all draws, or one for each chain. Empty for the
            module as it is.
        points: The inputs.
        number: The number of draws.
        batched: Whether one call takes all points.
        call: A function of the module and the inputs to evaluate in its place.
    """
    module = unwrap_dicts(module)
    leaves = jax.tree.leaves(module)

    def at(values: dict[int, jax.Array], index: jax.Array) -> Any:
        of_draw = [values.get(position, leaf) for position, leaf in enumerate(leaves)]
        net = _mark_bound(rebuild(module, of_draw))
        given = points.with_keys_of_draw(index)
        if not batched:
            return given.map(net)
        return given.call(net if call is None else functools.partial(call, net))

    def one(draw: tuple[jax.Array, dict[int, jax.Array]]) -> Any:
        index, values = draw
        if not mode:
            return at(values, index)
        # Draws stand one chain after the other, and chains are equally long.
        own = {p: value[index * len(value) // number] for p, value in mode.items()}
        away = {position: value - own[position] for position, value in values.items()}
        out, tangent = jax.jvp(lambda values: at(values, index), (own,), (away,))
        return jax.tree.map(_add_tangent, out, tangent)

    if not values and not points.has_keys:
        return jax.tree.map(lambda leaf: leaf[None], one((jnp.array(0), {})))
    return jax.lax.map(one, (jnp.arange(number), values))


def _add_tangent(value: Any, tangent: Any) -> Any:
    if not jnp.issubdtype(jnp.result_type(value), jnp.inexact):
        raise ValueError(
            "the draws are those of a guide that linearises, and the module, or "
            f"`call`, returns values of type {jnp.result_type(value)}, which cannot be "
            "linearised: return the numbers that they are computed from (logits, not "
            "their argmax)."
        )
    return value + tangent


def check_call(call: ModuleCall) -> None:
    """Raise if the module, or the function that calls it, does not take the inputs."""
    module, args = call.module, call.args
    name = f"{type(module).__name__} cannot be called"
    function: Any = module.forward if isinstance(module, AbstractModule) else module
    if call.call is not None:
        name, function = "`call` does not take the module", call.call
        args = (module, *args)
    try:
        inspect.signature(function).bind(*args, **call.kwargs)
    except TypeError as error:
        raise TypeError(
            f"{name} with {len(call.args)} inputs and the keyword arguments "
            f"{list(call.kwargs)}: {error}. `call` is a function of the module and "
            f"these inputs, such as {EXAMPLE}."
        ) from error


def check_width(call: ModuleCall) -> None:
    """Raise if the points are not the vectors that a layer of known width takes.

    A point with another axis may broadcast inside the layer, to values of no meaning.

    Raises:
        ValueError: If they are not.
    """
    module, inputs = call.module, [x for x in call.args if eqx.is_array_like(x)]
    width = _WIDTHS.get(type(module))
    if width is None or len(inputs) != 1:
        return
    size, came = getattr(module, width), np.shape(inputs[0])
    point = () if size == "scalar" else (size,)
    if came[1:] == point:
        return
    if came == point:
        advice = "a single point is given as x[None]"
    elif (came[1:], point) == ((), (1,)):
        advice = "give x[:, None]"
    else:
        advice = f"give an array of shape {('points', *point)}".replace("'", "")
    raise ValueError(
        f"{type(module).__name__} takes one point of shape {point} ({width}={size!r}), "
        "and is mapped over the leading axis of its inputs: inputs of shape "
        f"{came} are points of shape {came[1:]}. To mend it, {advice}."
    )


def check_reads_draws(
    call: ModuleCall, module: Any, values: Mapping[int, jax.Array], points: Points
) -> None:
    """Raise if what the user's function returns depends on none of the draws.

    Args:
        call: The call, for its function.
        module: The module, with the values that no draw replaces.
        values: The draws of its leaves by position.
        points: The inputs.
    """
    function = call.call
    if function is None or not values:
        return
    leaves = jax.tree.leaves(module)

    def at_one_draw() -> tuple[dict[str, Any], dict[str, Any]]:
        draw = {position: mark(all_draws[0]) for position, all_draws in values.items()}
        of_draw = [draw.get(position, leaf) for position, leaf in enumerate(leaves)]
        net = _mark_bound(rebuild(module, of_draw))
        given = points.with_keys_of_draw(jnp.array(0))
        return {"draw": draw}, {"out": given.call(functools.partial(function, net))}

    if not find_dependence(at_one_draw)["out"]:
        raise ValueError(
            "what `call` returns depends on none of the drawn parameters of "
            f"{type(call.module).__name__}. Its first argument is the module of each "
            "draw: use that one, and not a module from outside the function, as in "
            f"{EXAMPLE}."
        )


def note_on_call(
    module: Any, points: Points, call: Callable[..., Any] | None, batched: bool
) -> str:
    """What was called with which inputs, for an error that came up inside."""
    name = type(module).__name__
    if call is not None:
        return (
            f"`call` was called with {name} and all inputs, of shape {points.shapes()}."
        )
    if batched:
        return (
            f"{name} was called with inputs of shape {points.shapes()}. If it is to be "
            "called otherwise, pass a function: call=lambda net, *inputs: ..."
        )
    return (
        f"{name}, which takes one point, was mapped over the leading axis of its "
        f"inputs, of shape {points.shapes()}: it was called with "
        f"{points.shapes(of_one=True)}. A single point is given as x[None]; rows of "
        "several batch axes are flattened to one. If the module needs more than an "
        "input (state, a named batch axis, a random key), say how to call it: "
        f"{EXAMPLE}."
    )
