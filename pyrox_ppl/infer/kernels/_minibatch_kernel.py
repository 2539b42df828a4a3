"""AbstractMinibatchKernel: kernels that step by the gradient on a minibatch."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer.util import ModelInfo
from numpyro.util import is_prng_key

from pyrox_ppl.infer.kernels._blackjax import import_blackjax
from pyrox_ppl.infer.kernels._rows import Plates, find_plates, sum_over_all_rows
from pyrox_ppl.infer.kernels._vector_kernel import AbstractVectorKernel


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
        if not callable(step_size) and not step_size > 0:
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
        gradient: Callable,
        z: jax.Array,
        r: jax.Array,
        step_size: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """BlackJAX's step; the gradient is that of the log density, on a minibatch."""

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

        Deterministic sites in a subsampled plate are left out: they would be those of
        one minibatch.
        """
        on_sites = super().postprocess_fn(model_args, model_kwargs)
        per_row = self._plates.per_row

        def constrain(z: jax.Array) -> dict[str, Any]:
            with handlers.seed(rng_seed=0):  # rows that no site depends on
                sites = on_sites(z)
            return {name: v for name, v in sites.items() if name not in per_row}

        return constrain

    def _tries(self) -> bool:
        return True

    def _check(self, info: ModelInfo) -> None:
        name = type(self).__name__
        self._plates = find_plates(info.model_trace, name)
        if self._control_variates and len(self._plates.sizes) > 1:
            raise ValueError(
                f"{name} with control_variates=True needs the gradient on all data, so "
                "the model must have one subsampled plate, and it has "
                f"{sorted(self._plates.sizes)}."
            )

    def _gradient(self, model_args: tuple, model_kwargs: dict) -> Callable:
        """The gradient of the log density at a vector, on the minibatch of a key."""
        potential = self._potential(model_args, model_kwargs)

        def gradient(z: jax.Array, rng_key: Any) -> jax.Array:
            with handlers.seed(rng_seed=rng_key):
                return -jax.grad(potential)(z)

        return gradient

    def _is_finite(
        self, state: MinibatchState, model_args: tuple, model_kwargs: dict
    ) -> jax.Array:
        gradient = self._gradient(model_args, model_kwargs)
        if not is_prng_key(state.rng_key):
            gradient = jax.vmap(gradient)
        return jnp.all(jnp.isfinite(gradient(state.z, state.rng_key)), axis=-1)

    def _first_state(
        self, rng_key: Any, z: jax.Array, model_args: tuple, model_kwargs: dict
    ) -> MinibatchState:
        rng_key, key = jax.random.split(rng_key)
        count, none = jnp.zeros((), int), jnp.zeros(0, z.dtype)
        centre, centre_grad = none, none
        if self._control_variates:
            gradient = self._gradient(model_args, model_kwargs)
            ((plate, (size, subsample)),) = self._plates.sizes.items()
            centre, centre_grad = (
                z,
                sum_over_all_rows(lambda: gradient(z, rng_key), plate, size, subsample),
            )
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

    def _size_of_step(self, i: jax.Array) -> jax.Array:
        given = self._step_size
        return jnp.asarray(given(i) if callable(given) else given)

    def _step(
        self, state: MinibatchState, model_args: tuple, model_kwargs: dict
    ) -> MinibatchState:
        rng_key, rows, noise = jax.random.split(state.rng_key, 3)
        estimate = self._gradient(model_args, model_kwargs)
        if self._control_variates:
            estimate = self._with_control_variates(estimate, state)
        step_size = self._size_of_step(state.i).astype(state.z.dtype)
        z, r = self._move(
            noise, lambda z: estimate(z, rows), state.z, state.r, step_size
        )
        finite = jnp.all(jnp.isfinite(z)) & jnp.all(jnp.isfinite(r))
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
            return state.centre_grad if rows is None else estimate(z, rows)

        return gradients.control_variates(known, state.centre, None)
