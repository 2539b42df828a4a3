"""The program that CompiledMCMC compiles: find initial values, warm up, sample."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpyro.infer.hmc import HMC
from numpyro.util import nested_attrgetter

from pyrox_ppl.infer._chains import over_chains


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
    """A chain between iterations: the kernel's state and the draws so far."""

    state: Any
    draws: Any


class NUTSProgram:
    """Pure functions over one plan and one kernel; every call traces a fresh copy."""

    def __init__(
        self, kernel: HMC, plan: Plan, postprocess_fn: Callable | None = None
    ) -> None:
        self._kernel, self._plan, self._postprocess = kernel, plan, postprocess_fn

    def run(self, chains: Chains, data: tuple) -> tuple[Carry, jax.Array]:
        """All iterations, and which chains began at a finite point."""

        def one(chain: Chains, data: tuple) -> tuple[Carry, jax.Array]:
            kernel, carry, valid = self._begin(chain, data)
            return self._advance(kernel, carry, 0, self._plan.upper, data), valid

        return self._over_chains(one)(chains, data)

    def begin(self, chains: Chains, data: tuple) -> tuple[Carry, jax.Array]:
        """No iteration yet."""
        return self._over_chains(lambda c, d: self._begin(c, d)[1:])(chains, data)

    def advance(
        self, carry: Carry, chains: Chains, first: Any, stop: Any, data: tuple
    ) -> Carry:
        """Iterations from `first` to before `stop`."""

        def one(both: tuple[Carry, Chains], shared: tuple) -> Carry:
            first, stop, data = shared
            carry, chain = both
            # The kernel's functions close over what `init` finds; XLA drops the rest.
            kernel = self._fresh_kernel()
            self._init(kernel, chain, data)
            return self._advance(kernel, carry, first, stop, data)

        return self._over_chains(one)((carry, chains), (first, stop, data))

    def _over_chains(self, one: Callable) -> Callable:
        return over_chains(one, self._plan.chain_method, self._plan.num_chains)

    def _fresh_kernel(self) -> HMC:
        """A copy without the functions of an earlier trace (as when it is pickled)."""
        kernel = copy.copy(self._kernel)
        if isinstance(kernel._inverse_mass_matrix, dict):
            # NumPyro fills it in place.
            kernel._inverse_mass_matrix = dict(kernel._inverse_mass_matrix)
        return kernel

    def _init(self, kernel: HMC, chain: Chains, data: tuple) -> Any:
        args, kwargs = data
        return kernel.init(
            chain.rng_key, self._plan.num_warmup, chain.init_params, args, kwargs
        )

    def _begin(self, chain: Chains, data: tuple) -> tuple[HMC, Carry, jax.Array]:
        kernel = self._fresh_kernel()
        state = self._init(kernel, chain, data)
        if chain.start is not None:
            state = chain.start
            valid = jnp.ones(jnp.shape(state.potential_energy), bool)
        else:
            valid = _finite(state, self._plan.vectorized)
        shapes = jax.eval_shape(lambda s: self._collect(kernel, s, data), state)
        draws = jax.tree.map(
            lambda leaf: jnp.zeros((self._plan.size, *leaf.shape), leaf.dtype), shapes
        )
        return kernel, Carry(state, draws), valid

    def _advance(
        self, kernel: HMC, carry: Carry, first: Any, stop: Any, data: tuple
    ) -> Carry:
        plan = self._plan
        args, kwargs = data
        start = plan.lower + (plan.upper - plan.lower) % plan.thinning
        collects = plan.upper > plan.lower

        def body(i: jax.Array, carry: Carry) -> Carry:
            state = kernel.sample(carry.state, args, kwargs)
            if not collects:
                return Carry(state, carry.draws)
            # What is written before the first draw is written over by it.
            place = jnp.maximum((i - start) // plan.thinning, 0)
            draws = jax.tree.map(
                lambda all_, one: lax.dynamic_update_index_in_dim(
                    all_, one.astype(all_.dtype), place, 0
                ),
                carry.draws,
                self._collect(kernel, state, data),
            )
            return Carry(state, draws)

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


def as_index(i: int) -> np.int32:
    """A loop bound that is a traced input, so that one program serves all bounds."""
    return np.int32(i)
