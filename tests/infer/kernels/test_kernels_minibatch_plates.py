"""Kernels on every kind of subsampled plate, and what they keep of the data."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC
from numpyro.infer.util import potential_energy

from pyrox_ppl.infer import MCLMC, SGLD, CompiledMCMC, run_mcmc

pytestmark = pytest.mark.rank_promotion
KEY = jax.random.key(5)
Y = jnp.asarray(np.random.default_rng(0).normal(1.0, 1.0, (6, 7)), jnp.float32)


def normal(y, mean, scale, name="y"):
    numpyro.sample(name, dist.Normal(mean, scale), obs=y)


def latents():
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    return mean, numpyro.sample("scale", dist.HalfNormal(1.0))


def nested(y, rows=4, columns=3):
    at = latents()
    with (
        numpyro.plate("row", 6, subsample_size=rows, dim=-2) as i,
        numpyro.plate("column", 7, subsample_size=columns, dim=-1) as j,
    ):
        normal(y[i][:, j], *at)
        with handlers.scale(scale=2.0):
            numpyro.factor("small", -(at[0] ** 2) * y[i][:, j] ** 2)


def apart(y, rows=4, columns=3):
    at = latents()
    with numpyro.plate("row", 6, subsample_size=rows) as i:
        normal(y[i, 0], *at)
    with (
        numpyro.plate("column", 7, subsample_size=columns) as j,
        handlers.mask(mask=y[1, j] > 0),
    ):
        normal(y[1, j], *at, name="other")


def inside_whole(y, rows=4, columns=7):
    at = latents()
    with numpyro.plate("column", 7), numpyro.plate("row", 6, subsample_size=rows):
        normal(numpyro.subsample(y, 0), *at)


def gradient_of_all(model, z):
    """NumPyro's own, of the model that draws all of its rows."""

    def energy(z):
        values = {"mean": z[0], "scale": z[1]}
        return potential_energy(lambda: model(Y, 6, 7), (), {}, values)

    return -jax.jit(jax.grad(energy))(z)


@pytest.mark.parametrize("model", [pytest.param(nested, marks=pytest.mark.slow), apart])
def test_the_gradient_on_all_rows_is_that_of_the_whole_model(model):
    kernel = SGLD(model, 1e-9, control_variates=True)
    state = kernel.init(KEY, 0, None, (Y,), {})
    expected = gradient_of_all(model, state.z)
    np.testing.assert_allclose(state.centre_grad, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("model", [nested, apart, inside_whole])
def test_gradients_of_minibatches_are_those_of_all_rows_on_average(model):
    z = jnp.array([0.3, -0.2])
    kernel = SGLD(model, 1e-6)
    kernel.init(KEY, 0, {"mean": z[0], "scale": z[1]}, (Y,), {})
    estimate = kernel._estimator((Y,), {})
    keys = jax.random.split(KEY, 3000)
    found = np.asarray(jax.jit(jax.vmap(lambda key: estimate(z, key)[1]))(keys))
    error = 4.5 * found.std(0) / np.sqrt(len(keys))
    assert np.all(error > 0.01)
    expected = gradient_of_all(model, z)
    np.testing.assert_array_less(np.abs(found.mean(0) - expected), error)


def test_a_plate_that_draws_all_of_its_rows_is_langevins_algorithm():
    """A batch of min(size, rows) rows works on small data, with no noise of its own."""
    kernel = SGLD(lambda y: apart(y, 6, 7), 1e-6, control_variates=True)
    state = kernel.init(KEY, 0, None, (Y,), {})
    expected = gradient_of_all(apart, state.z)
    found = kernel._estimator((Y,), {})(state.z, KEY)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(state.centre_grad, expected, rtol=1e-4)


def run(kernel, y, cls=CompiledMCMC, **kwargs):
    settings = {"num_warmup": 0, "num_samples": 4, "progress_bar": False} | kwargs
    start = settings.pop("start", None)
    mcmc = cls(kernel, **settings)
    mcmc.run(KEY, y, init_params=start)
    return mcmc


@pytest.mark.parametrize(
    "cls", [pytest.param(MCMC, marks=pytest.mark.slow), CompiledMCMC]
)
def test_deterministic_sites_of_a_minibatch_are_left_out_wherever_they_stand(cls):
    def model(y):
        mean, scale = latents()
        with numpyro.plate("row", 6, subsample_size=2) as rows:
            numpyro.deterministic("inside", y[rows, 0] - mean)
        batch = y[rows, 0]
        numpyro.deterministic("residual", batch - mean)
        numpyro.deterministic("twice", 2.0 * mean)
        with numpyro.plate("row_again", 6, subsample_size=2):
            numpyro.sample("y", dist.Normal(mean, scale), obs=batch)

    assert set(run(SGLD(model, 1e-4), Y, cls).get_samples()) == {
        *("mean", "scale", "twice")
    }


def outside(y):
    """The plate ends before the likelihood, which nothing scales."""
    mean, scale = latents()
    with numpyro.plate("row", 6, subsample_size=2) as rows:
        batch = y[rows, 0]
    numpyro.sample("y", dist.Normal(mean, scale), obs=batch)


def of_one_batch(y):
    """As for a loader, which gives a minibatch: these rows are never others."""
    mean, scale = latents()
    with numpyro.plate("row", 600, subsample_size=6):
        numpyro.sample("y", dist.Normal(mean, scale), obs=y[:, 0])


def discrete(y):
    mean, scale = latents()
    sign = numpyro.sample("sign", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
    with numpyro.plate("row", 6, subsample_size=2) as rows:
        numpyro.sample("y", dist.Normal(mean * (2 * sign - 1), scale), obs=y[rows, 0])


@pytest.mark.parametrize(
    ("model", "error"),
    [
        (outside, r"\['y'\] depend on the rows .* stand outside"),
        (of_one_batch, "the same data in each step"),
    ],
)
def test_a_likelihood_that_is_not_that_of_a_minibatch_is_an_error(model, error):
    """Each would run, and draw from another posterior."""
    with pytest.raises(ValueError, match=error):
        SGLD(model, 1e-6).init(KEY, 0, None, (Y,), {})


def test_a_discrete_site_is_an_error():
    """The sum over its values, of a minibatch that counts for more, has a bias."""
    pytest.importorskip("funsor")
    with pytest.raises(ValueError, match=r"sites \['sign'\] are discrete"):
        SGLD(discrete, 1e-6).init(KEY, 0, None, (Y,), {})


def test_a_likelihood_outside_of_the_plate_may_be_scaled_by_hand():
    def scaled(y):
        with handlers.scale(scale=3.0):
            outside(y)

    def by_jit(y):
        """A site that comes from the same compiled function as the minibatch."""
        mean, scale = latents()
        with numpyro.plate("row", 6, subsample_size=2) as rows:
            double, batch = jax.jit(lambda m, y: (2.0 * m, y))(mean, y[rows, 0])
            numpyro.sample("y", dist.Normal(mean, scale), obs=batch)
        numpyro.factor("small", -(double**2))
        numpyro.deterministic("double", double)

    SGLD(scaled, 1e-6).init(KEY, 0, None, (Y,), {})
    kernel = SGLD(by_jit, 1e-6)
    z = kernel.init(KEY, 0, None, (Y,), {}).z
    assert "double" in kernel.postprocess_fn((Y,), {})(z)


def quartic(y):
    """Far from zero its gradient is too steep for the step."""
    mean = numpyro.sample("mean", dist.Normal(10.0, 1.0))
    numpyro.factor("steep", -(mean**4))
    with numpyro.plate("row", 6, subsample_size=2) as rows:
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows, 0])


@pytest.mark.parametrize(
    "cls", [MCMC, pytest.param(CompiledMCMC, marks=pytest.mark.slow)]
)
def test_a_run_goes_on_from_a_state_whatever_the_default_start_is(cls, tmp_path):
    kernel = SGLD(quartic, 1e-2)
    with pytest.raises(ValueError, match="diverges within"):
        run(kernel, Y, cls)
    mcmc = run(kernel, Y, cls, start={"mean": 0.0})
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.last_state.rng_key, Y)
    assert np.abs(mcmc.get_samples()["mean"]).max() < 3.0
    if cls is CompiledMCMC:
        again = run_mcmc(mcmc, KEY, Y, path=tmp_path / "run")
        assert np.abs(again.get_samples()["mean"]).max() < 3.0


def of_rows(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("row", len(y), subsample_size=3) as rows:
        numpyro.sample("y", dist.Normal(mean.sum(), 1.0), obs=y[rows])


def of_all(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mean.sum(), 1.0), obs=y)


KERNELS = {
    "SGLD": lambda: SGLD(of_rows, 1e-3, control_variates=True),
    "MCLMC": lambda: MCLMC(of_all, step_size=0.1, L=1.0),
}


@pytest.mark.parametrize(
    ("name", "on_disk"),
    [
        *(("SGLD", False), ("MCLMC", False)),
        pytest.param("SGLD", True, marks=pytest.mark.slow),
        pytest.param("MCLMC", True, marks=pytest.mark.slow),
    ],
)
def test_a_state_of_other_data_forgets_them(name, on_disk, tmp_path):
    """Else the gradient at the centre is that of the old data in every later step."""
    old, new = Y[:, 0], 500.0 + Y[:, 0]
    mcmc = run(KERNELS[name](), old, num_chains=2, chain_method="vectorized")
    mcmc.post_warmup_state = before = mcmc.last_state
    if on_disk:
        run_mcmc(mcmc, KEY, new, path=tmp_path / "run")
    else:
        mcmc.run(KEY, new)
    # MCLMC would refuse every step, as far from the energy of the old data.
    assert not np.any(mcmc.get_extra_fields()["diverging"])
    if name == "SGLD":
        centre = before.centre[0]
        expected = jnp.sum(new - centre.sum()) - centre  # of each coordinate
        found = mcmc.last_state.centre_grad[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        mcmc.run(KEY, old)
        kept = mcmc.last_state.centre_grad
        np.testing.assert_array_equal(kept, before.centre_grad)  # to the last bit
