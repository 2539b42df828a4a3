"""Draws of other members than the model has now: refused, never read past the end."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer.reparam import LocScaleReparam

import pyrox_ppl as px

GROUP = jnp.array([0, 1, 2, 1])
Y = jnp.array([0.1, 0.5, -0.3, 0.2])
DRAWS = {"mu": jnp.full(400, 7.0), "b": jnp.zeros((400, 3))}


def grouped(group, number, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("group", number):
        b = numpyro.sample("b", dist.Normal(mu, 0.1))
    with numpyro.plate("row", group.shape[0]):
        numpyro.sample("y", dist.Normal(b[group], 0.1), obs=y)


non_centred = handlers.reparam(grouped, config={"b": LocScaleReparam(0.0)})


@pytest.mark.parametrize("number", [1, 2, 5])
def test_groups_that_were_not_drawn_are_refused(number):
    new = jnp.array([number - 1]), number
    with pytest.raises(ValueError, match="draw of 'b' has shape"):
        px.predict(grouped, DRAWS, *new)
    with pytest.raises(ValueError, match="draw of 'b' has shape"):
        px.to_datatree(DRAWS, GROUP, 3, y=Y, model=grouped, predictions=new)
    with pytest.raises(ValueError, match="draw of 'b' has shape"):
        px.to_datatree(DRAWS, *new, y=Y[:1], model=grouped)


def test_the_group_of_a_non_centred_prior_is_refused_and_its_noise_drawn_anew():
    new = jnp.array([4]), 5
    with pytest.raises(ValueError, match="draw of 'b' has shape"):
        px.predict(non_centred, DRAWS, *new)
    with pytest.raises(ValueError, match="draw of 'b_decentered' has shape"):
        px.predict(non_centred, {"mu": DRAWS["mu"], "b_decentered": DRAWS["b"]}, *new)


@pytest.mark.parametrize("model", [grouped, non_centred])
def test_a_new_group_is_drawn_from_its_prior_when_its_site_is_left_out(model):
    out = px.predict(model, {"mu": DRAWS["mu"]}, jnp.array([4]), 5)["y"]
    np.testing.assert_allclose(out.mean, [7.0], atol=0.05)
    np.testing.assert_allclose(out.std, [np.hypot(0.1, 0.1)], rtol=0.15)


def test_an_axis_too_many_is_refused():
    draws = {"mu": jnp.zeros((5, 3)), "b": jnp.zeros((5, 3))}
    with pytest.raises(ValueError, match="draw of 'mu' has shape"):
        px.predict(grouped, draws, GROUP, 3)
    with pytest.raises(ValueError, match="draw of 'mu' has shape"):
        px.to_datatree(draws, GROUP, 3, y=Y, model=grouped)


def test_a_scan_may_go_on_past_its_draws():
    def walk(steps):
        def step(carry, _):
            z = numpyro.sample("z", dist.Normal(0.5 * carry, 0.001))
            return z, z

        numpyro.deterministic("path", scan(step, 0.0, None, length=steps)[1])

    z = jax.random.normal(jax.random.key(0), (6, 3))
    path = px.predict(walk, {"z": z}, 5)["path"].mean
    last = float(z[:, 2].mean())
    by_hand = [*np.asarray(z).mean(0), 0.5 * last, 0.25 * last]
    np.testing.assert_allclose(path, by_hand, atol=0.01)
