"""compare: its scores, paired errors and refusals, against what others compute."""

import html.parser

import arviz
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scoringrules
from scipy import stats

import pyrox_ppl as px

RNG = np.random.default_rng(0)
N, DRAWS = 150, 400
Y = np.float32(RNG.normal(1.0, 0.7, N))
MEANS = {
    "near": np.float32(RNG.normal(1.0, 0.05, DRAWS)),
    "far": np.float32([0.0] * 90),
}


def normal(y=None, scale=0.7, rows=N):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", rows):
        numpyro.sample("y", dist.Normal(mean, scale), obs=y)


def tree_of(means, y=Y, **options):
    return px.to_datatree({"mean": means}, y=y, model=normal, **options)


@pytest.fixture(scope="module")
def trees():
    return {name: tree_of(means) for name, means in MEANS.items()}


@pytest.fixture(scope="module")
def comparison(trees):
    return px.compare(trees)


def test_the_scores_are_those_that_others_compute(trees, comparison):
    assert list(comparison.scores) == ["elpd", "rmse", "crps", "coverage"]
    for name, tree in trees.items():
        drawn = tree.posterior_predictive["y"].values.reshape(-1, N)
        density = stats.norm.pdf(Y, MEANS[name][:, None].astype(float), 0.7).mean(0)
        value = {n: score.value[name] for n, score in comparison.scores.items()}
        assert value["elpd"] == pytest.approx(np.log(density).sum(), rel=1e-5)
        error = MEANS[name].astype(float).mean() - Y
        assert value["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)
        crps = scoringrules.crps_ensemble(Y, drawn.T, estimator="fair").mean()
        assert value["crps"] == pytest.approx(crps, rel=1e-4)
        low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
        assert value["coverage"] == ((low <= Y) & (high >= Y)).mean()
    assert comparison.methods == ("near", "far")
    assert comparison.draws == {"near": 400, "far": 90}


def test_the_elpd_is_that_of_arviz_where_leaving_one_out_changes_nothing():
    # The posterior of many data: hardly any of them tells.
    tree = tree_of(
        np.full(200, 1.0, np.float32) + np.float32(1e-4 * RNG.normal(size=200))
    )
    elpd = arviz.loo(tree, pointwise=True)
    score = px.compare({"a": tree}).scores["elpd"]
    assert score.value["a"] == pytest.approx(elpd.elpd, abs=1e-2)
    se = np.sqrt(N) * np.std(score.influence["a"], ddof=1)
    assert se == pytest.approx(elpd.se, rel=1e-3)


@pytest.mark.parametrize("score", ["elpd", "rmse", "crps", "coverage"])
def test_the_paired_standard_error_is_that_of_the_bootstrap(comparison, trees, score):
    chosen = comparison.scores[score]
    rows = {name: values(tree, score) for name, tree in trees.items()}
    figure = {"elpd": np.sum, "rmse": lambda x, axis: np.sqrt(x.mean(axis))}
    of = figure.get(score, np.mean)
    for name in rows:
        assert chosen.value[name] == pytest.approx(of(rows[name], axis=0), rel=1e-4)
    picks = RNG.integers(N, size=(4000, N))
    resampled = of(rows["far"][picks], axis=1) - of(rows["near"][picks], axis=1)
    difference = comparison.difference(score, "near")["far"]
    assert difference.se == pytest.approx(resampled.std(), rel=0.06)


def test_what_is_hard_for_both_does_not_count(trees):
    comparison = px.compare(
        {"near": trees["near"], "beside": tree_of(np.full(90, 1.1))}
    )
    rows = {name: values(tree, "elpd") for name, tree in trees.items()}
    assert (
        comparison.difference("elpd")["beside"].se < 0.3 * rows["near"].std() * N**0.5
    )


def values(tree, score):
    """The scores of the rows, by hand."""
    drawn = tree.posterior_predictive["y"].values.reshape(-1, N).astype(float)
    if score == "elpd":
        density = tree.log_likelihood["y"].values.reshape(-1, N).astype(float)
        return np.log(np.exp(density).mean(0))
    if score == "rmse":
        return (tree.posterior["mean"].values.astype(float).mean() - Y) ** 2
    if score == "crps":
        return scoringrules.crps_ensemble(Y, drawn.T, estimator="fair")
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
    return ((low <= Y) & (high >= Y)).astype(float)


def test_equal_methods_differ_by_nothing_and_are_said_to_be_equal(trees):
    near = trees["near"]
    comparison = px.compare({"a": near, "b": near.copy(), "far": trees["far"]})
    for score in comparison.scores:
        assert comparison.difference(score, "a")["b"] == (0.0, 0.0)
    assert "equal at every observation: a, b" in comparison.notes
    row = next(line for line in str(comparison).splitlines() if line.startswith("b "))
    assert "0 ± 0" in row
    assert not any("equal" in note for note in px.compare(trees).notes)


def test_the_reference_is_the_best_or_the_one_that_is_asked_for(
    comparison,
):
    near = comparison.difference("elpd", "far")["near"]
    far = comparison.difference("elpd")["far"]
    assert near.value == -far.value > 0
    assert near.se == far.se
    with pytest.raises(ValueError, match="no score 'brier'; of this continuous"):
        comparison.difference("brier")
    with pytest.raises(ValueError, match=r"'x' has no elpd; these have: \['near'"):
        comparison.difference("elpd", "x")


def test_it_prints_a_table_in_a_terminal_and_in_a_notebook(trees):
    tree = trees["near"].copy()
    tree.attrs |= {"seconds": 12.5, "gradient_evaluations": 4000}
    comparison = px.compare({"<near>": tree, "far": trees["far"]})
    lines = str(comparison).splitlines()
    assert lines[0] == f"y: {N} observations, continuous"
    header = ("method", "ELPD / nats", "difference", "RMSE", "CRPS", "90 % coverage")
    assert all(name in lines[2] for name in (*header, "draws", "seconds"))
    assert lines[3].split()[0] == "<near>"
    assert lines[3].split()[-2:] == ["12.5", "4,000"]
    assert lines[4].split()[-2:] == ["-", "-"]
    assert max(map(len, lines)) < 120
    assert repr(comparison) == str(comparison)
    cells = Cells()
    cells.feed(comparison._repr_html_())
    assert "<near>" in cells.found
    assert f"{comparison.scores['elpd'].value['far']:.1f}" in cells.found


class Cells(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_data(self, data):
        self.found.append(data)


def test_the_cost_of_a_run_reaches_the_trees_of_held_out_data(trees):
    tree = trees["near"].copy()
    tree.attrs["seconds"] = 3.0
    held_out = px.to_datatree(tree, y=Y[:20], rows=20, model=normal)
    assert px.compare({"a": held_out}).cost == {"a": {"seconds": 3.0}}


@pytest.mark.parametrize("suffix", ["nc", "zarr.zip"])
def test_trees_from_files_compare_as_before(tmp_path, suffix):
    mask = RNG.uniform(size=N) < 0.7

    def masked(y=None):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", N), numpyro.handlers.mask(mask=mask):
            numpyro.sample("y", dist.Normal(mean, 0.7), obs=y)

    before = {
        name: px.to_datatree({"mean": means}, y=Y, model=masked)
        for name, means in MEANS.items()
    }
    before["near"].attrs["seconds"] = 2.0
    after = {}
    for name, one in before.items():
        px.save(tmp_path / f"{name}.{suffix}", one)
        after[name] = px.load(tmp_path / f"{name}.{suffix}").posterior
    assert str(px.compare(after)) == str(px.compare(before))
    mixed = px.compare({"saved": after["near"], "near": before["near"]})
    assert "equal at every observation: saved, near" in mixed.notes


def test_other_observations_are_refused_by_the_name_of_the_tree(trees):
    for y, why in (
        (Y[:100], r"'near' of shape \(150,\), 'other' of shape \(100,\)"),
        (Y[::-1], "in 'other' are in another order from those in 'near' at 150 of 150"),
        (np.r_[Y[:-1], 9.0], "in 'other' differ from those in 'near' at 1 of 150"),
    ):
        other = tree_of(np.ones(9), np.float32(y), rows=len(y))
        with pytest.raises(ValueError, match=why):
            px.compare({"near": trees["near"], "other": other})


def test_the_same_data_in_double_precision_are_the_same(trees):
    other = trees["near"].copy(deep=True)
    double = other["observed_data"]["y"].astype(np.float64) * (1 + 1e-8)
    other["observed_data"] = other["observed_data"].to_dataset().assign(y=double)
    assert px.compare({"a": trees["near"], "b": other}).observations == N


def test_a_tree_without_log_likelihood_has_no_elpd_and_the_table_says_so(trees):
    bare = tree_of(MEANS["far"], log_likelihood=False)
    comparison = px.compare({"bare": bare, "near": trees["near"]})
    assert comparison.methods == ("near", "bare")
    assert comparison.notes[0] == "bare has no log_likelihood, so no ELPD"
    row = next(line for line in str(comparison).splitlines() if line.startswith("bare"))
    assert row.split()[1:3] == ["-", "-"]
    assert list(comparison.difference("elpd")) == ["near"]
    assert list(comparison.difference("crps")) == ["near", "bare"]
    alone = px.compare({"bare": bare})
    assert "elpd" not in alone.scores
    assert "RMSE  " in str(alone)


def test_a_point_estimate_has_no_interval_and_few_draws_a_narrow_one(trees):
    few = tree_of(MEANS["near"][:5])
    comparison = px.compare({"map": tree_of(np.ones(1)), "few": few, **trees})
    assert comparison.scores["elpd"].value.keys() == {"map", "few", "near", "far"}
    assert comparison.scores["coverage"].value.keys() == {"few", "near", "far"}
    assert any(
        note.startswith("map has one predictive draw") for note in comparison.notes
    )
    # Five draws: a new value lies in between their interpolated quantiles 60 % times.
    assert "few has 5 predictive draws" in str(comparison)
    assert comparison.scores["coverage"].value["few"] == pytest.approx(0.6, abs=0.12)
    assert "about 0.60" in str(comparison)


def test_a_point_estimate_is_judged_by_its_mean_and_not_by_a_draw(trees):
    rmse = px.compare({"map": tree_of(np.ones(1))}).scores["rmse"].value["map"]
    assert rmse == pytest.approx(np.sqrt(((Y - 1.0) ** 2).mean()), rel=1e-5)


def test_one_observation_has_a_difference_without_an_error():
    trees = {str(m): tree_of(np.full(9, m), Y[:1], rows=1) for m in (0.0, 1.0)}
    comparison = px.compare(trees)
    worse = comparison.difference("elpd")[comparison.methods[1]]
    assert worse.value < 0
    assert np.isnan(worse.se)
    assert "nan" not in str(comparison)


def test_what_it_takes_is_named(trees):
    with pytest.raises(TypeError, match="a dictionary of trees by the names"):
        px.compare(trees["near"])
    with pytest.raises(ValueError, match="compare needs the group 'posterior_predict"):
        px.compare({"a": px.to_datatree({"a": np.ones(3)})})
    with pytest.raises(ValueError, match=r"got 'z' \(near: \['y'\]; far"):
        px.compare(trees, "z")
    with pytest.raises(ValueError, match="level must be a probability"):
        px.compare(trees, level=1.5)


@pytest.mark.wrong_types
def test_the_names_of_the_methods_are_strings(trees):
    with pytest.raises(TypeError, match=r"names of the methods must be strings, got"):
        px.compare({1: trees["near"]})
    with pytest.raises(TypeError, match="got an empty one"):
        px.compare({})


def test_one_of_several_sites_is_chosen(trees):
    def model(y=None, w=None):
        normal(y)
        numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]), obs=w)

    tree = px.to_datatree(
        {"mean": np.ones(120)}, y=Y, w=np.zeros(2, np.float32), model=model
    )
    with pytest.raises(ValueError, match=r"site= must name one.*'w'"):
        px.compare({"a": tree})
    assert px.compare({"a": tree}, "w").observations == 2
    # The only site that both observe.
    assert px.compare({"a": tree, "near": trees["near"]}).site == "y"


def test_draws_that_are_not_finite_are_refused():
    broken = tree_of(np.float32([1.0, np.inf]))
    with pytest.raises(ValueError, match="NaN"):
        px.compare({"a": broken})


def test_jax_arrays_of_draws_on_chains_are_as_good(trees):
    chains = jnp.asarray(MEANS["near"]).reshape(4, 100)
    tree = tree_of(chains, batch_ndims=2)
    value = px.compare({"a": tree, "b": trees["near"]}).scores["elpd"].value
    assert value["a"] == pytest.approx(value["b"], rel=1e-6)
