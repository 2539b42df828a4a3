"""SVI with the state of the model's layers: evaluated with it, and never lost."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoGuideList

from pyrox_ppl._layer_state import copy_state


def check_keeps_state(svi: SVI, state: Any) -> None:
    """Raise if the loss forgets the values of ``mutable`` sites after the first step.

    NumPyro's losses of several particles return no state. The next step would then
    begin at the initial one: running statistics would never move.

    Args:
        svi: The SVI object.
        state: Its initial state.

    Raises:
        ValueError: If there are mutable sites and the loss has several particles.
    """
    particles = getattr(svi.loss, "num_particles", 1)
    if particles > 1 and jax.tree.leaves(state.mutable_state):
        raise ValueError(
            f"the mutable sites are {sorted(state.mutable_state)}, and "
            f"{type(svi.loss).__name__}(num_particles={particles}) forgets their "
            "values after each step, so running statistics or moments would never "
            "move. Use num_particles=1 and more steps, or run the layers in "
            "inference mode with a fixed state."
        )


def make_update(svi: SVI, *, stable: bool) -> Callable:
    """``svi.update``, or ``svi.stable_update`` that leaves out a step altogether.

    NumPyro's own keeps the values that the ``mutable`` sites have after a step that it
    leaves out: running statistics that are NaN once would be NaN for good, and every
    loss in training still be finite.
    """
    if not stable:
        return svi.update

    def update(state: Any, *args: Any, **kwargs: Any) -> tuple[Any, jax.Array]:
        before = copy_state(state.mutable_state)
        after, loss = svi.stable_update(state, *args, **kwargs)
        kept = jax.tree.map(
            lambda new, old: jnp.where(jnp.isfinite(loss), new, old),
            after.mutable_state,
            before,
        )
        return after._replace(mutable_state=kept), loss

    return update


def evaluate_with_state(svi: SVI, state: Any, *args: Any, **kwargs: Any) -> Any:
    """The loss at a state, its key and its ``mutable`` sites included.

    NumPyro's ``svi.evaluate`` leaves the latter at the values that the model starts
    with, so that a batch norm in inference mode would normalise with statistics of no
    data.

    Args:
        svi: The SVI object.
        state: Its state.
        *args: The arguments of model and guide.
        **kwargs: The keyword arguments of model and guide.

    Returns:
        The loss.
    """
    _, rng_key = jax.random.split(state.rng_key)  # as in svi.update and svi.evaluate
    values = svi.get_params(state) | (state.mutable_state or {})
    parts = (rng_key, values, svi.model, svi.guide)
    return svi.loss.loss(*parts, *args, **kwargs, **svi.static_kwargs)


def collected_params(guide: Any, state: Any) -> dict[str, Any]:
    """What a guide collected in mutable sites and draws from, beside its params.

    Args:
        guide: The guide. One that collects says what, in its ``collected_params``.
        state: The state of SVI.

    Returns:
        Values by site; none for the guides that collect nothing.
    """
    parts = guide if isinstance(guide, AutoGuideList) else [guide]
    found = {}
    for part in parts:
        if isinstance(part, AutoGuideList):
            found |= collected_params(part, state)
        elif hasattr(part, "collected_params"):
            found |= part.collected_params(state.mutable_state)
    return found
