"""SGHMC: stochastic-gradient Hamiltonian Monte Carlo, by BlackJAX's program."""

from collections.abc import Callable
from typing import Any

import jax

from pyrox_ppl.infer._init_to_stored import init_to_stored
from pyrox_ppl.infer.kernels._blackjax import import_blackjax
from pyrox_ppl.infer.kernels._minibatch_kernel import AbstractMinibatchKernel
from pyrox_ppl.infer.kernels._vector_kernel import is_positive


class SGHMC(AbstractMinibatchKernel):
    r"""Stochastic-gradient Hamiltonian Monte Carlo: SGLD with a momentum.

    A step of size :math:`h` moves by the momentum, and the momentum by the gradient on
    a minibatch, which the model's own subsampled plate draws anew each time. Friction
    takes a share :math:`a` of it, and noise replaces that:

    .. math:: u \leftarrow u + h r, \qquad
        r \leftarrow (1 - a)\,r + h\,\hat\nabla \log p(u, y) + \sqrt{2 a}\,\xi

    Of the same step size it goes as far as SGLD with :math:`\epsilon = h^2 / a`, and is
    less disturbed by the noise of the gradient. The draws have a bias, as SGLD's; where
    the log density has the curvature :math:`\lambda` it is about
    :math:`h^2 \lambda / a` of their variance, and the chain diverges where that is
    above one.

    Nothing is adapted: the warm-up is only the part of the run that is thrown away. A
    step that is not finite, or where the density on its minibatch is not, is counted as
    diverging, and the chain stays where it was.

    **Shapes**: ``state.z`` is ``(D,)``; the draws have their sites' shapes.

    **Sites**: those of the model, without the deterministic sites that depend on the
    rows of a minibatch.

    Args:
        model: The NumPyro model, with a ``numpyro.plate(..., subsample_size=...)``, as
            in :class:`SGLD`.
        step_size: A number, or a schedule of Optax, as in :class:`SGLD`.
        momentum_decay: The share of the momentum that a step takes away, between 0 and
            1.
        control_variates: As in :class:`SGLD`.
        init_strategy: As in NUTS; the default is :func:`init_to_stored`.

    Raises:
        TypeError: If `model` is not a function.
        ValueError: As :class:`SGLD`, and if `momentum_decay` is out of range.
        ImportError: If BlackJAX is not installed.

    References:
        Chen, T., Fox, E. B. and Guestrin, C. (2014). Stochastic Gradient Hamiltonian
        Monte Carlo. ICML. Zhang, R., Li, C., Zhang, J., Chen, C. and Wilson, A. G.
        (2020). Cyclical Stochastic Gradient MCMC for Bayesian Deep Learning. ICLR.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
        >>> from numpyro.infer import MCMC
        >>> from pyrox_ppl.infer import SGHMC
        >>> def model(y):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", len(y), subsample_size=10) as rows:
        ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])
        >>> cycle = optax.cosine_decay_schedule(0.02, 50)
        >>> cycles = optax.join_schedules([cycle] * 6, [50 * k for k in range(1, 6)])
        >>> mcmc = MCMC(SGHMC(model, cycles), num_warmup=100, num_samples=200,
        ...             progress_bar=False)
        >>> mcmc.run(jax.random.key(0), jnp.linspace(-1.0, 1.0, 50))
        >>> mcmc.get_samples()["mean"].shape
        (200,)
    """

    def __init__(
        self,
        model: Callable,
        step_size: float | Callable,
        *,
        momentum_decay: float = 0.1,
        control_variates: bool = False,
        init_strategy: Callable = init_to_stored,
    ) -> None:
        if not is_positive(momentum_decay) or momentum_decay > 1:
            raise ValueError(
                "momentum_decay, the share of the momentum that a step takes away, is "
                f"above 0 and at most 1, got {momentum_decay!r}."
            )
        self._momentum_decay = momentum_decay
        super().__init__(model, step_size, control_variates, init_strategy)

    def _import(self) -> Any:
        return import_blackjax("sgmcmc.diffusions", "SGHMC")

    def _first_momentum(self, rng_key: Any, z: jax.Array) -> jax.Array:
        return jax.random.normal(rng_key, z.shape, z.dtype)

    def _move(
        self,
        rng_key: Any,
        gradient: jax.Array,
        z: jax.Array,
        r: jax.Array,
        step_size: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        # BlackJAX's kernel draws a new momentum after each few steps on one minibatch.
        # Its integrator lets each step have a minibatch of its own.
        tiny = 1e-30  # a schedule may fall to zero
        step = self._import().sghmc(alpha=self._momentum_decay / (step_size + tiny))
        z_new, r_new = step(rng_key, z, r, gradient, step_size)
        return z_new.astype(z.dtype), r_new.astype(r.dtype)
