"""Predictions of a model: its sites at every draw, as NumPyro's Predictive has them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpyro import handlers
from tqdm.auto import tqdm

from pyrox_ppl.prediction._dependence import abstract_trace, dependence
from pyrox_ppl.prediction._draw_shapes import check_draw, check_draws
from pyrox_ppl.prediction._draws import Draws
from pyrox_ppl.prediction._full_data import full_data, is_factor, redraw
from pyrox_ppl.prediction._loop import CHUNK_BYTES, even_size, keys_of_draws, map_draws
from pyrox_ppl.prediction._prediction import Prediction
from pyrox_ppl.prediction._trained import check_trained, with_params


def sites_at(
    model: Callable[..., Any],
    params: dict[str, Any],
    args: tuple,
    kwargs: dict[str, Any],
    sites: Sequence[str] | None = None,
    kinds: Sequence[str] = ("sample", "deterministic"),
) -> Callable[[tuple[dict[str, Any], jax.Array]], dict[str, jax.Array]]:
    """The function ``(draw, key) -> values`` of a model's sites that are not drawn.

    The random numbers are those of NumPyro's ``Predictive``: every draw has a seed of
    its own, outside what is drawn. Deterministic sites are computed, and not taken from
    the draws; nothing is subsampled.

    Raises:
        ValueError: On a call, if a site does not exist, if a draw has another shape
            than its site, or if a part of the model has trained values and another has
            none.
    """

    def one(of_draw: tuple[dict[str, Any], jax.Array]) -> dict[str, jax.Array]:
        values, key = of_draw
        put = _Drawn(values)
        run = full_data(with_params(model, params))
        run = handlers.substitute(redraw(run), substitute_fn=put)
        trace = handlers.trace(handlers.seed(run, key)).get_trace(*args, **kwargs)
        check_trained(trace, params)
        check_draws(trace, values)
        found = {
            name: jnp.asarray(site["value"])
            for name, site in trace.items()
            if site["type"] in kinds
            and (
                site["type"] == "deterministic"
                or (name not in values and name not in put.unused)
            )
            and not (site["type"] == "sample" and is_factor(site))
        }
        if sites is None:
            return found
        missing = [name for name in sites if name not in found]
        if missing:
            raise ValueError(
                f"the model has no site {missing} to predict; it has {sorted(found)}."
            )
        return {name: found[name] for name in sites}

    return one


class _Drawn:
    """Puts draws in place of sites, for ``substitute``.

    A deterministic site is computed, not put in place: its draws may be of other data.
    But where a parameter was drawn and the noise that makes it was not (``net.weight``
    is there, ``net.weight_decentered`` is not), the parameter is what is known.

    Attributes:
        unused: The sites of noise that nothing is made of.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self._undrawn: set[str] = set()
        self.unused: set[str] = set()

    def __call__(self, site: dict[str, Any]) -> Any:
        name = site["name"]
        noise = f"{name}_decentered"
        if site["type"] == "sample":
            if name not in self._values:
                self._undrawn.add(name)
                return None
            check_draw(site, self._values[name])
            return self._values[name]
        if site["type"] == "deterministic" and noise in self._undrawn:
            if name not in self._values:
                return None
            check_draw(site, self._values[name])
            self.unused.add(noise)
            return self._values[name]
        return None


def predict_sites(
    model: Callable[..., Any],
    draws: Draws,
    args: tuple,
    kwargs: dict[str, Any],
    *,
    rng_key: PRNGKeyArray | None,
    sites: Sequence[str] | None,
    params: dict[str, Any],
    quantiles: tuple[float, ...],
    batch_size: int | None,
    progress_bar: bool,
) -> dict[str, Prediction]:
    """Summarise a model's sites over all draws (see :func:`~pyrox_ppl.predict`)."""
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    if not draws.values:
        _check_learned(with_params(model, params), args, kwargs)
    one = sites_at(model, params, args, kwargs, sites)
    inputs = (draws.on_device(), keys_of_draws(rng_key, draws.number))
    shapes = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], inputs))
    total = sum(shape.size for shape in shapes.values())
    if batch_size is None and total <= 4 * width_of(draws.number):
        values = map_draws(
            one,
            inputs,
            draws.number,
            description="predict",
            progress_bar=progress_bar,
        )
        return {name: _summary(value, quantiles) for name, value in values.items()}
    out = {}
    for name, shape in shapes.items():
        flat = Prediction.empty((shape.size,), np.dtype(shape.dtype), quantiles)
        for where, values in site_blocks(
            one, name, shape.size, inputs, batch_size, progress_bar
        ):
            flat.fill(where, values)
        out[name] = _reshaped(flat, shape.shape)
    return out


def _check_learned(model: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
    """Refuse a model that has latent sites, and none of them drawn."""

    def run() -> tuple[dict[str, Any], dict[str, Any]]:
        trace = abstract_trace(model, args, kwargs)
        samples = {n: s for n, s in trace.items() if s["type"] == "sample"}
        causes = {n: s["value"] for n, s in samples.items() if not s["is_observed"]}
        return causes, {n: jax.tree.leaves(s["fn"]) for n, s in samples.items()}

    latent = set().union(*(of - {n} for n, of in dependence(run).items()))
    if latent:
        raise ValueError(
            f"others of the model's sites depend on {sorted(latent)}, of which there "
            "are no draws: give draws, such as `mcmc.get_samples()` or a DataTree. "
            "`params` alone are enough for a model that is only trained."
        )


def width_of(number: int) -> int:
    """How many values of a site are held for all draws at a time."""
    return max(1, CHUNK_BYTES // (4 * number))


def site_blocks(
    one: Callable[..., Any],
    name: str,
    size: int,
    inputs: Any,
    batch_size: int | None = None,
    progress_bar: bool = False,
) -> Iterator[tuple[slice, np.ndarray]]:
    """One site, a block of its values at a time, the model running for every block."""
    if size == 0:
        return
    number = len(inputs[1])
    width = even_size(size, batch_size or width_of(number))

    @jax.jit
    def loop(inputs: Any, start: jax.Array) -> jax.Array:
        def block(draw: Any) -> jax.Array:
            whole = one(draw)[name].reshape(-1)
            return jax.lax.dynamic_slice(whole, (start,), (width,))

        return jax.lax.map(block, inputs)

    starts = range(0, size, width)
    for start in tqdm(starts, desc=name, disable=not progress_bar, delay=2.0):
        begin = min(start, size - width)
        yield slice(begin, begin + width), np.asarray(loop(inputs, begin))


def _summary(values: np.ndarray, quantiles: tuple[float, ...]) -> Prediction:
    out = Prediction.empty(values.shape[1:], values.dtype, quantiles)
    out.fill(..., values)
    return out


def _reshaped(prediction: Prediction, shape: tuple[int, ...]) -> Prediction:
    return Prediction(
        prediction.mean.reshape(shape),
        prediction.std.reshape(shape),
        {q: value.reshape(shape) for q, value in prediction.quantiles.items()},
    )
