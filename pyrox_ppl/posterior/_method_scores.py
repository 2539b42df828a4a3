"""The scores of several methods on one site, by the kind of its outcome."""

from collections.abc import Callable

import numpy as np

import pyrox_ppl.scores as scores
from pyrox_ppl.posterior._comparison import Score
from pyrox_ppl.posterior._observed import CLASSES
from pyrox_ppl.posterior._site_predictions import SitePredictions

# With fewer predictive draws, the quantiles of an interval are too rough to compare.
_FEW_DRAWS = 100

type ByMethod = dict[str, SitePredictions]


def score_methods(
    methods: ByMethod, observed: np.ndarray, outcome: str, level: float
) -> tuple[list[Score], list[str]]:
    """The scores that any method has, and notes on those that are missing."""
    notes: list[str] = []
    found = [_elpd(methods, notes)]
    if outcome in CLASSES:
        found += _scores_of_classes(methods, observed, notes)
    elif outcome != "circular":
        found += _scores_of_numbers(methods, observed, outcome, level, notes)
    return [score for score in found if score.value], notes


def _elpd(methods: ByMethod, notes: list[str]) -> Score:
    label = "ELPD / nats"
    rows = {name: one.log_scores() for name, one in methods.items()}
    for name in [name for name, row in rows.items() if row is None]:
        notes.append(f"{name} has no log_likelihood, so no ELPD")
    known = {name: row for name, row in rows.items() if row is not None}
    if len({methods[name].outcome == "count" for name in known}) > 1:
        notes.append("no ELPD: probabilities of counts and densities do not compare")
        known = {}
    # A method whose density is of a whole event has fewer axes than one of its entries.
    fewest = min((row.ndim for row in known.values()), default=0)
    known = {n: row.sum(tuple(range(fewest, row.ndim))) for n, row in known.items()}
    if len({row.shape for row in known.values()}) > 1:
        shapes = ", ".join(f"{name} {row.shape}" for name, row in known.items())
        notes.append(f"no ELPD: the log likelihoods are of different rows, {shapes}")
        known = {}
    for name, row in known.items():
        if impossible := np.count_nonzero(np.isneginf(row)):
            notes.append(
                f"{name} gives {impossible} of {row.size} rows a density of zero under "
                "every draw: are they in the support of the distribution?"
            )
    value = {name: float(row.sum()) for name, row in known.items()}
    influence = {name: row.ravel() for name, row in known.items()}
    return Score("elpd", label, "larger", value, influence)


def _scores_of_numbers(
    methods: ByMethod, y: np.ndarray, outcome: str, level: float, notes: list[str]
) -> list[Score]:
    squared, distance, covered = {}, {}, {}
    rows = y.shape[: y.ndim - max(one.event_ndims() for one in methods.values())]
    for name, one in methods.items():
        draws = one.observed_and_draws()[1]
        mean = one.mean()
        if np.isfinite(mean).all():
            squared[name] = (mean - y) ** 2
        else:
            notes.append(f"{name} has no finite mean, so no RMSE")
        if len(draws) == 1:
            notes.append(
                f"{name} has one predictive draw, so no interval and no score of "
                "draws: repeat its draw in to_datatree"
            )
            continue
        if outcome == "multivariate" and one.hides_elements:
            notes.append(f"{name} hides entries of vectors, so no energy score")
        elif outcome == "multivariate":
            distance[name] = scores.energy_score(
                y.reshape(*rows, -1), draws.reshape(len(draws), *rows, -1)
            )
        else:
            distance[name] = scores.crps(y, draws)
        covered[name] = scores.coverage(y, *scores.central_interval(draws, level=level))
        if len(draws) < _FEW_DRAWS:
            # A new value has any rank among S draws, the S - 1 gaps between them being
            # as probable as the two tails beside them.
            most = level * (len(draws) - 1) / (len(draws) + 1)
            notes.append(
                f"{name} has {len(draws)} predictive draws, whose interval would cover "
                f"about {most:.2f} if it were calibrated"
            )
    unit = next(iter(methods.values())).unit
    unit = f" / {unit}" if unit else ""
    is_vector = outcome == "multivariate"
    names = ("energy_score", "energy score") if is_vector else ("crps", "CRPS")
    return [
        _root_mean_square(squared, f"RMSE{unit}"),
        _mean_score(names[0], f"{names[1]}{unit}", "smaller", distance),
        _mean_score("coverage", f"{100 * level:g} % coverage", level, covered),
    ]


def _scores_of_classes(
    methods: ByMethod, labels: np.ndarray, notes: list[str]
) -> list[Score]:
    notes += [
        f"{name} has no class probabilities: these are frequencies of its draws"
        for name, one in methods.items()
        if not one.has_probabilities
    ]
    p = {name: one.probabilities() for name, one in methods.items()}

    def rows(score: Callable) -> dict[str, np.ndarray]:
        return {name: score(labels, p[name]) for name in p}

    found = [
        _mean_score("accuracy", "accuracy", "larger", rows(scores.accuracy)),
        _mean_score("brier", "Brier", "smaller", rows(scores.brier_score)),
    ]
    if all(one.is_ordered for one in methods.values()):
        ranked = rows(scores.ranked_probability_score)
        found.append(_mean_score("rps", "RPS", "smaller", ranked))
    influence = rows(_calibration_gaps)
    value = {name: float(gaps.sum()) for name, gaps in influence.items()}
    return [*found, Score("ece", "ECE", "smaller", value, influence)]


def _calibration_gaps(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """What each row adds to the expected calibration error.

    In a bin whose confidence is too large that is its confidence less whether it is
    right, else the opposite; where rows resample, few bins change sides.
    """
    curve = scores.reliability_curve(labels, probabilities)
    if probabilities.shape == labels.shape:
        confidence, right = probabilities, labels
    else:
        confidence = probabilities.max(-1)
        right = scores.accuracy(labels, probabilities)
    place = np.searchsorted(curve.edges[1:-1], confidence)
    side = np.sign(np.nan_to_num(curve.confidence - curve.frequency))
    return np.ravel(side[place] * (confidence - right) / labels.size)


def _mean_score(
    name: str, label: str, goal: str | float, rows: dict[str, np.ndarray]
) -> Score:
    influence = {method: row.ravel() / row.size for method, row in rows.items()}
    value = {method: float(row.mean()) for method, row in rows.items()}
    return Score(name, label, goal, value, influence)


def _root_mean_square(squared: dict[str, np.ndarray], label: str) -> Score:
    value = {name: float(np.sqrt(row.mean())) for name, row in squared.items()}
    # The derivative of the root; all errors of a perfect method are 0.
    influence = {
        name: row.ravel() / (2 * row.size * (value[name] or 1.0))
        for name, row in squared.items()
    }
    return Score("rmse", label, "smaller", value, influence)
