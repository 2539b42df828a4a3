"""How programs are compiled at a start: with little effort, and beside one another."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax


def jit_quickly(function: Callable) -> Any:
    """A jitted function of a static key: what runs once is not worth optimising.

    It cannot be called inside another program, for its compiler option (XLA's for the
    CPU) is that of a whole one.
    """
    quick = {"xla_backend_optimization_level": 0}
    options = quick if jax.default_backend() == "cpu" else None
    return jax.jit(function, static_argnums=0, compiler_options=options)


def compile_both(
    first: Any, inputs: tuple, second: Any, inputs_of: Callable[[Any], tuple]
) -> None:
    """Compile two jitted functions that are called one after the other.

    The second is traced, in Python, while XLA compiles the first, which needs no
    Python. Both are found compiled when they are called, so where they are already this
    does nothing.

    Args:
        first: A jitted function.
        inputs: What it will be called with.
        second: A jitted function.
        inputs_of: What that will be called with, of the shapes of the first's results.
    """
    traced = first.trace(*inputs)
    with ThreadPoolExecutor(1) as pool:
        compiled = pool.submit(traced.lower().compile)
        second.lower(*inputs_of(traced.out_info)).compile()
        compiled.result()
