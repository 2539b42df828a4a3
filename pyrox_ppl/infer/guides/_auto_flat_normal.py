"""AutoFlatNormal: NumPyro's mean-field guide with all sites in one vector."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax.core import Tracer
from numpyro import handlers
from numpyro.distributions.transforms import UnpackTransform

from pyrox_ppl._numpyro import AbstractVectorNormal
from pyrox_ppl.infer._computed_once import computed_once
from pyrox_ppl.infer._init_to_stored import init_to_stored
from pyrox_ppl.infer._vector import (
    Unravel,
    ravel,
    search_uniformly,
    uniform_radius,
)


class AutoFlatNormal(AbstractVectorNormal):
    r"""A normal guide with independent entries, over one vector of all sites.

    .. math:: q(u) = \prod_{d=1}^{D} \mathcal{N}(u_d \mid \mu_d, \sigma_d^2), \qquad
              \theta = T(u)

    The vector :math:`u` holds the unconstrained values of all latent sites, in the
    order of their names, as in :class:`FlatNUTS`. The family is that of NumPyro's
    ``AutoNormal`` and ``AutoDiagonalNormal``; the parameters are those of the latter.

    It pays where a model has many small sites, and compiling takes longer than the
    steps: there is one draw, and the optimiser holds two arrays instead of two per
    site. Networks of a thousand weights start in 0.7 to 0.8 of the time, step in 0.85.
    With more weights each step pays for cutting the vector and joining its gradient:
    from about 300,000 weights a step takes 1.2 to 1.4 times as long as in raw JAX.
    There, use ``AutoNormal(model, init_loc_fn=init_to_stored)`` and the loss
    ``TraceMeanField_ELBO()`` in a :class:`CompiledSVI`, which take 1.0.

    The same key gives other steps than these guides: the noise is drawn for the whole
    vector, and the guide starts elsewhere.

    **Sites**: ``param`` sites ``auto_loc`` and ``auto_scale`` of shape ``(D,)``; the
    model's latent sites, constrained, under their names. Latent sites in a subsampled
    plate, and the closed-form divergences of ``TraceMeanField_ELBO``, need
    ``AutoNormal``.

    Args:
        model: The NumPyro model.
        prefix: The beginning of the names of the ``param`` sites.
        init_loc_fn: As in ``AutoNormal``; the default is :func:`init_to_stored`.
        init_scale: The standard deviations at the start, unconstrained.

    Raises:
        RuntimeError: At the first call, if the model has no latent sites.
        ValueError: At the first call, if one of them stands in a subsampled plate.

    References:
        Kucukelbir, A., Tran, D., Ranganath, R., Gelman, A. and Blei, D. M. (2017).
        Automatic Differentiation Variational Inference. JMLR 18.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> from pyrox_ppl.infer import AutoFlatNormal
        >>> def model():
        ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        ...     numpyro.sample("x", dist.Normal(0.0, scale).expand([3]).to_event(1))
        >>> guide = AutoFlatNormal(model)
        >>> svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
        >>> fit = svi.run(jax.random.key(0), 10, progress_bar=False)
        >>> fit.params["auto_loc"].shape, sorted(guide.median(fit.params))
        ((4,), ['scale', 'x'])
    """

    def __init__(
        self,
        model: Callable,
        *,
        prefix: str = "auto",
        init_loc_fn: Callable = init_to_stored,
        init_scale: float = 0.1,
    ) -> None:
        super().__init__(
            model, prefix=prefix, init_loc_fn=init_loc_fn, init_scale=init_scale
        )

    def _lay_out(
        self, rng_key: Any, sites: dict[str, Any], potential_fn: Callable
    ) -> tuple[UnpackTransform, Any]:
        # NumPyro's order is the model's, but the names' in a compiled program.
        unpack = UnpackTransform(Unravel(sites, fused=False), ravel)
        start, radius = ravel(sites), uniform_radius(self.init_loc_fn)
        # CompiledSVI reads it, where a search has evaluated the density already.
        self._start_is_finite = None
        if not isinstance(rng_key, Tracer) or radius is None:
            return unpack, start
        # NumPyro searches for initial values site by site. In a compiled program our
        # search of the vector replaces it, and XLA drops it. Outside of one it stays,
        # because it raises errors that name the site.
        with handlers.block():
            info = search_uniformly(
                rng_key,
                lambda vector: potential_fn(unpack(vector)),
                jax.typeof(start),
                radius,
                forward=False,
            )
        self._start_is_finite = jnp.isfinite(info.potential_energy) & jnp.all(
            jnp.isfinite(info.z_grad)
        )
        return unpack, info.z

    def _draw(self, posterior: Any, sample_shape: tuple[int, ...]) -> Any:
        # One event: the plates of the model say nothing about the vector.
        joint = posterior.to_event(len(posterior.batch_shape)).expand_by(sample_shape)
        latent = numpyro.sample(
            f"_{self.prefix}_latent", joint, infer={"is_auxiliary": True}
        )
        # Else XLA would draw each piece of the vector inside the model.
        return computed_once(latent)
