"""The steps of all members as one compiled program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from numpyro.infer import SVI

from pyrox_ppl._loop_convolutions import with_fast_convolutions
from pyrox_ppl.infer._arrays import is_sharded
from pyrox_ppl.infer._mutable_state import make_update
from pyrox_ppl.infer.compiled._arguments import (
    ByContent,
    join_arguments,
    on_device,
)
from pyrox_ppl.infer.compiled._chains import chain_devices, chain_mesh
from pyrox_ppl.infer.compiled._svi_params import materialize_params
from pyrox_ppl.infer.resumable._epochs import make_programs
from pyrox_ppl.infer.resumable._site_order import order_sites


class Plan(NamedTuple):
    """What the programs depend on besides the model and its arguments.

    Attributes:
        num_members: The number of members.
        batch_size: How many of them take their steps at a time; None for all.
        size: The most steps of one call.
        stable: Whether steps that are not finite are left out.
        on_batches: Whether each step has a batch of its own.
        spread: Whether the members are spread over the local devices.
    """

    num_members: int
    batch_size: int | None
    size: int
    stable: bool
    on_batches: bool
    spread: bool


class Programs(NamedTuple):
    """The compiled programs of an ensemble.

    Attributes:
        advance: From states, batches (None for whole data), a number of steps and the
            arrays of the arguments: the states after these steps, and the losses
            ``(member, step)``. It takes the memory of the states.
        params: The values of ``param`` sites at some states.
    """

    advance: Callable
    params: Callable


def are_spread(num_members: int, arrays: list) -> bool:
    """Whether members go to several devices: not if the data are spread already."""
    return len(chain_devices(num_members)) > 1 and not any(map(is_sharded, arrays))


def compile_members(
    plan: Plan, svi: SVI, state: Any, batch: tuple, static: ByContent, arrays: list
) -> Programs:
    """Compile the steps of an initialised SVI object.

    Args:
        plan: What the programs do.
        svi: The SVI object.
        state: The states of all members.
        batch: The first batch of one member; empty for whole data.
        static: The arguments without their arrays.
        arrays: The arrays among the arguments.
    """
    args, kwargs = join_arguments(arrays, static)
    one = jax.tree.map(lambda leaf: leaf[0], state)
    ordered = order_sites(svi, one, *on_device(((*batch, *args), kwargs)))
    take_steps = _steps_on_batches if plan.on_batches else _steps_on_all
    steps_of_one = take_steps(plan, ordered, static)

    def advance(states: Any, batches: Any, number: Any, arrays: list) -> tuple:
        return _map_members(plan, steps_of_one, (states, batches), (number, arrays))

    fast = with_fast_convolutions(advance)
    # A state that goes to several devices has other memory there.
    donated = () if plan.spread else (0,)
    steps = jax.jit(fast, donate_argnums=donated)
    return Programs(steps, jax.jit(jax.vmap(svi.get_params)))


def _steps_on_all(plan: Plan, svi: SVI, static: ByContent) -> Callable:
    """The steps of one member on the whole data."""
    once = materialize_params(svi)
    update = make_update(once, stable=plan.stable)

    def steps_of_one(member: tuple, shared: tuple) -> tuple:
        (state, _), (number, arrays) = member, shared
        args, kwargs = join_arguments(arrays, static)

        def body(i: Any, carry: Any) -> Any:
            state, losses = carry
            state, loss = update(state, *args, **kwargs)
            return state, losses.at[i].set(loss)

        loss = jax.eval_shape(lambda s: update(s, *args, **kwargs)[1], state)
        # The number is an input, so that a last, shorter segment runs the same code.
        losses = jnp.zeros(plan.size, loss.dtype)
        return lax.fori_loop(0, number, body, (state, losses))

    return steps_of_one


def _steps_on_batches(plan: Plan, svi: SVI, static: ByContent) -> Callable:
    """The steps of one member on batches of its own."""
    programs = make_programs(
        plan.stable, svi, lambda arrays: join_arguments(arrays, static)
    )

    def steps_of_one(member: tuple, shared: tuple) -> tuple:
        return programs.advance(*member, *shared)

    return steps_of_one


def _map_members(
    plan: Plan, steps_of_one: Callable, members: Any, shared: Any
) -> tuple:
    """Take the steps of all members: a block at a time, a part on each device."""

    def on_device(members: Any, shared: Any) -> Any:
        if plan.batch_size is None:
            return jax.vmap(steps_of_one, (0, None))(members, shared)
        return lax.map(
            lambda one: steps_of_one(one, shared), members, batch_size=plan.batch_size
        )

    if not plan.spread:
        return on_device(members, shared)
    each, everywhere = PartitionSpec("chain"), PartitionSpec()
    # Members do not communicate, so JAX need not track what varies across devices.
    return jax.shard_map(
        with_fast_convolutions(on_device),  # from outside it is not opened
        mesh=chain_mesh(plan.num_members),
        in_specs=(each, everywhere),
        out_specs=each,
        check_vma=False,
    )(members, shared)
