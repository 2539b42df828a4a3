"""Every crossing judged, summed up, kept on disk and drawn: against the hand."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from arviz_stats.base.array import array_stats
from crossing_runs import (
    CHAINS,
    CLOSE,
    DRAWS,
    FITTED,
    check_joint,
    check_prediction,
    draws_in,
    over,
    own,
    state_of,
)
from scipy.special import logsumexp

import pyrox_ppl as px

__all__ = ["own"]
pytestmark = pytest.mark.rank_promotion
# What makes a tree is crossed with more kinds in the file of trees.
FITS = ("learned-normal", "state-normal")


@pytest.fixture(autouse=True)
def _pictures():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def called_alone(crossing):
    return crossing.kind.inputs is not None


def check_functions(functions, f):
    """Statistics of functions against those of their values by hand."""
    values = f.reshape(CHAINS, DRAWS, -1).astype(np.float64)
    assert functions.std.shape == values.shape[2:]
    np.testing.assert_allclose(functions.std, values.std((0, 1)), **CLOSE)
    rhat = array_stats.rhat(values, chain_axis=0, draw_axis=1)
    # The fold about the median of an even number of draws leaves a tie to rounding.
    np.testing.assert_allclose(functions.rhat, rhat, rtol=0.06)


@over(often=("mlp-horseshoe", "plate-hierarchical"), where=called_alone)
def test_the_functions_of_a_module(own):
    x = own.crossing.new_x
    inputs = own.crossing.kind.inputs(x, own.state)
    module = own.crossing.kind.module
    size = None if own.crossing.kind.groups else 3  # members are no points
    found = px.diagnose(
        own.tree, module, *inputs, **own.called, loo=False, batch_size=size
    )
    check_functions(found.functions, own.f(x))


@over(often=("learned-normal", "state-normal", "noisy-fan_in", "convolution-normal"))
def test_the_functions_of_a_model(own):
    x = own.crossing.new_x
    found = px.diagnose(own.tree, own.crossing.model, x, loo=False)
    check_functions(found.functions, own.f(x))


@over(often=("mlp-horseshoe", "plate-hierarchical", "walk-normal"))
def test_the_functions_in_a_tree(own):
    found = px.diagnose(own.tree, loo=False)
    check_functions(found.functions, own.f(own.crossing.x))


@over(often=FITS)
def test_a_fit_is_judged_by_its_weights(own):
    draws, kwargs = draws_in(own.fitted), {"params": own.fit.params}
    hands = own.hands(own.crossing.x, draws, state=state_of(own.fit), **kwargs)
    check_joint(own.fitted["sample_stats"]["lp"].values.ravel(), hands)
    found = px.diagnose(own.fitted, own.crossing.model, own.crossing.x, loo=False)
    weights = own.fitted["sample_stats"]["log_weight"].values.ravel()
    weights = weights - weights.max()
    tail = np.exp(np.sort(weights)[-FITTED // 5 :])
    with np.errstate(over="ignore", invalid="ignore"):
        k = float(array_stats.psislw(-weights)[1])
    # Beside the largest weight the others underflow: heavier than any Pareto's tail.
    if tail[1] < np.finfo(float).tiny and not np.isnan(k):
        k = np.inf
    assert found.pareto_k == pytest.approx(k, abs=1e-6, nan_ok=True)
    posterior = own.fitted["posterior"]
    numbers = sum(posterior[site][0, 0].size for site in own.crossing.latent())
    large = not k <= 1 - 1 / np.log10(FITTED)
    assert ("guide's PSIS k" in found.failed) == (large and numbers <= 30)
    assert ("not the guide's PSIS k" in str(found)) == (large and numbers > 30)
    np.testing.assert_array_equal(found.loss, np.asarray(own.fit.losses))


@over(often=("mlp-horseshoe", "plate-hierarchical", "learned-normal", "walk-normal"))
def test_a_row_for_every_latent_site(own):
    table = px.summary(own.tree)
    assert set(table.index) == own.crossing.latent()
    for site, row in table.iterrows():
        draws = own.by_chain[site].astype(np.float64)
        flat = draws.reshape(CHAINS, DRAWS, -1)
        sizes = flat[..., 0] if draws.ndim == 2 else np.sqrt((flat**2).mean(-1))
        assert row["size"] == flat.shape[-1]
        assert row["of"] == ("value" if draws.ndim == 2 else "rms")
        for statistic, expected in (("mean", sizes.mean()), ("sd", sizes.std())):
            assert row[statistic] == pytest.approx(expected, rel=1e-2), statistic
        rhat = array_stats.rhat(sizes[..., None], chain_axis=0, draw_axis=1)
        assert row["r_hat"] == pytest.approx(float(rhat[0]), abs=0.02)


@over(often=("plate-hierarchical", "learned-normal", "state-normal", "walk-normal"))
def test_scores_of_other_data(own):
    x = own.crossing.new_x
    y = own.crossing.y_at(x)
    tree = own.tree_on_new
    found = px.calibration(tree, levels=(0.5, 0.9))
    densities = np.stack([hand.log_likelihood for hand in own.hands(x)])
    pointwise = logsumexp(densities, 0) - np.log(len(densities))
    assert found.elpd == pytest.approx(pointwise.sum(), rel=1e-3, abs=0.05)
    se = pointwise.std() * np.sqrt(pointwise.size)
    assert found.elpd_se == pytest.approx(se, rel=1e-2, abs=0.05)
    drawn = draws_in(tree, "posterior_predictive")["y"].astype(np.float64)
    np.testing.assert_allclose(drawn, own.f(x), atol=0.12)  # six times the noise
    lower, upper = np.quantile(drawn, [0.05, 0.95], axis=0)
    assert found.coverage[1] == pytest.approx(((lower <= y) & (y <= upper)).mean())
    distance = np.abs(drawn[:, None] - drawn[None]).mean((0, 1))
    crps = np.abs(drawn - y).mean(0) - distance / 2
    np.testing.assert_allclose(found.crps, crps, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.pit, (drawn < y).mean(0), atol=2 / len(drawn))


@over(
    often=(
        *("ties-normal", "gru-normal", "learned-normal"),
        *("plate-hierarchical", "spectral-normal", "noisy-fan_in"),
    ),
    where=called_alone,
)
def test_what_comes_back_from_disk(own, tmp_path):
    module, x = own.crossing.kind.module, own.crossing.new_x
    inputs = own.crossing.kind.inputs(x, own.state)
    for path in (tmp_path / "fit.nc", tmp_path / "fit.zip"):
        px.save(path, own.tree, (module, own.state), name="net")
        saved = px.load(path)
        back, state = saved.module
        again = own.crossing.kind.inputs(x, state)
        ours = px.predict(back, saved.posterior, *again, **own.called)
        check_prediction(ours, own.f(x))
        before = px.predict(module, own.tree, *inputs, **own.called)
        np.testing.assert_array_equal(ours.mean, before.mean)
        assert set(draws_in(saved.posterior)) == set(own.draws)


@over(often=FITS)
def test_a_fit_that_comes_back_from_disk(own, tmp_path):
    draws, x = draws_in(own.fitted), own.crossing.new_x
    kwargs = {"params": own.fit.params, "state": state_of(own.fit)}
    hands = own.hands(x, draws, **kwargs)
    px.save(tmp_path / "fit.nc", own.fitted, own.crossing.kind.module, name="net")
    saved = px.load(tmp_path / "fit.nc")
    ours = px.predict(own.crossing.model, saved.posterior, x)["f"]
    check_prediction(ours, np.stack([hand.f for hand in hands]))
    theta = {p: np.mean([h.theta[p] for h in hands], 0) for p in hands[0].theta}
    mean = px.module_from_mean(saved.module, saved.posterior, name="net")
    for path, expected in theta.items():
        found = mean
        for key in path.split("."):
            found = found[int(key)] if key.isdigit() else getattr(found, key)
        np.testing.assert_allclose(np.ravel(found), np.ravel(expected), **CLOSE)


def is_one_row_of_values(crossing):
    return called_alone(crossing) and not crossing.kind.groups


@over(often=("mlp-horseshoe", "gru-normal"), where=is_one_row_of_values)
def test_pictures_show_the_function(own):
    x = own.crossing.new_x
    inputs = own.crossing.kind.inputs(x, own.state)
    module = own.crossing.kind.module
    # The state is the model's; the module is given it as an input.
    params = {n: v for n, v in own.params.items() if n != "state"}
    fit = px.predict(module, own.draws, *inputs, **own.called, params=params)
    f, places = own.f(x)[..., 0], np.arange(len(x))
    (axes,) = px.plot_fit(fit, places).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), f.mean(0), **CLOSE)
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    ends = np.quantile(f, [0.05, 0.95], axis=0)
    assert band.min() == pytest.approx(ends.min(), abs=5e-3)
    assert band.max() == pytest.approx(ends.max(), abs=5e-3)
    diagnosis = px.diagnose(own.tree, module, *inputs, **own.called, loo=False)
    drawn = px.plot_diagnostics(diagnosis).axes[0].lines[0].get_ydata()
    values = own.f(x).reshape(CHAINS, DRAWS, -1)
    rhat = array_stats.rhat(values, chain_axis=0, draw_axis=1)
    np.testing.assert_allclose(drawn, rhat, rtol=0.06)


@over(often=("mlp-horseshoe", "ties-normal"))
def test_a_picture_of_calibration(own):
    """The curve is the empirical distribution of PITs, less the uniform one."""
    panel, _ = px.plot_calibration(own.tree).axes
    drawn = draws_in(own.tree, "posterior_predictive")["y"]
    pit = (drawn < own.crossing.y).mean(0).ravel()
    places, heights = panel.lines[1].get_data()
    for place, height in zip(places, heights, strict=True):
        # Ours counts the observation itself as a draw.
        near = 2 / len(drawn)
        assert (pit <= place - near).mean() - 1e-6 <= height + place
        assert height + place <= (pit <= place + near).mean() + 1e-6
