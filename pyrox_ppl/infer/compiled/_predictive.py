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
from pyrox_ppl.infer.compiled._arguments import explained_tracing, join
from pyrox_ppl.infer.compiled._programs import Key, Programs, jit_with_key
from pyrox_ppl.infer.guides._amortized import AmortizedGuide


class CompiledPredictive(Predictive):
    r"""NumPyro's ``Predictive`` as one program, compiled once.

    NumPyro runs a prediction operation by operation, and compiles its loop over draws
    again for each call. This class compiles all of it as one program whose inputs are
    the key, the posterior samples, the params and the arrays among the arguments, and
    keeps it: a later call with the same shapes and types compiles nothing. What it
    returns is what NumPyro's ``Predictive`` returns for the same key, up to rounding.

    Every attribute is NumPyro's, under the name of its argument, and can be set anew
    between calls. So the next draws are predicted without compiling anything::

        predictive.posterior_samples = mcmc.get_samples()
        predictive(key, x)

    What counts as the same is said at :class:`CompiledMCMC`.

    Draws of a posterior or a prior are predicted two at a time, by ``jax.vmap``, which
    is faster than one and needs little memory; all at once with ``parallel=True``.
    With a guide or `infer_discrete` the loop is NumPyro's. Within NumPyro's handlers
    nothing is compiled ahead: the call is NumPyro's own.

    **Shapes**: of a site, ``(draw, *site)``; ``(chain, draw, *site)`` with
    ``batch_ndims=2``, as NumPyro has it.

    **Sites**: as the model has them.

    Args:
        *args: The model, and the posterior samples by site, if there are any.
        **kwargs: Those of NumPyro's ``Predictive``: `guide`, `params`, `num_samples`,
            `return_sites`, `infer_discrete`, `parallel`, `batch_ndims`, ...

    Raises:
        ValueError: As NumPyro's class does; on a call, if the guide has not been set
            up.
        TypeError: On a call, JAX's own: if the model's Python code needs the values of
            its array arguments.

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
        # NumPyro's own checks, and sizes of what the attributes are now.
        now = Predictive(**settings)
        self.num_samples = now.num_samples
        if _is_new(self.guide):
            raise ValueError(
                f"the guide {type(self.guide).__name__} has not been set up: within a "
                "compiled program it would keep values that are gone. Run "
                "svi.init(rng_key, *args) or svi.run first, outside of jit."
            )
        if handler_stack():
            return now(rng_key, *args, **kwargs)
        source = {name: settings.pop(name) for name in ("model", "guide")}
        arrays, key = self._programs.key(
            (settings, args, kwargs), source, parts=tuple(source.values())
        )
        with explained_tracing("CompiledPredictive"):
            return self._programs.predict(key, rng_key, arrays)

    def _settings(self) -> dict[str, Any]:
        """The constructor's arguments, as the attributes are now."""
        names = inspect.signature(Predictive).parameters
        settings = {name: vars(self)[name] for name in names if name in vars(self)}
        if self.posterior_samples:
            # Their number decides; the attribute may be that of earlier ones.
            settings["num_samples"] = None
        else:
            settings["posterior_samples"] = None
        for name in ("posterior_samples", "params"):  # their order means nothing
            if type(settings.get(name)) is dict:
                settings[name] = dict(sorted(settings[name].items()))
        if isinstance(self.return_sites, set):
            settings["return_sites"] = sorted(self.return_sites)
        return settings


def _is_new(guide: Any) -> bool:
    """Whether a guide would set itself up when it is called."""
    while isinstance(guide, Messenger):
        guide = guide.fn
    if isinstance(guide, AmortizedGuide):
        return guide._locals is None
    if isinstance(guide, AutoGuideList) and any(_is_new(part) for part in guide):
        return True
    return isinstance(guide, AutoGuide) and guide.prototype_trace is None


class PredictivePrograms(Programs):
    """The program of a CompiledPredictive."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = jit_with_key(self._predict)

    def _predict(self, key: Key, rng_key: Any, arrays: list) -> dict[str, Any]:
        settings, args, kwargs = join(arrays, key.arguments)
        settings |= key.source.value
        predictive = Predictive(**settings)
        if _in_pairs(predictive):
            return _predict_pairs(predictive, settings, rng_key, args, kwargs)
        return predictive(rng_key, *args, **kwargs)


def _in_pairs(predictive: Predictive) -> bool:
    """Whether draws are taken two at a time, and not by NumPyro's own loop."""
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
    """NumPyro's predictions of one draw each, mapped over pairs of them.

    Two draws at a time are faster on a CPU than one (up to twice as fast) and
    than four, whose arrays leave the cache.
    """
    number, leading = predictive.num_samples, batch_shape(predictive)

    def one(rng_key: Any, draw: dict[str, Any]) -> dict[str, Any]:
        of_one: dict[str, Any] = {"batch_ndims": 1}
        if draw:
            of_one["posterior_samples"] = jax.tree.map(lambda leaf: leaf[None], draw)
        else:
            of_one["num_samples"] = 1
        predicted = Predictive(**settings | of_one)(rng_key, *args, **kwargs)
        return jax.tree.map(lambda leaf: leaf[0], predicted)

    flat = jax.tree.map(
        lambda leaf: leaf.reshape(number, *leaf.shape[len(leading) :]),
        predictive.posterior_samples,
    )
    inputs = (jax.random.split(rng_key, number), flat)

    def pair(places: jax.Array) -> dict[str, Any]:
        return jax.vmap(one)(*jax.tree.map(lambda leaf: leaf[places], inputs))

    # Of an odd number the last is predicted twice: zeros might never be accepted by a
    # sampler that rejects.
    places = jnp.minimum(jnp.arange(number + number % 2), number - 1).reshape(-1, 2)
    predicted = lax.map(pair, places)
    return jax.tree.map(
        lambda leaf: leaf.reshape(places.size, *leaf.shape[2:])[:number].reshape(
            *leading, *leaf.shape[2:]
        ),
        predicted,
    )
