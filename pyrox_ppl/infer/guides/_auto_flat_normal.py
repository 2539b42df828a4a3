"""AutoFlatNormal: NumPyro's mean-field guide with all sites in one vector."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import lax
from jax.core import Tracer
from numpyro import handlers
from numpyro.distributions.transforms import UnpackTransform

from pyrox_ppl._numpyro import AbstractVectorNormal
from pyrox_ppl.infer._init_to_stored import init_to_stored
from pyrox_ppl.infer._uniform_search import search, uniform_radius
from pyrox_ppl.infer._vector import Vector, ravel


class AutoFlatNormal(AbstractVectorNormal):
    r"""A normal guide, independent per number, over one vector of all sites.

    .. math:: q(u) = \prod_{d=1}^{D} \mathcal{N}(u_d \mid \mu_d, \sigma_d^2), \qquad
              \theta = T(u)

    with :math:`u` the unconstrained values of all latent sites, in the order of their
    names, which is that of :class:`FlatNUTS`. It is the family of NumPyro's
    ``AutoNormal`` and ``AutoDiagonalNormal``, and has the latter's parameters. A model
    of many sites compiles in a fraction of the time: there is one draw, and an
    optimiser with two arrays instead of two per site; and the vector is kept apart from
    the network, so that a step is not slower than ``AutoNormal``'s, as that of
    ``AutoDiagonalNormal`` is. With the same key it does not take the steps of either:
    the noise is drawn for the whole vector in another order, and the start is another.

    **Sites**: ``param`` sites ``auto_loc`` and ``auto_scale`` of shape ``(D,)``; the
    model's latent sites, constrained, under their names. Latent sites in a plate that
    is subsampled, and ``TraceMeanField_ELBO``'s closed-form divergences, need
    ``AutoNormal``.

    Args:
        model: The NumPyro model.
        prefix: The beginning of the names of the ``param`` sites.
        init_loc_fn: As ``AutoNormal`` has it, by default :func:`init_to_stored`.
        init_scale: The standard deviations at the start, unconstrained.

    Raises:
        RuntimeError: At the first call, if the model has no latent sites.
        ValueError: At the first call, if it has them in a subsampled plate.

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
        # NumPyro's order is that of the model, or of the names where it is compiled.
        unpack, start = UnpackTransform(Vector(sites, fused=False), ravel), ravel(sites)
        self._start_is_finite = None
        radius = uniform_radius(self.init_loc_fn)
        if not isinstance(rng_key, Tracer) or radius is None:
            return unpack, start
        # Where all is compiled, NumPyro's own search (a program per site) is not used,
        # and XLA drops it. Outside, it raises NumPyro's errors.
        with handlers.block():
            found = search(
                rng_key,
                lambda vector: potential_fn(unpack(vector)),
                jax.typeof(start),
                radius,
                forward=False,
            )
        self._start_is_finite = jnp.isfinite(found.potential_energy) & jnp.all(
            jnp.isfinite(found.z_grad)
        )
        return unpack, found.z

    def _draw(self, posterior: Any, sample_shape: tuple[int, ...]) -> Any:
        # One event: the plates of the model say nothing about the vector.
        joint = posterior.to_event(len(posterior.batch_shape)).expand_by(sample_shape)
        latent = numpyro.sample(
            f"_{self.prefix}_latent", joint, infer={"is_auxiliary": True}
        )
        # Or XLA fuses the drawing of the vector into the model.
        return lax.optimization_barrier(latent)
