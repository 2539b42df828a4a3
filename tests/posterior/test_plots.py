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
import xarray as xr

import pyrox_ppl as px
from pyrox_ppl.prediction._prediction import Prediction

mpl.use("agg")
import matplotlib.pyplot as plt


def prediction(shape):
    mean = np.linspace(0.0, 1.0, shape[0]).reshape(shape[0], *[1] * (len(shape) - 1))
    mean = np.broadcast_to(mean, shape)
    quantiles = {0.05: mean - 1, 0.25: mean - 0.5, 0.5: mean, 0.75: mean + 0.5}
    return Prediction(mean, 0 * mean + 0.1, quantiles | {0.95: mean + 1})


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def is_whole(figure):
    """Whether no text crosses the edge of the figure."""
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return (
        box.x0 > -0.01
        and box.y0 > -0.01
        and box.x1 < width + 0.01
        and (box.y1 < height + 0.01)
    )


def tree_with_units():
    observed = xr.Dataset({"heat": ("row", np.zeros(2), {"units": "K"})})
    inputs = xr.Dataset({"depth": ("row", np.zeros(2), {"units": "m"})})
    return xr.DataTree.from_dict({"observed_data": observed, "constant_data": inputs})


def test_a_curve_has_its_bands_in_the_order_of_x():
    x = np.array([3.0, 1.0, 2.0])
    (axis,) = px.plot_fit(
        prediction((3, 1)), x, x_observed=[1.5], y_observed=[0.3]
    ).axes
    line, observed = axis.lines
    assert line.get_xdata().tolist() == [1.0, 2.0, 3.0]
    assert line.get_ydata().tolist() == [0.5, 1.0, 0.0]
    assert observed.get_xdata().tolist() == [1.5]
    assert observed.get_ydata().tolist() == [0.3]
    assert len(axis.collections) == 2
    outer = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert outer.min() == -1.0
    assert outer.max() == 2.0
    interval = "credible interval of the function"
    assert legend(axis) == ["mean", f"90 % {interval}", f"50 % {interval}", "observed"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("x", "f(x)")


def test_the_bands_of_function_and_observation_are_those_of_the_draws():
    rng = np.random.default_rng(0)
    x, slope = np.linspace(-1.0, 1.0, 30), rng.normal(1.0, 0.3, 400)
    f = slope[:, None] * x
    y = f + rng.normal(size=f.shape)
    given = {}
    for name, values in (("f", f), ("y", y)):
        levels = {q: np.quantile(values, q, axis=0) for q in (0.05, 0.5, 0.95)}
        given[name] = Prediction(
            values.mean(0), values.std(0), levels, has_noise=name == "y"
        )
    figure = px.plot_fit(given["f"], x, predictive=given["y"], label="NUTS")
    (axis,) = figure.axes
    names = [band.get_label() for band in axis.collections]
    assert names == [
        "NUTS: 90 % credible interval of the function",
        "NUTS: 90 % predictive interval of an observation",
    ]
    for band, values in zip(axis.collections, (f, y), strict=True):
        vertices = band.get_paths()[0].vertices
        for place in (0, 12, 29):
            drawn = vertices[np.isclose(vertices[:, 0], x[place]), 1]
            ends = np.quantile(values[:, place], [0.05, 0.95])
            np.testing.assert_allclose([drawn.min(), drawn.max()], ends)
    function, observation = axis.collections
    assert function.get_alpha() > observation.get_alpha()
    (alone,) = px.plot_fit(None, x, predictive=given["y"]).axes
    assert legend(alone) == ["mean", "90 % predictive interval of an observation"]
    assert alone.get_ylabel() == "y"


def test_a_tree_and_arguments_name_the_axes():
    tree, x = tree_with_units(), np.zeros(4)
    figure, axis = plt.subplots()
    assert px.plot_fit(prediction((4,)), x, tree=tree, axes=axis) is figure
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("depth / m", "heat / K")
    names = {"xlabel": "age / a", "ylabel": "cost"}
    px.plot_fit(prediction((4,)), x, tree=tree, axes=axis, **names)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("age / a", "cost")
    tree["observed_data"]["other"] = xr.zeros_like(tree["observed_data"]["heat"])
    px.plot_fit(prediction((4,)), x, tree=tree, axes=axis)
    assert axis.get_ylabel() == "f(x)"
    px.plot_fit(prediction((4,)), x, tree=tree, axes=axis, ylabel="heat")
    assert axis.get_ylabel() == "heat / K"


GRID = np.stack(np.meshgrid([0.0, 1.0, 2.0], [0.0, 1.0]), -1).reshape(-1, 2)


def test_a_field_has_its_mean_and_its_spreads():
    fit = prediction((6,))
    noisy = fit._replace(std=np.full(6, 0.5), has_noise=True)
    names, tree = ("depth", "width / m"), tree_with_units()
    figure = px.plot_fit(
        fit, GRID, predictive=noisy, tree=tree, xlabel=names, x_observed=GRID[:2]
    )
    labels = ["mean", "std of the function", "std of an observation"]
    for axis, label, values in zip(
        figure.axes, labels, (fit.mean, fit.std, noisy.std), strict=True
    ):
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("depth / m", "width / m")
        assert axis.get_aspect() == 1.0
        (bar,) = axis.child_axes
        assert bar.get_xlabel() == f"{label}\nheat / K"
        np.testing.assert_allclose(axis.collections[0].get_array(), values)
        np.testing.assert_array_equal(axis.lines[0].get_xydata(), GRID[:2])
    assert legend(figure.axes[-1]) == ["observed"]
    (first, second) = px.plot_fit(fit, GRID).axes
    assert (first.get_xlabel(), second.get_ylabel()) == ("x[0]", "x[1]")


def test_what_does_not_fit_is_refused():
    fit, line = prediction((4,)), np.zeros(4)
    with pytest.raises(ValueError, match=r"one or two coordinates"):
        px.plot_fit(fit, np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"shape \(4,\), and x has 5 points"):
        px.plot_fit(fit, np.zeros(5))
    with pytest.raises(ValueError, match=r"x has 2 coordinates, and x_observed 1"):
        px.plot_fit(prediction((6,)), GRID, x_observed=line)
    with pytest.raises(ValueError, match=r"points x_observed needs a value, got none"):
        px.plot_fit(fit, line, x_observed=line)
    with pytest.raises(ValueError, match=r"nothing to draw"):
        px.plot_fit(None, line)
    with pytest.raises(TypeError, match=r"dictionary of the sites \['y'\]"):
        px.plot_fit({"y": fit}, line)
    with pytest.raises(ValueError, match=r"needs 2 axes, .* got 1"):
        px.plot_fit(prediction((6,)), GRID, axes=plt.subplots()[1])
    with pytest.raises(ValueError, match=r"xlabel must name both coordinates"):
        px.plot_fit(prediction((6,)), GRID, xlabel="x")


@pytest.mark.parametrize("batch_size", [None, 2])
def test_functions_and_observations_are_not_mistaken_for_each_other(batch_size):
    def model(x):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        f = numpyro.deterministic("f", a * x)
        numpyro.sample("y", dist.Normal(f, 1.0))
        numpyro.sample("rain", dist.Bernoulli(logits=f))

    x = np.linspace(0.0, 1.0, 4, dtype=np.float32)
    draws = {"a": np.float32([0.0, 1.0])}
    with jax.numpy_rank_promotion("allow"):
        sites = px.predict(model, draws, x, uncertainty=True, batch_size=batch_size)
    has_noise = {name: site.has_noise for name, site in sites.items()}
    assert has_noise == {"f": False, "y": True, "rain": False}
    px.plot_fit(sites["rain"], x)
    px.plot_fit(sites["f"], x, predictive=sites["y"])
    with pytest.raises(ValueError, match=r"plot_fit\(None, x, predictive=prediction"):
        px.plot_fit(sites["y"], x)
    for name in ("f", "rain"):
        with pytest.raises(ValueError, match="`predictive` has no noise"):
            px.plot_fit(None, x, predictive=sites[name])


@pytest.fixture(scope="module")
def diagnosis():
    linear = eqx.nn.Linear(1, 1, key=jax.random.key(0))
    weights = jax.random.normal(jax.random.key(1), (4, 100, 1, 1))
    tree = px.to_datatree({"linear.weight": weights}, batch_ndims=2)
    losses = np.linspace(9.0, 1.0, 100)
    tree["optimization"] = xr.DataTree(xr.Dataset({"loss": ("step", losses)}))
    return px.diagnose(tree, linear, jnp.ones((3, 1)))


def test_a_diagnosis_has_a_panel_for_each_finding(diagnosis):
    figure = px.plot_diagnostics(diagnosis)
    rhat, ess, loss = figure.axes
    drawn = rhat.lines[0].get_ydata()
    np.testing.assert_array_equal(drawn, diagnosis.functions.rhat)
    np.testing.assert_array_equal(
        ess.lines[1].get_ydata(), diagnosis.functions.ess_tail
    )
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), diagnosis.loss)
    assert rhat.get_xlabel() == ess.get_xlabel() == "index in the values of Linear"
    names = [axis.get_ylabel() for axis in figure.axes]
    assert names == ["R-hat", "effective number of draws", "negative ELBO / nats"]
    assert legend(rhat) == ["at most 1.01"]
    assert legend(ess) == ["bulk", "tail", "at least 400"]
    assert legend(loss) == ["each step", "moving average"]
    assert diagnosis.title in figure.get_suptitle()


def test_a_diagnosis_is_drawn_on_the_axes_given(diagnosis):
    figure, axes = plt.subplots(3, 1)
    assert px.plot_diagnostics(diagnosis, axes=axes) is figure
    assert not figure.get_suptitle()
    with pytest.raises(ValueError, match="needs 3 axes, one for each panel, got 2"):
        px.plot_diagnostics(diagnosis, axes=axes[:2])


def test_an_empty_diagnosis_is_refused():
    tree = px.to_datatree({"a": np.zeros((1, 100))}, batch_ndims=2)
    tree.attrs["point_estimate"] = 1
    with pytest.raises(ValueError, match="nothing to draw"):
        px.plot_diagnostics(px.diagnose(tree))


@pytest.mark.parametrize("width", [3.4, 7.0])
@pytest.mark.parametrize("format", ["pdf", "svg"])
def test_one_and_two_columns_of_a_paper_hold_every_label(
    width, format, diagnosis, tmp_path
):
    def axes(*shape, height, layout="constrained"):
        return plt.subplots(*shape, figsize=(width, height), layout=layout)[1]

    fit, tree = prediction((6,)), tree_with_units()
    noisy = fit._replace(has_noise=True)
    shape, height = ((2, 1), 5.0) if width < 5 else ((1, 2), 2.5)
    shape3, height3 = ((3, 1), 9.0) if width < 5 else ((1, 3), 3.0)
    two = axes(*shape, height=height, layout="compressed")
    three = axes(*shape3, height=height3, layout="compressed")
    one = axes(height=3.4)
    figures = [
        px.plot_fit(fit, GRID[:, 0], predictive=noisy, tree=tree, axes=one),
        px.plot_fit(fit, GRID, tree=tree, axes=two),
        px.plot_fit(
            fit, GRID, predictive=noisy, tree=tree, axes=three, x_observed=GRID
        ),
        px.plot_fit(fit, GRID, x_observed=GRID),
        px.plot_diagnostics(diagnosis, axes=axes(*shape3, height=height3)),
    ]
    for number, figure in enumerate(figures):
        assert is_whole(figure), number
        figure.savefig(tmp_path / f"{number}.{format}")


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'pyrox-ppl\[plots\]'"):
        px.plot_fit(prediction((4,)), np.zeros(4))


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")
