"""The start of an ensemble: every member set up at a point of its own."""

import copy
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoGuide, AutoGuideList
from numpyro.infer.initialization import init_to_sample

from pyrox_ppl._observed_shapes import check_observed_shapes
from pyrox_ppl.infer._content_key import content_key
from pyrox_ppl.infer._init_to_stored import init_to_stored
from pyrox_ppl.infer.compiled._arguments import (
    ByContent,
    explain_tracing_errors,
    is_staged,
    join_arguments,
)
from pyrox_ppl.infer.compiled._object_output import Rest
from pyrox_ppl.infer.compiled._svi import CompiledSVI
from pyrox_ppl.infer.compiled._svi_program import (
    RETURNABLE,
    Start,
    copy_guide,
    guide_parts,
    start_copy,
)
from pyrox_ppl.infer.ensembles._made_modules import find_reads, match_made


class Starts(NamedTuple):
    """The starts of all members.

    Attributes:
        state: NumPyro's states, with a leading axis of members.
        finite: For each member, whether its start is finite.
        alike: For each pair of members, whether they start at the same point.
    """

    state: Any
    finite: jax.Array
    alike: jax.Array


def start_members(
    svi: SVI,
    twin: CompiledSVI | None,
    keys: jax.Array,
    batches: tuple,
    args: tuple,
    kwargs: dict[str, Any],
    *,
    make: Callable | None,
    init_params: dict[str, Any] | None,
) -> Any:
    """Set up an SVI object, and start every member.

    No member runs the user's guide: a guide keeps arrays of its first run, and those of
    a run inside a compiled program would be tracers.

    Args:
        svi: NumPyro's SVI object.
        twin: The CompiledSVI of its parts, if there is one.
        keys: A key for every member.
        batches: The first batch of every member, with an axis of members; empty for
            whole data.
        args: The other arguments of the model.
        kwargs: Its keyword arguments.
        make: Makes the modules of a member, from a key.
        init_params: Initial values of ``param`` sites, with an axis of members.

    Returns:
        NumPyro's states, with a leading axis of members.

    Raises:
        RuntimeError: If a member starts where the density is not finite.
        ValueError: If two members start at the same point.
    """
    if twin is not None and _is_returnable(svi.guide) and not is_staged():
        plan = "start of an ensemble", len(keys), content_key(make)[0]
        arrays, program = twin.keep(
            plan,
            args,
            kwargs,
            lambda static: _compile_starts(twin.plain(), static, make),
            starts=True,
        )
        with explain_tracing_errors("run_ensemble"):
            starts, first = program(keys, init_params, batches, arrays)
        twin.adopt(first)
        svi.constrain_fn = twin.constrain_fn
    else:
        starts = _start_in_turn(
            svi, twin, keys, init_params, batches, args, kwargs, make
        )
    _check(starts, make)
    return starts.state


def _is_returnable(guide: Any) -> bool:
    """Whether a program can return what a fresh guide keeps of its first run."""
    own = [part for part in guide_parts(guide) if not isinstance(part, AutoGuideList)]
    return all(type(part) in (*RETURNABLE, FunctionType) for part in own)


def _compile_starts(svi: SVI, static: ByContent, make: Callable | None) -> Callable:
    """The program that starts all members at once."""
    kept: list[Rest] = []

    @jax.jit
    def program(keys: jax.Array, init_params: Any, batches: tuple, arrays: list) -> Any:
        args, kwargs = join_arguments(arrays, static)

        def one(key: jax.Array, init_params: Any, batch: tuple) -> Start:
            given = (*batch, *args), kwargs
            return _start_member(svi, key, init_params, *given, make, kept)

        each = jax.vmap(one)(keys, init_params, batches)
        first = jax.tree.map(lambda leaf: leaf[0], each)
        return _compare(svi, each.state, each.finite), first

    return program


def _start_in_turn(
    svi: SVI,
    twin: CompiledSVI | None,
    keys: jax.Array,
    init_params: Any,
    batches: tuple,
    args: tuple,
    kwargs: dict[str, Any],
    make: Callable | None,
) -> Starts:
    """Start one member after the other, for guides that no program can set up.

    NumPyro's guides over a vector have another order of sites in a compiled program.
    """
    plain = svi if twin is None else twin.plain()
    given = [
        jax.tree.map(lambda leaf, m=m: leaf[m], (init_params, batches))
        for m in range(len(keys))
    ]
    params, batch = given[0]
    run_key = jax.random.split(keys[0])[1]
    check_observed_shapes(svi.model, (*batch, *args), kwargs | svi.static_kwargs)
    plain.init(run_key, *batch, *args, init_params=params, **kwargs)
    svi.constrain_fn = plain.constrain_fn
    if twin is not None:
        twin.constrain_fn = plain.constrain_fn
    starts = [
        _start_member(plain, key, params, (*batch, *args), kwargs, make, [])
        for key, (params, batch) in zip(keys, given, strict=True)
    ]
    states = [start.state for start in starts]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return _compare(svi, state, jnp.stack([start.finite for start in starts]))


def _start_member(
    svi: SVI,
    key: jax.Array,
    init_params: Any,
    args: tuple,
    kwargs: dict[str, Any],
    make: Callable | None,
    kept: list[Rest],
) -> Start:
    """Start one member; an SVI object and its guide stay as they are."""
    make_key, run_key = jax.random.split(key)
    given = dict(init_params or {})
    strategy: Any = init_to_sample
    if make is not None:
        named = kwargs | svi.static_kwargs
        reads = find_reads([svi.model, svi.guide], args, named)
        sampled, learned = match_made(make(make_key), reads)
        strategy, given = partial(_start_site, values=sampled), learned | given
    guide = _copy_to_start(svi.guide, strategy)
    return start_copy(svi, guide, run_key, given or None, args, kwargs, kept=kept)


def _start_site(site: dict[str, Any] | None = None, *, values: dict[str, Any]) -> Any:
    """Start a site at a module's new array, else as :func:`init_to_stored` does."""
    if site is None:
        return partial(_start_site, values=values)
    name = site["name"]
    if "loc_scale" in site:  # the noise behind a non-centred parameter
        name = name.removesuffix("_decentered")
    stored = {"stored": values[name]} if name in values else {}
    return init_to_stored({**site, **stored})


def _copy_to_start(guide: Any, strategy: Callable) -> Any:
    """A copy of a guide, not set up, whose latent sites start by a strategy.

    The autoguides that another guide holds are copied as well.
    """
    if not isinstance(guide, AutoGuide):
        parts = getattr(guide, "__dict__", {}).items()
        parts = {name: part for name, part in parts if isinstance(part, AutoGuide)}
        fresh = copy.copy(guide) if parts else guide
        for name, part in parts.items():
            setattr(fresh, name, _copy_to_start(part, strategy))
        return fresh
    fresh = copy_guide(guide)
    for part in guide_parts(fresh):
        if isinstance(part, AutoGuide):
            part.prototype_trace, part.init_loc_fn = None, strategy
    return fresh


def _compare(svi: SVI, state: Any, finite: jax.Array) -> Starts:
    """Whether the members start at finite points, and which at the same."""
    leaves = jax.tree.leaves(svi.optim.get_params(state.optim_state))

    def is_like(member: jax.Array) -> jax.Array:
        same = jnp.ones(len(finite), bool)
        for leaf in leaves:
            equal = (leaf == leaf[member][None]).reshape(len(finite), -1)
            same &= jnp.all(equal, axis=1)
        return same

    return Starts(state, finite, lax.map(is_like, jnp.arange(len(finite))))


def _check(starts: Starts, make: Callable | None) -> None:
    finite, alike = jax.device_get((starts.finite, starts.alike))
    if not finite.all():
        where = [m for m, one in enumerate(finite) if not one]
        raise RuntimeError(
            f"the members {where} start where the density of the model is zero or not "
            "finite: pass make= to start at modules, a narrower prior, or initial "
            "values of all members as init_params."
        )
    pairs = np.argwhere(np.triu(alike, 1))
    if len(pairs):
        first, second = pairs[0]
        advice = (
            "make(key) must use its key, and the model must sample or learn what it "
            "returns"
            if make is not None
            else "pass make=lambda key: <the module, made with this key>, or other "
            "initial values for each member as init_params"
        )
        raise ValueError(
            f"the members {first} and {second} start at the same point, so they would "
            f"be one fit twice over: {advice}."
        )
