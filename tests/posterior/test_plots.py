"""The pictures hold what they should; without matplotlib the error says what to do."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import pyrox_ppl as px
from pyrox_ppl.prediction._prediction import Prediction

mpl.use("agg")


def prediction(shape):
    mean = np.linspace(0.0, 1.0, shape[0]).reshape(shape[0], *[1] * (len(shape) - 1))
    mean = np.broadcast_to(mean, shape)
    quantiles = {0.05: mean - 1, 0.25: mean - 0.5, 0.5: mean, 0.75: mean + 0.5}
    return Prediction(mean, 0 * mean + 0.1, quantiles | {0.95: mean + 1})


def test_a_curve_has_its_bands_in_the_order_of_x():
    x = np.array([3.0, 1.0, 2.0])
    axes = px.plot_fit(prediction((3, 1)), x, x_observed=[1.5], y_observed=[0.3])
    line, observed = axes.lines
    assert line.get_xdata().tolist() == [1.0, 2.0, 3.0]
    assert line.get_ydata().tolist() == [0.5, 1.0, 0.0]
    assert observed.get_xdata().tolist() == [1.5]
    assert len(axes.collections) == 2
    outer = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert outer.min() == -1.0
    assert outer.max() == 2.0
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["mean", "90 % of the draws", "50 % of the draws", "observed"]


def test_a_field_has_its_mean_and_its_spread():
    x = np.stack(np.meshgrid([0.0, 1.0, 2.0], [0.0, 1.0]), -1).reshape(-1, 2)
    axes = px.plot_fit(prediction((6,)), x)
    assert [axis.get_title() for axis in axes] == ["mean", "standard deviation"]
    np.testing.assert_allclose(axes[1].collections[0].get_array(), 0.1)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"one or two coordinates"):
        px.plot_fit(prediction((4,)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"shape \(4,\), and x has 5 points"):
        px.plot_fit(prediction((4,)), np.zeros(5))


def test_a_diagnosis_has_a_panel_for_each_finding():
    linear = eqx.nn.Linear(1, 1, key=jax.random.key(0))
    weights = jax.random.normal(jax.random.key(1), (4, 100, 1, 1))
    tree = px.to_datatree({"linear.weight": weights}, batch_ndims=2)
    diagnosis = px.diagnose(tree, linear, jnp.ones((3, 1)))
    figure = px.plot_diagnostics(diagnosis)
    assert len(figure.axes) == 2
    drawn = figure.axes[0].lines[0].get_ydata()
    np.testing.assert_array_equal(drawn, diagnosis.functions.rhat)
    tree.attrs["point_estimate"] = 1
    with pytest.raises(ValueError, match="nothing to draw"):
        px.plot_diagnostics(px.diagnose(tree))


def test_a_comparison_has_a_panel_for_each_score_and_a_bar_for_each_method():
    def model(y=None):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 20):
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    y = np.float32(np.random.default_rng(0).normal(size=20))
    methods = ("far", 2.0, 150), ("near", 0.0, 150), ("map", 0.1, 1)
    trees = {
        name: px.to_datatree({"mean": np.full(number, mean)}, y=y, model=model)
        for name, mean, number in methods
    }
    for tree in trees.values():
        tree["observed_data"]["y"].attrs["units"] = "K"
    comparison = px.compare(trees)
    figure = px.plot_comparison(comparison)
    labels = [axis.get_xlabel() for axis in figure.axes]
    assert labels == ["ELPD / nats", "RMSE / K", "CRPS / K", "90 % coverage"]
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert tuple(names) == comparison.methods
    low, high = figure.axes[0].get_ylim()
    assert low > high  # the best is on top
    for axis, score in zip(figure.axes, comparison.scores.values(), strict=True):
        drawn = {bar[0].get_ydata()[0]: bar for bar in axis.containers}
        assert len(drawn) == len(score.value)
        for place, name in enumerate(comparison.methods):
            if name not in score.value:
                continue
            point, _, bars = drawn[place]
            assert point.get_xdata()[0] == score.value[name]
            if name != score.best():
                (start, _), (end, _) = bars[0].get_segments()[0]
                se = comparison.difference(score.name)[name].se
                assert (end - start) / 2 == pytest.approx(se)
    assert "standard error of the paired difference" in figure.get_supxlabel()


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'pyrox-ppl\[plots\]'"):
        px.plot_fit(prediction((4,)), np.zeros(4))


@pytest.fixture(autouse=True)
def _close():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
