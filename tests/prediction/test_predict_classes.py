"""predict of classes: probabilities, never a mean label; and uncertainty in parts."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from scipy import special, stats

import pyrox_ppl as px
import pyrox_ppl.prediction._loop as loop
from pyrox_ppl.prediction._uncertainty import LawMeans

X = jnp.linspace(-2.0, 2.0, 6)
WEIGHTS = jax.random.normal(jax.random.key(0), (40, 3))


def model(x, kind=None, rain=None):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    f = numpyro.deterministic("f", x * w[0])
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("kind", dist.Categorical(logits=jnp.outer(x, w)), obs=kind)
        numpyro.sample("rain", dist.Bernoulli(logits=f), obs=rain)
        numpyro.sample("height", dist.Normal(f, 2.0))
        numpyro.sample("pair", dist.MultivariateNormal(jnp.outer(x, w), jnp.eye(3)))


def by_hand(weights):
    """Class probabilities at every draw: (draws, rows, classes) and (draws, rows)."""
    w = np.asarray(weights, np.float64)
    logits = np.einsum("n,sk->snk", np.asarray(X), w)
    kind = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return kind, 1 / (1 + np.exp(-logits[..., 0]))


@pytest.mark.parametrize("batch_size", [None, 4])
def test_classes_are_summarised_by_their_probabilities(batch_size):
    kind, rain = by_hand(WEIGHTS)
    observed = {"kind": jnp.zeros(6, int)}  # is drawn anew
    for kwargs in ({}, observed):
        ours = px.predict(model, {"w": WEIGHTS}, X, batch_size=batch_size, **kwargs)
        for name, p in (("kind", kind), ("rain", rain)):
            np.testing.assert_allclose(ours[name].mean, p.mean(0), rtol=1e-5)
            np.testing.assert_allclose(ours[name].std, p.std(0), atol=1e-6)
            low = np.quantile(p, 0.05, axis=0)
            np.testing.assert_allclose(ours[name].quantiles[0.05], low, rtol=1e-4)
            assert ours[name].uncertainty is None  # only on demand


@pytest.fixture(scope="module")
def split():
    """All sites with their uncertainty in parts."""
    return px.predict(model, {"w": WEIGHTS}, X, uncertainty=True)


def test_renumbering_the_classes_changes_their_order_alone(split):
    order = np.array([2, 0, 1])

    def renumbered(x):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        logits = jnp.outer(x, w)[:, order]
        with numpyro.plate("row", x.shape[0]):
            numpyro.sample("kind", dist.Categorical(logits=logits))

    one = split["kind"]
    other = px.predict(renumbered, {"w": WEIGHTS}, X, uncertainty=True)["kind"]
    np.testing.assert_allclose(one.mean[:, order], other.mean, rtol=1e-5)
    np.testing.assert_allclose(one.std[:, order], other.std, atol=1e-6)
    for a, b in zip(one.uncertainty, other.uncertainty, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_the_parts_of_uncertainty(split, batch_size):
    kind, rain = by_hand(WEIGHTS)
    options = {"uncertainty": True, "batch_size": batch_size}
    ours = (
        split if batch_size is None else px.predict(model, {"w": WEIGHTS}, X, **options)
    )
    for name, p in (("kind", kind), ("rain", np.stack([1 - rain, rain], -1))):
        parts = ours[name].uncertainty
        total, noise = stats.entropy(p.mean(0), axis=-1), stats.entropy(p, axis=-1)
        np.testing.assert_allclose(parts.total, total, rtol=1e-5)
        np.testing.assert_allclose(parts.aleatoric, noise.mean(0), rtol=1e-5)
        np.testing.assert_allclose(parts.epistemic, total - noise.mean(0), atol=1e-6)
    parts = ours["height"].uncertainty
    f = np.outer(WEIGHTS[:, 0], X)
    np.testing.assert_allclose(parts.aleatoric, 4.0)
    np.testing.assert_allclose(parts.epistemic, f.var(0), rtol=1e-5)
    np.testing.assert_allclose(parts.total, 4.0 + f.var(0), rtol=1e-5)
    assert ours["f"].uncertainty is None
    assert ours["pair"].uncertainty is None


def test_of_a_tree_and_of_chains_it_is_the_same(split):
    tree = px.to_datatree({"w": WEIGHTS.reshape(4, 10, 3)}, batch_ndims=2)
    one = px.predict(model, tree, X, uncertainty=True)["kind"]
    other = split["kind"]
    np.testing.assert_array_equal(one.mean, other.mean)
    np.testing.assert_array_equal(one.uncertainty, other.uncertainty)


def test_of_a_guide_the_tree_and_predict_agree():
    optim = numpyro.optim.Adam(0.05)
    svi = px.infer.CompiledSVI(model, AutoNormal(model), optim, Trace_ELBO())
    observed = {"kind": jnp.array([0, 0, 1, 1, 2, 2]), "rain": jnp.ones(6, int)}
    fit = svi.run(jax.random.key(0), 50, X, progress_bar=False, **observed)
    tree = px.to_datatree(fit, X, guide=svi.guide, num_samples=20, **observed)
    ours = px.predict(model, tree, X, uncertainty=True)
    for name in ("kind", "rain"):
        found = tree.uncertainty[f"{name}_probability"]
        np.testing.assert_allclose(ours[name].mean, found, rtol=1e-5)
        epistemic = tree.uncertainty[f"{name}_epistemic"]
        np.testing.assert_allclose(
            ours[name].uncertainty.epistemic, epistemic, atol=1e-7
        )


def test_what_a_discrete_site_without_draws_adds_is_in_neither_part():
    def switched(x):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", x.shape[0]):
            c = numpyro.sample("c", dist.Bernoulli(0.3))
            shift = numpyro.sample("shift", dist.Normal(1.0 * c, 1.0))
            numpyro.sample("y", dist.Normal(a + shift, 1.0))
            numpyro.sample("z", dist.Normal(a * x, 1.0))

    ours = px.predict(switched, {"a": WEIGHTS[:, 0]}, X, uncertainty=True)
    assert ours["y"].uncertainty is ours["shift"].uncertainty is None
    assert ours["z"].uncertainty is not None
    np.testing.assert_allclose(ours["c"].mean, 0.3, rtol=1e-5)


def test_what_a_number_without_draws_adds_is_not_taken_for_doubt():
    def two(x, first=None, second=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", x.shape[0]):
            first = numpyro.sample("first", dist.Normal(a * x, 1.0), obs=first)
            numpyro.sample("second", dist.Normal(first, 1.0), obs=second)

    ours = px.predict(two, {"a": WEIGHTS[:, 0]}, X, uncertainty=True)
    assert ours["second"].uncertainty is None
    np.testing.assert_allclose(ours["first"].uncertainty.aleatoric, 1.0, rtol=1e-6)


def test_a_parameter_drawn_without_its_noise_is_split():
    @numpyro.handlers.reparam(config={"a": numpyro.infer.reparam.LocScaleReparam(0.0)})
    def model(x):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a * x, 1.0).to_event(1))

    ours = px.predict(model, {"a": WEIGHTS[:, 0]}, X, sites=["y"], uncertainty=True)
    epistemic = (np.outer(WEIGHTS[:, 0], X)).var(0)
    np.testing.assert_allclose(ours["y"].uncertainty.epistemic, epistemic, rtol=1e-5)


def test_a_module_has_no_noise_to_split():
    linear = eqx.nn.Linear(1, 1, key=jax.random.key(0))
    draws = {"linear.bias": jnp.ones((3, 1))}
    with pytest.raises(ValueError, match="pass the model instead of Linear"):
        px.predict(linear, draws, jnp.ones((2, 1)), uncertainty=True)


def test_the_laws_of_all_sites_are_read_once_though_blocks_are_many(monkeypatch):
    add, seen = LawMeans.add, []

    def counted(self, laws):
        seen.append(len(laws["kind"]["entropy"]))
        add(self, laws)

    monkeypatch.setattr(LawMeans, "add", counted)
    px.predict(model, {"w": WEIGHTS}, X, uncertainty=True, batch_size=4)
    assert sum(seen) == len(WEIGHTS)


def test_settings_of_a_with_block_hold_for_all_chunks(monkeypatch):
    monkeypatch.setattr(loop, "CHUNK_BYTES", 4000)  # several
    logits = np.outer(np.float64(X), np.float64(WEIGHTS[0]))
    with jax.enable_x64(True):
        weights = jnp.asarray(WEIGHTS, jnp.float64)
        ours = px.predict(model, {"w": weights}, jnp.asarray(X, jnp.float64))
        assert ours["kind"].mean.dtype == ours["height"].mean.dtype == np.float64
        once = px.predict(model, {"w": weights[:1]}, jnp.asarray(X, jnp.float64))
        p = special.softmax(logits, axis=-1)
        np.testing.assert_allclose(once["kind"].mean, p, rtol=1e-12)
    broken = WEIGHTS.at[-1].set(jnp.inf)  # times 0 is NaN
    with jax.debug_nans(True), pytest.raises(Exception, match="nan"):
        px.predict(model, {"w": broken}, X.at[0].set(0.0), sites=["kind"])
