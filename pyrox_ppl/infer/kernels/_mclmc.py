"""MCLMC: microcanonical Langevin Monte Carlo, by BlackJAX's program."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.util import ModelInfo

from pyrox_ppl.infer._init_to_stored import init_to_stored
from pyrox_ppl.infer.kernels._blackjax import import_blackjax
from pyrox_ppl.infer.kernels._mclmc_tuning import Step, Tuner, Tuning
from pyrox_ppl.infer.kernels._rows import find_sizes
from pyrox_ppl.infer.kernels._vector_kernel import (
    AbstractVectorKernel,
    is_positive,
    keep_if_close,
)

# A step diverges at the energy error at which one of NUTS does. In many dimensions the
# errors of a stable chain are larger: they have a variance below one for each.
_LARGEST_ERROR, _LARGEST_VARIANCE = 1000.0, 1000.0
# The integrator of BlackJAX's MCLMC (McLachlan's) evaluates the gradient twice a step.
_GRADIENTS = 2


class MCLMCState(NamedTuple):
    """The state of :class:`MCLMC`.

    Attributes:
        i: The number of iterations, warm-up included.
        z: The unconstrained values of all sites.
        r: The momentum, a unit vector.
        potential_energy: The negative log density at ``z``.
        z_grad: Its gradient.
        energy_error: The change of energy in the last step; 0 where it diverged.
        diverging: Whether the last step diverged, and the chain stayed where it was.
        num_steps: The gradient evaluations of a step.
        energy_variance: The mean square of the energy errors, per dimension, since the
            warm-up ended, or since it began.
        num_diverging: The number of steps that diverged, of the same steps.
        adapt_state: ``step_size``, ``L``, and what they are adapted by.
        rng_key: The key of the next step.
    """

    i: jax.Array
    z: jax.Array
    r: jax.Array
    potential_energy: jax.Array
    z_grad: jax.Array
    energy_error: jax.Array
    diverging: jax.Array
    num_steps: jax.Array
    energy_variance: jax.Array
    num_diverging: jax.Array
    adapt_state: Tuning
    rng_key: Any


class MCLMC(AbstractVectorKernel):
    r"""Microcanonical Langevin Monte Carlo, for posteriors of many dimensions.

    The vector :math:`u \in \mathbb{R}^D` of all unconstrained values moves at unit
    speed in a direction that the gradient bends and noise scatters:

    .. math:: du = r\,dt, \qquad
        dr = (I - r r^\top)\left(-\frac{\nabla U(u)}{D - 1}\,dt + \eta\,dW\right)

    with a step size and a length ``L`` over which the direction is forgotten. A step
    costs two gradients, and none is rejected for the sake of exactness: the draws have
    a bias that shrinks with the step size. Its measure is the variance of the energy
    error of a step, per dimension, by which the warm-up sets the step size. From the
    members of an ensemble, with the default tuning, this is MILE.

    A step with a non-finite or an enormous energy error diverges: the chain stays where
    it was, in a new direction. ``sample_stats`` of a tree has ``diverging``,
    ``energy_error``, ``step_size``, ``L`` and ``n_steps``, and ``diagnose`` judges
    them.

    It works in NumPyro's ``MCMC``, :class:`~pyrox_ppl.infer.CompiledMCMC` and
    :func:`~pyrox_ppl.infer.run_mcmc`. A step is short, so take many and keep few:
    ``MCMC(MCLMC(model), num_warmup=10_000, num_samples=10_000, thinning=100)``.

    **Shapes**: ``state.z`` is ``(D,)``; the draws have their sites' shapes.

    **Sites**: those of the model. The draws are constrained, and include deterministic
    sites.

    Args:
        model: The NumPyro model, with two or more unconstrained values.
        init_strategy: As in NUTS; the default is :func:`init_to_stored`.
        step_size: A fixed step size; adapted by default.
        L: A fixed length; adapted by default.
        energy_variance: The variance of the energy error, per dimension, that the
            warm-up aims at: at its beginning, and from its eighth tenth on. Networks do
            well with the default; a posterior whose moments must be exact to a percent
            needs ``(0.01, 5e-4)``.
        diagonal_preconditioning: Whether the warm-up scales each coordinate by its
            spread.

    Raises:
        TypeError: If `model` is not a function.
        ValueError: If an argument is out of range, if the model has a subsampled plate
            or a single dimension, or if a given `step_size` diverges at once.
        RuntimeError: If a discrete latent site has infinitely many values. NumPyro sums
            the others out, as for NUTS.
        ImportError: If BlackJAX is not installed.

    References:
        Robnik, J., De Luca, G. B., Silverstein, E. and Seljak, U. (2023).
        Microcanonical Hamiltonian Monte Carlo. JMLR 24. Sommer, E., Robnik, J.,
        Nozadze, G., Seljak, U. and Rügamer, D. (2025). Microcanonical Langevin
        Ensembles: Advancing the Sampling of Bayesian Neural Networks. ICLR.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC
        >>> from pyrox_ppl.infer import MCLMC
        >>> def model():
        ...     numpyro.sample("x", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
        >>> mcmc = MCMC(MCLMC(model), num_warmup=200, num_samples=100, thinning=10,
        ...             progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> mcmc.get_samples()["x"].shape
        (10, 5)
    """

    def __init__(
        self,
        model: Callable,
        *,
        init_strategy: Callable = init_to_stored,
        step_size: float | None = None,
        L: float | None = None,
        energy_variance: Sequence[float] = (0.5, 0.1),
        diagonal_preconditioning: bool = False,
    ) -> None:
        super().__init__(model, init_strategy)
        for name, value in (("step_size", step_size), ("L", L)):
            if value is not None and not is_positive(value):
                raise ValueError(f"{name} must be a positive number, got {value!r}.")
        pair = np.shape(energy_variance) == (2,)
        if not pair or not all(map(is_positive, energy_variance)):
            raise ValueError(
                "energy_variance must be two positive numbers, that of the beginning "
                f"and that of the end of the warm-up, got {energy_variance!r}."
            )
        self._step_size, self._length = step_size, L
        self._energy_variance = (float(energy_variance[0]), float(energy_variance[1]))
        self._precondition = diagonal_preconditioning
        import_blackjax("mcmc.mclmc", "MCLMC")

    @property
    def default_fields(self) -> Any:
        """The fields of the state that a run collects."""
        tuned = ("adapt_state.step_size", "adapt_state.L")
        return ("z", "diverging", "energy_error", "num_steps", *tuned)

    def get_diagnostics_str(self, state: MCLMCState) -> Any:
        """The text of a progress bar."""
        size, length = (np.mean(x) for x in state.adapt_state[:2])
        return (
            f"steps of size {size:.2e}, L {length:.2e}. "
            f"energy variance={np.mean(state.energy_variance):.1e}, "
            f"{np.sum(state.num_diverging)} diverging"
        )

    def _tuner(self) -> Tuner:
        diagnostics = import_blackjax("diagnostics", "MCLMC")
        return Tuner(
            self._warmup_steps,
            self._energy_variance,
            self._step_size,
            self._length,
            self._precondition,
            diagnostics.effective_sample_size,
        )

    def _is_finite(
        self, state: MCLMCState, model_args: tuple, model_kwargs: dict
    ) -> jax.Array:
        finite = jnp.all(jnp.isfinite(state.z_grad), axis=-1)
        return finite & jnp.isfinite(state.potential_energy)

    def _tries(self) -> bool:
        return self._step_size is not None

    def _check(self, info: ModelInfo, model_args: tuple, model_kwargs: dict) -> None:
        plates = sorted(find_sizes(info.model_trace))
        if plates:
            raise ValueError(
                f"MCLMC needs the gradient on all rows, and the plates {plates} draw a "
                "part of them: leave subsample_size out, or run SGLD or SGHMC."
            )

    def _log_density(self, model_args: tuple, model_kwargs: dict) -> Callable:
        potential = self._potential(model_args, model_kwargs)
        return lambda z: -potential(z)

    def _first_state(
        self, rng_key: Any, z: jax.Array, model_args: tuple, model_kwargs: dict
    ) -> MCLMCState:
        if z.size < 2:
            raise ValueError(
                "MCLMC moves in a direction, so it needs a model with two or more "
                f"unconstrained values, and this one has {z.size}: run NUTS(model)."
            )
        mclmc = import_blackjax("mcmc.mclmc", "MCLMC")
        rng_key, key = jax.random.split(rng_key)
        start = mclmc.init(z, self._log_density(model_args, model_kwargs), key)
        zero, count = jnp.zeros((), z.dtype), jnp.zeros((), int)
        return MCLMCState(
            i=count,
            z=z,
            r=start.momentum,
            potential_energy=-start.logdensity,
            z_grad=-start.logdensity_grad,
            energy_error=jnp.zeros_like(start.logdensity),
            diverging=jnp.zeros((), bool),
            num_steps=count + _GRADIENTS,
            energy_variance=zero,
            num_diverging=count,
            adapt_state=self._tuner().start(z),
            rng_key=rng_key,
        )

    def _renew(
        self, state: MCLMCState, model_args: tuple, model_kwargs: dict
    ) -> MCLMCState:
        log_density = self._log_density(model_args, model_kwargs)
        density, gradient = jax.value_and_grad(log_density)(state.z)
        return state._replace(
            potential_energy=keep_if_close(state.potential_energy, -density),
            z_grad=keep_if_close(state.z_grad, -gradient),
        )

    def _step(
        self, state: MCLMCState, model_args: tuple, model_kwargs: dict
    ) -> MCLMCState:
        integrators = import_blackjax("mcmc.integrators", "MCLMC")
        tuning = state.adapt_state
        integrator = integrators.isokinetic_mclachlan(
            self._log_density(model_args, model_kwargs), tuning.inverse_mass_matrix
        )
        before = integrators.IntegratorState(
            state.z, state.r, -state.potential_energy, -state.z_grad
        )
        rng_key, key = jax.random.split(state.rng_key)
        key, key_turn = jax.random.split(key)
        after, kinetic_change = integrators.with_isokinetic_maruyama(integrator)(
            before, tuning.step_size, tuning.L, key
        )
        error = kinetic_change - after.logdensity + before.logdensity
        after, error, diverging = self._reject(before, after, error, key_turn)
        squared = (error**2 / state.z.size).astype(state.energy_variance.dtype)
        tuning = self._tuner().update(
            state.i, tuning, Step(after.position, squared, ~diverging)
        )
        i = state.i + 1
        begins = (i == 1) | (i == self._warmup_steps + 1)
        n = jnp.where(i > self._warmup_steps, i - self._warmup_steps, i)
        mean = jnp.where(begins, 0.0, state.energy_variance)
        count = jnp.where(begins, 0, state.num_diverging)
        return MCLMCState(
            i=i,
            z=after.position,
            r=after.momentum,
            potential_energy=-after.logdensity,
            z_grad=-after.logdensity_grad,
            energy_error=error.astype(state.energy_error.dtype),
            diverging=diverging,
            num_steps=state.num_steps,
            energy_variance=(mean + (squared - mean) / n).astype(squared.dtype),
            num_diverging=count + diverging,
            adapt_state=tuning,
            rng_key=rng_key,
        )

    @staticmethod
    def _reject(before: Any, after: Any, error: jax.Array, rng_key: Any) -> tuple:
        """Undo a step that diverged, in a new direction.

        BlackJAX's kernel has the same rule, but draws two new directions in each step,
        for the rare one that needs them.
        """
        util = import_blackjax("util", "MCLMC")
        size = before.position.size
        largest = np.sqrt(max(_LARGEST_ERROR**2, size * _LARGEST_VARIANCE))
        fine = jnp.abs(error) <= largest  # NaN is not
        # A gradient that is not finite leaves no finite momentum.
        fine &= jnp.all(jnp.isfinite(after.position) & jnp.isfinite(after.momentum))
        momentum = jax.lax.cond(
            fine,
            lambda: after.momentum,
            lambda: util.generate_unit_vector(rng_key, before.position),
        )
        after = jax.tree.map(partial(jnp.where, fine), after, before)
        return after._replace(momentum=momentum), jnp.where(fine, error, 0.0), ~fine
