"""plot_comparison: each panel holds the scores and errors of the comparison."""

import matplotlib as mpl
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import pyrox_ppl as px

mpl.use("agg")


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


@pytest.fixture(autouse=True)
def _close():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
