"""Flipout_ELBO: one draw of the weights, with random signs for each row of data."""

from typing import final

from pyrox_ppl.infer.losses._elbo import AbstractRowELBO


@final
class Flipout_ELBO(AbstractRowELBO):
    r"""The ELBO with flipout of any layer, model and guide untouched.

    A weight is drawn once, and each row of data sees the draw with random signs of its
    own, which leave the distribution of a factorised normal as it is:

    .. math:: (x_n W)_c = \sum_d x_{nd}\, \mu_{dc}
              + r_{nc} \sum_d x_{nd}\, t_{nd}\, \sigma_{dc}\, \epsilon_{dc},
              \qquad r_{nc}, t_{nd} = \pm 1

    A convolution without groups has the signs :math:`r` alone: they suffice for each
    row's distribution, and both products become one. Noise then averages out over rows,
    for the price of a second product and of random bits. All rows still share the size
    of the one draw, so the variance is higher than that of :class:`LocalReparam_ELBO`.
    The latter uses these signs itself where it cannot draw products, so it is the one
    to try first; it also says which weights may have noise for each row.

    The signs are right for each row alone, and not for several at once: under flipout
    two rows are uncorrelated, under the posterior they are not. Where a likelihood or a
    layer couples rows, weights before the coupling are drawn once, as by
    ``TraceMeanField_ELBO``.

    Args:
        num_particles: The number of draws that are averaged.
        vectorize_particles: As in NumPyro's ``ELBO``.

    Raises:
        ValueError: When the loss is evaluated, if no weight can have signs of its own
            for each row, so that ``TraceMeanField_ELBO`` would do the same.

    References:
        Wen, Y., Vicol, P., Ba, J., Tran, D. and Grosse, R. (2018). Flipout: Efficient
        Pseudo-Independent Weight Perturbations on Mini-Batches. ICLR.

    Example:
        >>> import equinox as eqx, jax, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> from numpyro.infer.autoguide import AutoNormal
        >>> from pyrox_ppl.infer import CompiledSVI, Flipout_ELBO
        >>> conv = eqx.nn.Conv1d(1, 1, 3, padding="SAME", key=jax.random.key(0))
        >>> def model(x, y=None):
        ...     with px.bayesianize():
        ...         net = px.bind(conv, "net")
        ...     with numpyro.plate("row", x.shape[0]):
        ...         mean = jax.vmap(net)(x).mean((1, 2))
        ...         numpyro.sample("y", dist.Normal(mean, 0.1), obs=y)
        >>> x = jax.random.normal(jax.random.key(1), (20, 1, 6))
        >>> optim = numpyro.optim.Adam(0.01)
        >>> svi = CompiledSVI(model, AutoNormal(model), optim, Flipout_ELBO())
        >>> y = x.sum((1, 2))
        >>> fit = svi.run(jax.random.key(0), 20, x, y=y, progress_bar=False)
        >>> bool(fit.losses[-1] < fit.losses[0])
        True
    """

    @property
    def _local(self) -> bool:
        return False
