"""The program that CompiledMCMC compiles: find initial values, warm up, sample."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpyro.infer import HMC, MCMC
from numpyro.infer.util import ParamInfo
from numpyro.util import nested_attrgetter

from pyrox_ppl._numpyro import SET_BY_KERNELS, copy_kernel
from pyrox_ppl.infer.compiled._ahead import jit_quickly
from pyrox_ppl.infer.compiled._arguments import Static, join
from pyrox_ppl.infer.compiled._chains import over_chains
from pyrox_ppl.infer.compiled._held_params import hold_params
from pyrox_ppl.infer.kernels._flat_nuts import FlatNUTS


class Plan(NamedTuple):
    """What a program depends on besides arrays and model; part of the key.

    Attributes:
        num_warmup: Warm-up steps that the kernel adapts for.
        lower: The first iteration that is collected.
        upper: The number of iterations.
        size: The length of the collection.
        thinning: Iterations per draw that is kept.
        num_chains: Chains.
        chain_method: As `_chains.choose` returns it.
        fields: What is collected of the state; its first entry is post-processed.
        removed: Sites that are not kept.
    """

    num_warmup: int
    lower: int
    upper: int
    size: int
    thinning: int
    num_chains: int
    chain_method: str | Callable
    fields: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def vectorized(self) -> bool:
        """Whether the kernel's state is that of all chains."""
        return self.chain_method == "vectorized" and self.num_chains > 1


class Chains(NamedTuple):
    """What is mapped over chains on the way in: ``None`` where it is not given."""

    rng_key: Any
    start: Any
    init_params: Any


class Carry(NamedTuple):
    """A chain between iterations: the kernel's state, the draws so far (or None)."""

    state: Any
    draws: Any


class Shared(NamedTuple):
    """What all chains share: the key that `param` sites are drawn by, and the data."""

    origin: Any
    arrays: list[Any]


class NUTSProgram:
    """Pure functions over one plan and one kernel; every call traces a fresh copy."""

    def __init__(
        self, kernel: HMC, plan: Plan, static: Static, postprocess_fn: Callable | None
    ) -> None:
        self._kernel, self._plan, self._static = kernel, plan, static
        self._postprocess = postprocess_fn

    def begin(self, chains: Chains, shared: Shared) -> tuple[Carry, jax.Array]:
        """No iteration yet, and which chains begin at a point of finite density."""
        return self._over_chains(self._begin)(chains, shared)

    def advance(self, carry: Carry, first: Any, stop: Any, shared: Shared) -> Carry:
        """Iterations from `first` to before `stop`."""
        return self._over_chains(self._advance)(carry, (first, stop, shared))

    def _over_chains(self, one: Callable) -> Callable:
        return over_chains(one, self._plan.chain_method, self._plan.num_chains)

    def _prepare(self, shared: Shared) -> tuple[HMC, tuple]:
        """A copy of the kernel, with the params of this run, and the data."""
        data = join(shared.arrays, self._static)
        return hold_params(copy_kernel(self._kernel), shared.origin, *data), data

    def _init(self, kernel: HMC, rng_key: Any, init_params: Any, data: tuple) -> Any:
        return kernel.init(rng_key, self._plan.num_warmup, init_params, *data)

    def _begin(self, chain: Chains, shared: Shared) -> tuple[Carry, jax.Array]:
        kernel, data = self._prepare(shared)
        state = self._init(kernel, chain.rng_key, chain.init_params, data)
        if chain.start is not None:
            state = chain.start
            valid = jnp.ones(jnp.shape(state.potential_energy), bool)
        else:
            valid = _finite(state, self._plan.vectorized)
        return Carry(state, self._no_draws(kernel, state, data)), valid

    def _no_draws(self, kernel: HMC, state: Any, data: tuple) -> Any:
        shapes = jax.eval_shape(lambda s: self._collect(kernel, s, data), state)
        return jax.tree.map(
            lambda leaf: jnp.zeros((self._plan.size, *leaf.shape), leaf.dtype), shapes
        )

    def _advance(self, carry: Carry, given: tuple) -> Carry:
        plan = self._plan
        first, stop, shared = given
        kernel, data = self._prepare(shared)
        # The kernel's functions close over what `init` finds. XLA drops the rest, and
        # where the gradient is known, it is not traced either.
        state = carry.state
        start = ParamInfo(state.z, state.potential_energy, state.z_grad)
        self._init(kernel, state.rng_key, start, data)
        lowest = plan.lower + (plan.upper - plan.lower) % plan.thinning
        collects = plan.upper > plan.lower

        def body(i: jax.Array, carry: Carry) -> Carry:
            state = kernel.sample(carry.state, *data)
            if not collects:
                return Carry(state, carry.draws)
            # What is written before the first draw is written over by it.
            place = jnp.maximum((i - lowest) // plan.thinning, 0)
            draws = jax.tree.map(
                lambda all_, one: lax.dynamic_update_index_in_dim(
                    all_, one.astype(all_.dtype), place, 0
                ),
                carry.draws,
                self._collect(kernel, state, data),
            )
            return Carry(state, draws)

        if carry.draws is None:
            empty = self._no_draws(kernel, carry.state, data)
            carry = carry._replace(draws=empty)
        first, stop = (jnp.asarray(i, jnp.int32) for i in (first, stop))
        return lax.fori_loop(first, stop, body, carry)

    def _collect(self, kernel: HMC, state: Any, data: tuple) -> tuple:
        """The collected fields of one state, the first constrained and by site."""
        fields = nested_attrgetter(*self._plan.fields)(state)
        first, *others = fields if len(self._plan.fields) > 1 else (fields,)
        process = self._postprocess or kernel.postprocess_fn(*data)
        first = (jax.vmap(process) if self._plan.vectorized else process)(first)
        if self._plan.removed:
            first = dict(first)
            for site in self._plan.removed:
                del first[site]
        return (jax.tree.map(jnp.asarray, first), *others)


def _finite(state: Any, vectorized: bool) -> jax.Array:
    """Whether the energy and its whole gradient are finite, per chain."""
    energy = state.potential_energy
    finite = jnp.isfinite(energy)
    for leaf in jax.tree.leaves(state.z_grad):
        axes = tuple(range(int(vectorized), leaf.ndim))
        finite = finite & jnp.all(jnp.isfinite(leaf), axis=axes)
    return finite


def chain_axis_first(draws: Any, plan: Plan) -> Any:
    """Draws as ``(chain, draw, ...)`` whatever the method."""
    if plan.num_chains == 1:
        return jax.tree.map(lambda leaf: leaf[None], draws)
    if plan.vectorized:
        return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), draws)
    return draws


def check_fields(fields: Iterable[str], kernel: HMC) -> None:
    """Raise if a field is asked for that a kernel's state does not have."""
    of_sites = [f for f in fields if f.startswith(f"{kernel.sample_field}.")]
    if of_sites and isinstance(kernel, FlatNUTS):
        raise ValueError(
            f"extra_fields has {of_sites}, but FlatNUTS keeps the unconstrained values "
            "of all sites in one vector: collect them by CompiledMCMC(NUTS(model), "
            "...), or leave these fields out, as the draws are the constrained values."
        )


def of_an_earlier_run(value: Any) -> frozenset[str]:
    """What a kernel keeps of a run, and the programs find for themselves."""
    return SET_BY_KERNELS if isinstance(value, HMC) else frozenset()


def compile_programs(mcmc: MCMC) -> dict[str, Callable]:
    """The jitted functions; JAX keeps their programs as long as they are held.

    Their first argument is the key, their last what all chains share.
    """

    def program(key: tuple) -> NUTSProgram:
        return NUTSProgram(mcmc.sampler, key[0], key[1], mcmc.postprocess_fn)

    def begin(key: tuple, chains: Chains, shared: Shared) -> tuple:
        return program(key).begin(chains, shared)

    def some(
        key: tuple, draws: Any, state: Any, first: Any, stop: Any, shared: Shared
    ) -> Carry:
        return program(key).advance(Carry(state, draws), first, stop, shared)

    def all_(key: tuple, state: Any, first: Any, stop: Any, shared: Shared) -> tuple:
        carry = program(key).advance(Carry(state, None), first, stop, shared)
        return order(key, carry)

    def order(key: tuple, carry: Carry) -> tuple:
        return chain_axis_first(carry.draws, key[0]), carry.state

    jit = partial(jax.jit, static_argnums=0)
    return {
        "begin": jit_quickly(begin),
        "begin staged": jit(begin),
        "all": jit(all_),
        # Of the draws there is one copy. The state may be one that the user holds.
        "some": jit(some, donate_argnums=1),
        "order": jit(order),
        "flat": jax.jit(_flatten),
    }


def _flatten(states: Any) -> Any:
    """Join the axes of chains and draws."""
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), states
    )


def diagnostics(state: Any) -> str:
    """What NumPyro's bar says, the mean over chains."""
    steps, size, accepted = jax.device_get(
        (state.num_steps, state.adapt_state.step_size, state.mean_accept_prob)
    )
    return (
        f"{np.mean(steps):.0f} steps of size {np.mean(size):.2e}. "
        f"acc. prob={np.mean(accepted):.2f}"
    )
