"""Trees whose draws were resampled, thinned or joined are not judged by old means."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr

import pyrox_ppl as px

N, CLASSES = 60, 3
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=N), jnp.float32)
WEIGHTS = jax.random.normal(jax.random.key(0), (40, CLASSES))
LABELS = RNG.integers(0, CLASSES, N)


def classes(x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([CLASSES]).to_event(1))
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=jnp.outer(x, w)), obs=y)


def tree_of(weights=WEIGHTS):
    return px.to_datatree({"w": weights}, X, y=LABELS, model=classes)


@pytest.fixture(scope="module")
def tree():
    return tree_of()


@pytest.mark.parametrize("how", ["resampled", "thinned", "joined and thinned"])
def test_mean_probabilities_of_other_draws_are_refused_whatever_their_number(tree, how):
    if how == "resampled":
        changed = tree.isel(draw=RNG.integers(0, 40, 40))
    elif how == "thinned":
        changed = tree.isel(draw=slice(None, None, 2))
    else:
        half = xr.map_over_datasets(
            lambda d: d.assign_coords(draw=d.draw + 40) if "draw" in d.dims else d, tree
        )
        changed = xr.map_over_datasets(
            lambda a, b: xr.concat([a, b], "draw") if "draw" in a.dims else a,
            tree,
            half,
        ).isel(draw=slice(None, None, 2))
    for judge in (
        px.calibration,
        px.accuracy_rejection_curve,
        lambda t: px.recalibrate(t, "temperature"),
        lambda t: px.most_uncertain(t, 2),
        lambda t: px.compare({"a": t}),
    ):
        with pytest.raises(ValueError, match="selected, resampled or joined"):
            judge(changed)
    remade = px.to_datatree(changed, X, y=LABELS, model=classes)
    by_hand = tree_of(changed.posterior["w"].values[0])
    expected = px.calibration(by_hand).brier
    np.testing.assert_allclose(px.calibration(remade).brier, expected, rtol=1e-6)


def test_draws_selected_without_their_axis_are_refused(tree):
    with pytest.raises(ValueError, match=r"no axis \['draw'\]: select draws by a list"):
        px.calibration(tree.isel(draw=0))


def test_a_posterior_without_the_axis_of_chains_is_refused(tree):
    for judge in (px.diagnose, px.summary):
        with pytest.raises(ValueError, match=r"no axis \['chain'\]: select draws by"):
            judge(tree.isel(chain=0))


@pytest.mark.parametrize("group", ["observed_data", "log_likelihood", "uncertainty"])
@pytest.mark.parametrize("rows", [slice(20), slice(None, None, -1)])
def test_a_group_of_other_rows_is_refused(tree, group, rows):
    sliced = {name: child.to_dataset() for name, child in tree.children.items()}
    sliced[group] = sliced[group].isel(row=rows)
    for judge in (px.calibration, lambda t: px.compare({"a": t})):
        with pytest.raises(ValueError, match="other rows along 'row'"):
            judge(xr.DataTree.from_dict(sliced))
    assert px.calibration(tree.isel(row=rows)).brier.size <= N


@pytest.mark.parametrize("diverging", [False, True])
def test_divergences_count_in_a_tree_that_does_not_say_what_it_is(diverging):
    draws = RNG.normal(size=(4, 200))
    stats = {"diverging": np.full(draws.shape, diverging)}
    groups = {"posterior": {"a": draws}, "sample_stats": stats}
    datasets = {
        name: xr.Dataset({n: (("chain", "draw"), v) for n, v in group.items()})
        for name, group in groups.items()
    }
    failed = px.diagnose(xr.DataTree.from_dict(datasets)).failed
    assert failed == (("divergences",) if diverging else ())
