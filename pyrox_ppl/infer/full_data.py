"""A handler that runs a model on all of its data, and one that draws the data anew."""

from typing import Any

import jax.numpy as jnp
from numpyro.primitives import Messenger


class full_data(Messenger):
    """Make every subsampled plate whole.

    A plate that takes a random minibatch takes all of its members instead, in order,
    and scales nothing.
    """

    def process_message(self, msg: Any) -> None:
        """Take all members of a plate."""
        if msg["type"] == "plate":
            size = msg["args"][0]
            msg["args"] = (size, size)
            msg["value"] = jnp.arange(size)


class redraw(Messenger):
    """Make every observation a draw; ``numpyro.factor`` stays what it is.

    NumPyro's ``uncondition`` takes a factor for an observation, and its draw changes
    the random numbers of all that follow.
    """

    def process_message(self, msg: Any) -> None:
        """Forget an observation."""
        if msg["type"] == "sample" and msg["is_observed"] and not is_factor(msg):
            msg["is_observed"] = False
            msg["value"] = None


def is_factor(site: dict[str, Any]) -> bool:
    """Whether a site is a ``numpyro.factor`` or another that holds no data."""
    return bool(site["infer"].get("is_auxiliary"))
