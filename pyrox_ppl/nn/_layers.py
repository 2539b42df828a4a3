"""Applies a network layer by layer, after a check that this is what its call does."""

import math
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from pyrox_ppl._bind import AbstractModule, stop_reads
from pyrox_ppl.nn._rows import map_rows

# Where `apply_layers` calls back: after the activation of a hidden layer, or before it.
Mode = Literal["feature", "preactivation"]

# How many draws of the parameters, which scales of points, and how many points of each
# scale serve to compare two functions. An activation that is flat at some of the points
# (ReLU, or a saturated tanh) shows its slope at others.
_DRAWS, _SCALES, _POINTS = 3, (1.0, 10.0), 4


def get_layers(network: Any, mode: Mode) -> tuple[Any, ...]:
    """Return the layers of a network; the last one is its readout."""
    layers = getattr(network, "layers", None)
    if not isinstance(layers, tuple | list) or len(layers) < 2:
        raise ValueError(
            f"mode={mode!r} needs a network with two or more `layers`, the last of "
            f"which is the readout, but {type(network).__name__} has {layers!r}. Use "
            "mode='input' instead."
        )
    return tuple(layers)


def apply_layers(
    network: Any, x: jax.Array, mode: Mode, change: Callable[[int, jax.Array], Any]
) -> jax.Array:
    """Apply layers and activations one after another.

    `change` gets the index of each hidden layer and what its activation returns, or in
    mode ``"preactivation"`` what its activation takes.
    """
    *hidden, readout = get_layers(network, mode)
    for i, layer in enumerate(hidden):
        if mode == "feature":
            x = change(i, _activate(network, i, _apply_hidden(layer, x)))
        elif _activates_itself(layer):
            x = change(i, _apply_hidden(layer, x, "preactivate"))
            x = _activate(network, i, _apply_hidden(layer, x, "activate"))
        else:
            x = _activate(network, i, change(i, _apply_hidden(layer, x)))
    return _read_out(network, readout, x)


def _activates_itself(layer: Any) -> bool:
    """Whether a layer has the two methods that separate it from its activation."""
    names = ("preactivate", "activate")
    return all(callable(getattr(layer, name, None)) for name in names)


def check_activations(network: Any) -> None:
    """Raise unless it is known what the activation of each hidden layer takes."""
    if getattr(network, "activation", None) is not None:
        return
    for i, layer in enumerate(get_layers(network, "preactivation")[:-1]):
        if not _activates_itself(layer):
            raise ValueError(
                "mode='preactivation' puts a conditioner before the activation of each "
                f"hidden layer, but {type(network).__name__} has no `activation`, and "
                f"its layer {i}, {type(layer).__name__}, does not say what its own "
                "activation takes. Give the network an attribute `activation`, which "
                "its call applies after each layer but the last; or give the layer two "
                "methods, `preactivate(x)` and `activate(h)`, which its call applies "
                "one after the other (as SirenDense has them); or use mode='feature', "
                "which conditions what the layers return."
            )


def check_layers(network: Any, in_features: int, mode: Mode) -> None:
    """Raise unless the network's own call applies its layers one after another.

    Equal traces of the two functions are a proof. Otherwise both are evaluated with
    random parameters. The stored ones will not do: zeros, in a readout for example,
    would hide the layers before them, and under a transform there are no numbers.
    """
    network = stop_reads(network)
    point = jax.ShapeDtypeStruct((in_features,), jnp.zeros(()).dtype)
    own = _trace(_call_network, network, point, mode, "own call")
    layered = _trace(_call_layers, network, point, mode, "layers")
    constants = zip(own.consts, layered.consts, strict=False)
    if str(own) == str(layered) and all(a is b for a, b in constants):
        return
    rng = np.random.default_rng(0)
    # The network may be made inside a `jit` or `vmap`, which would trace the numbers
    # below: leave it. Low-precision matrix products would hide small differences.
    with jax.ensure_compile_time_eval(), jax.default_matmul_precision("highest"):
        for scale in _SCALES * _DRAWS:
            redrawn = _redraw_parameters(network, rng)
            x = jnp.asarray(scale * rng.normal(size=(_POINTS, in_features)))
            expected = [np.asarray(_call_network(redrawn, row, mode)) for row in x]
            got = [np.asarray(_call_layers(redrawn, row, mode)) for row in x]
            if not _agree(got, expected, _coarsest_eps(redrawn)):
                raise _mode_error(
                    network,
                    mode,
                    f"gives another function than its own call: at {x[0]}, with "
                    f"random parameters, {got[0]} instead of {expected[0]}",
                )


def _call_network(network: Any, x: jax.Array, mode: Mode) -> Any:
    return map_rows(network, x)


def _call_layers(network: Any, x: jax.Array, mode: Mode) -> jax.Array:
    return apply_layers(network, x, mode, lambda i, h: h)


def _trace(
    function: Callable, network: Any, point: jax.ShapeDtypeStruct, mode: Mode, part: str
) -> Any:
    """Trace a call at one point; report a failure as an error of the mode."""
    try:
        traced = jax.make_jaxpr(lambda x: function(network, x, mode))(point)
    except (TypeError, ValueError, RuntimeError) as error:
        own = function is _call_network
        fails = "cannot be compared with its own call" if own else "does not work"
        raise _mode_error(
            network,
            mode,
            f"{fails}: its {part} at one point of shape {point.shape} raised "
            f"{type(error).__name__}: {error}",
        ) from error
    if len(traced.out_avals) != 1:
        raise _mode_error(
            network,
            mode,
            "cannot be compared with its own call, which returns "
            f"{len(traced.out_avals)} arrays",
        )
    return traced


def _mode_error(network: Any, mode: Mode, what: str) -> ValueError:
    methods = ""
    if mode == "preactivation":
        methods = " (and `preactivate` and `activate`, if it contains its activation)"
    return ValueError(
        f"mode={mode!r} applies the `layers` of {type(network).__name__} one after "
        "another, with its `activation` after each but the last and its "
        f"`final_activation` at the end (if it has them), but this {what}. Move "
        "everything else that its `__call__` does (activations, residual connections, "
        "encodings, transforms) into the layers, each a module with integer "
        f"`in_features` and `out_features`{methods}; or use mode='input', which calls "
        "the network as it is. (`eqx.nn.inference_mode` switches dropout off.)"
    )


def _redraw_parameters(network: Any, rng: np.random.Generator) -> Any:
    """Replace the parameters by random ones of the same signs and scales."""

    def redraw(leaf: Any) -> Any:
        if not isinstance(leaf, Tracer) and not eqx.is_inexact_array(leaf):
            return leaf
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.zeros(leaf.shape, leaf.dtype)
        unknown = isinstance(leaf, Tracer)
        stored = np.zeros(leaf.shape) if unknown else np.asarray(leaf, complex)
        # Keep the sign: a parameter may have to be positive (a scale, a variance).
        moved = stored * rng.uniform(0.5, 1.5, leaf.shape)
        limit = 1.0 / math.sqrt(math.prod(leaf.shape[1:]) or 1)
        fresh = rng.uniform(-limit, limit, leaf.shape)
        drawn = np.where((stored == 0) | ~np.isfinite(stored), fresh, moved)
        if not jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            drawn = np.real(drawn)
        return jnp.asarray(drawn, leaf.dtype)

    return jax.tree.map(redraw, network)


def _coarsest_eps(network: Any) -> float:
    """Find the relative rounding error of the coarsest dtype among the parameters."""
    leaves = filter(eqx.is_inexact_array, jax.tree.leaves(network))
    dtypes = [leaf.dtype for leaf in leaves] or [jnp.zeros(()).dtype]
    return max(float(jnp.finfo(dtype).eps) for dtype in dtypes)


def _agree(got: list[np.ndarray], expected: list[np.ndarray], eps: float) -> bool:
    """Whether arrays agree in half of their digits and are finite at the same places.

    Half of the digits (a relative difference of sqrt(eps)) leaves room for another
    order of summation, and no room for another function.
    """
    if [array.shape for array in got] != [array.shape for array in expected]:
        return False
    one, other = np.asarray(got, complex), np.asarray(expected, complex)
    finite = np.isfinite(other)
    if not finite.any() or np.any(finite != np.isfinite(one)):
        return False
    one, other = one[finite], other[finite]
    return bool(np.abs(one - other).max() <= math.sqrt(eps) * np.abs(other).max())


def _apply_hidden(layer: Any, h: jax.Array, method: str = "__call__") -> jax.Array:
    """Apply a layer, or a method of it; raise unless it maps a vector to a vector."""
    if method == "__call__":
        out = map_rows(layer, h)
    else:
        # A method takes what its layer takes: any batch, or else one vector.
        function = getattr(layer, method)
        batched = isinstance(layer, AbstractModule)
        out = function(h) if batched else map_rows(function, h)
    if out.shape[:-1] != h.shape[:-1]:
        raise ValueError(
            f"a layer of inner, {type(layer).__name__}, maps a vector of shape "
            f"{h.shape[-1:]} to shape {out.shape[h.ndim - 1 :]}, but must return one "
            "vector. Layers stacked into one (as by eqx.nn.MLP(..., scan=True)) cannot "
            "be conditioned one by one: unstack them, or use mode='input'."
        )
    return out


def _activate(network: Any, index: int, h: jax.Array) -> jax.Array:
    """Apply the activation after a hidden layer, if the network has one."""
    activation = getattr(network, "activation", None)
    if activation is None:
        return h
    if isinstance(network, eqx.nn.MLP):
        # `eqx.nn.MLP` stacks an activation's parameters over the hidden layers.
        arrays, functions = eqx.partition(activation, eqx.is_array)
        own_arrays = jax.tree.map(lambda leaf: leaf[index], arrays)
        activation = _each_neuron(eqx.combine(own_arrays, functions))
    return map_rows(activation, h)


def _read_out(network: Any, readout: Any, h: jax.Array) -> jax.Array:
    """Apply the last layer, and the final activation if the network has one."""
    final = getattr(network, "final_activation", None)
    if final is None:
        return map_rows(readout, h)
    if isinstance(network, eqx.nn.MLP) and network.out_size != "scalar":
        final = _each_neuron(final)
    return map_rows(lambda row: final(readout(row)), h)


def _each_neuron(activation: Any) -> Callable[[jax.Array], jax.Array]:
    """Map an activation over neurons: ``eqx.nn.MLP`` has its parameters per neuron."""
    each = eqx.filter_vmap(lambda neuron, value: neuron(value))
    return lambda row: each(activation, row)
