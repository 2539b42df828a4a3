"""AmortizedGuide: an encoder maps each datum's context to its latents' posterior."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import numpyro.distributions as dist
from jax.core import Tracer
from numpyro import handlers
from numpyro.infer.autoguide import AutoGuide, AutoNormal

from pyrox_ppl._bind import bind
from pyrox_ppl._divergence import check_trained_values
from pyrox_ppl._parameter import check_name, parameters_of
from pyrox_ppl.handlers import learn
from pyrox_ppl.infer._init_to_stored import init_to_stored
from pyrox_ppl.infer.guides._gaussian import (
    Family,
    marginal_law,
    num_parameters,
    sample_delta,
    sample_joint,
    sample_normal,
    split_parameters,
)
from pyrox_ppl.infer.guides._local_sites import PlateSummary, find_local_sites

Draws = dict[str, jax.Array]

_normal = partial(AutoNormal, init_loc_fn=init_to_stored)


class AmortizedGuide:
    r"""A guide for models with latent variables per datum, in a (subsampled) plate.

    .. math::
        q(u_{1:N}, v) = q(v) \prod_{n=1}^N q(u_n \mid e_\phi(c_n)), \qquad
        b^{-1}(u_n) \sim \mathrm{Normal}(\mu_n, \Sigma_n)

    An encoder :math:`e_\phi` maps the context :math:`c_n` of a datum to the parameters
    of a Gaussian over its unconstrained latents; the bijection :math:`b` maps these to
    their supports. SVI learns the encoder, which then serves any number of data,
    minibatches, and data that it has not seen. The other latents :math:`v` get an
    ordinary autoguide.

    **Shapes**: with D unconstrained numbers per datum, over all latent sites in the
    plate in the order of the model, the encoder returns ``(2 D,)`` for
    ``family="diagonal"``: the means, then the standard deviations before a softplus;
    and ``(D + D (D + 1) / 2,)`` for ``family="full"``: the means, then a Cholesky
    factor row by row, its diagonal before a softplus.

    **Sites**: the model's latent sites; a param site per parameter of the encoder,
    ``<prefix>.layers.0.weight`` and so on; the sites of the autoguide; and, for
    ``family="full"``, the auxiliary ``_<prefix>_latent``.

    Args:
        model: A NumPyro model.
        encoder: An Equinox module (or any callable pytree) from the context of *one*
            datum to the parameters of its latents' posterior.
        plate: The name of the plate of the data. It may be subsampled: the guide draws
            the minibatch, and the model uses it.
        context: A function of the model's arguments that returns the contexts: an array
            (or a pytree of arrays) with the data on the first axis, all of them, or the
            minibatch if the model is given only that.
        family: ``"diagonal"`` or ``"full"``: the covariance of a datum's latents.
        guide: The guide of the other latents: an autoguide class (or any function from
            a model to an autoguide), or an autoguide of a model in which
            ``handlers.block`` hides the local sites. The default is ``AutoNormal`` with
            :func:`~pyrox_ppl.infer.init_to_stored`.
        prefix: The beginning of the names of the encoder's param sites.

    Raises:
        ValueError: If `family` is unknown or the encoder has no parameters. On the
            first call, if the model has no such plate, or no latent site in it, or a
            discrete one; if the encoder's output or the contexts have the wrong size;
            or if the autoguide also samples local sites.

    References:
        Kingma, D. P., Welling, M. (2014). Auto-Encoding Variational Bayes. ICLR.
        Hoffman, M. D., Blei, D. M., Wang, C., Paisley, J. (2013). Stochastic
        Variational Inference. JMLR 14.

    Example:
        >>> import equinox as eqx, jax, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> from numpyro.infer import Trace_ELBO
        >>> from pyrox_ppl.infer import CompiledSVI
        >>> def model(y):
        ...     noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        ...     with numpyro.plate("data", len(y), subsample_size=10) as rows:
        ...         u = numpyro.sample("u", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("y", dist.Normal(u, noise), obs=y[rows])
        >>> encoder = eqx.nn.MLP("scalar", 2, 8, 1, key=jax.random.key(0))
        >>> guide = px.AmortizedGuide(model, encoder, plate="data", context=lambda y: y)
        >>> svi = CompiledSVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
        >>> y = jax.random.normal(jax.random.key(1), (50,))
        >>> fit = svi.run(jax.random.key(2), 5, y, progress_bar=False)
        >>> new = guide.posterior(fit.params, jax.numpy.array([0.3, -1.0]))
        >>> new["u"].mean.shape
        (2,)
    """

    def __init__(
        self,
        model: Callable,
        encoder: Callable,
        *,
        plate: str,
        context: Callable,
        family: Family = "diagonal",
        guide: Callable[[Callable], AutoGuide] | AutoGuide = _normal,
        prefix: str = "encoder",
    ) -> None:
        if family not in ("diagonal", "full"):
            raise ValueError(f"family must be 'diagonal' or 'full', got {family!r}.")
        self._names = [
            read.parameter.name for read in parameters_of(encoder, check_name(prefix))
        ]
        if not self._names:
            raise ValueError(
                f"the encoder {encoder!r} has no parameters to learn: pass the Equinox "
                "module itself, not a function that calls it."
            )
        self.model = model
        self.encoder = encoder
        self.plate = plate
        self.context = context
        self.family: Family = family
        self.prefix = prefix
        self._guide = guide
        self._other: AutoGuide | None = guide if isinstance(guide, AutoGuide) else None
        self._plate_summary: PlateSummary | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Draws:
        """Sample every latent site; the arguments are the model's.

        Returns:
            The values of the latent sites, by name.
        """
        local = find_local_sites(self.model, self.plate, args, kwargs)
        if self._plate_summary is None:
            self._plate_summary = local
        draws = self._sample_others(local, args, kwargs)
        with learn(where="*"):
            net = bind(self.encoder, self.prefix)
        plates = local.plates()
        with plates[self.plate] as members:
            rows = local.rows(self.context(*args, **kwargs), members)
        loc, spread = split_parameters(
            self.family, self._encode(net, rows, local), local.dim
        )
        latent = None
        if self.family == "full":
            name = f"_{self.prefix}_latent"
            latent = sample_joint(name, loc, spread, plates[self.plate])
        for site, part in local.parts():
            with contextlib.ExitStack() as stack:
                for frame in site.frames:
                    stack.enter_context(plates[frame.name])
                draws[site.name] = (
                    sample_normal(site, loc[:, part], spread[:, part])
                    if latent is None
                    else sample_delta(site, latent[:, part])
                )
        return draws

    def posterior(
        self, params: dict[str, Any], context: Any
    ) -> dict[str, dist.Distribution]:
        """The posterior of the latents of new data, by one pass through the encoder.

        **Shapes**: the data are on the first axis of every array of `context`, and on
        the first batch axis of every distribution.

        Args:
            params: The parameters that SVI learned: ``fit.params``.
            context: The contexts, as the guide's `context` returns them.

        Returns:
            A distribution by site name. For ``family="full"`` it is the marginal of the
            site, which keeps the correlations between the site's own entries.

        Raises:
            ValueError: If the guide has not run yet (``svi.init`` runs it), if `params`
                lacks parameters of the encoder or holds NaN, or if a support depends on
                values that existed only inside a compiled run.
        """
        local = self._known_plate()
        missing = [name for name in self._names if name not in params]
        if missing:
            raise ValueError(f"params lacks the encoder's {missing}: pass fit.params.")
        check_trained_values({name: params[name] for name in self._names})
        supports = [site.support for site in local.sites]
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(supports)):
            raise ValueError(
                "the support of a local site depends on values that existed only "
                "inside a compiled run: call sample_posterior(rng_key, params, *args)."
            )
        with handlers.block(), handlers.substitute(data=params), learn(where="*"):
            net = bind(self.encoder, self.prefix)
        loc, spread = split_parameters(
            self.family, self._encode(net, context, local), local.dim
        )
        return {
            site.name: marginal_law(site, loc[:, part], spread[:, part])
            for site, part in local.parts()
        }

    def sample_posterior(
        self,
        rng_key: jax.Array,
        params: dict[str, Any],
        *args: Any,
        sample_shape: tuple[int, ...] = (),
        **kwargs: Any,
    ) -> Draws:
        """Joint draws of all latent sites, local and other.

        Args:
            rng_key: A PRNG key.
            params: The parameters that SVI learned: ``fit.params``.
            *args: The model's arguments.
            sample_shape: The shape of the draws.
            **kwargs: The model's keyword arguments.

        Returns:
            The draws by site name, `sample_shape` in front.

        Raises:
            ValueError: If the guide has not run yet.
        """
        # Arguments of the program: XLA slowly evaluates constants while it compiles.
        arrays, static = eqx.partition(params, eqx.is_array)

        def draw(key: jax.Array, arrays: Any) -> Draws:
            values = eqx.combine(arrays, static)
            with handlers.substitute(data=values), handlers.seed(rng_seed=key):
                return self(*args, **kwargs)

        self._known_plate()
        keys = jax.random.split(rng_key, sample_shape) if sample_shape else rng_key
        for _ in sample_shape:
            draw = jax.vmap(draw, (0, None))
        # The guide runs the model only for its shapes. Under jit XLA drops that run.
        return jax.jit(draw)(keys, arrays)

    def _known_plate(self) -> PlateSummary:
        """The plate, as the first run found it."""
        if self._plate_summary is None:
            raise ValueError(
                "the guide has not seen the model yet: run it once, for example by "
                "svi.init(rng_key, *args), before posterior or sample_posterior."
            )
        return self._plate_summary

    @property
    def is_set_up(self) -> bool:
        """Whether the guide has run once, and so knows the model's sites."""
        return self._plate_summary is not None

    def _sample_others(self, local: PlateSummary, args: tuple, kwargs: Any) -> Draws:
        """Run the autoguide of the latents outside the plate."""
        if not local.has_global:
            return {}
        if self._other is None:
            self._other = self._guide(handlers.block(self.model, hide_fn=self._hides))
        draws = self._other(*args, **kwargs)
        both = sorted(local.names & set(draws))
        if both:
            raise ValueError(
                f"the given autoguide also samples the local sites {both}: make it "
                f"from `numpyro.handlers.block(model, hide={both})`."
            )
        return draws

    def _hides(self, msg: dict[str, Any]) -> bool:
        """Whether a site is hidden from the autoguide."""
        local = (
            self._plate_summary is not None
            and msg.get("name") in self._plate_summary.names
        )
        return local or msg["type"] == "deterministic"

    def _encode(self, net: Callable, rows: Any, local: PlateSummary) -> jax.Array:
        """Apply the encoder to every row; raise if its output has the wrong width."""
        encode, expected = jax.vmap(net), (num_parameters(self.family, local.dim),)
        got = jax.eval_shape(encode, rows)
        shape = got.shape[1:] if hasattr(got, "shape") else type(got).__name__
        if shape != expected:
            raise ValueError(
                f"the encoder returns {shape} for a datum, but must return {expected}: "
                f"the local sites {[site.name for site in local.sites]} have "
                f"{local.dim} unconstrained numbers per datum, and family is "
                f"{self.family!r}."
            )
        return encode(rows)
