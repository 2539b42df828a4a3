"""A network that counts the vectors it is evaluated at."""

import jax
import numpy as np


class Counted:
    """Wraps a network; `calls` counts evaluations, under jit and vmap, too.

    A trace is not an evaluation: the count is kept by a callback at run time.
    """

    def __init__(self, network):
        self.network = network
        self.calls = 0

    def __call__(self, z):
        def count(z):
            self.calls += 1
            return np.asarray(z)

        same = jax.ShapeDtypeStruct(z.shape, z.dtype)
        return self.network(jax.pure_callback(count, same, z, vmap_method="sequential"))
