"""The Fisher information of a distribution: a square root, applied to its parameters.

A distribution with the parameters eta has the Fisher information S^T S at eta_0. This
file computes z = S(eta_0) eta, with S held constant. If eta is a function of u, the
generalised Gauss-Newton matrix is a product of Jacobians of one array,

    sum_n J_n^T S_n^T S_n J_n = (dz/du)^T (dz/du),

positive semi-definite whatever the model is. The last axis of z holds the columns of
one datum, the axes before it are the batch axes of the distribution.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jax.scipy.special import polygamma
from numpyro.distributions import (
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
)

from pyrox_ppl._numpyro import mask_of_distribution

Parts = list[jax.Array]


class Whitened(NamedTuple):
    """The whitened parameters of an observed site.

    Attributes:
        parts: Arrays z, with the site's scale and mask applied: the batch axes, then
            one of columns. Parameters that may not depend on latent sites stand apart.
        weight: The weight of each row: the scale where the mask is true, else zero.
        event_dim: The number of axes of one datum that are no batch axes here.
        batch_dim: The number of axes that are batch axes of the site as well.
    """

    parts: list[jax.Array]
    weight: jax.Array
    event_dim: int
    batch_dim: int


def whiten(
    site: dict[str, Any], key: jax.Array | None, num_samples: int | None = None
) -> Whitened:
    """Compute the whitened parameters of an observed site, and the weights of its rows.

    Args:
        site: An observed site of a trace.
        key: A PRNG key for what is sampled; None if the information is exact.
        num_samples: How many labels of each datum are sampled where the information has
            no closed form; None for one.

    Returns:
        The whitened parameters.

    Raises:
        ValueError: If the Fisher information is neither known nor can be sampled.
    """
    outer, name, value = site["fn"], site["name"], site["value"]
    fn, masks = _unwrap(outer)
    if isinstance(fn, dist.Unit):
        raise ValueError(
            f"the site {name!r} is a numpyro.factor, which is a number and no "
            "distribution, so it has no Fisher information. Write the likelihood as a "
            "sample site with obs=, and a prior as the distribution of its site."
        )
    given = jnp.shape(value)
    # A scalar distribution may be observed many times: each entry is a datum.
    batch = given[: len(given) - fn.event_dim]
    shape = outer.shape()[: len(outer.shape()) - fn.event_dim]
    shape = lax.broadcast_shapes(tuple(shape), batch)
    closed = closed_form(fn)
    if closed is not None:
        parts = closed(fn, shape)
    elif key is None:
        raise ValueError(
            f"the Fisher information of the site {name!r} ({type(fn).__name__}) has no "
            "closed form here and is estimated from sampled labels: pass a `key`."
        )
    else:
        parts = [_score_samples(fn, shape, key, num_samples or 1, name)]
    weight = jnp.ones(shape, parts[0].dtype)
    if site["scale"] is not None:
        scale = jnp.asarray(site["scale"], weight.dtype)
        events = outer.event_dim - fn.event_dim
        weight = weight * scale.reshape(scale.shape + (1,) * events)
    for mask in masks:
        weight = jnp.where(mask, weight, 0.0)
    weight = lax.stop_gradient(jnp.broadcast_to(weight, shape))
    root = jnp.sqrt(weight)[..., None]
    parts = [jnp.where(root > 0, z, 0.0) * root for z in parts]
    batch_dim = len(shape) - (outer.event_dim - fn.event_dim)
    return Whitened(parts, weight, fn.event_dim, batch_dim)


def closed_form(fn: dist.Distribution) -> Callable | None:
    """The function that whitens a distribution; None if it is not known."""
    return _CLOSED.get(type(fn))


def _unwrap(fn: Any) -> tuple[Any, list[jax.Array]]:
    """The distribution, and the masks around it, shaped to broadcast to its batch."""
    masks = []
    while isinstance(fn, Independent | ExpandedDistribution | MaskedDistribution):
        if isinstance(fn, MaskedDistribution):
            mask = jnp.asarray(mask_of_distribution(fn))
            masks.append((jnp.broadcast_to(mask, fn.batch_shape), fn.event_dim))
        fn = fn.base_dist
    return fn, [
        mask.reshape(mask.shape + (1,) * (event_dim - fn.event_dim))
        for mask, event_dim in masks
    ]


def _float(array: Any, shape: tuple[int, ...]) -> jax.Array:
    """An array in at least single precision, broadcast."""
    array = jnp.asarray(array)
    dtype = jnp.promote_types(array.dtype, jnp.float32)
    return jnp.broadcast_to(array.astype(dtype), shape)


def _parts(*columns: jax.Array) -> list[jax.Array]:
    return [column[..., None] for column in columns]


def _held(*arrays: jax.Array) -> Any:
    return lax.stop_gradient(arrays)


def _location_scale(
    loc: Any, scale: Any, shape: tuple, by_loc: float, by_scale: float
) -> Parts:
    """Whiten a location and a scale with the information / scale^2."""
    loc, scale = _float(loc, shape), _float(scale, shape)
    (s,) = _held(scale)
    return _parts(math.sqrt(by_loc) * loc / s, math.sqrt(by_scale) * scale / s)


def _normal(fn: Any, shape: tuple) -> Parts:
    return _location_scale(fn.loc, fn.scale, shape, 1.0, 2.0)


def _laplace(fn: Any, shape: tuple) -> Parts:
    return _location_scale(fn.loc, fn.scale, shape, 1.0, 1.0)


def _student_t(fn: Any, shape: tuple) -> Parts:
    df, scale = _float(fn.df, shape), _float(fn.scale, shape)
    n, s = _held(df, scale)
    loc = jnp.sqrt((n + 1) / (n + 3)) * _float(fn.loc, shape) / s
    # Scale and degrees of freedom share information: take their block's Cholesky root.
    root = jnp.sqrt(2 * n / (n + 3))
    cross = -2 / ((n + 1) * (n + 3)) / root
    trigamma = polygamma(1, n / 2) - polygamma(1, (n + 1) / 2)
    own = trigamma / 4 - (n + 5) / (2 * n * (n + 1) * (n + 3)) - cross**2
    own = jnp.sqrt(jnp.where(own > 0, own, 0.0))
    return _parts(loc, root * scale / s + cross * df, own * df)


def _bernoulli(fn: Any, shape: tuple) -> Parts:
    logits = _float(fn.logits, shape)
    return _logistic(logits, jnp.ones(()))


def _binomial(fn: Any, shape: tuple) -> Parts:
    logits = _float(fn.logits, shape)
    return _logistic(logits, _float(fn.total_count, shape))


def _logistic(logits: jax.Array, count: jax.Array) -> Parts:
    (at,) = _held(logits)
    root = jnp.sqrt(count * jax.nn.sigmoid(at) * jax.nn.sigmoid(-at))
    return _parts(root * logits)


def _categorical(fn: Any, shape: tuple) -> Parts:
    return [_classes(fn.logits, shape)]


def _multinomial(fn: Any, shape: tuple) -> Parts:
    (count,) = _held(_float(fn.total_count, shape))
    return [jnp.sqrt(count)[..., None] * _classes(fn.logits, shape)]


def _classes(logits: Any, shape: tuple) -> jax.Array:
    logits = jnp.asarray(logits)
    logits = _float(logits, (*shape, logits.shape[-1]))
    z = _softmax(logits)
    if z.shape[-1] == 1:
        return z
    # z is orthogonal to the root of p. The reflection that takes this root to the last
    # axis leaves nothing of z there, so that there is one column less to send back.
    q = jnp.sqrt(jax.nn.softmax(lax.stop_gradient(logits)))
    return z[..., :-1] - q[..., :-1] * z[..., -1:] / (1 + q[..., -1:])


def _softmax(logits: jax.Array) -> jax.Array:
    """diag(p) - p p^T has the root diag(p)^(1/2) (I - 1 p^T)."""
    (at,) = _held(logits)
    p = jax.nn.softmax(at)
    # A class that is ruled out has the logit -inf.
    logits = jnp.where(p > 0, logits, 0.0)
    return jnp.sqrt(p) * (logits - jnp.sum(p * logits, -1, keepdims=True))


def _poisson(fn: Any, shape: tuple) -> Parts:
    return _by_rate(fn.rate, shape, lambda rate: 1 / jnp.sqrt(rate))


def _exponential(fn: Any, shape: tuple) -> Parts:
    return _by_rate(fn.rate, shape, lambda rate: 1 / rate)


def _by_rate(rate: Any, shape: tuple, root: Callable) -> Parts:
    rate = _float(rate, shape)
    # A rate that underflows to zero has the derivative zero as well.
    (at,) = _held(jnp.maximum(rate, jnp.finfo(rate.dtype).tiny))
    return _parts(root(at) * rate)


def _multivariate_normal(fn: Any, shape: tuple) -> Parts:
    """The mean by the root of the precision, the covariance by both sides of it."""
    loc = jnp.asarray(fn.loc)
    event = loc.shape[-1]
    loc = _float(loc, (*shape, event))
    tril = _float(fn.scale_tril, (*shape, event, event))
    (at,) = _held(tril)

    def solve(right: jax.Array) -> jax.Array:
        return lax.linalg.triangular_solve(at, right, left_side=True, lower=True)

    mean = solve(loc[..., None])[..., 0]
    inner = solve(tril)
    spread = inner @ jnp.swapaxes(inner, -1, -2) / jnp.sqrt(2.0)
    return [mean, spread.reshape(*shape, -1)]


def _log_normal(fn: Any, shape: tuple) -> Parts:
    return _normal(fn, shape)


_CLOSED: dict[type, Callable] = {
    dist.Normal: _normal,
    dist.LogNormal: _log_normal,
    dist.Laplace: _laplace,
    dist.StudentT: _student_t,
    dist.BernoulliLogits: _bernoulli,
    dist.BernoulliProbs: _bernoulli,
    dist.BinomialLogits: _binomial,
    dist.BinomialProbs: _binomial,
    dist.CategoricalLogits: _categorical,
    dist.CategoricalProbs: _categorical,
    dist.MultinomialLogits: _multinomial,
    dist.MultinomialProbs: _multinomial,
    dist.Poisson: _poisson,
    dist.Exponential: _exponential,
    dist.MultivariateNormal: _multivariate_normal,
}


def _score_samples(
    fn: Any, shape: tuple, key: jax.Array, num_samples: int, name: str
) -> jax.Array:
    """Log-densities of sampled labels, whose gradients are scores."""
    fn = fn.expand(shape)
    held = jax.tree.map(lax.stop_gradient, fn)
    try:
        labels = held.sample(key, (num_samples,))
    except NotImplementedError as error:
        raise ValueError(
            f"the Fisher information of the site {name!r} ({type(fn).__name__}) is "
            "neither known in closed form nor can its labels be sampled, as the "
            "distribution has no `sample`."
        ) from error
    density = fn.log_prob(lax.stop_gradient(labels))
    dtype = jnp.promote_types(density.dtype, jnp.float32)
    return jnp.moveaxis(density.astype(dtype), 0, -1) / math.sqrt(num_samples)
