"""CompiledPredictive: NumPyro's Predictive as a compiled program that is remembered."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from numpyro.infer import Predictive
from numpyro.infer.autoguide import AutoGuide, AutoGuideList
from numpyro.primitives import Messenger

from pyrox_ppl._numpyro import batch_shape, handler_stack
from pyrox_ppl.infer.compiled._arguments import explain_tracing_errors, join_arguments
from pyrox_ppl.infer.compiled._programs import Key, Programs, jit_with_key
from pyrox_ppl.infer.guides._amortized import AmortizedGuide


class CompiledPredictive(Predictive):
    r"""NumPyro's ``Predictive`` as one program, compiled once.

    NumPyro runs a prediction operation by operation, and compiles its loop over draws
    again for each call. This class compiles one program, whose inputs are the key, the
    posterior samples, the params and the arrays among the arguments. A later call with
    the same shapes and types compiles nothing. It returns what NumPyro's ``Predictive``
    returns for the same key, up to rounding.

    Every attribute is NumPyro's, has the name of its argument, and may be set between
    calls. This predicts other draws without compiling anything::

        predictive.posterior_samples = mcmc.get_samples()
        predictive(key, x)

    :class:`CompiledMCMC` says when a program is used again.

    Draws of a posterior or a prior are predicted in pairs, by ``jax.vmap``, which is
    faster than one by one and needs little memory; ``parallel=True`` predicts all at
    once. With a guide or `infer_discrete` the loop is NumPyro's. Inside a handler the
    call is NumPyro's own, and nothing is compiled ahead.

    **Shapes**: of a site, ``(draw, *site)``, or ``(chain, draw, *site)`` with
    ``batch_ndims=2``.

    **Sites**: those of the model.

    Args:
        *args: The model, and the posterior samples by site, if there are any.
        **kwargs: The arguments of NumPyro's ``Predictive``: `guide`, `params`,
            `num_samples`, `return_sites`, `infer_discrete`, `parallel`, ...

    Raises:
        ValueError: Where NumPyro's class does. On a call, if the guide is not set up.
        TypeError: On a call, JAX's own error if the model's Python code needs the
            values of its array arguments.

    References:
        Phan, D., Pradhan, N. and Jankowiak, M. (2019). Composable Effects for Flexible
        and Accelerated Probabilistic Programming in NumPyro. arXiv:1912.11554.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from pyrox_ppl.infer import CompiledPredictive
        >>> def model(x):
        ...     slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", x.shape[0]):
        ...         numpyro.sample("y", dist.Normal(slope * x, 0.1))
        >>> x = jnp.linspace(0.0, 1.0, 8)
        >>> predictive = CompiledPredictive(model, {"slope": jnp.linspace(1.0, 2.0, 5)})
        >>> predictive(jax.random.key(0), x)["y"].shape
        (5, 8)
        >>> predictive.posterior_samples = {"slope": jnp.linspace(3.0, 4.0, 5)}
        >>> more = predictive(jax.random.key(1), 2.0 * x)  # compiles nothing
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._programs = PredictivePrograms()

    def __call__(self, rng_key: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The predicted sites, by name; as NumPyro's ``Predictive``.

        Args:
            rng_key: A PRNG key.
            *args: The arguments of the model.
            **kwargs: The keyword arguments of the model.
        """
        settings = self._settings()
        # Made anew, so that NumPyro checks the attributes as they are now.
        now = Predictive(**settings)
        self.num_samples = now.num_samples
        if _is_not_set_up(self.guide):
            raise ValueError(
                f"the guide {type(self.guide).__name__} is not set up, and a compiled "
                "program cannot do that: call svi.init(rng_key, *args) or svi.run "
                "first, outside of jit."
            )
        if handler_stack():
            return now(rng_key, *args, **kwargs)
        source = {name: settings.pop(name) for name in ("model", "guide")}
        arrays, key = self._programs.key(
            (settings, args, kwargs), source, parts=tuple(source.values())
        )
        with explain_tracing_errors("CompiledPredictive"):
            return self._programs.predict(key, rng_key, arrays)

    def _settings(self) -> dict[str, Any]:
        """The constructor's arguments, as the attributes are now."""
        names = inspect.signature(Predictive).parameters
        settings = {name: vars(self)[name] for name in names if name in vars(self)}
        if self.posterior_samples:
            # NumPyro counts the samples. The attribute may count earlier ones.
            settings["num_samples"] = None
        else:
            settings["posterior_samples"] = None
        # The order of these means nothing, so it must not be a part of the key.
        for name in ("posterior_samples", "params"):
            if type(settings.get(name)) is dict:
                settings[name] = dict(sorted(settings[name].items()))
        if isinstance(self.return_sites, set):
            settings["return_sites"] = sorted(self.return_sites)
        return settings


def _is_not_set_up(guide: Any) -> bool:
    """Whether a guide would set itself up when it is called."""
    while isinstance(guide, Messenger):
        guide = guide.fn
    if isinstance(guide, AmortizedGuide):
        return not guide.is_set_up
    if isinstance(guide, AutoGuideList) and any(_is_not_set_up(part) for part in guide):
        return True
    return isinstance(guide, AutoGuide) and guide.prototype_trace is None


class PredictivePrograms(Programs):
    """The program of a CompiledPredictive."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = jit_with_key(self._predict)

    def _predict(self, key: Key, rng_key: Any, arrays: list) -> dict[str, Any]:
        settings, args, kwargs = join_arguments(arrays, key.arguments)
        settings |= key.source.value
        predictive = Predictive(**settings)
        if _predicts_pairs(predictive):
            return _predict_pairs(predictive, settings, rng_key, args, kwargs)
        return predictive(rng_key, *args, **kwargs)


def _predicts_pairs(predictive: Predictive) -> bool:
    """Whether draws are predicted in pairs, and not by NumPyro's own loop."""
    by_numpyro = (
        predictive.parallel or predictive.infer_discrete or predictive.guide is not None
    )
    return predictive.num_samples > 1 and not by_numpyro


def _predict_pairs(
    predictive: Predictive,
    settings: dict[str, Any],
    rng_key: Any,
    args: tuple,
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """Map NumPyro's prediction of one draw over pairs of draws.

    On a CPU pairs are up to twice as fast as single draws, and faster than four at a
    time, whose arrays leave the cache.
    """
    number, leading = predictive.num_samples, batch_shape(predictive)

    def one(rng_key: Any, draw: dict[str, Any]) -> dict[str, Any]:
        single: dict[str, Any] = {"batch_ndims": 1}
        if draw:
            single["posterior_samples"] = jax.tree.map(lambda leaf: leaf[None], draw)
        else:
            single["num_samples"] = 1
        predicted = Predictive(**settings | single)(rng_key, *args, **kwargs)
        return jax.tree.map(lambda leaf: leaf[0], predicted)

    flat = jax.tree.map(
        lambda leaf: leaf.reshape(number, *leaf.shape[len(leading) :]),
        predictive.posterior_samples,
    )
    inputs = (jax.random.split(rng_key, number), flat)

    def pair(places: jax.Array) -> dict[str, Any]:
        return jax.vmap(one)(*jax.tree.map(lambda leaf: leaf[places], inputs))

    # An odd number repeats the last draw. A pair filled up with zeros could make a
    # sampler that rejects loop for ever.
    places = jnp.minimum(jnp.arange(number + number % 2), number - 1).reshape(-1, 2)
    predicted = lax.map(pair, places)
    return jax.tree.map(
        lambda leaf: leaf.reshape(places.size, *leaf.shape[2:])[:number].reshape(
            *leading, *leaf.shape[2:]
        ),
        predicted,
    )
