"""AutoSWAG on a model of every awkward kind, against the iterates of SGD by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoGuideList
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import log_density
from numpyro.optim import SGD

import pyrox_ppl as px
from pyrox_ppl.infer import AutoSWAG, CompiledSVI

pytestmark = pytest.mark.rank_promotion
KEY, RATE, STEPS, START, EVERY = jax.random.key(0), 0.002, 30, 4, 3


class Tied(eqx.Module):
    """Two layers with one weight."""

    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __init__(self, key):
        self.first = eqx.nn.Linear(2, 2, key=key)
        second = eqx.nn.Linear(2, 2, key=key)
        self.second = eqx.tree_at(lambda n: n.weight, second, self.first.weight)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


NET = Tied(KEY)


def plain(x, group, y=None):
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    share = numpyro.sample("share", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("groups", 3):
        level = numpyro.sample("level", dist.Normal(0.3, 0.7))
    with px.bayesianize():
        net = px.bind(NET, "net")
    mean = level[group] + jax.vmap(net)(x) @ share
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(mean, noise + 0.1), obs=y)


model = handlers.reparam(plain, config={"level": LocScaleReparam(0.0)})


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=s), "f4") for s in [(12, 2), (12,)])
    return x, jnp.arange(12) % 3, y


@pytest.mark.slow
def test_moments_are_those_of_gradient_descent_by_hand(data):
    x, group, y = data
    guide = AutoSWAG(model, rank=4, start=START, every=EVERY)
    svi = CompiledSVI(model, guide, SGD(RATE), Trace_ELBO())
    fit = svi.run(KEY, STEPS, x, group, y=y, progress_bar=False)
    start = svi.get_params(svi.init(KEY, x, group, y=y))
    trace = handlers.trace(handlers.seed(model, 0)).get_trace(x, group)
    names = ["level_decentered", "noise", "share"]
    names += ["net.first.bias", "net.first.weight", "net.second.bias"]
    maps = {name: biject_to(trace[name]["fn"].support) for name in names}

    @jax.jit
    @jax.grad
    def slope(u):
        values = {n: maps[n](u[n]) for n in names}
        volume = [maps[n].log_abs_det_jacobian(u[n], values[n]) for n in names]
        density = log_density(model, (x, group), {"y": y}, values)[0]
        return density + sum(map(jnp.sum, volume))

    u = {n: maps[n].inv(start[f"{n}_auto_loc"]) for n in names}
    iterates = []
    for _ in range(STEPS):
        iterates.append(u)
        u = jax.tree.map(lambda value, g: value + RATE * g, u, slope(u))
    taken = iterates[START + EVERY :: EVERY]
    moments = fit.params["auto_moments"]
    assert int(moments["count"]) == len(taken)
    for name in names:
        stacked = np.stack([np.asarray(u[name], float) for u in taken])
        found = np.asarray(moments["squares"][name]) / len(taken)
        np.testing.assert_allclose(
            moments["mean"][name], stacked.mean(0), rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(found, stacked.var(0), rtol=2e-3, atol=1e-8)


def test_two_of_a_list_need_two_prefixes():
    def two():
        numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("b", dist.Normal(0.0, 1.0))

    def update(prefix):
        guide = AutoGuideList(two)
        for hidden, own in (("a", "auto"), ("b", prefix)):
            part = handlers.block(two, hide=[hidden])
            guide.append(AutoSWAG(part, rank=2, prefix=own))
        svi = SVI(two, guide, SGD(RATE), Trace_ELBO())
        jax.eval_shape(svi.update, svi.init(KEY))

    with pytest.raises(ValueError, match="needs a prefix of its own"):
        update("auto")
    update("other")
