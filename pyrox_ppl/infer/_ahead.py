"""Two programs compiled before they are called, the work of one beside the other's."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


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
