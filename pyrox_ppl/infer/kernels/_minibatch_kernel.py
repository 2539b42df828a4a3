"""AbstractMinibatchKernel: kernels that step by the gradient on a minibatch."""

import abc
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer.util import ModelInfo
from numpyro.util import is_prng_key

from pyrox_ppl.infer.kernels._blackjax import import_blackjax
from pyrox_ppl.infer.kernels._rows import Plates, find_plates, sum_over_all_rows
from pyrox_ppl.infer.kernels._vector_kernel import (
    AbstractVectorKernel,
    is_positive,
    keep_if_close,
)


class MinibatchState(NamedTuple):
    """The state of a kernel that steps by the gradient on a minibatch.

    Attributes:
        i: The number of iterations, warm-up included.
        z: The unconstrained values of all sites.
        r: The momentum; it has no entries where the kernel has none.
        step_size: The step size of the last step.
        diverging: Whether the last step diverged, and the chain stayed where it was.
        num_diverging: The number of steps that diverged, warm-up included.
        num_steps: The gradient evaluations of a step, on one minibatch.
        centre: Where the control variates are exact; without them it has no entries.
        centre_grad: The gradient of the log density on all data there.
        rng_key: The key of the next step.
    """

    i: jax.Array
    z: jax.Array
    r: jax.Array
    step_size: jax.Array
    diverging: jax.Array
    num_diverging: jax.Array
    num_steps: jax.Array
    centre: jax.Array
    centre_grad: jax.Array
    rng_key: Any


class AbstractMinibatchKernel(AbstractVectorKernel):
    """A kernel on the model's own subsampled plate, which draws new rows each step."""

    set_by_init = AbstractVectorKernel.set_by_init | {"_plates"}

    def __init__(
        self,
        model: Callable,
        step_size: float | Callable,
        control_variates: bool,
        init_strategy: Callable,
    ) -> None:
        super().__init__(model, init_strategy)
        name = type(self).__name__
        if not callable(step_size) and not is_positive(step_size):
            raise ValueError(
                f"{name} needs a positive step_size, or an Optax schedule: a function "
                f"of the number of steps, and got {step_size!r}."
            )
        self._step_size = step_size
        self._control_variates = control_variates
        self._plates = Plates({}, frozenset())
        self._import()

    @abc.abstractmethod
    def _import(self) -> Any:
        """The module of BlackJAX that steps it."""

    @abc.abstractmethod
    def _first_momentum(self, rng_key: Any, z: jax.Array) -> jax.Array:
        """The momentum of a chain that starts at a vector."""

    @abc.abstractmethod
    def _move(
        self,
        rng_key: Any,
        gradient: jax.Array,
        z: jax.Array,
        r: jax.Array,
        step_size: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """BlackJAX's step, by an estimate of the gradient of the log density at `z`."""

    @property
    def default_fields(self) -> Any:
        """The fields of the state that a run collects."""
        return ("z", "diverging", "num_steps", "step_size")

    def get_diagnostics_str(self, state: MinibatchState) -> Any:
        """The text of a progress bar."""
        return (
            f"steps of size {np.mean(state.step_size):.2e}. "
            f"{np.sum(state.num_diverging)} diverging"
        )

    def postprocess_fn(
        self, model_args: tuple, model_kwargs: dict[str, Any] | None
    ) -> Callable:
        """The map from the vector to constrained values by site.

        Deterministic sites that depend on the rows of a subsampled plate are left out:
        they would be those of one minibatch.
        """
        on_sites = super().postprocess_fn(model_args, model_kwargs)
        of_rows = self._plates.of_rows

        def constrain(z: jax.Array) -> dict[str, Any]:
            with handlers.seed(rng_seed=0):  # rows that no site depends on
                sites = on_sites(z)
            return {name: v for name, v in sites.items() if name not in of_rows}

        return constrain

    def _tries(self) -> bool:
        return True

    def _check(self, info: ModelInfo, model_args: tuple, model_kwargs: dict) -> None:
        self._plates = find_plates(
            lambda: self.model(*model_args, **model_kwargs),
            info.model_trace,
            type(self).__name__,
        )

    def _estimator(self, model_args: tuple, model_kwargs: dict) -> Callable:
        """The log density at a vector and its gradient, on the minibatch of a key."""
        potential = self._potential(model_args, model_kwargs)

        def estimate(z: jax.Array, rng_key: Any) -> tuple[jax.Array, jax.Array]:
            with handlers.seed(rng_seed=rng_key):
                return jax.value_and_grad(lambda z: -potential(z))(z)

        return estimate

    def _gradient_on_all_rows(
        self, z: jax.Array, model_args: tuple, model_kwargs: dict
    ) -> jax.Array:
        estimate = self._estimator(model_args, model_kwargs)

        def gradient() -> jax.Array:
            return estimate(z, jax.random.key(0))[1]  # a key that no row depends on

        for plate, (size, subsample) in self._plates.sizes.items():
            gradient = partial(sum_over_all_rows, gradient, plate, size, subsample)
        return gradient()

    def _is_finite(
        self, state: MinibatchState, model_args: tuple, model_kwargs: dict
    ) -> jax.Array:
        estimate = self._estimator(model_args, model_kwargs)
        if not is_prng_key(state.rng_key):
            estimate = jax.vmap(estimate)
        density, gradient = estimate(state.z, state.rng_key)
        finite = jnp.isfinite(density) & jnp.all(jnp.isfinite(gradient), axis=-1)
        return finite & jnp.all(jnp.isfinite(state.centre_grad), axis=-1)

    def _first_state(
        self, rng_key: Any, z: jax.Array, model_args: tuple, model_kwargs: dict
    ) -> MinibatchState:
        rng_key, key = jax.random.split(rng_key)
        count, none = jnp.zeros((), int), jnp.zeros(0, z.dtype)
        centre, centre_grad = none, none
        if self._control_variates:
            centre = z
            centre_grad = self._gradient_on_all_rows(z, model_args, model_kwargs)
        return MinibatchState(
            i=count,
            z=z,
            r=self._first_momentum(key, z),
            step_size=self._size_of_step(count).astype(z.dtype),
            diverging=jnp.zeros((), bool),
            num_diverging=count,
            num_steps=count + (2 if self._control_variates else 1),
            centre=centre,
            centre_grad=centre_grad,
            rng_key=rng_key,
        )

    def _renew(
        self, state: MinibatchState, model_args: tuple, model_kwargs: dict
    ) -> MinibatchState:
        if not self._control_variates:
            return state
        new = self._gradient_on_all_rows(state.centre, model_args, model_kwargs)
        return state._replace(centre_grad=keep_if_close(state.centre_grad, new))

    def _size_of_step(self, i: jax.Array) -> jax.Array:
        given = self._step_size
        return jnp.asarray(given(i) if callable(given) else given)

    def _step(
        self, state: MinibatchState, model_args: tuple, model_kwargs: dict
    ) -> MinibatchState:
        rng_key, rows, noise = jax.random.split(state.rng_key, 3)
        estimate = self._estimator(model_args, model_kwargs)
        density, gradient = estimate(state.z, rows)
        if self._control_variates:
            gradient = self._with_control_variates(estimate, state)(state.z, rows)
        step_size = self._size_of_step(state.i).astype(state.z.dtype)
        z, r = self._move(noise, gradient, state.z, state.r, step_size)
        # Where the density is NaN or zero, its gradient can still be finite.
        finite = jnp.isfinite(density)
        finite &= jnp.all(jnp.isfinite(z)) & jnp.all(jnp.isfinite(r))
        return state._replace(
            i=state.i + 1,
            z=jnp.where(finite, z, state.z),
            r=jnp.where(finite, r, jnp.zeros_like(r)),
            step_size=step_size,
            diverging=~finite,
            num_diverging=state.num_diverging + ~finite,
            rng_key=rng_key,
        )

    def _with_control_variates(
        self, estimate: Callable, state: MinibatchState
    ) -> Callable:
        """BlackJAX's estimator, with the gradient on all data from the state."""
        gradients = import_blackjax("sgmcmc.gradients", type(self).__name__)

        def known(z: jax.Array, rows: Any) -> jax.Array:
            return state.centre_grad if rows is None else estimate(z, rows)[1]

        return gradients.control_variates(known, state.centre, None)
