"""The state of a network's layers, which each run of a model may change."""

from typing import Any

import jax
from numpyro.primitives import Messenger


def copy_state(value: Any) -> Any:
    """The same arrays in new containers, for one run of a model.

    A model changes the dictionary of a ``mutable`` site in place, and a layer that
    updates an ``eqx.nn.State`` makes the old one unusable: without a copy, the next run
    or the user's fit would be left with it.
    """
    return jax.tree.map(lambda leaf: leaf, value)


class CopyState(Messenger):
    """Gives a model copies of the values of its ``mutable`` sites.

    The model may change a dictionary that outlives the call: an abstract run would
    leave a tracer in it, and a prior draw would start where the last one stopped.
    """

    def process_message(self, msg: dict[str, Any]) -> None:
        """Copy a value."""
        if msg["type"] == "mutable":
            msg["value"] = copy_state(msg["value"])
