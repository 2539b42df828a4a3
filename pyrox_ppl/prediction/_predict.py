"""predict: means, spreads and quantiles of predictions in bounded memory."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from pyrox_ppl.prediction._draws import Draws
from pyrox_ppl.prediction._model_call import ModelCall
from pyrox_ppl.prediction._module_values import ModuleCall, predict_module
from pyrox_ppl.prediction._predict_sites import predict_sites
from pyrox_ppl.prediction._prediction import SummaryOptions


def predict(
    model: Callable[..., Any],
    draws: Any,
    *args: Any,
    rng_key: PRNGKeyArray | None = None,
    name: str | None = None,
    sites: Sequence[str] | None = None,
    params: dict[str, Any] | None = None,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    batch_size: int | None = None,
    batch_ndims: int | None = None,
    progress_bar: bool = True,
    uncertainty: bool = False,
    **kwargs: Any,
) -> Any:
    r"""Summarise the predictions of all draws in bounded memory.

    For a module: the mean :math:`\frac1S \sum_s f_{\theta_s}(x)`, the standard
    deviation over the draws (divided by S), and exact quantiles. Quantiles need every
    draw of a point, so memory holds all draws of a block of points; within a block, the
    draws are evaluated one after the other inside one ``jit``.

    For a model: the same for every site without draws, noise included, with the random
    numbers of NumPyro's ``Predictive``. Deterministic sites are computed, even if the
    draws contain them; only a non-centred parameter that was drawn without its
    ``<parameter>_decentered`` stays as drawn. A random quantity without draws (a latent
    that was summed out, a dropout mask, an observation inside a ``scan`` or ``cond``)
    is drawn for every draw. Plates that take minibatches are made whole; plates that
    only scale have the rows of the inputs. A model's data cannot be cut into blocks, so
    where draws times points would be too many, the model runs again for every block.

    A binary or categorical site of a model is summarised by its class probabilities
    :math:`p(y = k \mid \theta_s)`, the mean of which is the predictive probability.
    Labels are names and have no mean; for draws of them use NumPyro's ``Predictive``.

    **Shapes**: every array has the shape of one prediction: ``(*batch, out)`` for a
    module. A categorical site has a last axis of its classes; a binary one has the
    shape of its values, for the probability of 1. A module of :mod:`pyrox_ppl.nn` takes
    its inputs whole, as when it is called. Any other Equinox module takes one point, so
    it is mapped over the leading axis of its inputs, including those passed by keyword
    or inside tuples and dictionaries. An input with fewer axes than the others, or with
    a leading axis of 1, is shared by all points. If the value at a point depends on the
    other points (attention over rows, statistics of the batch), no blocks are made. A
    random key
    (``key=jax.random.key(0)``, or one of ``jax.random.PRNGKey``) is split, so that
    every draw and every mapped point has its own; typed keys, one for each point, are
    split for the draws.

    A value that is not finite at some draw makes its mean and standard deviation not
    finite as well.

    **Sites**: matched to a module as in :func:`~pyrox_ppl.modules_from_draws`.

    Args:
        model: The Equinox module that a model read, or a NumPyro model.
        draws: A dictionary of draws, such as ``mcmc.get_samples()``, or a DataTree of
            :func:`~pyrox_ppl.to_datatree`.
        *args: The inputs. A model needs no observations: if some are passed, they may
            set shapes, but are drawn anew.
        rng_key: The JAX PRNG key of a model's draws; ``jax.random.key(0)`` if not
            given. A module needs none.
        name: The root of the module's names, as for `modules_from_draws`.
        sites: The sites of a model to predict; by default those that ``Predictive``
            returns: every sample site that was not drawn, and every deterministic.
        params: Trained values of ``param`` sites, such as ``fit.params``, and of
            ``mutable`` sites, ``{**fit.params, **fit.state.mutable_state}``. A DataTree
            contains them; a dictionary of draws does not, and without them a learned
            parameter of a module has its stored, untrained value. For a model that is
            only trained there are no draws: ``predict(model, {}, x,
            params=fit.params)``.
        quantiles: Probabilities of the quantiles, in [0, 1]; ``()`` for none.
        batch_size: How many points (or values of a site) to hold for all draws at a
            time; by default about 64 MB of them.
        batch_ndims: The number of sample axes of a dictionary's arrays, by default 1.
        progress_bar: Whether to show one, if it takes more than two seconds.
        uncertainty: Whether to split the uncertainty of a model's sites in aleatoric
            and epistemic: of classes their entropy, of numbers their variance. It is
            None for a site for which NumPyro has no formula (vectors, angles,
            deterministic sites) and for one that depends on another sample site
            without draws. The model runs once more for each draw.
        **kwargs: Keyword arguments for the module or the model.

    Returns:
        A `Prediction` with ``mean``, ``std``, ``quantiles`` (a dictionary by
        probability) and ``uncertainty`` (``total``, ``aleatoric``, ``epistemic``); for
        a model a dictionary of them by site.

    Raises:
        ValueError: If `uncertainty` is asked of a module, whose values have no noise;
            if the draws or `params` do not match the module; if the inputs have
            different numbers of points; if an input with fewer axes may hold a value
            for each point or be shared by all; if `batch_size` would cut points that
            depend on each other; if a quantile is not a probability; if a site does not
            exist.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, pyrox_ppl as px
        >>> linear = eqx.nn.Linear(1, 1, use_bias=False, key=jax.random.key(0))
        >>> draws = {"linear.weight": jnp.array([1.0, 2.0, 3.0])[:, None, None]}
        >>> fit = px.predict(linear, draws, jnp.array([[1.0], [10.0]]))
        >>> fit.mean.ravel().tolist(), fit.quantiles[0.5].ravel().tolist()
        ([2.0, 20.0], [2.0, 20.0])
    """
    wrong = [q for q in quantiles if not 0.0 <= q <= 1.0]
    if wrong:
        raise ValueError(f"quantiles are probabilities in [0, 1], got {wrong}.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    given = Draws.read(draws, batch_ndims)
    options = SummaryOptions(tuple(quantiles), batch_size, progress_bar, uncertainty)
    call = bind_call(model, args, kwargs, params, name, sites)
    if isinstance(call, ModuleCall):
        if uncertainty:
            raise ValueError(
                "`uncertainty` splits noise from what the draws disagree on, and a "
                f"module has no noise: pass the model instead of "
                f"{type(model).__name__}, or read `std`, which is all epistemic."
            )
        return predict_module(call, given, options)
    call = dataclasses.replace(call, params={**given.params, **call.params})
    if not given.values and not call.params:
        raise ValueError(
            "there are no draws and no params to predict from: give "
            "`mcmc.get_samples()`, or params=fit.params for a model that is only "
            "trained. For draws from the prior use NumPyro's Predictive."
        )
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    return predict_sites(call, given, rng_key, sites, options)


def bind_call(
    function: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
    params: Mapping[str, Any] | None,
    name: str | None,
    sites: Sequence[str] | None,
) -> ModuleCall | ModelCall:
    """Bind a module or a model to the arguments of a call.

    Raises:
        ValueError: If `sites` are given for a module, or `name` for a model.
    """
    if isinstance(function, eqx.Module):
        if sites is not None:
            raise ValueError(
                "`sites` chooses among the sites of a model, and "
                f"{type(function).__name__} is a module: leave it out."
            )
        return ModuleCall(function, args, kwargs, name, params)
    if name is not None:
        raise ValueError(
            "`name` is the root of a module's names, and this is a model: leave it out."
        )
    return ModelCall(function, args, kwargs, params or {})
