"""predict: means, spreads and quantiles of predictions in bounded memory."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from pyrox_ppl.prediction._draws import Draws
from pyrox_ppl.prediction._model_call import ModelCall
from pyrox_ppl.prediction._module_call import ModuleCall
from pyrox_ppl.prediction._module_values import predict_module
from pyrox_ppl.prediction._predict_sites import predict_sites
from pyrox_ppl.prediction._prediction import SummaryOptions


def predict(
    model: Any,
    draws: Any,
    *args: Any,
    call: Callable[..., Any] | None = None,
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
    shape of its values, for the probability of 1.

    A module of :mod:`pyrox_ppl.nn` takes its inputs whole, as when it is called. Any
    other Equinox module takes one point, so it is mapped over the leading axis of its
    inputs, including those passed by keyword or inside tuples and dictionaries. An
    input with fewer axes than the others is shared by all points, and so is the row of
    one with a leading axis of 1. With `call`, nothing is mapped: the function gets the
    module and the inputs as a model would have them, once for each draw. If the value
    at a point depends on the other points (attention over rows, statistics of the
    batch) or on their number (``len(x)``), no blocks are made.

    A random key among the inputs (``key=jax.random.key(0)``, or one of
    ``jax.random.PRNGKey``) is split, so that every draw and every mapped point has its
    own; typed keys, one for each point, are split for the draws. A key that `call`
    closes over, or that the module holds, is the same at every draw.

    A tree of a guide that linearises (:class:`~pyrox_ppl.infer.AutoLaplace`) remembers
    its mode. A model is then linearised there by :func:`~pyrox_ppl.linearize`, and a
    module, or `call`, is replaced by its tangent
    :math:`f_{\theta^*}(x) + J(x) (\theta_s - \theta^*)`. So let `call` return logits,
    not probabilities: a tangent may leave [0, 1].

    A value that is not finite at some draw makes its mean and standard deviation not
    finite as well.

    **Sites**: matched to a module as in :func:`~pyrox_ppl.modules_from_draws`.

    Args:
        model: The Equinox module that a model read, or a NumPyro model. With `call` it
            may be any pytree of modules that was bound, such as a tuple of them.
        draws: A dictionary of draws, such as ``mcmc.get_samples()``, or a DataTree of
            :func:`~pyrox_ppl.to_datatree`.
        *args: The inputs. A model needs no observations: if some are passed, they may
            set shapes, but are drawn anew. The state of a module's layers (an
            ``eqx.nn.State``) is shared by all points.
        call: How to call a module: ``call(module, *args, **kwargs)`` returns one array.
            By default the module itself is called. Use it for state, inference mode,
            dropout, one of several outputs, or a function on top, such as a softmax. A
            module bound on a plate has the axis of the plate on every array.
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
            without draws.
        **kwargs: Keyword arguments for the module or the model.

    Returns:
        A `Prediction` with ``mean``, ``std``, ``quantiles`` (a dictionary by
        probability) and ``uncertainty`` (``total``, ``aleatoric``, ``epistemic``); for
        a model a dictionary of them by site.

    Raises:
        TypeError: If a module, or `call`, does not take the inputs.
        ValueError: If `uncertainty` is asked of a module, whose values have no noise;
            if `call` is given for a model, does not return one array, or returns one
            that depends on no draw;
            if the draws or `params` do not match the module; if no draw belongs to a
            site of the model, or some do not while a parameter of a module, or a latent
            site of their shape, has none;
            if the inputs have different numbers of points; if an input with fewer axes
            may hold a value for each point or be shared by all; if `batch_size` would
            cut points that depend on each other; if a quantile is not a probability; if
            a site does not exist.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, pyrox_ppl as px
        >>> linear = eqx.nn.Linear(1, 1, use_bias=False, key=jax.random.key(0))
        >>> draws = {"linear.weight": jnp.array([1.0, 2.0, 3.0])[:, None, None]}
        >>> fit = px.predict(linear, draws, jnp.array([[1.0], [10.0]]))
        >>> fit.mean.ravel().tolist(), fit.quantiles[0.5].ravel().tolist()
        ([2.0, 20.0], [2.0, 20.0])

        A layer with dropout and a state, in inference mode, and a softmax on top:

        >>> def make(key):
        ...     linear = eqx.nn.Linear(2, 3, key=key)
        ...     norm = eqx.nn.BatchNorm(2, "rows", mode="batch")
        ...     return eqx.nn.Sequential([norm, eqx.nn.Dropout(0.5), linear])
        >>> net, state = eqx.nn.make_with_state(make)(jax.random.key(0))
        >>> def probabilities(net, x, state):
        ...     net = eqx.nn.inference_mode(net)
        ...     logits, _ = jax.vmap(net, (0, None), (0, None), "rows")(x, state)
        ...     return jax.nn.softmax(logits)
        >>> draws = {"net.layers.2.bias": jnp.arange(21.0).reshape(7, 3)}
        >>> x = jnp.ones((5, 2))
        >>> fit = px.predict(net, draws, x, state, call=probabilities, name="net")
        >>> fit.mean.shape, bool(jnp.allclose(fit.mean.sum(-1), 1.0))
        ((5, 3), True)
    """
    wrong = [q for q in quantiles if not 0.0 <= q <= 1.0]
    if wrong:
        raise ValueError(f"quantiles are probabilities in [0, 1], got {wrong}.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    given = Draws.read(draws, batch_ndims)
    options = SummaryOptions(tuple(quantiles), batch_size, progress_bar, uncertainty)
    bound = bind_call(model, args, kwargs, params, name, sites, call)
    if isinstance(bound, ModuleCall):
        if uncertainty:
            raise ValueError(
                "`uncertainty` splits noise from what the draws disagree on, and a "
                f"module has no noise: pass the model instead of "
                f"{type(model).__name__}, or read `std`, which is all epistemic."
            )
        return predict_module(bound, given, options)
    bound = dataclasses.replace(
        bound.with_trained(given.params, given.by_chain),
        linearized_at=given.latents_linearized_at,
    )
    if not given.values and not bound.params:
        raise ValueError(
            "there are no draws and no params to predict from: give "
            "`mcmc.get_samples()`, or params=fit.params for a model that is only "
            "trained. For draws from the prior use NumPyro's Predictive."
        )
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    return predict_sites(bound, given, rng_key, sites, options)


def bind_call(
    function: Any,
    args: tuple,
    kwargs: dict[str, Any],
    params: Mapping[str, Any] | None,
    name: str | None,
    sites: Sequence[str] | None,
    call: Callable[..., Any] | None,
) -> ModuleCall | ModelCall:
    """Bind a module or a model to the arguments of a call.

    Raises:
        TypeError: If `function` is neither.
        ValueError: If `sites` are given for a module, or `name` or `call` for a model.
    """
    if _is_model(function):
        if name is not None:
            raise ValueError(
                "`name` is the root of a module's names, and this is a model: leave it "
                "out."
            )
        if call is not None:
            raise ValueError(
                "`call` says how to call a module, and this is a model, which says so "
                "itself: leave it out, or pass the module."
            )
        return ModelCall(function, args, kwargs, params or {})
    if call is None and not isinstance(function, eqx.Module):
        raise TypeError(
            f"predictions are of a module or a model, got {type(function).__name__}. "
            "If it holds modules that were bound together, say how to call them: "
            "call=lambda modules, *inputs: ..."
        )
    if sites is not None:
        raise ValueError(
            "`sites` chooses among the sites of a model, and "
            f"{type(function).__name__} is a module: leave it out."
        )
    return ModuleCall(function, args, kwargs, name, params, call)


def _is_model(function: Any) -> bool:
    return callable(function) and not isinstance(function, eqx.Module)
