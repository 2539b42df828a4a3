"""Bad observations, draws, weights and levels: what came and what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pyrox_ppl import scores

KEY = jax.random.key(0)
Y, DRAWS = np.zeros(4), np.arange(20.0).reshape(5, 4)
NAN = np.array([0.0, np.nan, 0.0, 0.0])
LABELS, P = np.array([0, 1, 2, 1]), np.full((4, 3), 1 / 3)
LOW, HIGH = np.full(4, -1.0), np.full(4, 1.0)


def pit(observations, draws):
    return scores.pit(observations, draws, rng_key=KEY)


def interval_score(observations, lower, upper):
    return scores.interval_score(observations, lower, upper, level=0.8)


def fit_interval(observations, lower, upper):
    return scores.ConformalInterval.fit(observations, lower, upper, level=0.5)


OF_DRAWS = [scores.crps, scores.energy_score, pit]
OF_INTERVALS = [scores.coverage, interval_score, fit_interval]


@pytest.mark.parametrize("score", OF_DRAWS)
@pytest.mark.parametrize(
    ("y", "draws", "says"),
    [
        (NAN, DRAWS, "observations are NaN or infinite for 1 of 4"),
        (Y, np.full((5, 4), np.inf), "draws are NaN or infinite for 20 of 20"),
        (Y, DRAWS.T, r"shape \(draws, 4\); got \(4, 5\)"),
        (Y, np.float64(1.0), r"shape \(draws, 4\)"),
        (Y, DRAWS * 1j, "draws must be real numbers, got complex128"),
        (np.array(["a"] * 4), DRAWS, "observations must be real numbers, got <U1"),
        (np.zeros(0), np.zeros((5, 0)), r"observations are empty, of shape \(0,\)"),
        (np.ma.masked_equal([0, 1, 2, 3], 1), DRAWS, "observations are a masked array"),
    ],
)
def test_observations_and_draws(score, y, draws, says):
    with pytest.raises(ValueError, match=says):
        score(y, draws)


@pytest.mark.parametrize("score", [scores.crps, scores.energy_score])
@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (np.ones(4), r"one value for every draw, so the shape \(5,\); got \(4,\)"),
        (
            np.ones((5, 4)),
            r"one value for every draw, so the shape \(5,\); got \(5, 4\)",
        ),
        (np.array([0.0, 0.0, -1.0, 3.0, 1.0]), "from -1 to 3. Exponentiate"),
        (np.zeros(5), "must be non-negative and have a positive sum"),
        (np.full(5, np.nan), "weights are NaN or infinite for 5"),
    ],
)
def test_weights_of_draws(score, weights, says):
    for call in (
        lambda: score(Y, DRAWS, weights=weights),
        lambda: scores.log_score(DRAWS, weights=weights),
        lambda: scores.variance_split(DRAWS, DRAWS, weights=weights),
        lambda: scores.entropy_split(np.full((5, 2), 0.5), weights=weights),
    ):
        with pytest.raises(ValueError, match=says):
            call()


@pytest.mark.parametrize("score", [scores.crps, scores.energy_score])
def test_one_draw_has_no_fair_score(score):
    with pytest.raises(ValueError, match=r"at least two draws.*pass fair=False"):
        score(Y, DRAWS[:1])
    with pytest.raises(ValueError, match="at least two draws"):
        score(Y, DRAWS, weights=np.eye(5)[0])


def test_a_single_number_has_no_draws_or_components():
    one = np.float64(1.0)
    for call in (scores.log_score, scores.central_interval):
        with pytest.raises(ValueError, match="first, got a single number"):
            call(one)
    with pytest.raises(ValueError, match="first, got single numbers"):
        scores.variance_split(one, one)
    with pytest.raises(ValueError, match="`crps`"):
        scores.energy_score(one, DRAWS[:, 0])


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_log_likelihood_that_is_no_density(broken):
    with pytest.raises(ValueError, match="NaN or plus infinity for 1 of 20"):
        scores.log_score(np.where(DRAWS == 3, broken, DRAWS))


def test_several_keys():
    with pytest.raises(ValueError, match=r"single key.*got keys of shape \(2,\)"):
        scores.pit(Y, DRAWS, rng_key=jax.random.split(KEY))


@pytest.mark.parametrize("level", [0.0, 1.0, 90.0, np.nan])
def test_a_level_is_a_probability(level):
    for call in (
        lambda: scores.central_interval(DRAWS, level=level),
        lambda: scores.interval_score(Y, LOW, HIGH, level=level),
        lambda: scores.reliability_curve(LABELS, P, level=level),
        lambda: scores.ConformalInterval.fit(Y, LOW, HIGH, level=level),
        lambda: scores.ConformalSets.fit(LABELS, P, level=level, rng_key=KEY),
    ):
        with pytest.raises(ValueError, match=r"between 0 and 1, such as 0\.9"):
            call()


@pytest.mark.parametrize("score", OF_INTERVALS)
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((NAN, LOW, HIGH), "observations are NaN or infinite"),
        ((Y, NAN, HIGH), "NaN"),
        ((Y, HIGH, LOW), "lower exceeds upper in 4 of 4"),
        ((Y, LOW[:1], HIGH[:1]), r"observations \(4,\), lower \(1,\)"),
        ((Y, LOW, HIGH[:1]), "the shapes must be the same"),
    ],
)
def test_intervals(score, arguments, says):
    with pytest.raises(ValueError, match=says):
        score(*arguments)


def test_means_and_variances():
    with pytest.raises(ValueError, match=r"means \(5, 4\), variances \(5,\)"):
        scores.variance_split(DRAWS, DRAWS[:, 0])
    with pytest.raises(ValueError, match="variances must not be negative, got -1"):
        scores.variance_split(DRAWS, -np.ones((5, 4)))
    with pytest.raises(ValueError, match="means are NaN"):
        scores.variance_split(DRAWS * np.nan, DRAWS)


@pytest.mark.parametrize(("level", "fewest"), [(0.9, 9), (0.95, 19), (0.99, 99)])
def test_too_few_rows_for_the_level(level, fewest):
    y = np.arange(fewest - 1.0)
    says = f"{fewest - 1} held-out rows are too few .* takes at least {fewest}"
    with pytest.raises(ValueError, match=says):
        scores.ConformalInterval.fit(y, y, y, level=level)
    enough = np.arange(float(fewest))
    fitted = scores.ConformalInterval.fit(enough, 0 * enough, 0 * enough, level=level)
    assert fitted.margin == enough[-1]
    p = np.full((fewest - 1, 2), 0.5)
    with pytest.raises(ValueError, match=says):
        scores.ConformalSets.fit(np.zeros(fewest - 1), p, level=level, rng_key=KEY)


def test_uncertainties():
    with pytest.raises(ValueError, match="from 1 to the number of rows, 4; got 5"):
        scores.most_uncertain(Y, 5)
    with pytest.raises(ValueError, match=r"one axis; got the shape \(5, 4\)"):
        scores.most_uncertain(DRAWS, 1)
    with pytest.raises(ValueError, match="uncertainties are NaN for 1 of 4 rows"):
        scores.most_uncertain(NAN, 1)
    with pytest.raises(ValueError, match=r"uncertainty \(3,\)"):
        scores.accuracy_rejection_curve(LABELS, P, np.ones(3))


def test_arrays_inside_a_transform():
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(scores.predictive_entropy)(jnp.asarray(P))
