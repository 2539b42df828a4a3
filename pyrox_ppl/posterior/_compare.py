"""compare: the scores of several trees on the same held-out observations."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

import pyrox_ppl.posterior._stats as _stats
from pyrox_ppl.posterior._comparison import COSTS, Comparison, Score
from pyrox_ppl.posterior._method_scores import ByMethod, score_methods
from pyrox_ppl.posterior._site_predictions import SitePredictions


def compare(
    trees: Mapping[str, xr.DataTree],
    site: str | None = None,
    *,
    outcome: str | None = None,
    level: float = 0.9,
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
            ``attrs["gradient_evaluations"]``. `to_datatree` sets what our runs and
            NumPyro's ``MCMC`` with ``extra_fields=("num_steps",)`` tell; set the rest.
        site: The observed site; may be left out if the trees have one in common.
        outcome: The kind of the outcome, for trees of others that do not say what their
            integers are.
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
        got = "an empty one" if isinstance(trees, dict) else type(trees).__name__
        raise TypeError(
            "compare takes a dictionary of trees by the names of the methods, "
            f'{{"NUTS": tree, "ensemble": other}}, got {got}.'
        )
    if wrong := [name for name in trees if not isinstance(name, str)]:
        raise TypeError(f"the names of the methods must be strings, got {wrong}.")
    site = _common_site(trees, site)
    methods = {
        name: SitePredictions.read(tree, site, "compare", outcome)
        for name, tree in trees.items()
    }
    observed = _same_observations(methods)
    kind = _common_outcome(methods)
    found, notes = score_methods(methods, observed, kind, level)
    if not found:
        raise ValueError(f"no tree has a score of {site!r}: {'; '.join(notes)}.")
    ranked = _ranked(list(trees), found[0])
    table = {score.name: score.in_order(ranked) for score in found}
    return Comparison(
        site,
        kind,
        observed.size,
        ranked,
        table,
        {name: one.number for name, one in methods.items()},
        {
            name: {cost: tree.attrs[cost] for cost in COSTS if cost in tree.attrs}
            for name, tree in trees.items()
        },
        (*_equal_methods(ranked, table), *_partial_costs(trees), *notes),
    )


def _partial_costs(trees: Mapping[str, xr.DataTree]) -> list[str]:
    """A sentence for each tree whose gradient evaluations are those of a part."""
    of = "gradient_evaluations_of"
    return [
        f"gradient evaluations of {name}: {tree.attrs[of]}"
        for name, tree in trees.items()
        if of in tree.attrs
    ]


def _common_site(trees: Mapping[str, xr.DataTree], site: str | None) -> str:
    """The site that is asked for, or the only one that all trees observe."""
    groups = ("posterior_predictive", "observed_data")
    observed = {}
    for name, tree in trees.items():
        _stats.check_tree(tree, "compare", *groups)
        observed[name] = _stats.names(_stats.group(tree, "observed_data"))
    common = set.intersection(*map(set, observed.values()))
    if site is not None and site in common:
        return site
    if site is None and len(common) == 1:
        return common.pop()
    found = "; ".join(f"{name}: {sites}" for name, sites in observed.items())
    raise ValueError(
        f"site= must name one observed site of all trees, got {site!r} ({found})."
    )


def _same_observations(methods: ByMethod) -> np.ndarray:
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


def _common_outcome(methods: ByMethod) -> str:
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


def _ranked(methods: list[str], score: Score) -> tuple[str, ...]:
    """The methods, those first that score best, and last those without the score."""
    sign = -1.0 if score.goal == "larger" else 1.0
    return tuple(
        sorted(methods, key=lambda name: sign * score.value.get(name, sign * np.inf))
    )


def _equal_methods(methods: Sequence[str], table: dict[str, Score]) -> list[str]:
    """A sentence for each set of methods whose scores are equal row by row."""
    sets: list[list[str]] = []
    for method in methods:
        for names in sets:
            if all(score.are_equal(method, names[0]) for score in table.values()):
                names.append(method)
                break
        else:
            sets.append([method])
    return [
        f"equal at every observation: {', '.join(names)}"
        for names in sets
        if len(names) > 1
    ]
