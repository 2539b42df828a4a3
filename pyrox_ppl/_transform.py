"""Detects a JAX transform around a read that would leak it, or skip it on a cache hit.

``jit``, ``scan``, ``while_loop``, ``cond``, ``checkpoint`` and ``eval_shape`` stage a
function out once; ``vmap`` and ``grad`` run it in place. A fresh constant tells the two
apart: under a staging transform it belongs to a new trace, under ``vmap`` or ``grad``
to the surrounding one. ``jax.extend.core.get_opaque_trace_state`` changes under both.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state

# A user context is part of the key of every JAX compilation cache. A handler block sets
# this one, so that a function compiled outside runs its Python again inside the block:
# otherwise a cache hit would hide its reads from the handler.
inside_block = jax.make_user_context(False)


class TraceMark:
    """Remembers the JAX trace that is current where the mark is made."""

    def __init__(self) -> None:
        self._staged = _trace_of(jnp.zeros(()))
        self._state = get_opaque_trace_state()

    def is_staged_out(self) -> bool:
        """Whether a staging transform (``jit``, ``scan``, ...) was entered since."""
        return _trace_of(jnp.zeros(())) is not self._staged

    def is_transformed(self, leaf: Any) -> bool:
        """Whether `leaf` is an argument of a ``vmap`` or ``grad`` entered since."""
        # A concrete array cannot be one member of a `vmap`. A tracer may be, once a
        # transform was entered since the mark.
        trace = _trace_of(leaf)
        return (
            trace is not None
            and trace is not self._staged
            and get_opaque_trace_state() != self._state
        )


def _trace_of(value: Any) -> Any:
    """Return the trace that an array belongs to; None for a concrete array."""
    return getattr(value, "_trace", None)
