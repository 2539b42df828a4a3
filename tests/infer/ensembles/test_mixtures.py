"""A mixture of Laplace approximations, and MultiSWAG: each member by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import Adam

import pyrox_ppl as px
from pyrox_ppl.infer import AutoLaplace, AutoSWAG, run_ensemble

pytestmark = pytest.mark.rank_promotion
KEY, MEMBERS, DRAWS = jax.random.key(0), 3, 1500
NOISE, PRIOR = 0.3, 0.8
X = np.linspace(-1.0, 1.0, 8, dtype=np.float32)[:, None]
Y = np.float32(np.sin(3 * X[:, 0]))
NEW_X = np.linspace(-2.0, 2.0, 5, dtype=np.float32)[:, None]
NEW_Y = np.zeros(5, np.float32)


def make(key):
    return eqx.nn.MLP(1, 1, 2, 1, jnp.tanh, key=key)


NET = make(KEY)
DRAWN = ("net.layers.0.weight", "net.layers.0.bias")
PRIORS = {
    "centred": px.priors.normal(PRIOR),
    "non-centred": lambda p: px.priors.NonCentered(dist.Normal(0.0, PRIOR)),
}


def model_with(prior):
    """The first layer is random, the readout is learned."""

    def model(x, y=None):
        random = px.bayesianize(prior=PRIORS[prior], where="*.layers.0.*")
        with random, px.learn(where="*.layers.1.*"):
            net = px.bind(NET, "net")
        f = numpyro.deterministic("f", jax.vmap(net)(x)[:, 0])
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(f, NOISE), obs=y)

    return model


def network(theta, readout, x):
    """The network in NumPy; `theta` is the first layer, weights and then biases."""
    hidden = np.tanh(x @ theta[:2][None] + theta[2:])
    return hidden @ readout[0] + readout[1]


def jacobian(theta, readout, x):
    steps = 1e-6 * np.eye(4)
    pairs = [
        (network(theta + s, readout, x), network(theta - s, readout, x)) for s in steps
    ]
    return np.stack([(a - b) / 2e-6 for a, b in pairs], -1)


class Member:
    """One member's Laplace approximation, by hand in float64."""

    def __init__(self, params, prior, m):
        scale, suffix = (1.0, "") if prior == "centred" else (PRIOR, "_decentered")
        parts = [np.float64(params[f"{n}{suffix}_auto_loc"][m]).ravel() for n in DRAWN]
        self.mode = scale * np.concatenate(parts)
        weight, bias = (params[f"net.layers.1.{n}"][m] for n in ("weight", "bias"))
        self.readout = np.float64(weight).ravel(), np.float64(bias)[0]
        slope = jacobian(self.mode, self.readout, np.float64(X))
        precision = slope.T @ slope / NOISE**2 + np.eye(4) / PRIOR**2
        self.covariance = np.linalg.inv(precision)

    def at(self, theta, x):
        """The tangent at a parameter."""
        slope = jacobian(self.mode, self.readout, np.float64(x))
        return network(self.mode, self.readout, np.float64(x)) + slope @ (
            theta - self.mode
        )

    def moments(self, x):
        slope = jacobian(self.mode, self.readout, np.float64(x))
        variance = np.einsum("ni,ij,nj->n", slope, self.covariance, slope)
        return network(self.mode, self.readout, np.float64(x)), variance


def fit_with(guide, model, steps=60):
    svi = SVI(model, guide, Adam(0.02), Trace_ELBO())
    return run_ensemble(svi, KEY, MEMBERS, steps, X, Y, make=make, progress_bar=False)


@pytest.fixture(
    scope="module",
    params=["non-centred", pytest.param("centred", marks=pytest.mark.slow)],
)
def mixture(request):
    model = model_with(request.param)
    guide = AutoLaplace(model, "full")
    with jax.numpy_rank_promotion("allow"):
        fit = guide.add_curvature(fit_with(guide, model), X, Y, max_decrement=np.inf)
        tree = px.to_datatree(fit, X, Y, guide=guide, num_samples=DRAWS)
    members = [Member(fit.params, request.param, m) for m in range(MEMBERS)]
    return request.param, model, guide, fit, members, tree


def theta_of(tree):
    """The first layer of every draw, (member, draw, 4)."""
    weight, bias = (np.float64(tree.posterior[n].values) for n in DRAWN)
    return np.concatenate([weight[..., 0], bias], -1)


def check_moments(found, members, x):
    """The law of total variance over members."""
    means, variances = (np.stack(parts) for parts in zip(*members, strict=True))
    spread = variances.mean(0) + means.var(0)
    error = 5 * np.sqrt(spread / DRAWS)
    assert (np.abs(np.ravel(found.mean) - means.mean(0)) < error).all()
    np.testing.assert_allclose(np.ravel(found.std) ** 2, spread, rtol=0.12)


def test_each_member_has_the_curvature_of_a_fit_of_its_own(mixture):
    _, _, guide, fit, _, _ = mixture
    for m in range(MEMBERS):
        own = {n: v[m] for n, v in fit.params.items() if "auto_laplace" not in n}
        alone = guide.add_curvature(own, X, Y, max_decrement=np.inf)
        assert alone.keys() == fit.params.keys()
        for name, value in alone.items():
            found = fit.params[name][m]
            size = np.abs(value).max()
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5 * size)


def test_each_draw_is_evaluated_on_the_tangent_of_its_member(mixture):
    _, model, _, _, members, tree = mixture
    assert tree.attrs["inference"] == "ensemble"
    assert tree.attrs["members"] == MEMBERS
    assert dict(tree.linearized_at.sizes)["chain"] == MEMBERS
    theta = theta_of(tree)
    modes = np.stack([member.mode for member in members])
    # Members at one mode could not be told apart.
    assert np.abs(modes[0] - modes[1]).max() > 0.1
    held_out = px.to_datatree(tree, NEW_X, NEW_Y, model=model)
    for m, member in enumerate(members):
        np.testing.assert_allclose(
            np.cov(theta[m].T), member.covariance, rtol=0.2, atol=0.02
        )
        for i in range(4):
            for one, x in ((tree, X), (held_out, NEW_X)):
                np.testing.assert_allclose(
                    one.posterior["f"][m, i], member.at(theta[m, i], x), atol=2e-4
                )


def test_predictions_are_the_moments_of_the_mixture(mixture, tmp_path):
    _, model, _, _, members, tree = mixture
    expected = [member.moments(NEW_X) for member in members]
    px.save(tmp_path / "fit.nc", tree, NET, name="net")
    loaded = px.load(tmp_path / "fit.nc")
    means = []
    for one in (
        tree,
        loaded.posterior,
        px.to_datatree(loaded.posterior, NEW_X, NEW_Y, model=model),
    ):
        by_model = px.predict(model, one, NEW_X, sites=["f"])["f"]
        by_module = px.predict(loaded.module, one, NEW_X, name="net")
        for found in (by_model, by_module):
            check_moments(found, expected, NEW_X)
            means.append(np.ravel(found.mean))
    np.testing.assert_allclose(means, np.tile(means[0], (6, 1)), atol=1e-4)
    parts = px.predict(model, tree, NEW_X, uncertainty=True)["y"].uncertainty
    means, variances = (np.stack(parts) for parts in zip(*expected, strict=True))
    spread = variances.mean(0) + means.var(0)
    np.testing.assert_allclose(parts.epistemic, spread, rtol=0.12)
    np.testing.assert_allclose(parts.aleatoric, NOISE**2, rtol=1e-4)


def test_a_part_of_the_members_is_their_own_mixture(mixture):
    _, model, _, _, members, tree = mixture
    for chains in ([2], [0, 2]):
        some = tree.isel(chain=chains)
        expected = [members[m].moments(NEW_X) for m in chains]
        again = px.to_datatree(some, NEW_X, NEW_Y, model=model)
        for one in (some, again):
            check_moments(
                px.predict(model, one, NEW_X, sites=["f"])["f"], expected, NEW_X
            )
            check_moments(
                px.predict(NET, one, NEW_X, name="net", batch_size=2), expected, NEW_X
            )
    cut = tree.copy()
    cut["posterior"] = tree["posterior"].isel(chain=[0, 2])
    with pytest.raises(ValueError, match="select chains of the whole tree"):
        px.predict(model, cut, NEW_X)


def test_members_are_judged_by_their_own_functions(mixture):
    _, model, _, _, members, tree = mixture
    at = np.stack([member.moments(NEW_X)[0] for member in members])
    apart = np.sqrt(((at[:, None] - at[None]) ** 2).mean(-1))
    for diagnosis in (
        px.diagnose(tree, model, NEW_X, loo=False),
        px.diagnose(tree, NET, NEW_X, loo=False, name="net"),
    ):
        np.testing.assert_allclose(diagnosis.distances, apart, rtol=0.2, atol=0.1)


def test_networks_of_tangents_are_refused(mixture):
    _, _, guide, fit, _, tree = mixture
    with pytest.raises(ValueError, match="3 tangents"):
        px.module_from_mean(NET, tree, name="net")
    with pytest.raises(ValueError, match="tangent at a mode"):
        px.modules_from_draws(NET, tree, name="net")
    one = px.module_from_mean(NET, tree.isel(chain=[1]), name="net")
    mode = guide.median({n: v[1] for n, v in fit.params.items()})
    if DRAWN[0] in mode:
        np.testing.assert_array_equal(one.layers[0].weight, mode[DRAWN[0]])
    np.testing.assert_array_equal(
        one.layers[1].bias, fit.params["net.layers.1.bias"][1]
    )


def test_the_parameters_of_all_members_are_not_those_of_one(mixture):
    _, _, guide, fit, _, _ = mixture
    for ask in (
        lambda: guide.sample_posterior(KEY, fit.params),
        lambda: guide.quantiles(fit.params, [0.5]),
        lambda: guide.log_evidence(fit),
        lambda: guide.tune_prior(fit, X, Y),
    ):
        with pytest.raises(ValueError, match="all members of an ensemble"):
            ask()
    with pytest.raises(ValueError, match="no mode for these data") as caught:
        guide.add_curvature(fit, X, Y, max_decrement=1e-12)
    assert caught.value.__notes__ == ["This is the member 0 of the ensemble."]


def test_sampled_weights_are_those_of_networks():
    model = model_with("centred")
    guide = AutoLaplace(model, "kron", linearized=False)
    fit = guide.add_curvature(fit_with(guide, model), X, Y, max_decrement=np.inf)
    tree = px.to_datatree(fit, X, Y, guide=guide, num_samples=20)
    assert "linearized_at" not in tree.children
    theta = theta_of(tree)
    members = [Member(fit.params, "centred", m) for m in range(MEMBERS)]
    values = [
        [network(one, member.readout, np.float64(NEW_X)) for one in own]
        for member, own in zip(members, theta, strict=True)
    ]
    flat = np.reshape(values, (-1, len(NEW_X)))
    for found in (
        px.predict(model, tree, NEW_X, sites=["f"])["f"],
        px.predict(NET, tree, NEW_X, name="net"),
    ):
        np.testing.assert_allclose(np.ravel(found.mean), flat.mean(0), atol=1e-4)
        np.testing.assert_allclose(np.ravel(found.std), flat.std(0), atol=1e-4)


def test_multi_swag_has_the_moments_of_each_member(tmp_path):
    model = model_with("centred")
    guide = AutoSWAG(model, rank=4, start=20, every=2)
    fit = fit_with(guide, model)
    tree = px.to_datatree(fit, X, Y, guide=guide, num_samples=4000)
    theta = theta_of(tree)
    assert theta.shape == (MEMBERS, 4000, 4)
    for m in range(MEMBERS):
        own = {n: jax.tree.map(lambda v, m=m: v[m], v) for n, v in fit.params.items()}
        alone = guide.sample_posterior(KEY, own, X, sample_shape=(20_000,))
        flat = np.concatenate([alone[DRAWN[0]][..., 0], alone[DRAWN[1]]], -1)
        error = 5 * flat.std(0) / np.sqrt(4000)
        assert (np.abs(theta[m].mean(0) - flat.mean(0)) < error).all()
        np.testing.assert_allclose(theta[m].std(0), flat.std(0), rtol=0.08)
    readouts = [
        (np.float64(fit.params["net.layers.1.weight"][m]).ravel(), b[0])
        for m, b in enumerate(np.float64(fit.params["net.layers.1.bias"]))
    ]
    f = np.concatenate(
        [
            [network(one, readout, np.float64(NEW_X)) for one in own]
            for own, readout in zip(theta, readouts, strict=True)
        ]
    )
    px.save(tmp_path / "fit.zip", tree, NET, name="net")
    loaded = px.load(tmp_path / "fit.zip")
    for one in (tree, loaded.posterior):
        for found in (
            px.predict(model, one, NEW_X, sites=["f"])["f"],
            px.predict(loaded.module, one, NEW_X, name="net"),
        ):
            np.testing.assert_allclose(np.ravel(found.mean), f.mean(0), atol=1e-4)
            np.testing.assert_allclose(np.ravel(found.std), f.std(0), atol=1e-4)
    assert px.diagnose(loaded.posterior, model, NEW_X, loo=False).distances.shape == (
        MEMBERS,
        MEMBERS,
    )
