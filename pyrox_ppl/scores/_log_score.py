"""log_score: the log predictive density of what was observed."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

import pyrox_ppl.scores._check as _check
from pyrox_ppl.scores._row_blocks import row_blocks


def log_score(
    log_likelihood: ArrayLike, *, weights: ArrayLike | None = None
) -> np.ndarray:
    r"""Score predictive densities; larger is better, in nats.

    .. math:: \log \frac1S \sum_{s=1}^S p(y \mid \theta_s)

    for S draws :math:`\theta_s`; with weights, :math:`w_s` takes the place of 1/S. The
    sum over held-out rows is the expected log predictive density (ELPD). A row of
    density zero under every draw scores minus infinity.

    **Shapes**: log likelihoods ``(draws, *rows)``, weights ``(draws,)``, result
    ``(*rows)``.

    Args:
        log_likelihood: The log density of every observation under every draw.
        weights: Non-negative weights of the draws, normalised here; equal if None.

    Returns:
        The score of every row, in double precision.

    Raises:
        ValueError: If a log likelihood is NaN or plus infinity, or if the weights are
            not one non-negative number for every draw.

    References:
        Good, "Rational Decisions", JRSS B 1952. Gneiting and Raftery, "Strictly Proper
        Scoring Rules, Prediction, and Estimation", JASA 2007.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> px.scores.log_score(np.log([[0.2, 0.5], [0.4, 0.1]])).round(3)
        array([-1.204, -1.204])
    """
    draws = _check.real_array("log likelihoods", log_likelihood)
    if draws.ndim == 0:
        raise ValueError(
            "log likelihoods have the axis of draws first, got a single number."
        )
    weight = _check.draw_weights(weights, len(draws))
    result = np.empty(draws[0].size)
    for where, block in row_blocks(draws):
        if not (block < np.inf).all():
            wrong = np.count_nonzero(~(draws < np.inf))
            raise ValueError(
                f"log likelihoods are NaN or plus infinity for {wrong} of {draws.size} "
                "draws and rows: leave out the rows that are missing, and find out "
                "which parameters are NaN or outside their support."
            )
        result[where] = logsumexp(block, axis=0, b=weight[:, None])
    return result.reshape(draws.shape[1:])
