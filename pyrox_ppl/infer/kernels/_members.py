"""init_params_from_members: chains that start at the members of an ensemble."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.util import get_transforms, transform_fn


def init_params_from_members(
    model: Callable,
    values: Mapping[str, Any],
    *args: Any,
    **kwargs: Any,
) -> dict[str, jax.Array]:
    """Turn constrained values of several members into ``init_params`` of chains.

    Each chain of ``MCMC(kernel, num_chains=members)`` then starts at a member: of a
    deep ensemble, of several fits, or at draws of another run. With :class:`MCLMC`
    this is MILE.

    **Shapes**: each value ``(member, *site)``; the result has the unconstrained shape
    ``(member, *unconstrained)`` of each latent site.

    Args:
        model: The NumPyro model.
        values: The values of its latent sites, constrained, with a leading axis of
            members; other sites of the model among them are left out.
        *args: The arguments of the model.
        **kwargs: The keyword arguments of the model.

    Returns:
        What ``mcmc.run(..., init_params=...)`` takes.

    Raises:
        ValueError: If a latent site is missing, if a name is no site of the model, if
            the members of the sites differ in number or a site has another shape, or if
            a value lies on or outside the edge of its support.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC
        >>> from pyrox_ppl.infer import MCLMC, init_params_from_members
        >>> def model():
        ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        ...     numpyro.sample("x", dist.Normal(0.0, scale).expand([3]).to_event(1))
        >>> members = {"scale": jnp.array([0.5, 2.0]), "x": jnp.zeros((2, 3))}
        >>> start = init_params_from_members(model, members)
        >>> mcmc = MCMC(MCLMC(model), num_warmup=50, num_samples=20, num_chains=2,
        ...             chain_method="vectorized", progress_bar=False)
        >>> mcmc.run(jax.random.key(0), init_params=start)
        >>> mcmc.get_samples(group_by_chain=True)["x"].shape
        (2, 20, 3)
    """
    seeded = handlers.seed(model, jax.random.key(0))
    # Values that no prior need be drawn from: an improper one has no draws.
    started = handlers.substitute(seeded, substitute_fn=init_to_uniform)
    trace = handlers.trace(started).get_trace(*args, **kwargs)
    latent = {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and not site["fn"].support.is_discrete
    }
    unknown = sorted(values.keys() - trace.keys())
    missing = sorted(latent.keys() - values.keys())
    if unknown or missing:
        raise ValueError(
            f"values must have each of the sites {sorted(latent)}; missing: {missing}, "
            f"and not sites of the model: {unknown}."
        )
    given = {
        name: jnp.asarray(values[name], jnp.result_type(value))
        for name, value in latent.items()
    }
    shapes = {name: value.shape for name, value in given.items()}
    wrong = {
        name: shape
        for name, shape in shapes.items()
        if len(shape) == 0 or shape[1:] != jnp.shape(latent[name])
    }
    if wrong:
        expected = {name: jnp.shape(latent[name]) for name in wrong}
        raise ValueError(
            f"values have the shapes {wrong}, and need (member, *site), with the sites "
            f"{expected}."
        )
    if len({shape[0] for shape in shapes.values()}) > 1:
        raise ValueError(
            f"the sites must have the same number of members, got the shapes {shapes}."
        )

    def unconstrain(one: dict[str, jax.Array]) -> tuple[dict, dict]:
        transforms = get_transforms(seeded, args, kwargs, one)
        start = transform_fn(transforms, one, invert=True)
        return start, transform_fn(transforms, start)

    start, back = jax.vmap(unconstrain)(given)
    broken = sorted(n for n, v in start.items() if not np.isfinite(v).all())
    if broken:
        raise ValueError(
            f"the values of {broken} lie on or outside the edge of their support, "
            "where no chain can start: move them inside."
        )
    # Some inverses take any value: that of a simplex does not look at its sum.
    moved = sorted(n for n in given if not _are_close(back[n], given[n]))
    if moved:
        raise ValueError(
            f"the values of {moved} lie outside of their support (a simplex that does "
            "not sum to one, a matrix that is not symmetric): a chain would start "
            "elsewhere."
        )
    return start


def _are_close(back: Any, value: Any) -> bool:
    value = np.asarray(value)
    largest = np.max(np.abs(value), initial=0.0)
    return np.allclose(back, value, rtol=1e-3, atol=1e-3 * largest)
