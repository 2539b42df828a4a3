"""Where a JAX transform begins: tells a read that would leak, or vanish on a cache hit.

``jit``, ``scan``, ``while_loop``, ``cond``, ``checkpoint`` and ``eval_shape`` stage a
function out, once; ``vmap`` and ``grad`` run it where it stands. A fresh constant tells
the two apart: under the first it belongs to a trace of its own, under the second to the
trace around it. ``jax.extend.core.get_opaque_trace_state`` changes under both.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state

# Part of the key of every JAX compilation cache. It is set inside a handler block, so
# that a function compiled outside runs its Python again and its reads are seen.
inside_block = jax.make_user_context(False)


class TraceMark:
    """The JAX trace that was current where this mark was made."""

    def __init__(self) -> None:
        self._staged = _trace_of(jnp.zeros(()))
        self._state = get_opaque_trace_state()

    def is_staged_out(self) -> bool:
        """Whether a staging transform (``jit``, ``scan``, ...) was entered since."""
        return _trace_of(jnp.zeros(())) is not self._staged

    def is_transformed(self, leaf: Any) -> bool:
        """Whether `leaf` is an argument of a ``vmap`` or ``grad`` entered since."""
        trace = _trace_of(leaf)
        return (
            trace is not None
            and trace is not self._staged
            and get_opaque_trace_state() != self._state
        )


def _trace_of(value: Any) -> Any:
    """The trace that an array belongs to; None for a concrete array."""
    return getattr(value, "_trace", None)
