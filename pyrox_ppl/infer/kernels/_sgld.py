"""SGLD: stochastic-gradient Langevin dynamics, by BlackJAX's program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pyrox_ppl.infer._init_to_stored import init_to_stored
from pyrox_ppl.infer.kernels._blackjax import import_blackjax
from pyrox_ppl.infer.kernels._minibatch_kernel import AbstractMinibatchKernel


class SGLD(AbstractMinibatchKernel):
    r"""Stochastic-gradient Langevin dynamics, for data too many for each step.

    A step of size :math:`\epsilon` follows the gradient on a minibatch, which the
    model's own subsampled plate draws anew each time:

    .. math:: u \leftarrow u + \epsilon\,\hat\nabla \log p(u, y)
        + \sqrt{2 \epsilon}\,\xi, \qquad \xi \sim \mathcal{N}(0, I)

    No step is accepted or rejected, so the draws have a bias. Where the log density has
    the curvature :math:`\lambda` and the gradient the variance :math:`V`, their
    variance is :math:`(1 + \epsilon V / 2) / (\lambda (1 - \epsilon\lambda / 2))` in
    place of :math:`1 / \lambda`. The step size must be below
    :math:`2 / \lambda`, and well below it to be right.

    Nothing is adapted: the warm-up is only the part of the run that is thrown away. A
    step that is not finite, or where the density on its minibatch is not, is counted as
    diverging, and the chain stays where it was.

    **Shapes**: ``state.z`` is ``(D,)``; the draws have their sites' shapes.

    **Sites**: those of the model, without the deterministic sites that depend on the
    rows of a minibatch.

    Args:
        model: The NumPyro model, with one ``numpyro.plate(..., subsample_size=...)`` or
            several. It takes all data, picks the rows that the plate draws, and has its
            likelihood in the plate, which scales it.
        step_size: A number, or a schedule of Optax: a function of the number of steps
            since the beginning, warm-up included. With a schedule that falls, weigh the
            draws by ``step_size`` in ``sample_stats``.
        control_variates: Whether the gradient is corrected by that at the start of the
            chain, on all data and on the minibatch (Baker et al. 2019). It pays where
            the chain starts near the mode (``init_params``) and stays there; a step
            then costs two gradients, and the start one on all data. The rows must be
            independent given the sites: no batch norm. After a change of the data,
            NumPyro's ``MCMC`` needs a new warm-up; ``CompiledMCMC`` and ``run_mcmc``
            renew the gradient of a ``post_warmup_state``.
        init_strategy: As in NUTS; the default is :func:`init_to_stored`.

    Raises:
        TypeError: If `model` is not a function.
        ValueError: If the step size is not positive or diverges at once, or if the
            model has a discrete latent site, no subsampled plate, latents in it, or a
            likelihood that stands outside of it or does not depend on its rows.
        RuntimeError: If a discrete latent site has infinitely many values.
        ImportError: If BlackJAX is not installed.

    References:
        Welling, M. and Teh, Y. W. (2011). Bayesian Learning via Stochastic Gradient
        Langevin Dynamics. ICML. Baker, J., Fearnhead, P., Fox, E. B. and Nemeth, C.
        (2019). Control Variates for Stochastic Gradient MCMC. Statistics and
        Computing 29.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC
        >>> from pyrox_ppl.infer import SGLD
        >>> def model(y):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", len(y), subsample_size=10) as rows:
        ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])
        >>> mcmc = MCMC(SGLD(model, step_size=1e-3), num_warmup=100, num_samples=200,
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
        control_variates: bool = False,
        init_strategy: Callable = init_to_stored,
    ) -> None:
        super().__init__(model, step_size, control_variates, init_strategy)

    def _import(self) -> Any:
        return import_blackjax("sgmcmc.sgld", "SGLD")

    def _first_momentum(self, rng_key: Any, z: jax.Array) -> jax.Array:
        return jnp.zeros(0, z.dtype)

    def _move(
        self,
        rng_key: Any,
        gradient: jax.Array,
        z: jax.Array,
        r: jax.Array,
        step_size: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        step = self._import().build_kernel()
        moved = step(rng_key, z, lambda *_: gradient, None, step_size)
        return moved.astype(z.dtype), r
