"""to_datatree: what NumPyro's inference leaves behind, as an ArviZ DataTree."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr
from jaxtyping import PRNGKeyArray
from numpyro.infer import MCMC

from pyrox_ppl.posterior._dataset import make_datasets
from pyrox_ppl.posterior._fitted import Fitted
from pyrox_ppl.posterior._groups import (
    posterior_groups,
    prediction_groups,
    prior_groups,
    warmup_groups,
)
from pyrox_ppl.posterior._model_sites import ModelSites
from pyrox_ppl.posterior._source import (
    find_model,
    provenance,
    source_from_draws,
    source_from_guide,
    source_from_mcmc,
)
from pyrox_ppl.prediction._model_call import ModelCall

_ORDER = (
    "posterior",
    "sample_stats",
    "posterior_predictive",
    "log_likelihood",
    "log_prior",
    "prior",
    "prior_predictive",
    "predictions",
    "observed_data",
    "constant_data",
    "predictions_constant_data",
    "params",
    "guide_params",
)


def to_datatree(
    source: Any,
    *args: Any,
    model: Callable | None = None,
    guide: Callable | None = None,
    params: Mapping[str, Any] | None = None,
    num_samples: int = 1000,
    num_prior_samples: int = 0,
    predictions: tuple | Mapping[str, Any] | None = None,
    log_likelihood: bool | Sequence[str] = True,
    log_weight: bool = True,
    warmup: Any = None,
    batch_ndims: int | None = None,
    rng_key: PRNGKeyArray | None = None,
    **kwargs: Any,
) -> xr.DataTree:
    r"""Summarise what inference left behind as an ArviZ ``DataTree``.

    ``to_datatree(mcmc, *args)`` for NumPyro's ``MCMC``; ``to_datatree(fit, *args,
    guide=guide)`` for a result of ``svi.run`` (or its ``params``), with ``model=`` too
    if the guide is no autoguide; ``to_datatree(draws, *args, model=model)`` for a
    dictionary of draws, or for another tree: with held-out data as arguments, this
    scores them.

    The groups, every one of them of the same draws:

    - ``posterior``: the draws of every latent and deterministic site;
    - ``sample_stats``: ``lp``, the log joint density of the draw in unconstrained
      space, :math:`\log p(y, \theta(u)) + \log |\partial\theta / \partial u|` in nats
      (minus NumPyro's potential energy); ``diverging``, and what else was collected by
      ``mcmc.run(..., extra_fields=...)``, under ArviZ's names; for a guide
      ``log_weight``, :math:`\log p(y, \theta) - \log q(\theta)` in float64 (not for a
      flow without an inverse, such as ``AutoBNAFNormal``, nor where a call of the guide
      does not say how dense its draws are: ``AutoLaplaceApproximation``, ``AutoDAIS``);
    - ``posterior_predictive``: a new draw of every observed site;
    - ``log_likelihood``: the log density of every observation, ``factor`` left out. A
      site that depends on a discrete latent that was summed out, of which there is no
      draw, is there if it is named in `log_likelihood`: its density is then the
      marginal, :math:`\log \sum_z p(z \mid \theta)\, p(y_i \mid z, \theta)`;
    - ``log_prior``: the log density of every latent site under its prior, summed over
      all axes that are on no plate;
    - ``prior``, ``prior_predictive``: draws from the prior, if asked for;
    - ``predictions``, ``predictions_constant_data``: draws for new inputs, if given;
    - ``observed_data``: the observations;
    - ``constant_data``: the other arrays among the arguments, under the names of the
      model's parameters;
    - ``params``, ``guide_params``: the trained values of the ``param`` and ``mutable``
      sites of the model, and of the ``param`` sites of its guide. A value that is a
      tree of arrays (the state of a network's layers) is there array by array, as
      ``<site>.<path>``;
    - ``optimization``: for SVI the ``loss`` of every ``step``;
    - ``warmup_posterior``, ``warmup_sample_stats``: what ``mcmc.warmup(...,
      collect_warmup=True)`` collected; straight after it, these alone.

    A plate that takes minibatches is made whole, so the data are all of the data; one
    whose random indices nothing uses (``plate("row", N, subsample_size=len(x))``) only
    scales, and has as many rows as the data given. Deterministic sites are computed
    from the arguments given here. What was not drawn, such as a discrete latent that
    was summed out, a dropout mask (``numpyro.prng_key()``) or a state inside a ``scan``
    that depends on an observation, is drawn for every draw, as in ``Predictive``. Where
    a mask hides some of a site's entries, the others alone are in ``observed_data``,
    ``posterior_predictive`` and ``log_likelihood``, along an axis ``<site>_entry``,
    their places as the coordinates ``<site>_<axis>``. Where it hides single values of
    an event (``.mask(m).to_event(1)``), the others are along ``<site>_element``, and
    the log density, which is of the event, keeps its axes.

    **Shapes**: ``(chain, draw, *site)`` in the groups of draws, with one chain, too (a
    guide's draws are one chain, a point estimate is one draw); ``(*site)`` in the
    others. An axis that is on a plate has the plate's name; ``_axis`` follows the name
    of an axis where a variable is called the same. A linear map's weight has the axes
    ``<module>.out`` and ``<module>.in``, its bias ``<module>.out``. A variable
    that is a module's parameter says in its ``attrs`` which one (``parameter``), its
    ``role`` and, if it belongs to a sequence such as ``layers``, its index (``layer``).

    Args:
        source: A run ``MCMC`` (resumed or not), a result of ``svi.run``, a dictionary
            of draws or a DataTree.
        *args: The arguments that the inference was given, observations included.
        model: The model of draws, or of a guide that does not know it; for an ``MCMC``
            another one than it ran, such as that of a network in inference mode.
        guide: The guide that `source` is a result of.
        params: Trained values of ``param`` and ``mutable`` sites for a dictionary of
            draws: ``{**fit.params, **fit.state.mutable_state}``. A result of
            ``svi.run`` has both in it; those that an ``MCMC`` held are found in its
            model.
        num_samples: How many draws to take from a guide.
        num_prior_samples: How many draws to take from the prior.
        predictions: New arguments of the model, a tuple or a dictionary of keyword
            arguments, without observations.
        log_likelihood: Whether to compute it, or of which observed sites.
        log_weight: Whether to compute the importance weights of a guide's draws, one
            more run of the model and the guide for each.
        warmup: The tree that was made straight after a collected warmup, or its draws
            grouped by chain.
        batch_ndims: The number of sample axes of a dictionary's arrays: 1 (default) or
            2 for draws grouped by chain.
        rng_key: The JAX PRNG key of the draws; ``jax.random.key(0)`` if not given. The
            draws are those of NumPyro's ``Predictive`` with this key.
        **kwargs: The keyword arguments that the inference was given.

    Returns:
        An ``xarray.DataTree`` for ``arviz.summary``, ``arviz.loo`` and the plots. A
        ``/`` in the name of a site becomes a ``.``, the name being kept in the
        variable's ``attrs["numpyro_name"]``; bfloat16 and float16 become float32. The
        tree's ``attrs`` hold the key, the versions, and ``point_estimate``.

    Raises:
        TypeError: If `source` is none of these.
        ValueError: If it has no draws or no model; if the model with these arguments
            does not have the sites that were drawn; if a part of the model has trained
            values and another has none; if a marginal that is asked for cannot be
            had; if a site is called ``chain`` or ``draw``.

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
         'log_prior', 'observed_data', 'constant_data']
        >>> dict(tree.posterior_predictive["y"].sizes)
        {'chain': 1, 'draw': 10, 'row': 8}
    """
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    predictive_key = rng_key
    model = find_model(source, guide) if model is None else model
    if isinstance(source, MCMC):
        given = source_from_mcmc(source)
    elif guide is not None and model is not None:
        if params is not None:
            raise ValueError(
                "the fit brings its trained values: pass them as the source, "
                "to_datatree(params, ..., guide=guide), and leave `params` out."
            )
        predictive_key, guide_key = jax.random.split(rng_key)
        call = ModelCall(model, args, kwargs, {})
        given = source_from_guide(source, guide, call, guide_key, num_samples)
    elif hasattr(source, "params") and hasattr(source, "losses"):
        raise ValueError(
            "a result of svi.run holds parameters, not draws: pass its guide, "
            "to_datatree(fit, ..., guide=guide)."
        )
    else:
        given = source_from_draws(source, batch_ndims)
    if model is None:
        if args or kwargs:
            raise ValueError(
                "draws do not say which model they come from: pass it, "
                "to_datatree(draws, ..., model=model), or leave the arguments out."
            )
        sites = ModelSites()
        datasets = make_datasets({"posterior": given.draws}, sites)
    else:
        call = ModelCall(model, args, kwargs, {**given.params, **(params or {})})
        fitted = Fitted.join(given, call)
        sites = fitted.sites
        groups = posterior_groups(fitted, predictive_key, log_likelihood, log_weight)
        datasets = make_datasets(groups, sites)
        if num_prior_samples and not given.is_warmup:
            key = jax.random.fold_in(rng_key, 2)
            datasets |= prior_groups(fitted, key, num_prior_samples)
        if predictions is not None and not given.is_warmup:
            key = jax.random.fold_in(rng_key, 3)
            datasets |= prediction_groups(fitted, key, predictions)
    datasets = {name: datasets[name] for name in _ORDER if name in datasets}
    if warmup is not None:
        datasets |= warmup_groups(warmup, sites)
    if given.losses is not None:
        datasets["optimization"] = xr.Dataset(
            {"loss": ("step", given.losses)},
            coords={"step": np.arange(len(given.losses))},
        )
    if given.is_warmup:
        datasets = {
            f"warmup_{name}": datasets[name] for name in ("posterior", "sample_stats")
        }
    tree = xr.DataTree.from_dict(datasets)
    tree.attrs.update(provenance(given, rng_key))
    return tree
