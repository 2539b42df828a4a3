"""The programs that CompiledSVI compiles: set up, take steps, read the params."""

import copy
from collections import OrderedDict
from functools import reduce
from types import FunctionType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from numpyro import handlers
from numpyro.distributions import TransformedDistribution
from numpyro.infer import SVI
from numpyro.infer.autoguide import (
    AutoDelta,
    AutoGuide,
    AutoGuideList,
    AutoNormal,
)
from numpyro.infer.util import log_density

from pyrox_ppl._numpyro import attributes_of_guide, replace_parts
from pyrox_ppl._observed_shapes import check_observed_shapes
from pyrox_ppl.infer._content_key import content_key
from pyrox_ppl.infer._mutable_state import make_update
from pyrox_ppl.infer.compiled._arguments import ByContent, join_arguments
from pyrox_ppl.infer.compiled._object_output import ObjectOutput, Rest
from pyrox_ppl.infer.compiled._programs import (
    Key,
    Programs,
    jit_quickly,
    jit_with_key,
)
from pyrox_ppl.infer.compiled._svi_params import computed_params, materialize_params
from pyrox_ppl.infer.guides._auto_flat_normal import AutoFlatNormal
from pyrox_ppl.infer.guides._auto_laplace import AutoLaplace
from pyrox_ppl.infer.guides._auto_swag import AutoSWAG

# These guides keep messages, arrays and bound functions of the model's first run, which
# a program can return. NumPyro's guides over a vector would order their sites otherwise
# in a compiled run.
RETURNABLE = (AutoDelta, AutoNormal, AutoFlatNormal, AutoLaplace, AutoSWAG)

_VALUES = ("value", "args", "kwargs", "fn")


class Steps(NamedTuple):
    """What a run does; part of the key of its programs.

    Attributes:
        number: The number of steps, and of losses.
        stable: Whether steps that are not finite are left out.
        forward: Whether forward-mode differentiation is used.
        piece: The number of steps of a call; the last one may take fewer.
    """

    number: int
    stable: bool
    forward: bool
    piece: int


class Start(NamedTuple):
    """The result of the first program.

    Attributes:
        state: NumPyro's initial state.
        finite: Whether all of it is finite.
        constrain_fn: What ``SVI.init`` sets on the SVI object.
        guides: The attributes that it sets on each guide.
    """

    state: Any
    finite: jax.Array
    constrain_fn: ObjectOutput
    guides: list[ObjectOutput]


def can_begin_compiled(guide: Any) -> bool:
    """Whether a program can return what a guide keeps of its first run.

    Functions keep nothing, some guides are known, and a guide that has run is set up.
    """
    if isinstance(guide, AutoGuideList):
        return all(can_begin_compiled(part) for part in guide)
    if isinstance(guide, AutoGuide):
        return guide.prototype_trace is not None or type(guide) in RETURNABLE
    return isinstance(guide, FunctionType)


def empty_losses(steps: Steps) -> np.ndarray:
    """The losses before the first step, in JAX's default precision."""
    return np.zeros(steps.number, jnp.result_type(float))


def guide_parts(guide: Any) -> list[Any]:
    """The guide, and its parts if it is a list of guides."""
    if isinstance(guide, AutoGuideList):
        return [guide, *(part for one in guide for part in guide_parts(one))]
    return [guide]


def _latent_supports(guide: Any) -> list[Any]:
    """The supports of the latent sites that a guide has seen."""
    return [
        site["fn"].support
        for part in guide_parts(guide)
        if isinstance(part, AutoGuide) and part.prototype_trace is not None
        for site in part.prototype_trace.values()
        if site["type"] == "sample" and not site["is_observed"]
    ]


def key_of_bounds(svi: SVI) -> Any:
    """The key of the maps to supports: they may hold numbers from arguments."""
    maps = () if svi.constrain_fn is None else svi.constrain_fn.args
    bounds = (maps, _latent_supports(svi.guide))
    if any(isinstance(bound, Tracer) for bound in jax.tree.leaves(bounds)):
        return object()
    # A key compares NumPy's arrays by their contents, but JAX's by identity.
    return content_key(jax.tree.map(np.asarray, bounds))[0]


class SVIPrograms(Programs):
    """The programs of a CompiledSVI. Those of the model take its key first."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[Key, Any] = {}
        self._rests: list[Rest] = []
        self.begin = jit_quickly(self._begin)
        # State and losses are passed on without a second copy.
        self.run = jit_with_key(self._run, donated=(1,))
        self.advance = jit_with_key(self._advance, donated=(1, 2))
        self.params = jit_with_key(self._params)

    def _begin(self, key: Key, rng_key: Any, init_params: Any, arrays: list) -> Start:
        svi: SVI = key.source.value
        args, kwargs = join_arguments(arrays, key.arguments)
        guide = copy_guide(svi.guide)
        return start_copy(
            svi, guide, rng_key, init_params, args, kwargs, kept=self._rests
        )

    def _advance(
        self, key: Key, losses: Any, state: Any, first: Any, stop: Any, arrays: list
    ) -> tuple:
        """The steps from `first` to before `stop`: the state and all losses so far."""
        steps: Steps = key.plan
        svi = materialize_params(key.source.value)
        args, kwargs = join_arguments(arrays, key.arguments)
        update = make_update(svi, stable=steps.stable)

        def body(i: jax.Array, carry: tuple) -> tuple:
            (state, losses), i = carry, first + i
            state, loss = update(
                state, *args, forward_mode_differentiation=steps.forward, **kwargs
            )
            loss = loss.astype(losses.dtype)
            return state, lax.dynamic_update_index_in_dim(losses, loss, i, 0)

        # A GPU waits after each step if the program does not know their number.
        known = steps.number % steps.piece == 0
        number = steps.piece if known else stop - first
        return lax.fori_loop(0, number, body, (state, losses))

    def _run(self, key: Key, state: Any, arrays: list) -> tuple:
        losses, number = empty_losses(key.plan), key.plan.number
        state, losses = self._advance(key, losses, state, 0, number, arrays)
        return state, losses, computed_params(key.source.value, state)

    def _params(self, source: ByContent, state: Any) -> dict[str, Any]:
        return computed_params(source.value, state)


def start_copy(
    svi: SVI,
    guide: Any,
    rng_key: Any,
    init_params: Any,
    args: tuple,
    kwargs: dict[str, Any],
    *,
    kept: list[Rest],
) -> Start:
    """Initialise a copy of an SVI object, with a copy of its guide.

    What the result consists of besides arrays is `kept`, for as long as its program.
    """
    check_observed_shapes(svi.model, args, kwargs | svi.static_kwargs)
    fresh: Any = copy.copy(svi)
    fresh.guide = guide
    # The barrier keeps JAX from returning an argument of its caller as it is.
    state = lax.optimization_barrier(
        fresh.init(rng_key, *args, init_params=init_params, **kwargs)
    )
    # AutoFlatNormal knows it from its search. Else it takes one more evaluation.
    finite = getattr(guide, "__dict__", {}).pop("_start_is_finite", None)
    if finite is None:
        finite = _is_finite_at_the_centre(fresh, state, args, kwargs)
    pairs = zip(guide_parts(svi.guide), guide_parts(guide), strict=True)
    guides = [ObjectOutput(_attributes_set(old, new), kept) for old, new in pairs]
    return Start(state, finite, ObjectOutput(fresh.constrain_fn, kept), guides)


def copy_guide(guide: Any) -> Any:
    """A copy of a guide, not set up, with dictionaries and parts of its own."""
    if not isinstance(guide, AutoGuide):
        return guide
    fresh = copy.copy(guide)
    if type(guide) in (*RETURNABLE, AutoGuideList):
        fresh.prototype_trace = None
    for name, value in vars(guide).items():
        if type(value) is dict:
            vars(fresh)[name] = dict(value)
    if isinstance(guide, AutoGuideList):
        replace_parts(fresh, [copy_guide(part) for part in guide])
    return fresh


def _attributes_set(old: Any, new: Any) -> dict[str, Any]:
    """The attributes that a copy of a guide has set."""
    if old is new:
        return {}
    before = attributes_of_guide(old)
    new_values = {
        name: value
        for name, value in attributes_of_guide(new).items()
        # A copy may start elsewhere; where a guide starts is its user's choice.
        if before.get(name) is not value and name != "init_loc_fn"
    }
    if "prototype_trace" in new_values:
        sites = new_values["prototype_trace"].items()
        zeros = OrderedDict((name, _with_zeros(site)) for name, site in sites)
        new_values["prototype_trace"] = zeros
    return new_values


def _is_finite_at_the_centre(
    svi: SVI, state: Any, args: tuple, kwargs: dict[str, Any]
) -> Any:
    """Whether the density of the model is finite where the guide is centred.

    NumPyro looks there as well. The loss would be a longer program, as it draws noise
    for every weight. Only autoguides search for values at which to start.
    """
    if not isinstance(svi.guide, AutoGuide):
        return jnp.asarray(True)
    kwargs, params = kwargs | svi.static_kwargs, svi.get_params(state)
    key = jax.random.key(0)  # decides no more than which rows of a plate are looked at
    centred = handlers.substitute(svi.guide, substitute_fn=_centre)
    guide = handlers.substitute(handlers.seed(centred, key), data=params)
    sites = handlers.trace(guide).get_trace(*args, **kwargs)
    model = handlers.replay(handlers.seed(svi.model, key), sites)
    return jnp.isfinite(log_density(model, args, kwargs, params)[0])


def _centre(site: dict[str, Any]) -> Any:
    """The centre of a latent site, on its support."""
    if site["type"] != "sample" or site["is_observed"]:
        return None
    fn, transforms = site["fn"], []
    while isinstance(fn, TransformedDistribution):
        transforms = [*fn.transforms, *transforms]
        fn = fn.base_dist
    return reduce(lambda value, transform: transform(value), transforms, fn.mean)


def _with_zeros(site: dict[str, Any]) -> dict[str, Any]:
    """A site with zeros as its values; a latent site keeps its distribution.

    Guides look only at the shapes of a prototype and at the supports of its latent
    sites. To return its values, the program would have to run the model for them.
    """
    latent = site["type"] == "sample" and not site["is_observed"]
    kept = {"fn": site["fn"]} if latent else {}
    return {
        name: jax.tree.map(_zeros, part) if name in _VALUES else part
        for name, part in site.items()
    } | kept


def _zeros(leaf: Any) -> Any:
    if not isinstance(leaf, Tracer):
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        like = jax.eval_shape(jax.random.key_data, leaf)
        zeros = jnp.zeros(like.shape, like.dtype)
        return jax.random.wrap_key_data(zeros, impl=jax.random.key_impl(leaf))
    # One number, seen as many: the shape of a network's weights costs no memory.
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
