"""The tangent of a module whose parameters are constrained."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Trace_ELBO

import pyrox_ppl as px
from pyrox_ppl.infer import AutoLaplace, CompiledSVI

pytestmark = pytest.mark.rank_promotion
KEY = jax.random.key(0)
X = jnp.array([[0.5], [-1.0], [2.0]])
LINEAR = eqx.nn.Linear(1, 1, key=KEY)
LINEAR = eqx.tree_at(lambda m: (m.weight, m.bias), LINEAR, (0.3 * X[:1], X[0]))


def fitted(prior):
    def model(x, y=None):
        with px.bayesianize(prior={"*weight": prior, "*": dist.Normal(0.0, 1.0)}):
            net = px.bind(LINEAR, "net")
        f = numpyro.deterministic("f", jax.vmap(net)(x)[:, 0])
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(f, 1.0), obs=y)

    guide = AutoLaplace(model, "full")
    svi = CompiledSVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
    params = svi.get_params(svi.init(KEY, X, y=X[:, 0]))
    fit = guide.add_curvature(params, X, y=X[:, 0], max_decrement=np.inf)
    return model, px.to_datatree(fit, X, y=X[:, 0], guide=guide, num_samples=7)


@pytest.mark.parametrize(
    ("prior", "unconstrain", "slope"),
    [
        (dist.HalfNormal(1.0), np.log, lambda t: t),
        (dist.LogNormal(0.0, 1.0).expand([1, 1]).to_event(2), np.log, lambda t: t),
        pytest.param(
            dist.Beta(2.0, 2.0),
            lambda t: np.log(t / (1 - t)),
            lambda t: t * (1 - t),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_module_moves_as_the_model_does(prior, unconstrain, slope, tmp_path):
    model, tree = fitted(prior)
    bias = tree.posterior["net.bias"].values[0, :, 0]
    weight = tree.posterior["net.weight"].values[0, :, 0, 0]
    mode = tree.linearized_at["net.weight"].values[0, 0]
    moved = mode + slope(mode) * (unconstrain(weight) - unconstrain(mode))
    f = moved[:, None] * np.asarray(X[:, 0]) + bias[:, None]
    px.save(tmp_path / "fit.nc", tree)
    for one in (tree, px.load(tmp_path / "fit.nc").posterior):
        alone = px.predict(LINEAR, one, X, name="net")
        np.testing.assert_allclose(alone.mean[:, 0], f.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(alone.std[:, 0], f.std(0), rtol=1e-4)
    found = px.predict(model, tree, X, sites=["f"])["f"]
    np.testing.assert_allclose(found.std, f.std(0), rtol=1e-4)


def test_a_support_that_a_tree_cannot_name_is_refused():
    _, tree = fitted(dist.Uniform(-1.0, 2.0))
    with pytest.raises(ValueError, match="predict with the model"):
        px.predict(LINEAR, tree, X, name="net")
    other = eqx.nn.Linear(1, 1, key=KEY)
    with pytest.raises(ValueError, match=r"no site|match"):
        px.predict(other, tree, X, name="other")
