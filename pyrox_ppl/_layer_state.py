"""The state of a network's layers, which each run of a model may change."""

from typing import Any

import jax


def copy_state(value: Any) -> Any:
    """The same arrays in new containers, for one run of a model.

    A model changes the dictionary of a ``mutable`` site in place, and a layer that
    updates an ``eqx.nn.State`` makes the old one unusable: without a copy, the next run
    or the user's fit would be left with it.
    """
    return jax.tree.map(lambda leaf: leaf, value)
