"""compare: the scores of several trees on the same held-out observations."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

import pyrox_ppl.scores as scores
from pyrox_ppl.posterior._comparison import COSTS, Comparison, Score
from pyrox_ppl.posterior._site_predictions import SitePredictions, choose_site

# With fewer predictive draws, the quantiles of an interval are too rough to compare.
_FEW_DRAWS = 100

type _ByMethod = dict[str, SitePredictions]


def compare(
    trees: Mapping[str, xr.DataTree], site: str | None = None, *, level: float = 0.9
) -> Comparison:
    r"""Score several methods on the same observations, and pair their differences.

    Pass held-out data: ``px.to_datatree(tree, x_test, y=y_test, model=model)`` makes a
    tree of them from the draws of another tree. The scores depend on the outcome:

    - all: ``elpd``, :math:`\sum_i \log \frac1S \sum_s p(y_i \mid \theta_s)`;
    - continuous, count: ``rmse`` of the predictive mean, ``crps`` (the fair one, for
      any number of draws), ``coverage`` of the central interval;
    - multivariate: ``rmse``, ``energy_score``, ``coverage`` of the single entries;
    - binary, categorical: ``accuracy``, ``brier``, ``rps`` if the classes are ordered,
      ``ece`` with 15 bins of equal width;
    - circular: ``elpd`` only, because an angle has neither a mean nor quantiles.

    ArviZ's ``compare`` is of another kind: it estimates the ELPD of new data from the
    training data by leave-one-out (PSIS-LOO).

    Args:
        trees: A tree for each method, by its name, all with the same observations. Cost
            comes from the trees' ``attrs["seconds"]`` and
            ``attrs["gradient_evaluations"]``, if they are set.
        site: The observed site; may be left out if there is one.
        level: The probability of the central intervals.

    Returns:
        A `Comparison`: print it, or ask for ``comparison.difference("crps")``.

    Raises:
        TypeError: If `trees` is not a dictionary of DataTrees.
        ValueError: If trees lack the groups or the site; if their observations differ;
            if their outcomes are of different kinds; if an observation or a prediction
            is not finite.

    References:
        Vehtari, Gelman and Gabry, "Practical Bayesian model evaluation using
        leave-one-out cross-validation and WAIC", Statistics and Computing 2017, section
        5.2 (paired standard errors). Gneiting and Raftery, "Strictly Proper Scoring
        Rules, Prediction, and Estimation", JASA 2007.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> def model(y=None):
        ...     rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     with numpyro.plate("row", 4):
        ...         numpyro.sample("y", dist.Poisson(rate), obs=y)
        >>> y = jnp.array([2, 3, 1, 2])
        >>> wide = jax.random.gamma(jax.random.key(0), 2.0, (500,))
        >>> near = 2.0 + 0.1 * wide
        >>> trees = {
        ...     name: px.to_datatree({"rate": rate}, y=y, model=model)
        ...     for name, rate in {"wide": wide, "near": near}.items()
        ... }
        >>> comparison = px.compare(trees)
        >>> comparison.methods, list(comparison.scores)
        (('near', 'wide'), ['elpd', 'rmse', 'crps', 'coverage'])
    """
    if not isinstance(trees, Mapping) or isinstance(trees, xr.DataTree) or not trees:
        raise TypeError(
            "compare takes a dictionary of trees by the names of the methods, "
            f'{{"NUTS": tree, "ensemble": other}}, got {type(trees).__name__}.'
        )
    for tree in trees.values():
        SitePredictions.check(tree, "compare")
    site = choose_site(trees, site)
    methods = {name: SitePredictions.read(tree, site) for name, tree in trees.items()}
    observed = _same_observations(methods)
    outcome = _common_outcome(methods)
    notes: list[str] = []
    found = [_elpd(methods, notes)]
    if outcome in ("binary", "categorical"):
        found += _scores_of_classes(methods, observed)
    elif outcome != "circular":
        found += _scores_of_numbers(methods, observed, outcome, level, notes)
    found = [score for score in found if score.value]
    if not found:
        raise ValueError(f"no tree has a score of {site!r}: {'; '.join(notes)}.")
    ranked = _ranked(list(trees), found[0])
    table = {score.name: score.in_order(ranked) for score in found}
    return Comparison(
        site,
        outcome,
        observed.size,
        ranked,
        table,
        {name: one.number for name, one in methods.items()},
        {
            name: {cost: tree.attrs[cost] for cost in COSTS if cost in tree.attrs}
            for name, tree in trees.items()
        },
        (*_equal_methods(ranked, table), *notes),
    )


def _same_observations(methods: _ByMethod) -> np.ndarray:
    """The observations of all trees, in double precision where they are numbers."""
    (first, one), *others = methods.items()
    observed = one.observed()
    for name, other in others:
        theirs = other.observed()
        if theirs.shape != observed.shape:
            raise ValueError(
                f"the trees hold different observations of {one.site!r}: {first!r} of "
                f"shape {observed.shape}, {name!r} of shape {theirs.shape}. Make all "
                "of them with the same held-out rows and the same mask."
            )
        # The same data in single and in double precision count as equal.
        differ = ~np.isclose(theirs, observed, rtol=1e-6, atol=0)
        if differ.any():
            is_order = np.array_equal(np.sort(theirs, None), np.sort(observed, None))
            how = "are in another order" if is_order else "differ"
            raise ValueError(
                f"the observations of {one.site!r} in {name!r} {how} from those in "
                f"{first!r} at {differ.sum()} of {differ.size} places: make all trees "
                "with the same held-out rows in the same order."
            )
        if not np.array_equal(one.row_numbers(), other.row_numbers()):
            raise ValueError(
                f"the masks of {one.site!r} in {first!r} and {name!r} hide different "
                "rows: make all trees with the same mask."
            )
    return observed


def _common_outcome(methods: _ByMethod) -> str:
    """The kind by which all are scored."""
    kinds = {name: one.outcome for name, one in methods.items()}
    if len(set(kinds.values())) == 1:
        return next(iter(kinds.values()))
    numbers = {"continuous", "count"}
    if set(kinds.values()) == numbers:
        return "count"
    if set(kinds.values()) == {"continuous", "multivariate"}:
        return "multivariate"
    raise ValueError(
        f"the trees predict different kinds of outcomes, {kinds}, which have no scores "
        "in common."
    )


def _elpd(methods: _ByMethod, notes: list[str]) -> Score:
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
    value = {name: float(row.sum()) for name, row in known.items()}
    influence = {name: row.ravel() for name, row in known.items()}
    return Score("elpd", label, "larger", value, influence)


def _scores_of_numbers(
    methods: _ByMethod, y: np.ndarray, outcome: str, level: float, notes: list[str]
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
        if outcome == "multivariate":
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


def _scores_of_classes(methods: _ByMethod, labels: np.ndarray) -> list[Score]:
    p = {name: one.probabilities() for name, one in methods.items()}

    def rows(score):
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


def _ranked(methods: list[str], score: Score) -> tuple[str, ...]:
    """The methods, those first that score best, and last those without the score."""
    sign = -1.0 if score.goal == "larger" else 1.0
    return tuple(
        sorted(methods, key=lambda name: sign * score.value.get(name, sign * np.inf))
    )


def _equal_methods(methods: Sequence[str], table: dict[str, Score]) -> list[str]:
    """A sentence for each set of methods whose scores are equal row by row."""
    alike: dict[tuple, list[str]] = {}
    for method in methods:
        rows = tuple(
            score.influence[method].tobytes() if method in score.influence else b""
            for score in table.values()
        )
        alike.setdefault(rows, []).append(method)
    return [
        f"equal at every observation: {', '.join(names)}"
        for names in alike.values()
        if len(names) > 1
    ]
