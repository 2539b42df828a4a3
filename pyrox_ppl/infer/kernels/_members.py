"""init_params_from_members: chains that start at the members of an ensemble."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer.util import unconstrain_fn


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
            members; deterministic and observed sites among them are left out.
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
    trace = handlers.trace(seeded).get_trace(*args, **kwargs)
    latent = {
        name: site
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }
    unknown = sorted(values.keys() - trace.keys())
    missing = sorted(latent.keys() - values.keys())
    if unknown or missing:
        raise ValueError(
            f"values must have each of the sites {sorted(latent)}; missing: {missing}, "
            f"and not sites of the model: {unknown}."
        )
    given = {name: jnp.asarray(values[name]) for name in latent}
    shapes = {name: value.shape for name, value in given.items()}
    wrong = {
        name: shape
        for name, shape in shapes.items()
        if shape[1:] != jnp.shape(latent[name]["value"])
    }
    if wrong:
        expected = {name: jnp.shape(latent[name]["value"]) for name in wrong}
        raise ValueError(
            f"values have the shapes {wrong}, and need (member, *site), with the sites "
            f"{expected}."
        )
    if len({shape[0] for shape in shapes.values()}) > 1:
        raise ValueError(
            f"the sites must have the same number of members, got the shapes {shapes}."
        )
    start = jax.vmap(lambda one: unconstrain_fn(seeded, args, kwargs, one))(given)
    broken = sorted(n for n, v in start.items() if not np.isfinite(v).all())
    if broken:
        raise ValueError(
            f"the values of {broken} lie on or outside the edge of their support, "
            "where no chain can start: move them inside."
        )
    return start
