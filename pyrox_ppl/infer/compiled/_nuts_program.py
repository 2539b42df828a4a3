"""The programs that CompiledMCMC compiles: find initial values, warm up, sample."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.util import ParamInfo

from pyrox_ppl._numpyro import copy_kernel
from pyrox_ppl._observed_shapes import check_observed_shapes
from pyrox_ppl.infer.compiled._arguments import join_arguments
from pyrox_ppl.infer.compiled._chains import map_over_chains, put_chains_first
from pyrox_ppl.infer.compiled._fields import Fields
from pyrox_ppl.infer.compiled._held_params import hold_params
from pyrox_ppl.infer.compiled._programs import (
    Key,
    Programs,
    jit_quickly,
    jit_with_key,
)
from pyrox_ppl.infer.kernels._vector_kernel import AbstractVectorKernel


class Plan(NamedTuple):
    """What a run does; part of the key of its programs.

    Attributes:
        num_warmup: Warm-up steps that the kernel adapts for.
        lower: The first iteration that is collected.
        upper: The number of iterations.
        size: The length of the collection.
        thinning: Iterations per draw that is kept.
        num_chains: ChainStart.
        chain_method: As `_chains.choose_method` returns it.
        fields: What is collected of the state.
    """

    num_warmup: int
    lower: int
    upper: int
    size: int
    thinning: int
    num_chains: int
    chain_method: str | Callable
    fields: Fields

    @property
    def num_vectorized(self) -> int | None:
        """The number of chains in one state of the kernel; None where it holds one."""
        vectorized = self.chain_method == "vectorized" and self.num_chains > 1
        return self.num_chains if vectorized else None


class Source(NamedTuple):
    """What the programs are made of: the kernel, and the user's map of its draws."""

    kernel: MCMCKernel
    postprocess_fn: Callable | None


class ChainStart(NamedTuple):
    """What a chain starts from: a key, and a state or initial values if given."""

    rng_key: Any
    start: Any
    init_params: Any


class Valid(NamedTuple):
    """Whether each chain can start.

    Attributes:
        finite: Whether its energy and gradient are finite.
        stable: Whether its first steps do not all diverge.
    """

    finite: jax.Array
    stable: jax.Array


class Carry(NamedTuple):
    """A chain between iterations.

    Attributes:
        state: The kernel's state.
        draws: The draws, or None before the first iteration.
        steps: The number of leapfrog steps, or None likewise.
    """

    state: Any
    draws: Any
    steps: Any


class Shared(NamedTuple):
    """What all chains share: the key that `param` sites are drawn by, and the data."""

    origin: Any
    arrays: list[Any]


class MCMCPrograms(Programs):
    """The programs of a CompiledMCMC. Those of the model take its key first."""

    def __init__(self) -> None:
        super().__init__()
        self.begin = jit_quickly(self._begin)
        self.run = jit_with_key(self._run)
        # The draws are passed from piece to piece without a second copy. The state may
        # be one that the user holds, so it is not given away.
        self.advance = jit_with_key(self._advance, donated=(1,))
        self.finish = jit_with_key(self._finish)
        self.flatten = jax.jit(self._flatten)

    def _begin(self, key: Key, chains: ChainStart, shared: Shared) -> tuple:
        """Chains before the first iteration, and which of them can start."""
        return _Iterations(key).begin(chains, shared)

    def _run(
        self, key: Key, state: Any, first: Any, stop: Any, shared: Shared
    ) -> tuple:
        """What `_finish` returns, of all iterations."""
        carry = self._advance(key, None, state, None, first, stop, shared)
        return self._finish(key, carry)

    def _advance(
        self,
        key: Key,
        draws: Any,
        state: Any,
        steps: Any,
        first: Any,
        stop: Any,
        shared: Shared,
    ) -> Carry:
        """The iterations from `first` to before `stop`."""
        return _Iterations(key).advance(Carry(state, draws, steps), first, stop, shared)

    def _finish(self, key: Key, carry: Carry) -> tuple:
        """All draws, with the axes ``(chain, draw)`` in front, the state, the steps."""
        plan: Plan = key.plan
        draws = put_chains_first(carry.draws, plan.chain_method, plan.num_chains)
        return draws, carry.state, jnp.sum(carry.steps)

    def _flatten(self, states: Any) -> Any:
        """Join the axes of chains and draws; a site may have no entries."""
        return jax.tree.map(
            lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), states
        )


class _Iterations:
    """The pure functions of one key. Every call traces a fresh copy of the kernel."""

    def __init__(self, key: Key) -> None:
        self._plan: Plan = key.plan
        self._source: Source = key.source.value
        self._arguments = key.arguments

    def begin(self, chains: ChainStart, shared: Shared) -> tuple[Carry, Valid]:
        return self._over_chains(self._begin)(chains, shared)

    def advance(self, carry: Carry, first: Any, stop: Any, shared: Shared) -> Carry:
        return self._over_chains(self._advance)(carry, (first, stop, shared))

    def _over_chains(self, one: Callable) -> Callable:
        return map_over_chains(one, self._plan.chain_method, self._plan.num_chains)

    def _prepare(self, shared: Shared) -> tuple[Any, tuple]:
        """A copy of the kernel, with the params of this run, and the data."""
        data = join_arguments(shared.arrays, self._arguments)
        kernel = copy_kernel(self._source.kernel)
        return hold_params(kernel, shared.origin, *data), data

    def _init(self, kernel: Any, rng_key: Any, init_params: Any, data: tuple) -> Any:
        return kernel.init(rng_key, self._plan.num_warmup, init_params, *data)

    def _begin(self, chain: ChainStart, shared: Shared) -> tuple[Carry, Valid]:
        kernel, data = self._prepare(shared)
        check_observed_shapes(kernel.model, *data)
        state = self._init(kernel, chain.rng_key, chain.init_params, data)
        stable = jnp.ones(jnp.shape(state.diverging), bool)
        if chain.start is not None:
            state, finite = chain.start, stable
            if isinstance(kernel, AbstractVectorKernel):
                state = kernel.renew(state, *data)
        elif isinstance(kernel, AbstractVectorKernel):
            finite, stable = kernel.judge_start(state, *data)
        else:
            finite = _finite(state, self._plan.num_vectorized)
        empty = self._no_draws(kernel, state, data)
        carry = Carry(state, empty, jnp.zeros_like(state.num_steps))
        return carry, Valid(finite, stable)

    def _no_draws(self, kernel: Any, state: Any, data: tuple) -> Any:
        shapes = jax.eval_shape(lambda s: self._collect(kernel, s, data), state)
        return jax.tree.map(
            lambda leaf: jnp.zeros((self._plan.size, *leaf.shape), leaf.dtype), shapes
        )

    def _advance(self, carry: Carry, given: tuple) -> Carry:
        plan = self._plan
        first, stop, shared = given
        kernel, data = self._prepare(shared)
        state = carry.state
        if isinstance(kernel, AbstractVectorKernel):
            kernel.set_up(state.rng_key, plan.num_warmup, state.z, *data)
        else:
            # `init` makes the functions that `sample` calls; its state is not needed,
            # so XLA drops it. With a known gradient it is not even traced.
            start = ParamInfo(state.z, state.potential_energy, state.z_grad)
            self._init(kernel, state.rng_key, start, data)
        lowest = plan.lower + (plan.upper - plan.lower) % plan.thinning
        collects = plan.upper > plan.lower

        def body(i: jax.Array, carry: Carry) -> Carry:
            state = kernel.sample(carry.state, *data)
            steps = carry.steps + state.num_steps
            if not collects:
                return Carry(state, carry.draws, steps)
            # Deterministic sites cost a pass through the model, so only what is kept is
            # computed. Other iterations write to a place that the next draw fills: a
            # branch that returned all draws would copy them.
            past, left = divmod(i - lowest, plan.thinning)
            kept = (past >= 0) & (left == plan.thinning - 1)
            one = lax.cond(
                kept,
                lambda: self._collect(kernel, state, data),
                lambda: jax.tree.map(lambda all_: jnp.zeros_like(all_[0]), carry.draws),
            )
            draws = jax.tree.map(
                lambda all_, one: lax.dynamic_update_index_in_dim(
                    all_, one, jnp.maximum(past, 0), 0
                ),
                carry.draws,
                one,
            )
            return Carry(state, draws, steps)

        if carry.draws is None:
            empty = self._no_draws(kernel, carry.state, data)
            none = jnp.zeros_like(carry.state.num_steps)
            carry = carry._replace(draws=empty, steps=none)
        first, stop = (jnp.asarray(i, jnp.int32) for i in (first, stop))
        return lax.fori_loop(first, stop, body, carry)

    def _collect(self, kernel: Any, state: Any, data: tuple) -> tuple:
        """The collected fields of one state, the sites constrained."""
        constrain = self._source.postprocess_fn or kernel.postprocess_fn(*data)
        return self._plan.fields.collect(state, constrain, self._plan.num_vectorized)


def _finite(state: Any, num_vectorized: int | None) -> jax.Array:
    """Whether the energy and all of its gradient are finite, for each chain."""
    energy = state.potential_energy
    finite = jnp.isfinite(energy)
    chain_axes = 0 if num_vectorized is None else 1
    for leaf in jax.tree.leaves(state.z_grad):
        axes = tuple(range(chain_axes, leaf.ndim))
        finite = finite & jnp.all(jnp.isfinite(leaf), axis=axes)
    return finite
