"""Convolutions inside loops, in the order of axes for which XLA has a fast kernel.

On a CPU, XLA's own kernel takes channels as the last axis. XLA moves the axes of a
convolution there by itself, but not inside the body of a loop: there, a convolution in
PyTorch's order, which is Equinox's, and each gradient of a convolution, become plain
nested loops that take seven to thirty times as long.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal

from pyrox_ppl._jaxpr import bind_eqn, bodies, is_jaxpr, open_jaxpr

_LOOPS = ("while", "scan")
# The others (`shard_map`, `custom_linear_solve`) need what surrounds their bodies.
_OPENED = (
    *_LOOPS,
    "cond",
    "jit",
    "pjit",
    "closed_call",
    "checkpoint",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
)
_CONVOLUTION = "conv_general_dilated"


def with_fast_convolutions(function: Callable) -> Callable:
    """The same function, its convolutions inside loops in the order that is fast.

    It computes the same numbers up to rounding. A program without such a convolution,
    or for another device than a CPU, stays as it is.

    Args:
        function: A function of pytrees of arrays, to be compiled.
    """

    def run(*args: Any) -> Any:
        if jax.default_backend() != "cpu":
            return function(*args)
        traced = jax.jit(function)  # its second call below does not trace again
        closed, shapes = jax.make_jaxpr(traced, return_shape=True)(*args)
        jaxpr, constants = open_jaxpr(closed)
        if not _has_slow(jaxpr, False):
            return traced(*args)
        results = _evaluate(jaxpr, constants, *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    # JAX calls the program by it, in its logs and profiles.
    run.__name__ = getattr(function, "func", function).__name__
    return run


def _evaluate(jaxpr: Any, constants: Any, *args: Any, looped: bool = False) -> list:
    """The results of a jaxpr; `looped` says whether it is inside a loop already."""
    names, given = (*jaxpr.constvars, *jaxpr.invars), (*constants, *args)
    values = dict(zip(names, given, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if looped and _is_slow(eqn):
            results = [_convolve(eqn, *operands)]
        else:
            results = bind_eqn(_with_fast_bodies(eqn, looped), operands)
        values |= zip(eqn.outvars, results, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _with_fast_bodies(eqn: Any, looped: bool) -> Any:
    """The operation, with its bodies traced again where that is faster."""
    inside = looped or eqn.primitive.name in _LOOPS
    if not any(_has_slow(body, inside) for body in _open_bodies(eqn)):
        return eqn

    def renew(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(renew, value))
        return _retrace(value, inside) if is_jaxpr(value) else value

    params = {name: renew(value) for name, value in eqn.params.items()}
    return eqn.replace(params=params)


def _retrace(body: Any, looped: bool) -> Any:
    jaxpr, constants = open_jaxpr(body)
    run = partial(_evaluate, jaxpr, constants, looped=looped)
    types = [var.aval for var in jaxpr.invars]
    inputs = [
        jax.ShapeDtypeStruct(t.shape, t.dtype, weak_type=_is_weak(t)) for t in types
    ]
    closed = jax.make_jaxpr(run)(*inputs)
    return closed if body is not jaxpr else closed.jaxpr


def _is_weak(aval: Any) -> bool:
    return getattr(aval, "weak_type", False)


def _open_bodies(eqn: Any) -> list[Any]:
    """The jaxprs of an operation that may be traced again.

    A body that takes references (``jax.new_ref``) may not: they are no arrays.
    """
    if eqn.primitive.name not in _OPENED:
        return []
    if any(hasattr(var.aval, "inner_aval") for var in eqn.invars):
        return []
    return [body for body, _ in bodies(eqn)]


def _has_slow(jaxpr: Any, looped: bool) -> bool:
    return any(
        (looped and _is_slow(eqn))
        or any(
            _has_slow(body, looped or eqn.primitive.name in _LOOPS)
            for body in _open_bodies(eqn)
        )
        for eqn in jaxpr.eqns
    )


def _is_slow(eqn: Any) -> bool:
    """Whether it is a convolution that XLA's kernel takes, but for its axes.

    That kernel is no faster than plain loops for groups of channels and in 3-D.
    """
    if eqn.primitive.name != _CONVOLUTION:
        return False
    kinds = {var.aval.dtype for var in (*eqn.invars, *eqn.outvars)}
    groups = eqn.params["batch_group_count"], eqn.params["feature_group_count"]
    ndim = eqn.invars[0].aval.ndim
    return (
        kinds == {np.dtype("float32")}
        and groups == (1, 1)
        and ndim in (3, 4)
        and eqn.params["dimension_numbers"] != _fast_numbers(ndim)
    )


def _fast_numbers(ndim: int) -> lax.ConvDimensionNumbers:
    """Rows, places, channels; places, channels in, channels out."""
    places = range(1, ndim - 1)
    image = (0, ndim - 1, *places)
    return lax.ConvDimensionNumbers(
        image, (ndim - 1, ndim - 2, *range(ndim - 2)), image
    )


def _convolve(eqn: Any, image: jax.Array, kernel: jax.Array) -> jax.Array:
    numbers = eqn.params["dimension_numbers"]
    batch, channel, *places = numbers.lhs_spec
    outgoing, incoming, *offsets = numbers.rhs_spec
    image = jnp.transpose(image, (batch, *places, channel))
    kernel = jnp.transpose(kernel, (*offsets, incoming, outgoing))
    params = {**eqn.params, "dimension_numbers": _fast_numbers(image.ndim)}
    (result,) = bind_eqn(eqn.replace(params=params), [image, kernel])
    batch, channel, *places = numbers.out_spec
    axes = [int(axis) for axis in np.argsort((batch, *places, channel))]
    return jnp.transpose(result, axes)
