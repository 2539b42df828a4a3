"""AbstractVectorKernel: what kernels over one vector share that are no NUTS."""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.util import ModelInfo
from numpyro.util import is_prng_key

from pyrox_ppl.infer.kernels._start import find_start

# Steps that are tried before a run, where a step size can be too large for them.
TRIAL_STEPS = 100


def keep_if_close(old: jax.Array, new: jax.Array) -> jax.Array:
    """What was computed before, to the last bit, where only rounding has changed it."""
    largest = jnp.max(jnp.abs(new), initial=0.0)
    return jnp.where(jnp.allclose(old, new, rtol=1e-3, atol=1e-3 * largest), old, new)


def is_positive(value: Any) -> bool:
    """Whether a value is one number above zero."""
    if np.ndim(value) != 0 or not np.issubdtype(np.asarray(value).dtype, np.number):
        return False
    return bool(value > 0)


class AbstractVectorKernel(MCMCKernel):
    """A kernel whose state ``z`` is one vector: the unconstrained values of all sites.

    A subclass has a state, a ``NamedTuple`` with at least the fields ``i``, the number
    of iterations, ``z``, ``diverging`` and ``rng_key``. In the state of vectorised
    chains each field but ``i`` has a leading axis of chains. They share ``i``, so that
    a `lax.cond` on it takes one branch, where `vmap` would compute both.
    """

    # The draws come from a distribution near the posterior, how near depends on the
    # step size: no step is accepted or rejected to make them exact.
    is_unadjusted = True

    # What `init` sets: it decides nothing that a later `init` would not set anew.
    set_by_init = frozenset({"_make_potential", "_make_constrain", "_warmup_steps"})

    def __init__(self, model: Callable, init_strategy: Callable) -> None:
        if not callable(model):
            raise TypeError(
                f"{type(self).__name__} takes a NumPyro model, a function, and got "
                f"{model!r:.60}."
            )
        self._model = model
        # Under this name as in NumPyro's kernels.
        self._init_strategy = init_strategy
        self._make_potential: Callable | None = None
        self._make_constrain: Callable | None = None
        self._warmup_steps = 0

    @property
    def _sample_fn(self) -> Callable | None:
        # NumPyro's MCMC asks for it by this name: a kernel without one is initialised
        # even where the run starts at a `post_warmup_state`.
        return None if self._make_potential is None else self._step

    @property
    def model(self) -> Callable:
        """The NumPyro model."""
        return self._model

    @property
    def sample_field(self) -> str:
        """The field of the state that holds the draw."""
        return "z"

    @abc.abstractmethod
    def _first_state(
        self, rng_key: Any, z: jax.Array, model_args: tuple, model_kwargs: dict
    ) -> Any:
        """The state of one chain that starts at a vector."""

    @abc.abstractmethod
    def _step(self, state: Any, model_args: tuple, model_kwargs: dict) -> Any:
        """The next state of one chain."""

    @abc.abstractmethod
    def _is_finite(
        self, state: Any, model_args: tuple, model_kwargs: dict
    ) -> jax.Array:
        """Whether energy and gradient are finite, for each chain."""

    @abc.abstractmethod
    def _tries(self) -> bool:
        """Whether the step size is the user's, so that it is tried before a run."""

    def _renew(self, state: Any, model_args: tuple, model_kwargs: dict) -> Any:
        """The state of one chain, with what it holds of the data computed anew."""
        return state

    def _check(self, info: ModelInfo, model_args: tuple, model_kwargs: dict) -> None:
        """Raise if the kernel cannot sample the model."""

    def init(
        self,
        rng_key: Any,
        num_warmup: int,
        init_params: Any = None,
        model_args: tuple = (),
        model_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The state before the first iteration, as NumPyro's ``MCMC`` asks for it."""
        model_kwargs = {} if model_kwargs is None else model_kwargs
        single = is_prng_key(rng_key)
        split = jax.random.split if single else jax.vmap(jax.random.split, out_axes=1)
        rng_key, key_start = split(rng_key)
        data = (model_args, model_kwargs)
        z = self.set_up(key_start, num_warmup, init_params, *data)

        def first(rng_key: Any, z: jax.Array) -> Any:
            return self._first_state(rng_key, z, model_args, model_kwargs)

        if single:
            state = first(rng_key, z)
        else:
            state = jax.vmap(first)(rng_key, z)
            state = state._replace(i=jnp.zeros_like(state.i[0]))
        if not isinstance(rng_key, Tracer):
            self.check_start(*jax.jit(lambda s: self.judge_start(s, *data))(state))
        return state

    def set_up(
        self,
        rng_key: Any,
        num_warmup: int,
        init_params: Any,
        model_args: tuple,
        model_kwargs: dict[str, Any],
    ) -> jax.Array:
        """Make the functions that `sample` calls; the vector where the chain starts."""
        start, info = find_start(
            rng_key,
            self._model,
            model_args,
            model_kwargs,
            init_params,
            strategy=self._init_strategy,
        )
        self._check(info, model_args, model_kwargs)
        self._make_potential = start.potential_fn
        self._make_constrain = start.postprocess_fn
        self._warmup_steps = num_warmup
        return getattr(start.state, "z", start.state)

    def sample(
        self, state: Any, model_args: tuple, model_kwargs: dict[str, Any] | None
    ) -> Any:
        """The next state, of one chain or of vectorised ones."""
        return _over_chains(self._step, state, model_args, model_kwargs or {})

    def renew(self, state: Any, model_args: tuple, model_kwargs: dict[str, Any]) -> Any:
        """A state of an earlier run, of one chain or of vectorised ones, for this data.

        A state holds energies or gradients. Those of other data would be wrong until
        the next step that is taken, or for ever.
        """
        return _over_chains(self._renew, state, model_args, model_kwargs)

    def judge_start(
        self, state: Any, model_args: tuple, model_kwargs: dict
    ) -> tuple[jax.Array, jax.Array]:
        """Whether each chain has a finite gradient, and whether its first steps hold.

        The steps are tried where the step size is the user's: NumPyro's ``MCMC`` shows
        no error that a compiled run finds.
        """
        finite = self._is_finite(state, model_args, model_kwargs)
        if not self._tries():
            return finite, jnp.ones_like(finite)

        def step(_: Any, carry: tuple) -> tuple:
            before, count = carry
            after = self.sample(before, model_args, model_kwargs)
            return after, count + after.diverging

        count = jnp.zeros(jnp.shape(state.diverging), int)
        after, count = jax.lax.fori_loop(0, TRIAL_STEPS, step, (state, count))
        far = jnp.max(jnp.abs(after.z), -1) > 1e6 * (1 + jnp.max(jnp.abs(state.z), -1))
        return finite, (count < TRIAL_STEPS // 2) & ~far

    def check_start(self, finite: Any, stable: Any) -> None:
        """Raise if a chain cannot start, or leaves at once.

        Raises:
            RuntimeError: If the density or its gradient is not finite.
            ValueError: If the first steps diverge.
        """
        bad = np.flatnonzero(~np.atleast_1d(np.asarray(finite)))
        if bad.size:
            raise RuntimeError(
                "Cannot find valid initial parameters: the log density or its gradient "
                f"is not finite at the start of chains {bad.tolist()}. Check the "
                "model, or give other init_params or another init_strategy."
            )
        bad = np.flatnonzero(~np.atleast_1d(np.asarray(stable)))
        if bad.size:
            raise ValueError(
                f"{type(self).__name__} diverges within the first {TRIAL_STEPS} steps "
                f"of chains {bad.tolist()}: the step size is too large for this model "
                "and this start. Divide it by ten until the chain holds, or start "
                "nearer to the mode with init_params."
            )

    def postprocess_fn(
        self, model_args: tuple, model_kwargs: dict[str, Any] | None
    ) -> Callable:
        """The map from the vector to constrained values by site."""
        if self._make_constrain is None:
            raise RuntimeError("postprocess_fn needs an initialised kernel.")
        return self._make_constrain(*model_args, **(model_kwargs or {}))

    def _potential(self, model_args: tuple, model_kwargs: dict) -> Callable:
        """The potential as a function of the vector."""
        if self._make_potential is None:
            raise RuntimeError("the kernel has no potential before `init` has run.")
        return self._make_potential(*model_args, **model_kwargs)


def _over_chains(
    one: Callable, state: Any, model_args: tuple, model_kwargs: dict[str, Any]
) -> Any:
    """Apply a function of one chain's state to it, or to that of vectorised chains."""
    if is_prng_key(state.rng_key):
        return one(state, model_args, model_kwargs)
    axes = jax.tree.map(lambda _: 0, state)._replace(i=None)
    mapped = jax.vmap(
        lambda s: one(s, model_args, model_kwargs), in_axes=(axes,), out_axes=axes
    )
    return mapped(state)
