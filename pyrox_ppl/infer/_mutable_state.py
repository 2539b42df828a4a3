"""Refuse a run of SVI that would lose the state of the model's layers."""

from typing import Any

import jax
from numpyro.infer import SVI


def check_keeps_state(svi: SVI, state: Any) -> None:
    """Raise if the loss forgets the values of ``mutable`` sites after the first step.

    NumPyro's losses of several particles return no state. The next step would then
    begin at the initial one: running statistics would never move.

    Args:
        svi: The SVI object.
        state: Its initial state.

    Raises:
        ValueError: If the model has mutable sites and the loss has several particles.
    """
    particles = getattr(svi.loss, "num_particles", 1)
    if particles > 1 and jax.tree.leaves(state.mutable_state):
        raise ValueError(
            f"the model has the mutable sites {sorted(state.mutable_state)}, and "
            f"{type(svi.loss).__name__}(num_particles={particles}) forgets their "
            "values after each step, so running statistics would never move. Use "
            "num_particles=1 and more steps, or run the layers in inference mode with "
            "a fixed state."
        )
