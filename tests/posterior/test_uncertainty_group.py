"""The group `uncertainty` of a tree: against a loop over the draws by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy import stats

import pyrox_ppl as px
from pyrox_ppl.prediction import _loop as loop
from pyrox_ppl.prediction._uncertainty import LawMeans

X = jnp.linspace(-2.0, 2.0, 5)
MASK = jnp.array([True, True, False, True, False])
WEIGHTS = jax.random.normal(jax.random.key(0), (31, 3))
OBSERVED = {
    "kind": jnp.array([0, 1, 2, 2, 0]),
    "height": X,
    "grade": jnp.array([0, 1, 1, 2, 0]),
    "pixels": jnp.ones((5, 3), int),
    "visits": jnp.array([0, 1, 1, 3, 2]),
    "vector": jnp.zeros((5, 3)),
    "angle": X,
}


def model(x, **observed):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    f = x * w[0]
    laws = {
        "kind": dist.Categorical(logits=jnp.outer(x, w)),
        "height": dist.Normal(f, 1.0 + f**2).mask(MASK),
        "grade": dist.OrderedLogistic(f, jnp.array([-1.0, 1.0])).mask(MASK),
        "pixels": dist.Bernoulli(logits=jnp.outer(x, w)).to_event(1),
        "visits": dist.Poisson(jnp.exp(f)),
        "vector": dist.MultivariateNormal(jnp.outer(x, w), jnp.eye(3)),
        "angle": dist.VonMises(f, 1.0),
    }
    with numpyro.plate("row", x.shape[0]):
        for name, law in laws.items():
            numpyro.sample(name, law, obs=observed.get(name))


def laws_by_hand(name):
    """The distribution of a site at every draw."""
    for w in WEIGHTS:
        put = handlers.substitute(handlers.seed(model, 0), {"w": w})
        yield handlers.trace(put).get_trace(X)[name]["fn"]


@pytest.fixture(scope="module")
def tree():
    with jax.numpy_rank_promotion("allow"):  # VonMises promotes when it samples
        return px.to_datatree({"w": WEIGHTS}, X, model=model, **OBSERVED)


def parts(tree, name):
    group = tree.uncertainty
    return [group[f"{name}_{p}"].values for p in ("total", "aleatoric", "epistemic")]


@pytest.mark.parametrize("name", ["kind", "grade"])
def test_classes_have_their_mean_probability_and_entropies(tree, name):
    seen = np.asarray(MASK) if name == "grade" else slice(None)
    p = np.stack(
        [
            np.exp([fn.log_prob(jnp.full(5, k)) for k in range(3)]).T
            for fn in (
                getattr(fn, "base_dist", fn) if name == "grade" else fn
                for fn in laws_by_hand(name)
            )
        ]
    )[:, seen]
    found = tree.uncertainty[f"{name}_probability"]
    axis = f"{name}_entry" if name == "grade" else "row"
    assert found.dims == (axis, f"{name}_class")
    np.testing.assert_allclose(found, p.mean(0), rtol=1e-5)
    total, aleatoric, epistemic = parts(tree, name)
    noise = stats.entropy(p, axis=-1).mean(0)
    np.testing.assert_allclose(total, stats.entropy(p.mean(0), axis=-1), rtol=1e-5)
    np.testing.assert_allclose(aleatoric, noise, rtol=1e-5)
    np.testing.assert_allclose(epistemic, total - noise, atol=1e-6)
    assert (epistemic >= 0).all()


def test_pixels_have_the_probability_of_one(tree):
    p = np.stack([fn.mean for fn in laws_by_hand("pixels")]).astype(float)
    found = tree.uncertainty["pixels_probability"]
    assert found.dims == tree.observed_data["pixels"].dims
    np.testing.assert_allclose(found, p.mean(0), rtol=1e-5)
    total, aleatoric, _ = parts(tree, "pixels")
    np.testing.assert_allclose(total, stats.bernoulli(p.mean(0)).entropy(), rtol=1e-5)
    by_hand = stats.bernoulli(p).entropy().mean(0)
    np.testing.assert_allclose(aleatoric, by_hand, rtol=1e-5)


@pytest.mark.parametrize("name", ["height", "visits"])
def test_numbers_split_their_variance(tree, name):
    f = np.asarray(X) * np.asarray(WEIGHTS[:, :1], np.float64)
    mean, variance = {
        "height": (f, (1.0 + f**2) ** 2),
        "visits": (np.exp(f), np.exp(f)),
    }[name]
    seen = np.asarray(MASK) if name == "height" else slice(None)
    total, aleatoric, epistemic = parts(tree, name)
    np.testing.assert_allclose(aleatoric, variance.mean(0)[seen], rtol=1e-4)
    np.testing.assert_allclose(epistemic, mean.var(0)[seen], rtol=1e-4)
    np.testing.assert_allclose(total, aleatoric + epistemic)
    assert f"{name}_probability" not in tree.uncertainty


def test_vectors_and_angles_have_none(tree):
    names = set(tree.uncertainty.data_vars)
    assert not [n for n in names if n.startswith(("vector", "angle"))]


def test_the_outcome_is_in_the_tree_and_comes_back_from_disk(tree, tmp_path):
    kinds = {
        "kind": "categorical",
        "height": "continuous",
        "grade": "categorical",
        "pixels": "binary",
        "visits": "count",
        "vector": "multivariate",
        "angle": "circular",
    }
    px.save(tmp_path / "fit.nc", tree)
    px.save(tmp_path / "fit.zip", tree)
    for suffix in (None, "nc", "zip"):
        kept = px.load(tmp_path / f"fit.{suffix}").posterior if suffix else tree
        for group in ("observed_data", "posterior_predictive"):
            found = {n: v.attrs["outcome"] for n, v in kept[group].data_vars.items()}
            assert found == kinds
        grade = kept.observed_data["grade"].attrs
        assert (grade["num_classes"], grade["ordered"]) == (3, 1)
        assert kept.observed_data["vector"].attrs["value_ndim"] == 1
        np.testing.assert_array_equal(
            kept.uncertainty["kind_total"], tree.uncertainty["kind_total"]
        )


def test_nothing_of_the_size_of_draws_times_rows_times_classes_is_held(
    tree, monkeypatch
):
    monkeypatch.setattr(loop, "CHUNK_BYTES", 4 * 4000)  # of four chunks
    most, add = [], LawMeans.add
    monkeypatch.setattr(
        LawMeans,
        "add",
        lambda self, laws: (
            most.append(len(laws["kind"]["entropy"])),
            add(self, laws),
        )[1],
    )
    with jax.numpy_rank_promotion("allow"):
        again = px.to_datatree({"w": WEIGHTS}, X, model=model, **OBSERVED)
    assert sum(most) == 31  # every draw once, though the last chunk overlaps
    assert 31 > len(most) > 5
    for name, value in tree.uncertainty.data_vars.items():
        np.testing.assert_allclose(again.uncertainty[name], value, rtol=1e-6)


def test_a_point_estimate_has_no_epistemic_part():
    with jax.numpy_rank_promotion("allow"):
        one = px.to_datatree({"w": WEIGHTS[:1]}, X, model=model, **OBSERVED)
    for name in ("kind", "grade", "pixels", "height", "visits"):
        assert (parts(one, name)[2] == 0).all()


def test_small_spread_on_a_large_offset_is_not_lost_to_rounding():
    def far(y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(30_000.0 + a, 1.0), obs=y)

    a = np.arange(64.0) / 64
    tree = px.to_datatree({"a": a}, y=jnp.array(0.0), model=far)
    assert tree.uncertainty["y_epistemic"].item() == pytest.approx(a.var(), rel=2e-3)


def switched(y=None, z=None):
    p = numpyro.sample("p", dist.Beta(1.0, 1.0))
    with numpyro.plate("row", 4):
        mark = {"enumerate": "parallel"}
        c = numpyro.sample("c", dist.Bernoulli(p), infer=mark)
        numpyro.sample(
            "y", dist.Categorical(jnp.array([[0.9, 0.1], [0.2, 0.8]])[c]), obs=y
        )
        numpyro.sample("z", dist.Bernoulli(p), obs=z)


def test_a_latent_that_was_summed_out_counts_neither_as_noise_nor_as_doubt():
    p, y = jnp.full(4000, 0.3), jnp.array([0, 0, 1, 1])
    tree = px.to_datatree({"p": p}, y=y, z=y, model=switched)
    names = set(tree.uncertainty.data_vars)
    z = {f"z_{part}" for part in ("probability", "total", "aleatoric", "epistemic")}
    assert names == {"y_probability"} | z  # nothing of c
    marginal = 0.3 * np.array([0.2, 0.8]) + 0.7 * np.array([0.9, 0.1])
    np.testing.assert_allclose(
        tree.uncertainty["y_probability"], np.tile(marginal, (4, 1)), atol=0.05
    )


def test_a_site_that_was_drawn_is_left_alone():
    drawn = {"p": jnp.full(5, 0.3), "z": jnp.ones((5, 4), int)}
    y = jnp.array([0, 0, 1, 1])
    tree = px.to_datatree(drawn, y=y, z=y, model=switched)
    assert set(tree.uncertainty.data_vars) == {"y_probability"}
    assert tree.observed_data["z"].attrs["outcome"] == "binary"


def test_a_subsampled_plate_has_the_probabilities_of_all_rows():
    def minibatch(x, y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 5, subsample_size=2) as rows:
            obs = None if y is None else y[rows]
            numpyro.sample("y", dist.Bernoulli(logits=a * x[rows]), obs=obs)

    a = WEIGHTS[:, 0]
    tree = px.to_datatree({"a": a}, X, y=jnp.ones(5, int), model=minibatch)
    by_hand = jax.nn.sigmoid(jnp.outer(a, X)).mean(0)
    np.testing.assert_allclose(tree.uncertainty["y_probability"], by_hand, rtol=1e-5)
