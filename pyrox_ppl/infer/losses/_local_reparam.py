"""LocalReparam_ELBO: draws what a layer computes, not its weights."""

from typing import final

from pyrox_ppl.infer.losses._elbo import AbstractRowELBO


@final
class LocalReparam_ELBO(AbstractRowELBO):
    r"""The ELBO with local reparameterisation of any layer, model and guide untouched.

    NumPyro's losses draw a weight once for all rows of data, so the noise of all rows'
    gradients agrees and does not average out. Where a factorised normal meets a row of
    data, its product is normal too, and this loss draws that instead:

    .. math:: (x_n W)_c = \sum_d x_{nd}\, \mu_{dc}
              + \epsilon_{nc} \Big(\sum_d x_{nd}^2\, \sigma_{dc}^2\Big)^{1/2},
              \qquad \epsilon_{nc} \sim \mathcal{N}(0, 1)

    Each row then has its own noise and the right distribution. The ELBO keeps its
    expectation if the density is a sum over rows, and each row meets the weight once.
    The loss reads both off the program that the model traces to, once per compilation:

    - **drawn per row**: linear layers, ``einsum``, embeddings, scales and biases, and
      the generators of conditioners, also with ``bind(..., plate=...)``.
    - **signs per row**: where a datum meets the weight several times, at the places of
      an image (convolution), in a sequence (attention) or at the steps of a ``scan``,
      its places must share their noise. The weight is drawn once, and each datum gets
      the draw with its own random signs, as in :class:`Flipout_ELBO`.
    - **one draw** for all rows: a weight that one row meets in two products, that goes
      through an operation which is not linear before it meets data, or whose rows
      are coupled later, by batch normalisation or by a multivariate site over rows.

    :func:`~pyrox_ppl.explain` with ``loss=LocalReparam_ELBO()`` lists which parameter
    is treated how, and why. Divergences are in closed form where NumPyro has it, as in
    ``TraceMeanField_ELBO``.

    Noise for each row does not lower every variance. Row :math:`n` adds
    :math:`G_n \approx \bar G_n + A_n \epsilon` to a gradient. One draw has the variance
    :math:`(\sum_n A_n)^2`, noise for each row :math:`\sum_n A_n^2`. For a mean,
    :math:`A_n` is the standard deviation times the curvature of the row's density,
    which has one sign if the density is log-concave: the variance falls, to as little
    as :math:`1/N`. For a standard deviation, :math:`A_n` is the row's slope. Slopes
    cancel at a stationary point, so one draw leaves only the terms of second order. It
    then has twice the variance at the posterior's own width, and less than noise for
    each row below 0.7 of that width, or if residuals are larger than the likelihood
    expects, as in a classifier trained for a short time. Products with many inputs gain
    from the sum over inputs in any case; a bias or a sum over places may not. Which it
    is depends on the numbers and not on the program, so the loss does not decide.

    It acts on the parameters that ``bind`` reads as sample sites, under ``AutoNormal``,
    ``AutoFlatNormal``, ``AutoDiagonalNormal`` or a guide with a ``Normal`` site for
    each. A site whose draw another site of the guide uses is drawn once. Use the loss
    in NumPyro's ``SVI``, in :class:`CompiledSVI`, and in runs over minibatches.

    Args:
        num_particles: The number of draws that are averaged.
        vectorize_particles: As in NumPyro's ``ELBO``.

    Raises:
        ValueError: When the loss is evaluated, if no weight can have noise of its own
            for each row, so that ``TraceMeanField_ELBO`` would do the same.

    References:
        Kingma, D. P., Salimans, T. and Welling, M. (2015). Variational Dropout and the
        Local Reparameterization Trick. NeurIPS.

    Example:
        >>> import equinox as eqx, jax, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> from numpyro.infer.autoguide import AutoNormal
        >>> from pyrox_ppl.infer import CompiledSVI, LocalReparam_ELBO
        >>> mlp = eqx.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
        >>> def model(x, y=None):
        ...     with px.bayesianize():
        ...         net = px.bind(mlp, "net")
        ...     with numpyro.plate("row", x.shape[0]):
        ...         mean = jax.vmap(net)(x)[:, 0]
        ...         numpyro.sample("y", dist.Normal(mean, 0.1), obs=y)
        >>> x = jax.numpy.linspace(-1.0, 1.0, 20)[:, None]
        >>> optim = numpyro.optim.Adam(0.01)
        >>> svi = CompiledSVI(model, AutoNormal(model), optim, LocalReparam_ELBO())
        >>> fit = svi.run(jax.random.key(0), 20, x, y=x[:, 0], progress_bar=False)
        >>> bool(fit.losses[-1] < fit.losses[0])
        True
    """

    @property
    def _local(self) -> bool:
        return True
