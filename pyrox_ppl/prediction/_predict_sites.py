"""Summaries of a model's sites over all draws."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from pyrox_ppl.prediction._draws import Draws
from pyrox_ppl.prediction._model_call import ModelCall
from pyrox_ppl.prediction._outcome import class_probabilities, outcome_of
from pyrox_ppl.prediction._prediction import Prediction, SummaryOptions
from pyrox_ppl.prediction._site_uncertainty import split_uncertainty
from pyrox_ppl.prediction._site_values import SiteValues, value_of
from pyrox_ppl.prediction._uncertainty import LawMeans


def predict_sites(
    call: ModelCall,
    draws: Draws,
    rng_key: PRNGKeyArray,
    sites: Sequence[str] | None,
    options: SummaryOptions,
) -> dict[str, Prediction]:
    """Summarise a model's sites over all draws (see :func:`~pyrox_ppl.predict`)."""
    if not draws.values:
        _check_only_trained(call)
    read, laws = _SiteReader(), LawMeans() if options.uncertainty else None
    values = SiteValues(call, draws, rng_key, sites, read=read, laws=laws)
    total = sum(shape.size for shape in values.shapes.values())
    at_once = options.batch_size is None and total <= values.block_size
    if at_once or total == 0:  # blocks of nothing would not read the distributions
        arrays = values.all(options.progress_bar)
        summaries = {n: _summarise(v, options.quantiles) for n, v in arrays.items()}
    else:
        summaries = {n: _summarise_blocks(values, n, options) for n in values.shapes}
    split = {} if laws is None else split_uncertainty(call, draws.values, laws)
    return {
        name: summary._replace(
            uncertainty=split.get(name), has_noise=name in read.noisy
        )
        for name, summary in summaries.items()
    }


def _check_only_trained(call: ModelCall) -> None:
    """Refuse a model with latent sites when there are no draws of any of them."""
    latent = call.find_latents()
    if latent:
        raise ValueError(
            f"other sites of the model depend on {sorted(latent)}, and there are no "
            "draws of these: give draws, such as `mcmc.get_samples()` or a DataTree. "
            "`params` without draws suffice for a model that is only trained."
        )


def _summarise(values: np.ndarray, quantiles: tuple[float, ...]) -> Prediction:
    summary = Prediction.empty(values.shape[1:], values.dtype, quantiles)
    summary.fill(..., values)
    return summary


def _summarise_blocks(
    values: SiteValues, name: str, options: SummaryOptions
) -> Prediction:
    shape = values.shapes[name]
    flat = Prediction.empty((shape.size,), shape.dtype, options.quantiles)
    for where, block in values.blocks(name, options.batch_size, options.progress_bar):
        flat.fill(where, block)
        del block  # before the next one is computed
    return Prediction(
        flat.mean.reshape(shape.shape),
        flat.std.reshape(shape.shape),
        {q: value.reshape(shape.shape) for q, value in flat.quantiles.items()},
    )


class _SiteReader:
    """Reads the value of a site; of a binary or categorical one its probabilities.

    Attributes:
        noisy: The names of the sites whose values are draws with noise.
    """

    def __init__(self) -> None:
        self.noisy: set[str] = set()

    def __call__(self, site: dict[str, Any]) -> jax.Array:
        if site["type"] == "sample":
            outcome = outcome_of(site["fn"])
            if outcome is not None and outcome.num_classes is not None:
                return class_probabilities(site["fn"])
            self.noisy.add(site["name"])
        return value_of(site)
