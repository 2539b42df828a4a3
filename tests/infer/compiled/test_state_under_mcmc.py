"""State under MCMC: compiled classes and trees hold what NumPyro samples with."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS
from numpyro.primitives import mutable

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledMCMC, FlatNUTS

KEY, X = jax.random.key(0), jnp.arange(5.0)
STATE = 0.1 * float(X.mean())  # of NumPyro's one run before it samples


def centred(x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    state = mutable("state", {"mean": jnp.zeros(())})
    f = numpyro.deterministic("f", w * (x - state["mean"]))
    state["mean"] = 0.9 * state["mean"] + 0.1 * x.mean()
    numpyro.sample("y", dist.Normal(f, 0.1).to_event(1), obs=y)


def latent_state(x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    state = mutable("state", {"last": jnp.zeros(())})
    numpyro.sample("y", dist.Normal(w * x + state["last"], 1.0).to_event(1), obs=y)
    state["last"] = w


def run(cls, kernel, model):
    settings = {"num_warmup": 30, "num_samples": 10, "progress_bar": False}
    mcmc = cls(kernel(model), **settings)
    mcmc.run(KEY, X, y=X)
    return mcmc


@pytest.mark.rank_promotion
@pytest.mark.parametrize(
    ("cls", "kernel"), [(MCMC, NUTS), (CompiledMCMC, NUTS), (CompiledMCMC, FlatNUTS)]
)
def test_the_state_is_that_of_one_run_of_the_model(cls, kernel):
    mcmc = run(cls, kernel, centred)
    draws = {name: np.asarray(v) for name, v in mcmc.get_samples().items()}
    expected = draws["w"][:, None] * (np.asarray(X) - STATE)
    np.testing.assert_allclose(draws["f"], expected, rtol=1e-5, atol=1e-5)
    tree = px.to_datatree(mcmc, X, y=X, predictions=(2 * X,))
    np.testing.assert_allclose(tree.posterior["f"][0], expected, rtol=1e-5, atol=1e-5)
    there = draws["w"][:, None] * (2 * np.asarray(X) - STATE)
    np.testing.assert_allclose(tree.predictions["f"][0], there, rtol=1e-5, atol=1e-5)


@pytest.mark.rank_promotion
def test_a_state_that_depends_on_latents_is_asked_for():
    with pytest.raises(ValueError, match=r"depend on the latent.*params="):
        px.to_datatree(run(MCMC, NUTS, latent_state), X, y=X)
