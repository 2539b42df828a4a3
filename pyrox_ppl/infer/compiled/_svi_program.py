"""The programs that CompiledSVI compiles: set up, take steps, read the params."""

import copy
from collections import OrderedDict
from types import FunctionType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from numpyro.infer import SVI
from numpyro.infer.autoguide import (
    AutoDelta,
    AutoGuide,
    AutoGuideList,
    AutoNormal,
)

from pyrox_ppl._numpyro import attributes_of_guide, replace_parts
from pyrox_ppl.infer.compiled._arguments import ByContent, join
from pyrox_ppl.infer.compiled._lift import Lifted
from pyrox_ppl.infer.compiled._programs import (
    Key,
    Programs,
    jit_quickly,
    jit_with_key,
)
from pyrox_ppl.infer.guides._auto_flat_normal import AutoFlatNormal

# What these keep of the model's first run are messages, arrays and bound functions.
# The guides over a vector, but for ours, put sites in another order in a compiled run.
LIFTABLE = (AutoDelta, AutoNormal, AutoFlatNormal)

_VALUES = ("value", "args", "kwargs", "fn")


class Steps(NamedTuple):
    """What the program of the steps depends on besides arrays and model.

    Attributes:
        number: The number of steps of the run, that of its losses.
        stable: Whether steps that are not finite are left out.
        forward: Whether derivatives are taken forwards.
    """

    number: int
    stable: bool
    forward: bool


class Begun(NamedTuple):
    """A state, whether all is finite there, and what NumPyro notes on objects."""

    state: Any
    finite: jax.Array
    constrain: Lifted
    guides: list[Lifted]


def can_begin_compiled(guide: Any) -> bool:
    """Whether what a guide keeps of its first run can be brought out.

    That is known of functions, which keep nothing, of some of NumPyro's guides, and of
    all of them once they have run.
    """
    if isinstance(guide, AutoGuideList):
        return all(can_begin_compiled(part) for part in guide)
    if isinstance(guide, AutoGuide):
        return guide.prototype_trace is not None or type(guide) in LIFTABLE
    return isinstance(guide, FunctionType)


def no_losses(steps: Steps) -> np.ndarray:
    """The losses before the first step, in JAX's default precision."""
    return np.zeros(steps.number, jnp.result_type(float))


def parts_of(guide: Any) -> list[Any]:
    """The guide, and those that it is a list of."""
    if isinstance(guide, AutoGuideList):
        return [guide, *(part for one in guide for part in parts_of(one))]
    return [guide]


def supports_of(guide: Any) -> list[Any]:
    """The supports of the latent sites that a guide has seen."""
    return [
        site["fn"].support
        for part in parts_of(guide)
        if isinstance(part, AutoGuide) and part.prototype_trace is not None
        for site in part.prototype_trace.values()
        if site["type"] == "sample" and not site["is_observed"]
    ]


class SVIPrograms(Programs):
    """The programs of a CompiledSVI. Those of the model take its key first."""

    def __init__(self) -> None:
        super().__init__()
        self.begin = jit_quickly(self._begin)
        self.run = jit_with_key(self._run)
        # The losses are passed from piece to piece without a second copy. The state may
        # be one that the user holds, so it is not given away.
        self.advance = jit_with_key(self._advance, donated=1)
        self.params = jit_with_key(self._params)

    def _begin(self, key: Key, rng_key: Any, init_params: Any, arrays: list) -> Begun:
        svi: SVI = key.source.value
        args, kwargs = join(arrays, key.arguments)
        guide = _copy(svi.guide)
        fresh = SVI(svi.model, guide, svi.optim, svi.loss, **svi.static_kwargs)
        state = fresh.init(rng_key, *args, init_params=init_params, **kwargs)
        finite = vars(guide).pop("_start_is_finite", None)
        if finite is None:
            finite = jnp.isfinite(fresh.evaluate(state, *args, **kwargs)).all()
        pairs = zip(parts_of(svi.guide), parts_of(guide), strict=True)
        noted = [Lifted(_news(old, new)) for old, new in pairs]
        return Begun(state, finite, Lifted(fresh.constrain_fn), noted)

    def _advance(
        self, key: Key, losses: Any, state: Any, first: Any, stop: Any, arrays: list
    ) -> tuple:
        """The steps from `first` to before `stop`: the state and all losses so far."""
        steps: Steps = key.plan
        svi: SVI = key.source.value
        args, kwargs = join(arrays, key.arguments)
        update = svi.stable_update if steps.stable else svi.update

        def body(i: jax.Array, carry: tuple) -> tuple:
            state, losses = carry
            state, loss = update(
                state, *args, forward_mode_differentiation=steps.forward, **kwargs
            )
            loss = loss.astype(losses.dtype)
            return state, lax.dynamic_update_index_in_dim(losses, loss, i, 0)

        first, stop = (jnp.asarray(i, jnp.int32) for i in (first, stop))
        return lax.fori_loop(first, stop, body, (state, losses))

    def _run(self, key: Key, state: Any, first: Any, stop: Any, arrays: list) -> tuple:
        losses = no_losses(key.plan)
        state, losses = self._advance(key, losses, state, first, stop, arrays)
        return state, losses, key.source.value.get_params(state)

    def _params(self, source: ByContent, state: Any) -> dict[str, Any]:
        return source.value.get_params(state)


def _copy(guide: Any) -> Any:
    """A copy of a guide, not set up, with dictionaries and parts of its own."""
    if not isinstance(guide, AutoGuide):
        return guide
    fresh = copy.copy(guide)
    if type(guide) in (*LIFTABLE, AutoGuideList):
        fresh.prototype_trace = None
    for name, value in vars(guide).items():
        if type(value) is dict:
            vars(fresh)[name] = dict(value)
    if isinstance(guide, AutoGuideList):
        replace_parts(fresh, [_copy(part) for part in guide])
    return fresh


def _news(old: Any, new: Any) -> dict[str, Any]:
    """The attributes that a copy of a guide has set."""
    if old is new:
        return {}
    before = attributes_of_guide(old)
    news = {
        name: value
        for name, value in attributes_of_guide(new).items()
        if before.get(name) is not value
    }
    if "prototype_trace" in news:
        sites = news["prototype_trace"].items()
        news["prototype_trace"] = OrderedDict((n, _shapes_of(s)) for n, s in sites)
    return news


def _shapes_of(site: dict[str, Any]) -> dict[str, Any]:
    """A site whose values are zeros, but for the distribution of a latent one.

    Of a prototype guides look at shapes and latent sites' supports alone, and the model
    would be run for its values.
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
    return jnp.zeros(leaf.shape, leaf.dtype)
