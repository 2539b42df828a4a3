"""to_datatree: what NumPyro's MCMC leaves behind, as an ArviZ DataTree."""

from typing import Any

import jax
import numpy as np
import numpyro
import xarray as xr
from arviz_base import dict_to_dataset
from jaxtyping import PRNGKeyArray
from numpyro import handlers
from numpyro.infer import MCMC, Predictive, log_likelihood
from numpyro.infer.util import potential_energy, unconstrain_fn

from pyrox_ppl.posterior._model import ModelSites, constant_data

# NumPyro's names of what a kernel reports, and ArviZ's.
_STATS = {
    "diverging": "diverging",
    "energy": "energy",
    "num_steps": "n_steps",
    "accept_prob": "acceptance_rate",
    "adapt_state.step_size": "step_size",
}


def to_datatree(
    mcmc: MCMC, *args: Any, rng_key: PRNGKeyArray | None = None, **kwargs: Any
) -> xr.DataTree:
    r"""Summarise a finished MCMC run as an ArviZ ``DataTree``.

    The groups, every one of them of the same draws:

    - ``posterior``: the draws of every latent and deterministic site;
    - ``sample_stats``: ``lp``, the log joint density of the draw in unconstrained
      space,
      :math:`\log p(y, \theta(u)) + \log |\partial\theta / \partial u|` in nats (minus
      NumPyro's potential energy); ``diverging``, and what else was collected by
      ``mcmc.run(..., extra_fields=...)``, under ArviZ's names;
    - ``posterior_predictive``: a new draw of every observed site;
    - ``log_likelihood``: the log density of every observation, ``factor`` left out;
      not there where a discrete latent was summed out, of which there is no draw;
    - ``observed_data``: the observations;
    - ``constant_data``: the other arrays among the arguments, under the names of the
      model's parameters.

    **Shapes**: ``(chain, draw, *site)`` in the first four groups, with one chain, too;
    ``(*site)`` in the last two. An axis that is on a plate has the plate's name.

    Args:
        mcmc: A run NumPyro ``MCMC``.
        *args: The arguments that ``mcmc.run`` was given, observations included.
        rng_key: The JAX PRNG key of the predictive draws; ``jax.random.key(0)`` if not
            given.
        **kwargs: The keyword arguments that ``mcmc.run`` was given.

    Returns:
        An ``xarray.DataTree`` for ``arviz.summary``, ``arviz.loo`` and the plots. A
        ``/`` in the name of a site becomes a ``.``, the name being kept in the
        variable's ``attrs["numpyro_name"]``; bfloat16 and float16 become float32.

    Raises:
        ValueError: If `mcmc` has no draws or no model, or if the model with these
            arguments does not have the sites that were drawn.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> from numpyro.infer import MCMC, NUTS
        >>> def model(x, y=None):
        ...     slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", x.shape[0]):
        ...         numpyro.sample("y", dist.Normal(slope * x, 0.1), obs=y)
        >>> x = jnp.linspace(0.0, 1.0, 8)
        >>> mcmc = MCMC(NUTS(model), num_warmup=20, num_samples=10, progress_bar=False)
        >>> mcmc.run(jax.random.key(0), x, y=2.0 * x)
        >>> tree = px.to_datatree(mcmc, x, y=2.0 * x)
        >>> list(tree.children)  # doctest: +NORMALIZE_WHITESPACE
        ['posterior', 'sample_stats', 'posterior_predictive', 'log_likelihood',
         'observed_data', 'constant_data']
        >>> dict(tree.posterior_predictive["y"].sizes)
        {'chain': 1, 'draw': 10, 'row': 8}
    """
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    model = getattr(mcmc.sampler, "model", None)
    if model is None:
        raise ValueError(
            "to_datatree needs a kernel that was made from a model, and this one was "
            "made from a potential function."
        )
    if mcmc.last_state is None:
        raise ValueError("this MCMC has no draws: call mcmc.run(...) first.")
    draws = jax.device_get(mcmc.get_samples(group_by_chain=True))
    trace_key, predictive_key = jax.random.split(rng_key)
    seeded = handlers.seed(model, trace_key)
    sites = ModelSites.of(seeded, draws, args, kwargs)
    groups = {
        "posterior": draws,
        "sample_stats": _sample_stats(mcmc, seeded, sites, draws, args, kwargs),
    }
    if sites.observed:
        latent = {name: draws[name] for name in sites.latent}
        # The observations stay among the arguments (they may set shapes) and are drawn
        # anew all the same.
        predictive = Predictive(
            handlers.uncondition(model),
            latent,
            return_sites=list(sites.observed),
            batch_ndims=2,
        )
        groups["posterior_predictive"] = predictive(predictive_key, *args, **kwargs)
        if not sites.has_undrawn_latent:
            densities = log_likelihood(seeded, latent, *args, batch_ndims=2, **kwargs)
            groups["log_likelihood"] = {n: densities[n] for n in sites.observed}
        groups["observed_data"] = sites.observed
    groups["constant_data"] = constant_data(model, args, kwargs, sites.observed)
    return xr.DataTree.from_dict(
        {
            group: _dataset(group, values, sites)
            for group, values in groups.items()
            if values
        }
    )


def _sample_stats(
    mcmc: MCMC,
    model: Any,
    sites: "ModelSites",
    draws: dict[str, Any],
    args: tuple,
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """What the kernel reported, and the log density where it can be computed."""
    fields: dict[str, Any] = dict(mcmc.get_extra_fields(group_by_chain=True))
    stats: dict[str, Any] = {
        _STATS.get(name, name): value for name, value in fields.items()
    }
    if "potential_energy" in stats:
        stats["lp"] = -stats.pop("potential_energy")
    elif not sites.has_discrete_latent:
        stats["lp"] = _log_joint(
            model, {name: draws[name] for name in sites.latent}, args, kwargs
        )
    if "n_steps" in stats:
        # A trajectory of depth d has at most 2^d - 1 leapfrog steps.
        depth = np.ceil(np.log2(np.asarray(stats["n_steps"]) + 1))
        stats["tree_depth"] = depth.astype(int)
    return stats


def _log_joint(
    model: Any, latent: dict[str, Any], args: tuple, kwargs: dict[str, Any]
) -> jax.Array:
    """Minus the potential energy of every draw, of shape (chain, draw)."""

    def one(values: dict[str, Any]) -> jax.Array:
        unconstrained = unconstrain_fn(model, args, kwargs, values)
        return -jax.numpy.asarray(potential_energy(model, args, kwargs, unconstrained))

    return jax.jit(
        lambda all_draws: jax.lax.map(lambda c: jax.lax.map(one, c), all_draws)
    )(latent)


def _dataset(group: str, values: dict[str, Any], sites: "ModelSites") -> xr.Dataset:
    """One group, its data axes named after plates."""
    drawn = group not in ("observed_data", "constant_data")
    arrays, dims, originals = {}, {}, {}
    for name, value in values.items():
        safe = name.replace("/", ".")
        if safe in arrays:
            raise ValueError(
                f"the sites {originals[safe]!r} and {name!r} have one name in a "
                "DataTree, which cannot hold '/': rename one of them."
            )
        originals[safe] = name
        arrays[safe] = _widen(np.asarray(value))
        if group not in ("sample_stats", "constant_data"):
            dims[safe] = sites.dims(name, arrays[safe].ndim - 2 * drawn)
    dataset = dict_to_dataset(
        arrays,
        dims=dims,
        sample_dims=["chain", "draw"] if drawn else [],
        inference_library=numpyro,
    )
    for safe, name in originals.items():
        if safe != name:
            dataset[safe].attrs["numpyro_name"] = name
    return dataset


def _widen(array: np.ndarray) -> np.ndarray:
    """Make a dtype that netCDF and ArviZ can take: bfloat16 and float16 to float32."""
    narrow = array.dtype.itemsize < 4 and jax.numpy.issubdtype(array.dtype, np.floating)
    return array.astype(np.float32) if narrow else array
