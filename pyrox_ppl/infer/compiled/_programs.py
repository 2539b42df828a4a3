"""The compiled programs that an object keeps, and the key that finds them again."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from pyrox_ppl._loop_convolutions import with_fast_convolutions
from pyrox_ppl._numpyro import handler_stack
from pyrox_ppl.infer._content_key import LeaveOut, content_key
from pyrox_ppl.infer.compiled._arguments import (
    ByContent,
    holds_tracers,
    is_staged,
    split_arguments,
    warn_of_recompiling,
)
from pyrox_ppl.infer.compiled._one_turn import run_jaxpr


class Key(NamedTuple):
    """What a program depends on besides the values of its arrays.

    Attributes:
        plan: What a run does: a `Plan`, a `Steps` or None.
        arguments: The arguments of the model, without their arrays.
        source: What the program is made of: a kernel, an SVI or a model.
    """

    plan: Any
    arguments: ByContent
    source: ByContent


class Programs:
    """Jitted functions that belong to one object.

    JAX keeps a program as long as the function that it was compiled from, so these
    functions are methods of an instance, and not shared by all objects. They take all
    that they compute with as inputs, a :class:`Key` first. A pickled copy has compiled
    nothing yet.
    """

    def __init__(self) -> None:
        self._has_run = False

    def __reduce__(self) -> tuple:
        return type(self), ()

    def key(
        self,
        arguments: Any,
        source: Any,
        *,
        parts: Any,
        plan: Any = None,
        leave_out: LeaveOut = lambda _: (),
    ) -> tuple[list, Key]:
        """The arrays among the arguments of the model, and the key of all else.

        Args:
            arguments: Any pytree.
            source: What a program is made of.
            parts: That of the source that decides what the program does.
            plan: What the run does.
            leave_out: The attributes of an object in `parts` that do not count.
        """
        arrays, static = split_arguments(arguments)
        content, unseen = content_key(parts, leave_out)
        if unseen and self._has_run:
            warn_of_recompiling(
                f"the model reaches objects of type {sorted(unseen)}",
                "give the model what it needs as arrays or plain values",
            )
        self._has_run = True
        # A handler outside may change any site, so no program is used again there.
        context = object() if handler_stack() else None
        return arrays, Key(plan, static, ByContent(source, (content, context)))


def jit_with_key(function: Callable, *, donated: tuple[int, ...] = ()) -> Callable:
    """A jitted function of a static key, which may reuse the `donated` inputs.

    JAX keeps static arguments, and so a model and its data, after the jitted function
    is gone. A function that closes over them is freed with all of them.
    """
    jitted: dict[Any, Callable] = {}
    donated = tuple(place - 1 for place in donated)

    def call(key: Any, *inputs: Any) -> Any:
        # Under a `vmap` of the user, some memory of an input may be of no use.
        places = () if donated and holds_tracers(inputs) else donated
        if (key, places) not in jitted:
            run = with_fast_convolutions(partial(function, key))
            jitted[key, places] = jax.jit(run, donate_argnums=places)
        return jitted[key, places](*inputs)

    return call


def jit_quickly(function: Callable) -> Callable:
    """A jitted function of a static key that runs once: XLA need not optimise it.

    A compiler option holds for a whole program, so it is not given inside another one.
    """
    alone, inside = _jit_without_constants(function), jit_with_key(function)
    return lambda *inputs: (inside if is_staged() else alone)(*inputs)


def _jit_without_constants(function: Callable) -> Callable:
    """A jitted function of a static key, the arrays of whose closure are inputs.

    XLA would copy the stored weights of a module several times, as parts of the
    program, and keep one copy with it.
    """
    quick = {"xla_backend_optimization_level": 0}
    options = quick if jax.default_backend() == "cpu" else None
    traced: dict[Any, Any] = {}
    compiled: dict[Any, Callable] = {}

    def call(key: Any, *inputs: Any) -> Any:
        if key not in traced:
            traced[key] = jax.jit(partial(function, key))
        trace = traced[key].trace(*inputs)
        if trace.jaxpr not in compiled:
            run = partial(run_jaxpr, trace.jaxpr.jaxpr)
            compiled[trace.jaxpr] = jax.jit(run, compiler_options=options)
        results = compiled[trace.jaxpr](trace.jaxpr.consts, *jax.tree.leaves(inputs))
        return jax.tree.unflatten(jax.tree.structure(trace.out_info), results)

    return call
