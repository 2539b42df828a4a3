"""A network as the sequence of its layers, if that is what its own call does."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from pyrox_ppl._bind import as_stored
from pyrox_ppl.nn._rows import each_row

# Two functions are compared at so many points of each scale, for so many draws of the
# parameters: an activation that happens to be flat at some shows its slope at others.
_DRAWS, _SCALES, _POINTS = 3, (1.0, 10.0), 4


def layers_of(network: Any) -> tuple[Any, ...]:
    """The layers of a network, the last one its readout."""
    layers = getattr(network, "layers", None)
    if not isinstance(layers, tuple | list) or len(layers) < 2:
        raise ValueError(
            f"mode='feature' needs a network with two or more `layers`, the last one "
            f"the readout, and {type(network).__name__} has {layers!r}. Else use "
            "mode='input'."
        )
    return tuple(layers)


def apply_layers(
    network: Any, x: jax.Array, after: Callable[[int, jax.Array], jax.Array]
) -> jax.Array:
    """Layer after layer, with the network's activations; `after` each hidden one."""
    *hidden, readout = layers_of(network)
    for i, layer in enumerate(hidden):
        x = after(i, _activate(network, i, _apply_hidden(layer, x)))
    return _read_out(network, readout, x)


def check_layers(network: Any, in_features: int) -> None:
    """Raise unless the network's own call is that of its layers, one after another.

    Two equal traces are a proof. Else both are evaluated, with random numbers in the
    place of its parameters: zeros (of a readout, say) would hide what stands before
    them, and where the network is made under a transform there are no numbers at all.
    """
    network = as_stored(network)
    point = jax.ShapeDtypeStruct((in_features,), jnp.zeros(()).dtype)
    own, layered = (_traced(f, network, point) for f in (_own, _layered))
    constants = zip(own.consts, layered.consts, strict=False)
    if str(own) == str(layered) and all(a is b for a, b in constants):
        return
    rng = np.random.default_rng(0)
    # Out of a `jit` or `vmap` that the network is made in, which numbers would join.
    with jax.ensure_compile_time_eval(), jax.default_matmul_precision("highest"):
        for scale in _SCALES * _DRAWS:
            redrawn = _redrawn(network, rng)
            x = jnp.asarray(scale * rng.normal(size=(_POINTS, in_features)))
            expected = [np.asarray(_own(redrawn, row)) for row in x]
            got = [np.asarray(_layered(redrawn, row)) for row in x]
            if not _agree(got, expected, _rounding(redrawn)):
                raise _another(
                    network,
                    f"makes another function than its own call: at {x[0]}, and with "
                    f"random parameters, {got[0]} and not {expected[0]}",
                )


def _own(network: Any, x: jax.Array) -> Any:
    return each_row(network, x)


def _layered(network: Any, x: jax.Array) -> jax.Array:
    return apply_layers(network, x, lambda i, h: h)


def _traced(function: Callable, network: Any, point: jax.ShapeDtypeStruct) -> Any:
    """The trace of a call at one point, its failure being one of the mode."""
    try:
        traced = jax.make_jaxpr(lambda x: function(network, x))(point)
    except (TypeError, ValueError, RuntimeError) as error:
        does = "does not work" if function is _layered else "cannot be compared"
        raise _another(
            network,
            f"{does}: its {'layers' if function is _layered else 'own call'} at one "
            f"point of shape {point.shape} raised {type(error).__name__}: {error}",
        ) from error
    if len(traced.out_avals) != 1:
        raise _another(
            network,
            f"cannot be compared: its call makes {len(traced.out_avals)} arrays",
        )
    return traced


def _another(network: Any, what: str) -> ValueError:
    return ValueError(
        f"mode='feature' applies the `layers` of {type(network).__name__} one after "
        "another, with its `activation` after each but the last and its "
        f"`final_activation` at the end (if it has them), and that {what}. Move what "
        "its `__call__` does besides (activations, residual connections, encodings, "
        "transforms) into the layers, each a module with integer `in_features` and "
        "`out_features`; or use mode='input', which calls the network as it is. "
        "(Dropout is switched off by `eqx.nn.inference_mode`.)"
    )


def _redrawn(network: Any, rng: np.random.Generator) -> Any:
    """The network with random parameters of the signs and scales that it has."""

    def redraw(leaf: Any) -> Any:
        if not isinstance(leaf, Tracer) and not eqx.is_inexact_array(leaf):
            return leaf
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.zeros(leaf.shape, leaf.dtype)
        unknown = isinstance(leaf, Tracer)
        stored = np.zeros(leaf.shape) if unknown else np.asarray(leaf, complex)
        moved = stored * rng.uniform(0.5, 1.5, leaf.shape)
        limit = 1.0 / math.sqrt(math.prod(leaf.shape[1:]) or 1)
        fresh = rng.uniform(-limit, limit, leaf.shape)
        drawn = np.where((stored == 0) | ~np.isfinite(stored), fresh, moved)
        if not jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            drawn = np.real(drawn)
        return jnp.asarray(drawn, leaf.dtype)

    return jax.tree.map(redraw, network)


def _rounding(network: Any) -> float:
    """The relative rounding of the coarsest parameter of a network."""
    leaves = filter(eqx.is_inexact_array, jax.tree.leaves(network))
    dtypes = [leaf.dtype for leaf in leaves] or [jnp.zeros(()).dtype]
    return max(float(jnp.finfo(dtype).eps) for dtype in dtypes)


def _agree(got: list[np.ndarray], expected: list[np.ndarray], eps: float) -> bool:
    """Whether arrays are equal to half of the digits, and finite at the same places."""
    if [array.shape for array in got] != [array.shape for array in expected]:
        return False
    one, other = np.asarray(got, complex), np.asarray(expected, complex)
    finite = np.isfinite(other)
    if not finite.any() or np.any(finite != np.isfinite(one)):
        return False
    one, other = one[finite], other[finite]
    return bool(np.abs(one - other).max() <= math.sqrt(eps) * np.abs(other).max())


def _apply_hidden(layer: Any, h: jax.Array) -> jax.Array:
    """Apply a layer that makes one vector of a vector, else raise."""
    out = each_row(layer, h)
    if out.shape[:-1] != h.shape[:-1]:
        raise ValueError(
            f"a layer of inner, {type(layer).__name__}, maps a vector of shape "
            f"{h.shape[-1:]} to shape {out.shape[h.ndim - 1 :]}, and expected is one "
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
        arrays, functions = eqx.partition(activation, eqx.is_array)
        of_layer = jax.tree.map(lambda leaf: leaf[index], arrays)
        activation = _each_neuron(eqx.combine(of_layer, functions))
    return each_row(activation, h)


def _read_out(network: Any, readout: Any, h: jax.Array) -> jax.Array:
    """Apply the last layer, and the activation after it, if the network has one."""
    final = getattr(network, "final_activation", None)
    if final is None:
        return each_row(readout, h)
    if isinstance(network, eqx.nn.MLP) and network.out_size != "scalar":
        final = _each_neuron(final)
    return each_row(lambda row: final(readout(row)), h)


def _each_neuron(activation: Any) -> Callable[[jax.Array], jax.Array]:
    """``eqx.nn.MLP`` keeps an activation's parameters apart for every neuron."""
    each = eqx.filter_vmap(lambda neuron, value: neuron(value))
    return lambda row: each(activation, row)
