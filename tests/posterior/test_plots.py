"""The pictures hold what they should; without matplotlib the error says what to do."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
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


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'pyrox-ppl\[plots\]'"):
        px.plot_fit(prediction((4,)), np.zeros(4))


@pytest.fixture(autouse=True)
def _close():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
