"""The values of `param` sites in a run of SVI: each computed once, none copied."""

import copy
from functools import partial
from typing import Any

from numpyro.infer import SVI

from pyrox_ppl.infer._computed_once import computed_once


def materialize_params(svi: SVI) -> SVI:
    """A copy of an initialised SVI object, whose step computes nothing twice.

    XLA fuses what is cheap into each of its uses. The scales would be transformed anew
    for the draw and for the divergence. The gradients, for which the noise is computed
    again, would be made anew for each moment that the optimiser keeps. On a CPU a
    barrier and its transpose keep each of them as one array.
    """
    copied: Any = copy.copy(svi)
    copied.constrain_fn = partial(_constrain_once, svi.constrain_fn)
    return copied


def _constrain_once(constrain: Any, params: dict[str, Any]) -> dict[str, Any]:
    return computed_once(constrain(params))


def computed_params(svi: SVI, state: Any) -> dict[str, Any]:
    """The values of `param` sites that are not themselves parts of the state."""
    kept = svi.optim.get_params(state.optim_state)
    values = svi.get_params(state)
    return {name: value for name, value in values.items() if value is not kept[name]}


def all_params(svi: SVI, state: Any, computed: dict[str, Any]) -> dict[str, Any]:
    """The values of `param` sites, those that a program computed among them.

    A program would return a second copy of those that it takes from its state.
    """
    return {**svi.optim.get_params(state.optim_state), **computed}
