"""A kernel's steps in segments: one compiled program for warm-up and sampling.

The program takes a state and two numbers: ``draws`` times it takes ``steps`` steps and
keeps the last state. The numbers are inputs and not constants, so that warm-up,
thinning and a short last segment run the same machine code, and give the same bits.
"""

import copy
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpyro.infer import HMC, MCMC
from numpyro.util import is_prng_key

from pyrox_ppl._cost import leapfrog_steps
from pyrox_ppl._loop_convolutions import with_fast_convolutions
from pyrox_ppl._numpyro import takes_traced_arguments
from pyrox_ppl.infer._arrays import is_sharded, strong, to_numpy
from pyrox_ppl.infer.compiled._arguments import is_array, put_arrays, take_arrays
from pyrox_ppl.infer.compiled._chains import (
    check_init_params,
    map_over_chains,
    put_chains_first,
    replicate,
)
from pyrox_ppl.infer.compiled._fields import choose_fields
from pyrox_ppl.infer.compiled._held_params import hold_params
from pyrox_ppl.infer.compiled._mcmc import CompiledMCMC
from pyrox_ppl.infer.kernels._vector_kernel import AbstractVectorKernel


class Segments:
    """The initialised kernel of an MCMC object, and its compiled segment.

    Attributes:
        start: The state before the first step, stacked over several chains.
        example: Arguments of :meth:`segment`, for their shapes.
        like: The shapes of all draws, ``(chain, draw, ...)``, by field.
        size: The largest number of draws in a segment.
    """

    def __init__(
        self,
        mcmc: MCMC,
        key: jax.Array,
        args: tuple,
        kwargs: dict[str, Any],
        *,
        init_params: Any,
        extra_fields: tuple[str, ...],
        size: int,
    ) -> None:
        self._mcmc = mcmc
        # A kernel keeps the arguments that it was initialised with. A copy does not.
        self._kernel: Any = copy.copy(mcmc.sampler)
        has_sites = isinstance(self._kernel, HMC | AbstractVectorKernel)
        if has_sites and self._kernel.model is not None:
            first = key if is_prng_key(key) else key[0]
            if mcmc.num_chains > 1 and is_prng_key(key):
                first = jax.random.split(key, mcmc.num_chains)[0]
            self._kernel = hold_params(self._kernel, first, args, kwargs)
        self._args, self._kwargs = args, kwargs
        # NumPyro makes the data constants of its program, unless jit_model_args is set,
        # and the same bits need the same program. But a constant lies on one device, so
        # an array on several devices is always an input.
        if isinstance(mcmc, CompiledMCMC):
            is_data = is_array
        else:
            is_data = eqx.is_array_like if takes_traced_arguments(mcmc) else is_sharded
        self._data, *self._constant = take_arrays((args, kwargs), is_data)
        if mcmc.num_chains > 1 and mcmc.chain_method == "parallel":
            self._data = replicate(self._data, mcmc.num_chains)
        self.size = size
        self._vectorized = mcmc.num_chains > 1 and mcmc.chain_method == "vectorized"
        self._fields = choose_fields(mcmc.sampler, extra_fields)
        self.start = strong(self._start(key, init_params))
        one = self.start
        if mcmc.num_chains > 1 and not self._vectorized:
            one = jax.tree.map(lambda leaf: leaf[0], one)
        self.example = (one, np.int32(1), np.int32(1))
        self.like = self._shapes()
        self._compiled: Callable | None = None

    def _shapes(self) -> dict[str, Any]:
        _, kept, _ = jax.eval_shape(self.segment, *self.example)
        leading = 2 if self._vectorized else 1
        total = self._mcmc.num_samples // self._mcmc.thinning

        def whole(leaf: Any) -> Any:
            shape = (self._mcmc.num_chains, total, *leaf.shape[leading:])
            return jax.ShapeDtypeStruct(shape, leaf.dtype)

        return jax.tree.map(whole, dict(zip(self._fields.names, kept, strict=True)))

    def _start(self, key: jax.Array, init_params: Any) -> Any:
        mcmc, given = self._mcmc, self._mcmc.post_warmup_state
        is_vector = isinstance(self._kernel, AbstractVectorKernel)
        if given is not None and is_vector:
            init_params = given.z  # no other start need hold
        check_init_params(init_params, mcmc.num_chains)

        def init(key: jax.Array, params: Any) -> Any:
            return self._kernel.init(
                key, mcmc.num_warmup, params, self._args, self._kwargs
            )

        keys = key
        if mcmc.num_chains > 1 and is_prng_key(key):
            keys = jax.random.split(key, mcmc.num_chains)
        if mcmc.num_chains == 1 or self._vectorized:
            state = init(keys, init_params)
        else:
            states = [
                init(
                    keys[chain],
                    jax.tree.map(lambda leaf, c=chain: leaf[c], init_params),
                )
                for chain in range(mcmc.num_chains)
            ]
            state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        if given is None:
            return state
        # As in MCMC.run: the states of those chains, with the randomness of this key.
        given = given._replace(
            rng_key=keys[0] if mcmc.sampler.is_ensemble_kernel else keys
        )
        if not is_vector:
            return given
        renew: Callable = self._kernel.renew
        if mcmc.num_chains > 1 and not self._vectorized:
            renew = jax.vmap(renew, in_axes=(0, None, None))
        return jax.jit(lambda state: renew(state, self._args, self._kwargs))(given)

    def segment(self, state: Any, draws: Any, steps: Any) -> tuple[Any, tuple, Any]:
        """Take `draws` times `steps` steps of one chain (or of all, vectorized)."""
        data = (self._args, self._kwargs)
        return self._segment(state, draws, steps, data)

    def _segment(self, state: Any, draws: Any, steps: Any, data: Any) -> Any:
        args, kwargs = data

        def step(_: Any, carry: Any) -> Any:
            state, leapfrogs = carry
            state = self._kernel.sample(state, args, kwargs)
            if leapfrogs is not None:
                leapfrogs = leapfrogs + leapfrog_steps(state)
            return state, leapfrogs

        def draw(i: Any, carry: Any) -> Any:
            state, kept, leapfrogs = carry
            state, leapfrogs = lax.fori_loop(0, steps, step, (state, leapfrogs))
            new = self._collect(state, args, kwargs)
            kept = jax.tree.map(lambda all_, one: all_.at[i].set(one), kept, new)
            return state, kept, leapfrogs

        like = jax.eval_shape(lambda s: self._collect(s, args, kwargs), state)
        kept = jax.tree.map(
            lambda leaf: jnp.zeros((self.size, *leaf.shape), leaf.dtype), like
        )
        none = jax.tree.map(jnp.zeros_like, leapfrog_steps(state))
        return lax.fori_loop(0, draws, draw, (state, kept, none))

    def _collect(self, state: Any, args: tuple, kwargs: dict[str, Any]) -> tuple:
        constrain = self._mcmc.postprocess_fn
        if constrain is None:
            constrain = self._kernel.postprocess_fn(args, kwargs)
        chains = self._mcmc.num_chains if self._vectorized else None
        return self._fields.collect(state, constrain, chains)

    def run(
        self, state: Any, draws: int, steps: int
    ) -> tuple[Any, dict[str, Any], int | None]:
        """Run a segment of every chain.

        Returns:
            The states after it; the kept values of each field with the leading axes
            ``(chain, draw)``, of which only the first `draws` were written; and the
            number of leapfrog steps, None for a kernel that does not tell.
        """
        if self._compiled is None:
            self._compiled = self._compile()
        counts = (np.int32(draws), np.int32(steps))
        state, kept, leapfrogs = self._compiled(state, *counts, self._data)
        mcmc = self._mcmc
        kept = put_chains_first(kept, mcmc.chain_method, mcmc.num_chains)
        number = None if leapfrogs is None else int(np.sum(to_numpy(leapfrogs)))
        return state, dict(zip(self._fields.names, kept, strict=True)), number

    def _compile(self) -> Callable:
        mcmc, constant = self._mcmc, self._constant

        @with_fast_convolutions
        def segment(state: Any, draws: Any, steps: Any, data: Any) -> Any:
            return self._segment(state, draws, steps, put_arrays(data, *constant))

        if mcmc.num_chains == 1 or self._vectorized:
            return jax.jit(segment)
        if mcmc.chain_method == "sequential":
            one = jax.jit(segment)

            def run_in_turn(state: Any, *rest: Any) -> Any:
                chains = [
                    jax.tree.map(lambda leaf, c=chain: leaf[c], state)
                    for chain in range(mcmc.num_chains)
                ]
                results = [one(chain, *rest) for chain in chains]
                return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

            return run_in_turn
        each_chain = map_over_chains(
            lambda state, rest: segment(state, *rest),
            mcmc.chain_method,
            mcmc.num_chains,
        )
        return jax.jit(lambda state, *rest: each_chain(state, rest))
