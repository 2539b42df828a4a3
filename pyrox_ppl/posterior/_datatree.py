"""to_datatree: the results of NumPyro's inference as an ArviZ DataTree."""

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
from pyrox_ppl.posterior._rows_of_run import rows_of_run
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
    "uncertainty",
    "prior",
    "prior_predictive",
    "predictions",
    "observed_data",
    "constant_data",
    "predictions_constant_data",
    "params",
    "guide_params",
    "linearized_at",
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
    r"""Collect the results of an inference in an ArviZ ``DataTree``.

    - ``to_datatree(mcmc, *args)`` takes NumPyro's ``MCMC``.
    - ``to_datatree(fit, *args, guide=guide)`` takes a result of ``svi.run`` (or its
      ``params``), and needs ``model=`` if the guide is not an autoguide. Of a result of
      :func:`~pyrox_ppl.infer.run_ensemble` each member is a chain.
    - ``to_datatree(draws, *args, model=model)`` takes a dictionary of draws, or another
      tree: with held-out data as arguments, the new tree scores them.

    The groups, all of the same draws:

    - ``posterior``: the draws of every latent and deterministic site;
    - ``sample_stats``: ``lp``, the log joint density of the draw in unconstrained
      space, :math:`\log p(y, \theta(u)) + \log |\partial\theta / \partial u|` in nats
      (minus NumPyro's potential energy); ``diverging`` and the other fields that
      ``mcmc.run(..., extra_fields=...)`` collected, under ArviZ's names; for a guide
      ``log_weight``, :math:`\log p(y, \theta) - \log q(\theta)` in float64 (except for
      a flow without an inverse, such as ``AutoBNAFNormal``, and for guides whose call
      does not give the density of their draws: ``AutoLaplaceApproximation``,
      ``AutoDAIS``);
    - ``posterior_predictive``: a new draw of every observed site;
    - ``log_likelihood``: the log density of every observation, ``factor`` left out. A
      site that depends on an undrawn discrete latent (one that was summed out) is left
      out as well, unless `log_likelihood` names it: its density is then the marginal,
      :math:`\log \sum_z p(z \mid \theta)\, p(y_i \mid z, \theta)`;
    - ``log_prior``: the log density of every latent site under its prior, summed over
      all axes that are not on a plate;
    - ``uncertainty``: means over the draws, for observed sites. Of a binary or
      categorical one the class probabilities ``<site>_probability``, along a last axis
      ``<site>_class`` (of a binary one the probability of 1); ``<site>_total``,
      ``<site>_aleatoric`` and ``<site>_epistemic``, its predictive entropy in nats, the
      mean entropy at a draw, and their difference, the mutual information of label and
      parameters. Of a continuous outcome or a count with moments in NumPyro, the same
      three for its variance: total, mean of Var[y | θ], variance of E[y | θ]. A site
      that depends on an undrawn discrete latent has probabilities only;
    - ``prior``, ``prior_predictive``: draws from the prior (`num_prior_samples`);
    - ``predictions``, ``predictions_constant_data``: draws for new inputs
      (`predictions`);
    - ``observed_data``: the observations;
    - ``constant_data``: the other arrays among the arguments, under the names of the
      model's parameters;
    - ``params``, ``guide_params``: the trained values of the ``param`` and ``mutable``
      sites of the model, and of the ``param`` sites of its guide. A value that is a
      tree of arrays (the state of a network's layers) is stored array by array, as
      ``<site>.<path>``;
    - ``linearized_at``: for a guide that linearises
      (:class:`~pyrox_ppl.infer.AutoLaplace`) its mode. All groups but the prior's are
      then those of the model that :func:`~pyrox_ppl.linearize` makes there, and so are
      the predictions that are made from the tree later;
    - ``optimization``: for SVI the ``loss`` of every ``step``, and of every member;
    - ``warmup_posterior``, ``warmup_sample_stats``: what ``mcmc.warmup(...,
      collect_warmup=True)`` collected. Straight after it, the tree holds only these.

    The ``attrs`` of observations and their predictions say how to judge them:
    ``outcome`` is ``"binary"``, ``"categorical"`` (with ``num_classes``, and whether
    they are ``ordered``), ``"count"``, ``"continuous"``, ``"circular"`` or
    ``"multivariate"`` (a value is along the last ``value_ndim`` axes).

    Minibatches: a plate whose random indices pick rows takes all rows, so every group
    is of all the data. A plate whose indices nothing uses (``plate("row", N,
    subsample_size=len(x))``) has as many rows as the data given; its scale is left out.

    Deterministic sites are computed from the arguments given here. A random quantity
    without draws is drawn for every draw, as in ``Predictive``: a discrete latent that
    was summed out, a dropout mask (``numpyro.prng_key()``), a state inside a ``scan``
    that depends on an observation.

    Masks: ``observed_data``, ``posterior_predictive`` and ``log_likelihood`` hold only
    the entries of a site that no mask hides, along an axis ``<site>_entry`` with their
    places as the coordinates ``<site>_<axis>``. If a mask hides single values of an
    event (``.mask(m).to_event(1)``), the other values are along ``<site>_element``; a
    log density belongs to a whole event, so its axes stay.

    **Shapes**: ``(chain, draw, *site)`` in the groups of draws, even for one chain (a
    guide's draws are one chain, a point estimate is one draw, or `num_samples` of them
    where the model draws dropout); ``(*site)`` in the others. An axis on a plate has
    the plate's name; if a variable has that name, the axis gets the suffix ``_axis``. A
    linear map's weight has the axes ``<module>.out`` and ``<module>.in``, its bias
    ``<module>.out``. The ``attrs`` of a module's parameter say which one it is
    (``parameter``), its ``role`` and, if it belongs to a sequence such as ``layers``,
    its index (``layer``).

    Args:
        source: A run ``MCMC`` (resumed or not), a result of ``svi.run``, a dictionary
            of draws or a DataTree.
        *args: The arguments that the inference was given, observations included.
        model: The model of draws, or of a guide that does not know it. For an ``MCMC``
            a model to use instead of its own, such as a network in inference mode.
        guide: The guide that was trained, if `source` is a result of ``svi.run``.
        params: Trained values of ``param`` and ``mutable`` sites for a dictionary of
            draws: ``{**fit.params, **fit.state.mutable_state}``. A result of
            ``svi.run`` contains both; those that an ``MCMC`` sampled with are found in
            its model.
        num_samples: How many draws to take from a guide, or from each member of an
            ensemble (a point is one draw).
        num_prior_samples: How many draws to take from the prior.
        predictions: New arguments of the model, a tuple or a dictionary of keyword
            arguments, without observations.
        log_likelihood: Whether to compute it, or for which observed sites.
        log_weight: Whether to compute the importance weights of a guide's draws, which
            takes one more run of the model and the guide for each draw.
        warmup: The tree that was made straight after a collected warmup, or the draws
            of a warmup grouped by chain.
        batch_ndims: The number of sample axes of a dictionary's arrays: 1 (default) or
            2 for draws grouped by chain.
        rng_key: The JAX PRNG key of the draws; ``jax.random.key(0)`` if not given. The
            draws are those of NumPyro's ``Predictive`` with this key.
        **kwargs: The keyword arguments that the inference was given.

    Returns:
        An ``xarray.DataTree`` for ``arviz.summary``, ``arviz.loo`` and the plots. A
        ``/`` in the name of a site becomes a ``.``, and the variable's
        ``attrs["numpyro_name"]`` keep the name; bfloat16 and float16 become float32.
        The tree's ``attrs`` hold the key, the versions, ``point_estimate``, for an
        ensemble ``members``, for NUTS ``max_tree_depth``, and what is known of the
        cost: ``seconds`` and ``gradient_evaluations``. ``rows_of_run`` is 1 if the
        data are those of the run and 0 if they are others; it is there for an ``MCMC``
        and for trees made of its tree.

    Raises:
        TypeError: If `source` is none of these.
        ValueError: If it has no draws or no model; if the model with these arguments
            does not have the sites that were drawn; if only a part of the model has
            trained values; if a requested marginal cannot be computed; if a site is
            called ``chain`` or ``draw``.

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
         'log_prior', 'uncertainty', 'observed_data', 'constant_data']
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
    rows = {}
    if model is None:
        if args or kwargs:
            raise ValueError(
                "draws do not say which model they come from: pass it, "
                "to_datatree(draws, ..., model=model), or leave the arguments out."
            )
        sites = ModelSites()
        datasets = make_datasets(
            {"posterior": given.draws, "params": given.by_chain},
            sites,
            frozenset(given.by_chain),
            is_ensemble=given.is_ensemble,
        )
    else:
        call = ModelCall(
            model, args, kwargs, params or {}, linearized_at=given.linearized_at
        )
        call = call.with_trained(given.params, given.by_chain)
        fitted = Fitted.join(given, call)
        sites = fitted.sites
        datasets = posterior_groups(fitted, predictive_key, log_likelihood, log_weight)
        if num_prior_samples and not given.is_warmup:
            key = jax.random.fold_in(rng_key, 2)
            datasets |= prior_groups(fitted, key, num_prior_samples)
        if predictions is not None and not given.is_warmup:
            key = jax.random.fold_in(rng_key, 3)
            datasets |= prediction_groups(fitted, key, predictions)
        rows = rows_of_run(source, given, call, datasets)
    datasets = {name: datasets[name] for name in _ORDER if name in datasets}
    if warmup is not None:
        datasets |= warmup_groups(warmup, sites)
    if given.losses is not None:
        datasets["optimization"] = xr.Dataset(
            {"loss": (("chain", "step")[-given.losses.ndim :], given.losses)},
            coords={"step": np.arange(given.losses.shape[-1])},
        )
    if given.is_warmup:
        datasets = {
            f"warmup_{name}": datasets[name] for name in ("posterior", "sample_stats")
        }
    tree = xr.DataTree.from_dict(datasets)
    tree.attrs.update(provenance(given, rng_key) | rows)
    return tree
