"""What bayesianize(prior_std=s) puts on conditioners and fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import sites
from numpyro.handlers import seed

import pyrox_ppl as px
from pyrox_ppl.nn import SIREN, ConcatConditioner, ConditionedINR, FiLM, HyperLinear

KEY = jax.random.key(0)
C, K, STD = 4, 3, 0.7
H, Z = jnp.ones((5, C)), jnp.ones((5, K))
CONDITIONERS = {
    "concat_conditioner": (ConcatConditioner.init(C, K, key=KEY), (C, C + K)),
    "affine_modulation": (FiLM.init(C, K, key=KEY), (2 * C, K)),
    "hyper_linear": (HyperLinear.init(C, 2, K, key=KEY), (2 * C + 2, K)),
}


@pytest.mark.parametrize("name", CONDITIONERS)
def test_a_conditioner_has_two_iid_normal_sites(name):
    conditioner, shape = CONDITIONERS[name]

    def model(h, z):
        with px.bayesianize(prior_std=STD):
            conditioner(h, z)

    found = sites(model, H, Z, types=("sample", "param", "deterministic", "parameter"))
    shapes = {n: site["value"].shape for n, site in found.items()}
    assert shapes == {
        f"{name}.generator.weight": shape,
        f"{name}.generator.bias": shape[:1],
    }
    for site in found.values():
        value = np.linspace(-2.0, 2.0, site["value"].size, dtype=np.float32)
        each = -0.5 * (value / STD) ** 2 - np.log(STD * np.sqrt(2 * np.pi))
        density = site["fn"].log_prob(value.reshape(site["value"].shape))
        assert float(density) == pytest.approx(float(each.sum()), rel=1e-5)


@pytest.mark.parametrize("conditioner", [FiLM, ConcatConditioner, HyperLinear])
@pytest.mark.parametrize("x64", [False, True])
def test_a_field_of_depth_four_has_six_sites_and_its_inner_network_none(
    conditioner, x64
):
    with jax.enable_x64(x64):
        inner = SIREN.init(2, C, 1, depth=4, key=KEY)
        field = ConditionedINR.init(
            inner, conditioner_cls=conditioner, cond_dim=K, key=KEY
        )

        def model(x, z):
            with px.bayesianize(prior_std=STD):
                field(x, z)

        found = sites(model, jnp.ones((5, 2)), Z)
    assert list(found) == [
        f"conditioned_inr.conditioners.{layer}.generator.{leaf}"
        for layer in range(3)
        for leaf in ("weight", "bias")
    ]
    for site in found.values():
        np.testing.assert_allclose(site["fn"].variance, STD**2, rtol=1e-6)
        np.testing.assert_array_equal(site["fn"].mean, 0.0)


def test_many_draws_have_the_priors_moments():
    conditioner, _ = CONDITIONERS["affine_modulation"]

    def model():
        with px.bayesianize(prior_std=STD):
            return px.bind(conditioner).generator.weight

    draw = jax.vmap(lambda key: jax.numpy.ravel(_seeded(model, key)))
    draws = np.asarray(draw(jax.random.split(KEY, 4000)))
    covariance = np.cov(draws.T)
    expected = STD**2 * np.eye(2 * C * K)
    np.testing.assert_allclose(covariance, expected, atol=6 * STD**2 / np.sqrt(4000))


def _seeded(model, key):
    return seed(model, key)()
