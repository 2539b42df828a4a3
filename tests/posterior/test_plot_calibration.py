"""plot_calibration: each panel holds the numbers that it names."""

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import pyrox_ppl as px

mpl.use("agg")
X = jnp.linspace(-1.5, 1.5, 80)
SLOPES = jax.random.normal(jax.random.key(0), (50,))


def model(x, height=None, rain=None, kind=None):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("height", dist.Normal(a * x, 1.0), obs=height)
        numpyro.sample("rain", dist.Bernoulli(logits=a * x), obs=rain)
        logits = a * jnp.stack([x, 0 * x, -x], -1)
        numpyro.sample("kind", dist.Categorical(logits=logits), obs=kind)


@pytest.fixture(scope="module")
def tree():
    rng = np.random.default_rng(0)
    observed = {
        "height": rng.normal(size=80),
        "rain": rng.integers(0, 2, 80),
        "kind": rng.integers(0, 3, 80),
    }
    return px.to_datatree({"a": SLOPES}, X, model=model, **observed)


@pytest.fixture(autouse=True)
def _close():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def labels(axis):
    return axis.get_title(), axis.get_xlabel(), axis.get_ylabel()


def test_every_site_has_its_row_of_named_panels(tree):
    axes = px.plot_calibration(tree).axes
    first = "largest class probability"
    assert [labels(axis) for axis in axes[:2]] == [
        (
            "PIT of height",
            "probability integral transform",
            "empirical minus uniform CDF",
        ),
        (
            "coverage of height",
            "level of the central interval / %",
            "observations covered / %",
        ),
    ]
    assert {labels(axes[2]), labels(axes[4])} == {
        ("reliability of rain", "P(rain = 1)", "frequency of rain = 1"),
        ("reliability of kind", first, "accuracy"),
    }
    legends = [axis.get_legend() for axis in axes if axis.get_legend()]
    texts = {text.get_text() for legend in legends for text in legend.get_texts()}
    assert texts == {"90 % band", "predictions", "90 % intervals"}


def test_the_curves_of_numbers_are_those_of_the_pit(tree):
    pit = px.calibration(tree, "height").pit
    left, right = px.plot_calibration(tree, "height").axes
    places, heights = left.lines[1].get_data()
    ecdf = stats.ecdf(pit).cdf
    inside = np.arange(2, 2 * len(pit), 2)  # just above each step
    np.testing.assert_allclose(
        heights[inside] + places[inside], ecdf.evaluate(places[inside]), atol=1e-9
    )
    levels, covered = right.lines[1].get_data()
    for level, share in zip(levels[2::2], covered[2::2], strict=True):
        by_hand = np.mean(np.abs(pit - 0.5) <= level / 200 + 1e-12)
        assert share == pytest.approx(100 * by_hand, abs=1e-6)
    # The band holds the whole curve of calibrated predictions in 90 of 100 cases.
    band = left.patches[0].get_bbox()
    uniform = np.random.default_rng(1).uniform(size=(500, len(pit)))
    worst = np.array([stats.kstest(u, "uniform").statistic for u in uniform])
    assert np.mean(worst <= band.y1) == pytest.approx(0.9, abs=0.045)


@pytest.mark.parametrize("site", ["rain", "kind"])
def test_the_points_of_classes_are_those_of_the_reliability_curve(tree, site):
    curve = px.calibration(tree, site, bins=5).reliability
    left, right = px.plot_calibration(tree, site, bins=5).axes
    seen = curve.count > 0
    x, y = left.lines[1].get_data()
    np.testing.assert_array_equal(x, curve.confidence[seen])
    np.testing.assert_array_equal(y, curve.frequency[seen])
    segments = np.array(left.collections[0].get_segments())
    np.testing.assert_allclose(segments[:, 0, 1], curve.lower[seen])
    np.testing.assert_allclose(segments[:, 1, 1], curve.upper[seen])
    np.testing.assert_array_equal(right.patches[0].get_data().values, curve.count)
    assert right.get_title().endswith("5 bins")


def test_it_draws_on_the_axes_given(tree):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 1)
    assert px.plot_calibration(tree, "rain", axes=axes) is figure
    assert axes[0].get_title() == "reliability of rain"
    with pytest.raises(ValueError, match=r"\['rain'\] needs two axes, got 1 in all"):
        px.plot_calibration(tree, "rain", axes=axes[0])


def test_angles_have_nothing_to_draw():
    def angles(y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.VonMises(a, 1.0).expand([4]), obs=y)

    with jax.numpy_rank_promotion("allow"):
        tree = px.to_datatree({"a": SLOPES}, y=jnp.zeros(4), model=angles)
    with pytest.raises(ValueError, match="'y' is circular: angles have no intervals"):
        px.plot_calibration(tree)
    with pytest.raises(ValueError, match="not an observed site"):
        px.plot_calibration(tree, "z")
