"""AutoLaplace: a normal posterior at the mode, from the curvature of the likelihood."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from pyrox_ppl.infer._init_to_stored import init_to_stored
from pyrox_ppl.infer.guides._laplace_fit import LaplaceFit, params_of, put_into
from pyrox_ppl.infer.guides._laplace_members import over_members
from pyrox_ppl.infer.guides._laplace_pass import go_through
from pyrox_ppl.infer.guides._mode_guide import AbstractModeGuide, Draws
from pyrox_ppl.infer.guides._select_sites import select_sites
from pyrox_ppl.infer.guides._tune_prior import find_scales

Structure = Literal["kron", "diag", "low_rank", "full"]


class AutoLaplace(AbstractModeGuide):
    r"""A normal posterior around the mode, of the inverse curvature there.

    .. math::
        q(u) = \mathcal{N}\big(u^*, (H + P)^{-1}\big), \qquad \theta = T(u), \qquad
        H = \sum_n J_n^\top \Lambda_n J_n

    SVI trains the mode :math:`u^*` of the joint density in unconstrained space. Then
    :meth:`add_curvature` adds :math:`H`, the generalised Gauss-Newton (Fisher) matrix
    of the observed sites, and :math:`P`, the prior's negative second derivative::

        guide = AutoLaplace(model)
        svi = SVI(model, guide, optim, Trace_ELBO())
        fit = svi.run(key, 10_000, x, y)
        fit = guide.add_curvature(fit, x, y)
        tree = px.to_datatree(fit, x, y, guide=guide)
        px.predict(model, tree, x_new)

    :math:`H` is the curvature of a model that is linear in the latents
    (:func:`~pyrox_ppl.linearize`), and by default that model makes the predictions: the
    tree remembers the mode, and ``to_datatree``, ``predict`` and ``diagnose`` use the
    tangent there. With ``linearized=False`` they use the model itself at the draws,
    which is usually much worse. The draws of ``sample_posterior`` do not remember the
    mode, and ``px.predict(net, draws, x)`` is the network itself at them: use the tree,
    or ``Predictive(px.linearize(model, guide.median(params)), draws)``. A call of the
    guide, and so NumPyro's ``Predictive(model, guide=guide)``, is the mode alone.

    **Structures**: ``"full"``, one matrix over all entries; ``"kron"``, for each weight
    the Kronecker product of two small matrices (Ritter et al., 2018), the usual choice
    for networks; ``"low_rank"``, the leading eigenvectors; ``"diag"``, the diagonal.

    **Sites**: the model's latent sites; a ``param`` site ``<site>_auto_loc`` for each.
    :meth:`add_curvature` adds arrays to ``params`` whose names begin with
    ``auto_laplace``, so that a saved fit draws and predicts without its data.

    Args:
        model: The NumPyro model.
        structure: The structure of the curvature.
        where: The sites that have a spread: a glob on their names, a sequence of globs,
            or a predicate on :class:`~pyrox_ppl.Parameter`. The others stay at the mode
            (last-layer and subnetwork Laplace).
        linearized: Whether predictions are those of the linearised model.
        rank: The rank of ``"low_rank"``.
        damping: A number that is added to the diagonal of the precision.
        prefix: The beginning of the names of ``param`` sites.
        init_loc_fn: Where SVI starts, as in ``AutoNormal``; the default is
            :func:`init_to_stored`.

    Raises:
        ValueError: If `structure` is unknown. At the first call, if a latent site is
            discrete, stands in a subsampled plate or has a support that depends on
            another site, or if `where` matches no site.
        RuntimeError: At the first call, if the model has no latent sites.

    References:
        MacKay, D. J. C. (1992). Bayesian Interpolation. Neural Computation 4(3).
        Ritter, H., Botev, A., Barber, D. (2018). A Scalable Laplace Approximation for
        Neural Networks. ICLR.
        Immer, A., Korzepa, M., Bauer, M. (2021). Improving predictions of Bayesian
        neural nets via local linearization. AISTATS.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> from pyrox_ppl.infer import AutoLaplace
        >>> def model(x, y=None):
        ...     slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", len(x)):
        ...         numpyro.sample("y", dist.Normal(slope * x, 0.5), obs=y)
        >>> x = jnp.linspace(-1.0, 1.0, 8)
        >>> guide = AutoLaplace(model, "full")
        >>> svi = SVI(model, guide, numpyro.optim.Adam(0.05), Trace_ELBO())
        >>> fit = svi.run(jax.random.key(0), 500, x, 2.0 * x, progress_bar=False)
        >>> fit = guide.add_curvature(fit, x, 2.0 * x)
        >>> low, high = guide.quantiles(fit.params, [0.5, 0.8413])["slope"]
        >>> exact = (1.0 + jnp.sum(x**2) / 0.5**2) ** -0.5
        >>> abs(float((high - low) / exact) - 1.0) < 1e-3
        True
    """

    def __init__(
        self,
        model: Callable,
        structure: Structure = "kron",
        *,
        where: Any = None,
        linearized: bool = True,
        rank: int = 20,
        damping: float = 0.0,
        prefix: str = "auto",
        init_loc_fn: Callable = init_to_stored,
    ) -> None:
        if structure not in (names := get_args(Structure)):
            raise ValueError(f"structure must be one of {names}, got {structure!r}.")
        if rank < 1 or not 0 <= damping < float("inf"):
            raise ValueError(
                "rank must be at least 1, and damping finite and not negative, got "
                f"{rank} and {damping}."
            )
        super().__init__(model, prefix=prefix, init_loc_fn=init_loc_fn)
        self.structure: Structure = structure
        self.where, self.linearized = where, linearized
        self.rank, self.damping = rank, damping

    def add_curvature(
        self,
        fit: Any,
        *args: Any,
        model: Callable | None = None,
        max_decrement: float = 0.1,
        fisher_samples: int | None = None,
        rng_key: jax.Array | None = None,
        **kwargs: Any,
    ) -> Any:
        r"""Add the curvature at the mode to the parameters of a fit.

        With arguments as in the fit, a plate that draws minibatches takes all rows.
        With a :class:`MinibatchLoader` in their place, the model is called with its
        batches, as in :func:`run_minibatches`, and all rows count once.

        A fit of :func:`run_ensemble` gets the curvature of each member at its own mode.
        Its tree is a mixture: each chain has the draws and the tangent of one member.

        The Newton decrement :math:`g^\top (H + P)^{-1} g`, with the gradient :math:`g`
        of the log joint, is the squared distance to the mode in standard deviations of
        the posterior. It must be at most `max_decrement` times the number of weights:
        a draw is at a squared distance of about that number.

        ``"kron"`` and ``"diag"`` take a backward pass for each column of a row's Fisher
        information (C - 1 for C classes, D for D normal outputs), or `fisher_samples`.

        Args:
            fit: What SVI or :func:`run_ensemble` returned: a result with ``params``, or
                these alone.
            *args: The arguments of the model, data included, or one loader.
            model: A model to use instead of the guide's, with the same sites, such as a
                network in inference mode.
            max_decrement: How far from the mode the fit may be, per weight.
            fisher_samples: How many sums with random signs take the place of these
                columns, an estimate without bias; by default all columns. A likelihood
                without a formula takes this many sampled labels a row, by default one.
            rng_key: The key of what is sampled; ``jax.random.key(0)`` if not given.
            **kwargs: The keyword arguments of the model.

        Returns:
            The same kind of fit, with more ``params``.

        Raises:
            ValueError: If the fit is of another guide; if the parameters
                are no mode for these data; if the precision is not positive; if the
                model sees a part of the data, or does not scale a batch up to all data;
                or if a likelihood or a prior has no curvature of this structure.
        """
        params = params_of(fit)

        def add(params: Mapping, key: jax.Array, compiled: Any) -> Draws:
            return go_through(
                self.model if model is None else model,
                self._unconstrained(params),
                params,
                args,
                kwargs,
                structure=self.structure,
                sites=select_sites(self.where, self._latents(params)),
                rank=self.rank,
                damping=self.damping,
                rng_key=key,
                fisher_samples=fisher_samples,
                max_decrement=max_decrement,
                compiled=compiled,
            ).to_params(self._prefix, self.median(params))

        added = over_members(add, params, rng_key, self._num_members(params))
        return put_into(fit, added, in_place_of=self.added_params(params))

    def sample_posterior(
        self,
        rng_key: jax.Array,
        params: dict[str, Any],
        *args: Any,
        sample_shape: tuple[int, ...] = (),
        **kwargs: Any,
    ) -> Draws:
        """Draws of all latent sites, without the mode: see the class.

        Args:
            rng_key: A PRNG key.
            params: The parameters of a fit with curvature.
            *args: Not needed.
            sample_shape: The shape of the draws, which comes first.
            **kwargs: Not needed.

        Raises:
            ValueError: If `params` hold no curvature of their mode, or many members.
        """
        values = self._fit(params).sample(
            rng_key, sample_shape, self._unconstrained(params), self.damping
        )
        return self._to_latents(values)

    def quantiles(self, params: dict[str, Any], quantiles: Any) -> Draws:
        """Quantiles of every latent site, along the first axis.

        Args:
            params: The parameters of a fit with curvature.
            quantiles: Probabilities.
        """
        levels, mode = jnp.asarray(quantiles), self._unconstrained(params)
        values = self._fit(params).quantiles(levels, mode, self.damping)
        return self._to_latents(values)

    def log_evidence(self, fit: Any) -> jax.Array:
        r"""Laplace's estimate of the log marginal likelihood, in nats.

        .. math::
            \log p(y, u^*) + \frac{D}{2} \log 2 \pi - \frac12 \log \det (H + P)

        Sites outside `where` count with their prior density.

        Args:
            fit: A fit with curvature, or its ``params``.
        """
        return self._fit(params_of(fit)).log_evidence(self.damping)

    def tune_prior(
        self,
        fit: Any,
        *args: Any,
        groups: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, dist.Distribution]:
        r"""Prior scales that maximise the evidence of the linearised model.

        The mode of the linearised model moves with the scales. For a model that is
        linear with normal noise this is the exact evidence; for a network, fit again
        with the new prior, and repeat. Each group of sites has one factor, by which the
        scales of its priors are multiplied (MacKay, 1992).

        Args:
            fit: A fit with curvature, or its ``params``.
            *args: The arguments of the model, as in the fit, or one loader.
            groups: Globs on the names of sites, each of which is one group; sites that
                none matches keep their prior. By default each site is one.
            **kwargs: The keyword arguments of the model.

        Returns:
            The new priors by name, for ``bayesianize(prior=...)``.

        Raises:
            ValueError: If a prior is not a Normal whose scale is fixed, if a glob
                matches nothing, or if the fit has no curvature.
        """
        params = params_of(fit)
        return find_scales(
            self._fit(params),
            self.model,
            self._unconstrained(params),
            params,
            args,
            kwargs,
            groups=groups,
            damping=self.damping,
        )

    def added_params(self, params: Mapping[str, Any]) -> list[str]:
        """The names of what :meth:`add_curvature` added to parameters."""
        return [name for name in params if name.startswith(f"{self._prefix}.")]

    @property
    def _prefix(self) -> str:
        return f"{self.prefix}_laplace"

    def _check_latents(self, latents: Mapping[str, Any]) -> None:
        select_sites(self.where, latents)

    def _fit(self, params: Mapping[str, Any]) -> LaplaceFit:
        self._check_one_fit(params)
        sites = select_sites(self.where, self._latents(params))
        mode = self.median(params)
        return LaplaceFit.from_params(params, self._prefix, self.structure, sites, mode)
