"""Simulation-based calibration of the kernels on a small network.

Weights from the prior make data, and a kernel draws from the posterior given these. The
rank of what made the data among the draws is then uniform (Talts et al. 2018,
Validating Bayesian Inference Algorithms with Simulation-Based Calibration). The ranked
functions are invariant under the symmetries of a network.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.infer import NUTS, Predictive

import pyrox_ppl as px
from pyrox_ppl.infer import MCLMC, CompiledMCMC, FlatNUTS

pytestmark = [pytest.mark.slow, pytest.mark.rank_promotion]
KEY = jax.random.key(6)
REPLICATIONS, DRAWS, BINS = 200, 99, 10
NET = eqx.nn.MLP(1, 1, 3, 1, activation=jnp.tanh, key=KEY)  # of 10 weights
X, TEST = jnp.linspace(-2.0, 2.0, 15)[:, None], jnp.array([[-3.0], [0.2], [1.5]])


def model(y=None, prior_std=1.0):
    with px.bayesianize(prior_std=prior_std):
        net = px.bind(NET, "net")
    squares = sum(jnp.sum(w**2) for w in jax.tree.leaves(eqx.filter(net, eqx.is_array)))
    ranked = jnp.concatenate([jax.vmap(net)(TEST)[:, 0], squares[None]])
    numpyro.deterministic("ranked", ranked)
    with numpyro.plate("row", len(X)):
        numpyro.sample("y", dist.Normal(jax.vmap(net)(X)[:, 0], 0.3), obs=y)


KERNELS = {
    "NUTS": (lambda m: NUTS(m, max_tree_depth=6), 400, 5),
    "low_rank": (
        lambda m: FlatNUTS(m, adaptation="low_rank", max_tree_depth=6),
        *(400, 5),
    ),
    "MCLMC": (lambda m: MCLMC(m, energy_variance=(0.01, 5e-4)), 4000, 100),
}


def p_values(name, **wrong):
    """Those of the hypothesis that the ranks are uniform, for each that is ranked."""
    make, warmup, thinning = KERNELS[name]
    truth = Predictive(model, num_samples=REPLICATIONS)(KEY)

    def posterior(key, y):
        mcmc = CompiledMCMC(
            make(lambda y: model(y, **wrong)),
            num_warmup=warmup,
            num_samples=DRAWS * thinning,
            thinning=thinning,
            progress_bar=False,
        )
        mcmc.run(key, y)
        return mcmc.get_samples()["ranked"]

    keys = jax.random.split(jax.random.key(7), REPLICATIONS)
    draws = np.asarray(jax.jit(jax.vmap(posterior))(keys, truth["y"]))
    assert draws.shape == (REPLICATIONS, DRAWS, 4)
    ranks = (draws < np.asarray(truth["ranked"])[:, None]).sum(1)
    counts = [np.bincount(r * BINS // (DRAWS + 1), minlength=BINS) for r in ranks.T]
    return np.array([scipy.stats.chisquare(count).pvalue for count in counts])


@pytest.mark.parametrize("name", KERNELS)
def test_ranks_are_uniform(name):
    found = p_values(name)
    print(name, found)
    assert found.min() > 1e-3


def test_ranks_under_another_prior_are_not():
    """The test can fail: a prior too wide by a third is seen."""
    assert p_values("MCLMC", prior_std=1.35).min() < 1e-3
