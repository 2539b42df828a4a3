"""AutoSWAG: the normal distribution of the iterates of an optimiser (SWAG)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import lax
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.autoguide import AutoDelta
from numpyro.primitives import mutable

from pyrox_ppl.infer._init_to_stored import init_to_stored
from pyrox_ppl.infer.guides._moments import (
    Location,
    Moments,
    add_iterate,
    can_collect,
    check_count,
    check_sites,
    draw_location,
    marginal_scale,
    no_moments,
    without_history,
)
from pyrox_ppl.infer.guides._unconstrained import (
    check_fixed_supports,
    check_whole_plates,
    constrain,
    latent_sites,
    make_plates,
    sample_at,
    transform_of,
)

Draws = dict[str, jax.Array]

_WHOLE_PLATES = (
    "its iterates are no sample: give such sites another guide in an AutoGuideList, "
    "such as AutoNormal, and AutoSWAG the rest."
)


class AutoSWAG(AutoDelta):
    r"""A normal guide with the moments of the iterates of SVI (SWA-Gaussian).

    .. math::
        q(u) = \mathcal{N}\left(\bar u,\; \tfrac12 \operatorname{diag}(s^2)
        + \tfrac{1}{2 (K - 1)} D D^\top\right), \qquad \theta = T(u)

    SVI trains a location in unconstrained space, the mode of the posterior density of
    :math:`u`. After `start` steps, every `every`-th iterate is collected:
    :math:`\bar u` is their mean, :math:`s^2` their variance, and the K columns of D are
    the last iterates, each minus the mean at its time. With ``rank=0`` the covariance
    is :math:`\operatorname{diag}(s^2)`.

    The iterates spread because gradients are noisy: run it on minibatches, with an
    optimiser at a *constant* rate, such as ``numpyro.optim.SGD``, after the loss has
    ceased to fall. The rate sets the spread, which is that of the posterior for one
    rate only (Mandt et al. 2017). Start at a MAP fit by ``init_params=fit.params``,
    with the ``params`` of an ``AutoDelta`` or of an AutoSWAG, or set `start`::

        guide = AutoSWAG(model)
        svi = SVI(model, guide, numpyro.optim.SGD(1e-4), Trace_ELBO())
        fit = run_minibatches(svi, key, loader, 50, init_params=map_fit.params)
        tree = to_datatree(fit, x, y=y, guide=guide)

    **What is collected**: n steps show the iterates 1 to n - 1, because a step sees the
    location before it. A step that `stable_update` leaves out is not counted; nor are
    evaluations. With `held_out`, :func:`run_minibatches` returns the moments as they
    were after the epoch whose loss *at the location* was least; leave it out to keep
    all epochs. A weight that never moves has no spread. The state of a network's layers
    (running statistics) is that of the last step. ``init_params`` starts a new
    collection, ``init_state`` continues one.

    **Where it is kept**: in the ``params`` of :func:`run_minibatches`, :func:`run_svi`
    and :class:`CompiledSVI`, which are all that draws need. NumPyro's ``svi.run``
    leaves it in its state: pass ``{**fit.params, **fit.state.mutable_state}``. With
    these, ``sample_posterior`` and :func:`to_datatree` draw; NumPyro's
    ``Predictive(guide, params=...)`` draws with the ``params`` of our runs, and repeats
    the location with the values of the state, as it does while SVI trains.

    **Sites**: ``param`` sites ``<site>_auto_loc``, as those of ``AutoDelta``; a
    ``mutable`` site ``auto_moments``; the model's latent sites. It needs a loss of one
    particle, and refuses latent sites in a subsampled plate.

    Args:
        model: The NumPyro model.
        rank: The number K of deviations in the covariance, 0 or at least 2.
        start: After how many steps to begin: the first iterate that is collected is
            that after ``start + every`` steps.
        every: How many steps apart the collected iterates are, for example the steps of
            an epoch. Neighbours are nearly the same.
        prefix: The beginning of the names of its own sites.
        init_loc_fn: As in ``AutoDelta``; the default is :func:`init_to_stored`.

    Raises:
        ValueError: If `rank`, `start` or `every` is out of range. At the first call, if
            a latent site is discrete, stands in a subsampled plate or has a support
            that depends on another site. When draws are asked for, if fewer iterates
            were collected than `rank`, or fewer than two, or if the parameters are
            those of another guide.
        RuntimeError: At the first call, if the model has no latent sites.

    References:
        Maddox, W., Garipov, T., Izmailov, P., Vetrov, D. and Wilson, A. G. (2019). A
        Simple Baseline for Bayesian Uncertainty in Deep Learning. NeurIPS.
        Mandt, S., Hoffman, M. D. and Blei, D. M. (2017). Stochastic Gradient Descent as
        Approximate Bayesian Inference. JMLR 18.

    Example:
        >>> import jax, numpy as np, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> from pyrox_ppl.infer import AutoSWAG, MinibatchLoader, run_minibatches
        >>> y = np.random.default_rng(0).normal(1.0, 1.0, 64).astype(np.float32)
        >>> loader = MinibatchLoader((y,), 16, rng_key=jax.random.key(0))
        >>> def model(y):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", loader.num_rows, subsample_size=len(y)):
        ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> guide = AutoSWAG(model, rank=5, start=20)
        >>> svi = SVI(model, guide, numpyro.optim.SGD(0.005), Trace_ELBO())
        >>> fit = run_minibatches(
        ...     svi, jax.random.key(1), loader, 20, progress_bar=False
        ... )
        >>> draws = guide.sample_posterior(
        ...     jax.random.key(2), fit.params, sample_shape=(100,)
        ... )
        >>> draws["mean"].shape
        (100,)
    """

    def __init__(
        self,
        model: Callable,
        *,
        rank: int = 20,
        start: int = 0,
        every: int = 1,
        prefix: str = "auto",
        init_loc_fn: Callable = init_to_stored,
    ) -> None:
        if rank != 0 and rank < 2:
            raise ValueError(
                f"rank must be 0 (a diagonal covariance) or at least 2, got {rank}."
            )
        if start < 0 or every < 1:
            raise ValueError(
                "start must be a number of steps, 0 or more, and every at least 1, got "
                f"start={start} and every={every}."
            )
        super().__init__(model, prefix=prefix, init_loc_fn=init_loc_fn)
        self.rank, self.start, self.every = rank, start, every

    def __call__(self, *args: Any, **kwargs: Any) -> Draws:
        """Sample every latent site at the location, and collect it.

        Returns:
            The values of the latent sites, by name.
        """
        is_first = self.prototype_trace is None
        # AutoDelta's own sample sites have the density of the constrained space.
        with handlers.block(hide_fn=lambda msg: msg["type"] in ("sample", "plate")):
            values = super().__call__(*args, **kwargs)
        sites = latent_sites(self)
        if is_first:
            check_whole_plates(sites, self.prototype_trace, _WHOLE_PLATES)
            check_fixed_supports(sites, self.model, args, kwargs)
        location = {
            name: lax.stop_gradient(transform_of(sites[name]).inv(value))
            for name, value in values.items()
        }
        fresh: Any = no_moments(location, self.rank)
        moments: Any = mutable(self._name, fresh)
        if can_collect(moments):
            moments.update(
                add_iterate(moments, location, start=self.start, every=self.every)
            )
        else:
            key: Any = numpyro.prng_key()
            values = self._to_latents(draw_location(key, moments, self.rank))
            # An SVI that starts at a finished fit collects anew.
            moments.clear()
            moments.update(fresh)
        plates = make_plates(sites)
        return {n: sample_at(sites[n], value, plates) for n, value in values.items()}

    def sample_posterior(
        self,
        rng_key: jax.Array,
        params: dict[str, Any],
        *args: Any,
        sample_shape: tuple[int, ...] = (),
        **kwargs: Any,
    ) -> Draws:
        """Draws of all latent sites, and of deterministic ones.

        Args:
            rng_key: A PRNG key.
            params: The ``fit.params`` of our runs; for NumPyro's ``svi.run``,
                ``{**fit.params, **fit.state.mutable_state}``.
            *args: The model's arguments, needed if it has deterministic sites.
            sample_shape: The shape of the draws.
            **kwargs: The model's keyword arguments.

        Returns:
            The draws by site name, `sample_shape` in front.
        """
        moments = self._moments(params)
        key, other = jax.random.split(rng_key)

        def draw(key: jax.Array) -> Draws:
            return self._to_latents(draw_location(key, moments, self.rank))

        keys = jax.random.split(key, sample_shape) if sample_shape else key
        for _ in sample_shape:
            draw = jax.vmap(draw)
        draws = draw(keys)
        trace: Any = self.prototype_trace
        names = [n for n, site in trace.items() if site["type"] == "deterministic"]
        if not names:
            return draws
        predictive = Predictive(
            self.model,
            posterior_samples=draws,
            params=params,
            return_sites=names,
            batch_ndims=len(sample_shape),
        )
        return {**draws, **predictive(other, *args, **kwargs)}

    def median(self, params: dict[str, Any]) -> Draws:
        """The median of every latent site: the mean of the iterates, constrained."""
        return self._to_latents(self._moments(params)["mean"])

    def quantiles(self, params: dict[str, Any], quantiles: Any) -> Draws:
        """Quantiles of every latent site, along the first axis.

        Args:
            params: As for ``sample_posterior``.
            quantiles: Probabilities.
        """
        moments = self._moments(params)
        scale = marginal_scale(moments, self.rank)

        def at(level: jax.Array) -> Draws:
            return self._to_latents(
                {
                    name: dist.Normal(mean, scale[name]).icdf(level)
                    for name, mean in moments["mean"].items()
                }
            )

        levels = jnp.asarray(quantiles)
        for _ in levels.shape:
            at = jax.vmap(at)
        return at(levels)

    def collected_params(self, mutable_state: dict[str, Any] | None) -> dict[str, Any]:
        """What the ``params`` of a finished fit hold besides the location.

        Args:
            mutable_state: The fit's ``state.mutable_state``.
        """
        moments = (mutable_state or {}).get(self._name)
        return {} if moments is None else {self._name: without_history(moments)}

    @property
    def _name(self) -> str:
        return f"{self.prefix}_moments"

    def _to_latents(self, location: Location) -> Draws:
        return constrain(latent_sites(self), location)

    def _moments(self, params: dict[str, Any]) -> Moments:
        """The collected moments.

        Raises:
            ValueError: If there are none, too few, or those of another guide.
        """
        sites = latent_sites(self)
        if self._name not in params:
            raise ValueError(
                f"params has no {self._name!r}, the moments that AutoSWAG collects; it "
                f"has {sorted(params)}. Pass the params of a run_minibatches, run_svi "
                "or CompiledSVI with this guide; after NumPyro's svi.run, pass "
                "{**fit.params, **fit.state.mutable_state}."
            )
        moments = params[self._name]
        shapes = {
            name: transform_of(site).inverse_shape(jnp.shape(site["value"]))
            for name, site in sites.items()
        }
        check_sites(moments, shapes)
        check_count(moments, self.rank, f"start={self.start} and every={self.every}")
        return moments
