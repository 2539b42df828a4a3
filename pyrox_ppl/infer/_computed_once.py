"""Values that a program computes once, where reading them is cheaper than computing."""

from typing import Any

import jax
from jax import lax


def computed_once(values: Any) -> Any:
    """The same values, which XLA on a CPU keeps as arrays.

    XLA fuses what is cheap into each of its uses and so computes it anew in each. On a
    CPU that costs more than an array does. A GPU computes faster than it reads, and
    each array is one more kernel: there, XLA fuses as it likes.

    Args:
        values: A pytree of arrays.
    """
    on_cpu = jax.default_backend() == "cpu"
    return lax.optimization_barrier(values) if on_cpu else values
