"""Selection by uncertainty: rows to label next, and rows to leave to a human."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

import pyrox_ppl.scores as scores
from pyrox_ppl.posterior._observed import CLASSES
from pyrox_ppl.posterior._site_predictions import SitePredictions
from pyrox_ppl.prediction._prediction import Prediction


def most_uncertain(source: Any, number: int, site: str | None = None) -> np.ndarray:
    """The rows whose outcomes would teach most about the parameters.

    By the epistemic part of the uncertainty: of classes the mutual information between
    label and parameters (BALD), of numbers the variance of the mean over the draws. A
    row of several values counts by their sum.

    **Shapes**: result ``(number,)``.

    Args:
        source: For rows without outcomes, what ``px.predict(model, tree, x,
            uncertainty=True)`` returned; or a DataTree.
        number: How many rows to choose.
        site: The site; may be left out if there is one. Predictions of a model with
            latent or deterministic sites have several.

    Returns:
        Indices of rows along the leading axis of the data, the most uncertain first.

    Raises:
        TypeError: If `source` is neither predictions nor a DataTree.
        ValueError: If it has no uncertainty of the site, or not that many rows; rows
            that a mask hides do not count.

    References:
        Houlsby et al., "Bayesian Active Learning for Classification and Preference
        Learning", 2011.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> def model(x, y=None):
        ...     slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", x.shape[0]):
        ...         numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
        >>> draws = {"slope": jax.random.normal(jax.random.key(0), (50,))}
        >>> x = jnp.array([0.0, 3.0, -1.0])
        >>> tree = px.to_datatree(draws, x, y=jnp.zeros(3), model=model)
        >>> px.most_uncertain(tree, 2)
        array([1, 2])
    """
    if isinstance(source, Prediction | Mapping) and not isinstance(source, xr.DataTree):
        values = _of_prediction(source, site)
        rows = np.arange(len(values)) if values.ndim else np.zeros(1, int)
    else:
        predictions = SitePredictions.read(source, site, "most_uncertain")
        values, rows = predictions.uncertainty("epistemic"), predictions.row_numbers()
    each = values.reshape(len(rows), -1).sum(1)
    found, place = np.unique(rows, return_inverse=True)
    chosen = scores.most_uncertain(np.bincount(place, each), number)
    return found[chosen]


def accuracy_rejection_curve(
    tree: xr.DataTree, site: str | None = None
) -> scores.RejectionCurve:
    """Accuracy of what is kept when the most uncertain predictions are rejected.

    By the total uncertainty, the entropy of the class probabilities. The curve rises if
    it tells wrong predictions from right ones.

    Args:
        tree: A DataTree of held-out data with classes as outcomes.
        site: The observed site; may be left out if there is one.

    Returns:
        A `scores.RejectionCurve`, ``(rejected, accuracy, threshold)``.

    Raises:
        TypeError: If `tree` is not a DataTree.
        ValueError: If the outcomes are not classes.

    References:
        Nadeem, Zucker and Hanczar, "Accuracy-Rejection Curves (ARCs) for Comparing
        Classification Methods with a Reject Option", MLSB 2010.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> def model(x, y=None):
        ...     slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", x.shape[0]):
        ...         numpyro.sample("y", dist.Bernoulli(logits=slope * x), obs=y)
        >>> x, y = jnp.array([-3.0, -0.1, 2.0]), jnp.array([0, 1, 1])
        >>> tree = px.to_datatree({"slope": jnp.ones(5)}, x, y=y, model=model)
        >>> px.accuracy_rejection_curve(tree).accuracy.round(2)
        array([0.67, 1.  , 1.  ])
    """
    predictions = SitePredictions.read(tree, site, "accuracy_rejection_curve")
    if predictions.outcome not in CLASSES:
        raise ValueError(
            f"{predictions.site!r} is {predictions.outcome}, and only predictions of "
            "classes are right or wrong."
        )
    labels, p = predictions.observed(), predictions.probabilities()
    p = p.reshape(-1, *p.shape[labels.ndim :])
    total = predictions.uncertainty("total")
    return scores.accuracy_rejection_curve(labels.ravel(), p, total.ravel())


def _of_prediction(source: Any, site: str | None) -> np.ndarray:
    """The epistemic uncertainty of one prediction, or of one among several sites."""
    if isinstance(source, Prediction):
        source = {site: source}
    uncertain = {
        name: one for name, one in source.items() if one.uncertainty is not None
    }
    if not uncertain:
        raise ValueError(
            f"no prediction of {list(source)} has its uncertainty split: pass "
            "predict(model, tree, x, uncertainty=True), and see `predict` for the "
            "sites that it cannot split."
        )
    # A latent site may be the only one that is split, so nothing is guessed.
    if site is None and len(source) > 1:
        raise ValueError(
            f"the predictions are of the sites {list(source)}: choose one by `site`, "
            f"of {list(uncertain)}, which have their uncertainty split."
        )
    site = next(iter(source)) if site is None else site
    if site not in uncertain:
        raise ValueError(
            f"there is no uncertainty of {site!r} in predictions of {list(source)}: "
            f"choose one site of {list(uncertain)}."
        )
    return np.asarray(uncertain[site].uncertainty.epistemic)
