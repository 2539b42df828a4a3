"""Predictions of a model: its sites at every draw, as NumPyro's Predictive has them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpyro import handlers
from tqdm.auto import tqdm

from pyrox_ppl.infer.draws import Draws
from pyrox_ppl.infer.full_data import full_data, is_factor, redraw
from pyrox_ppl.infer.loop import CHUNK_BYTES, even_size, keys_of_draws, map_draws
from pyrox_ppl.infer.prediction import Prediction


def sites_at(
    model: Callable[..., Any],
    params: dict[str, Any],
    args: tuple,
    kwargs: dict[str, Any],
    sites: Sequence[str] | None = None,
    kinds: Sequence[str] = ("sample", "deterministic"),
) -> Callable[[tuple[dict[str, Any], jax.Array]], dict[str, jax.Array]]:
    """The function ``(draw, key) -> values`` of a model's sites that are not drawn.

    The random numbers are those of NumPyro's ``Predictive``: a seed outside the draws.
    Deterministic sites are computed, and not taken from the draws; plates are whole.
    """

    def one(of_draw: tuple[dict[str, Any], jax.Array]) -> dict[str, jax.Array]:
        values, key = of_draw

        def drawn(site: dict[str, Any]) -> Any:
            known = site["type"] == "sample" and site["name"] in values
            return values[site["name"]] if known else None

        run = handlers.substitute(full_data(model), data=params)
        run = handlers.substitute(redraw(run), substitute_fn=drawn)
        trace = handlers.trace(handlers.seed(run, key)).get_trace(*args, **kwargs)
        found = {
            name: jnp.asarray(site["value"])
            for name, site in trace.items()
            if site["type"] in kinds
            and (
                site["type"] == "deterministic"
                or (name not in values and not is_factor(site))
            )
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
