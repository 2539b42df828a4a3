"""The Gaussian families of AmortizedGuide, from numbers per datum to sites."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions.transforms import (
    ReshapeTransform,
    SoftplusLowerCholeskyTransform,
    SoftplusTransform,
    biject_to,
)
from numpyro.distributions.util import sum_rightmost

from pyrox_ppl.infer.guides._local_sites import LocalSite

Family = Literal["diagonal", "full"]


def num_parameters(family: Family, dim: int) -> int:
    """The number of parameters of a Gaussian over `dim` numbers."""
    return dim + (dim if family == "diagonal" else dim * (dim + 1) // 2)


def split_parameters(
    family: Family, parameters: jax.Array, dim: int
) -> tuple[jax.Array, jax.Array]:
    """Split into the means, and the standard deviations or Cholesky factors."""
    diagonal = family == "diagonal"
    positive: Any = (
        SoftplusTransform() if diagonal else SoftplusLowerCholeskyTransform()
    )
    return parameters[:, :dim], jax.vmap(positive)(parameters[:, dim:])


def sample_normal(site: LocalSite, loc: jax.Array, scale: jax.Array) -> Any:
    """Sample a site from independent normals, transformed to its support."""
    base = dist.Normal(site.arrange(loc), site.arrange(scale))
    law = site.constrain(base.to_event(site.event_dim))
    return numpyro.sample(site.name, law)


def sample_joint(
    name: str, loc: jax.Array, factor: jax.Array, plate: numpyro.plate
) -> jax.Array:
    """Sample all latents of every datum at once, as an auxiliary site."""
    lead = (len(loc),) + (1,) * (-plate.dim - 1)
    law = dist.MultivariateNormal(
        loc.reshape(*lead, *loc.shape[1:]),
        scale_tril=factor.reshape(*lead, *factor.shape[1:]),
    )
    with plate:
        latent = numpyro.sample(name, law, infer={"is_auxiliary": True})
    return jnp.reshape(latent, loc.shape)


def sample_delta(site: LocalSite, latent: jax.Array) -> Any:
    """Place a site at its part of the auxiliary site, as a Delta.

    Its log density is the change of variables, so that the two sites together have the
    density of the latent on its support.
    """
    start = site.arrange(latent)
    transform: Any = biject_to(site.support)
    value = transform(start)
    log_density = -transform.log_abs_det_jacobian(start, value)
    batch = start.ndim - site.event_dim
    log_density = sum_rightmost(log_density, log_density.ndim - batch)
    law = dist.Delta(value, log_density=log_density, event_dim=value.ndim - batch)
    return numpyro.sample(site.name, law)


def marginal_law(
    site: LocalSite, loc: jax.Array, spread: jax.Array
) -> dist.Distribution:
    """The distribution of a site on its support, with the data on the first axis."""
    shape = (len(loc), *site.shape)
    if spread.ndim == 2 or site.size == 1:
        # The variance of an entry is the squared norm of its row of the factor.
        scale = spread if spread.ndim == 2 else jnp.linalg.norm(spread, axis=-1)
        base = dist.Normal(loc.reshape(shape), scale.reshape(shape))
        return site.constrain(base.to_event(site.event_dim))
    covariance = spread @ jnp.swapaxes(spread, -1, -2)
    if site.event_dim == 1 and site.shape[-1] == site.size:
        # A single vector for each datum. It may have batch axes of size 1, which other
        # plates leave free; without a reshape the law has a mean and a covariance.
        covariance = covariance.reshape(*shape, site.size)
        return site.constrain(dist.MultivariateNormal(loc.reshape(shape), covariance))
    joint = dist.MultivariateNormal(loc, covariance)
    arrange = ReshapeTransform(site.shape, (site.size,))
    return site.constrain(dist.TransformedDistribution(joint, arrange))
