"""init_to_stored: inference starts at the weights that the module holds."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from numpyro.distributions import biject_to, constraints
from numpyro.infer.initialization import init_to_median


def init_to_stored(site: dict[str, Any] | None = None, num_samples: int = 15) -> Any:
    r"""Start a parameter at the module's own array, any other site at its prior median.

    It is used as NumPyro's ``init_to_median`` is: in kernels
    (``NUTS(model, init_strategy=init_to_stored)``) and in guides
    (``AutoNormal(model, init_loc_fn=init_to_stored)``). A network's initialiser chose
    the weights so that signals keep their scale from layer to layer; NumPyro's default,
    uniform between -2 and 2, saturates the network. The guides and kernels of this
    package use it by default.

    - A parameter that the prior samples in its standard form
      (:class:`~pyrox_ppl.priors.NonCentered`) starts at the noise that gives the stored
      array: :math:`(\theta - \mu) / \sigma`, with :math:`\mu` and :math:`\sigma` at
      their own starting values.
    - The members of a plate (``bind(..., plate=name)``) all start at the stored array.
    - An entry that the prior excludes (a negative one under a ``HalfNormal``) starts at
      the prior's median. Where the entries depend on one another, as in a simplex, the
      whole parameter does.
    - A site that NumPyro's own ``reparam`` adds starts at its median: it does not say
      which parameter it belongs to.

    All chains start parameters at the same point, as with ``init_to_value``. So R-hat
    cannot tell whether chains from distant points would agree. To learn that, give each
    chain its own ``init_params``, or use ``init_to_sample``.

    Args:
        site: A site of a model; None to return the function of sites itself.
        num_samples: The number of prior draws that NumPyro takes the median of.

    Returns:
        The value of the site, or a function of sites.

    Example:
        >>> import equinox as eqx, jax, numpyro, pyrox_ppl as px
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> from numpyro.infer.autoguide import AutoNormal
        >>> from pyrox_ppl.infer import init_to_stored
        >>> linear = eqx.nn.Linear(2, 1, key=jax.random.key(0))
        >>> def model():
        ...     with px.bayesianize():
        ...         px.bind(linear, "net")
        >>> guide = AutoNormal(model, init_loc_fn=init_to_stored)
        >>> svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
        >>> params = svi.get_params(svi.init(jax.random.key(1)))
        >>> bool((params["net.weight_auto_loc"] == linear.weight).all())
        True
    """
    if site is None:
        return partial(init_to_stored, num_samples=num_samples)
    if site["type"] != "sample" or site["is_observed"]:
        return None
    if site["fn"].support.is_discrete:
        return None
    if site.get("stored") is None or site["value"] is not None:
        return init_to_median(site, num_samples)
    fn, value = site["fn"], _stored(site)
    if _is_real(fn.support):
        return value
    median: Any = init_to_median(site, num_samples)
    return _where_allowed(fn.support, value, median)


def _stored(site: dict[str, Any]) -> jax.Array:
    """The stored array, or the noise that gives it, in the site's shape and dtype."""
    stored, shape = jnp.asarray(site["stored"]), site["fn"].shape()
    if isinstance(jax.device_put(np.zeros(())), Tracer):
        # In a compiled program the stored array is a constant. Without the barrier XLA
        # would evaluate the prior at a whole network while it compiles.
        stored = lax.optimization_barrier(stored)
    # NumPyro draws sites in JAX's default precision or a higher one.
    stored = stored.astype(jnp.promote_types(stored.dtype, jnp.result_type(float)))
    value = jnp.broadcast_to(stored, shape)
    if "loc_scale" in site:
        loc, scale = (jnp.broadcast_to(part, shape) for part in site["loc_scale"])
        value = (value - loc) / scale
    return value


def _is_real(support: Any) -> bool:
    if isinstance(support, constraints.independent):
        return _is_real(support.base_constraint)
    return support is constraints.real


def _where_allowed(support: Any, value: jax.Array, median: jax.Array) -> jax.Array:
    """The value where it lies strictly inside the support, else the median.

    An event whose entries depend on one another is replaced as a whole. A value on the
    edge is replaced, because its unconstrained value is infinite.
    """
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    event = (1,) * support.event_dim
    inside = support(value)
    value = jnp.where(inside.reshape(inside.shape + event), value, median)
    transform: Any = biject_to(support)
    finite = jnp.isfinite(transform.inv(value))
    finite = jnp.all(finite, axis=tuple(range(-transform.domain.event_dim, 0)))
    return jnp.where(finite.reshape(finite.shape + event), value, median)
