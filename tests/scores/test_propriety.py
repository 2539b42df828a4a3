"""The true law scores best: every score by simulation, against rivals."""

import numpy as np
import pytest
import scipy.stats

from pyrox_ppl import scores

RNG = np.random.default_rng(0)
ROWS = 20_000
GAUSSIANS = [(0.3, 1.0), (0.0, 0.7), (0.0, 1.4)]
Y = RNG.normal(size=ROWS)
NOISE = RNG.normal(size=(10, ROWS))
PAIR = RNG.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], size=ROWS)
PAIR_NOISE = RNG.normal(size=(10, ROWS, 2))
TRUTH = RNG.dirichlet(np.ones(3), size=ROWS)
LABELS = (np.log(TRUTH) + RNG.gumbel(size=TRUTH.shape)).argmax(-1)
RIVALS = [
    TRUTH**2 / (TRUTH**2).sum(-1, keepdims=True),
    0.7 * TRUTH + 0.1,
    TRUTH[:, [1, 2, 0]],
    np.tile(TRUTH.mean(0), (ROWS, 1)),
]


def assert_better(true, rival):
    """Smaller by more than chance, on the same rows."""
    worse = rival - true
    assert worse.mean() > 4 * worse.std() / np.sqrt(len(worse))


@pytest.mark.parametrize(("loc", "scale"), GAUSSIANS)
def test_the_crps_prefers_the_true_law(loc, scale):
    assert_better(scores.crps(Y, NOISE), scores.crps(Y, loc + scale * NOISE))


def test_the_plain_crps_of_few_draws_prefers_too_narrow_ones():
    few = NOISE[:3]
    assert_better(scores.crps(Y, few), scores.crps(Y, 0.7 * few))
    assert_better(
        scores.crps(Y, 0.7 * few, fair=False), scores.crps(Y, few, fair=False)
    )


@pytest.mark.parametrize("correlation", [0.0, -0.8])
def test_the_energy_score_prefers_the_true_dependence(correlation):
    def draws(rho):
        second = rho * PAIR_NOISE[..., 0] + np.sqrt(1 - rho**2) * PAIR_NOISE[..., 1]
        return np.stack([PAIR_NOISE[..., 0], second], axis=-1)

    assert_better(
        scores.energy_score(PAIR, draws(0.8)),
        scores.energy_score(PAIR, draws(correlation)),
    )


@pytest.mark.parametrize(("loc", "scale"), GAUSSIANS)
def test_the_log_score_prefers_the_true_law(loc, scale):
    true, rival = (
        scores.log_score(scipy.stats.norm.logpdf(Y, *law)[None])
        for law in ((0.0, 1.0), (loc, scale))
    )
    assert_better(-true, -rival)


@pytest.mark.parametrize(("loc", "scale"), GAUSSIANS)
def test_the_interval_score_prefers_the_true_quantiles(loc, scale):
    true, rival = (
        scores.interval_score(
            Y, *np.tile(scipy.stats.norm.interval(0.8, *law), (ROWS, 1)).T, level=0.8
        )
        for law in ((0.0, 1.0), (loc, scale))
    )
    assert_better(true, rival)


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize(
    "score",
    [
        lambda *args: -scores.class_log_score(*args),
        scores.brier_score,
        scores.ranked_probability_score,
    ],
    ids=["log", "brier", "ranked"],
)
def test_scores_of_classes_prefer_the_true_probabilities(score, rival):
    assert_better(score(LABELS, TRUTH), score(LABELS, rival))


@pytest.mark.parametrize("score", [scores.class_log_score, scores.brier_score])
def test_scores_of_events_prefer_the_true_probability(score):
    p, happened = TRUTH[:, 1], LABELS == 1
    sign = -1 if score is scores.class_log_score else 1
    for rival in (0.8 * p + 0.1, p**1.5):
        assert_better(sign * score(happened, p), sign * score(happened, rival))
