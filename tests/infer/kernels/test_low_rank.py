"""FlatNUTS with a mass matrix of low rank: the same posterior, in fewer steps."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import HMCECS, MCMC

from pyrox_ppl.infer import CompiledMCMC, FlatNUTS

pytestmark = pytest.mark.rank_promotion
KEY = jax.random.key(1)
SIZE = 12


def covariance():
    """Scales that differ, and two directions that are long, one that is short."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    lengths = np.ones(SIZE)
    lengths[:3] = [300.0, 100.0, 0.01]
    scales = np.exp(rng.normal(size=SIZE))
    return scales[:, None] * (turn * lengths) @ turn.T * scales


COV = covariance()
ROOT = jnp.asarray(np.linalg.cholesky(COV), jnp.float32)


def stretched():
    numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(SIZE), scale_tril=ROOT))
    numpyro.sample("scale", dist.HalfNormal(1.0))


def mild():
    """Stretched so little that rounding does not decide where a trajectory turns."""
    covariance = 0.5 * (jnp.eye(4) + 1.0)
    numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(4), covariance))


def run(adaptation, cls=CompiledMCMC, method="vectorized", model=stretched, **settings):
    given = {"num_warmup": 300, "num_samples": 500} | settings
    mcmc = cls(
        FlatNUTS(model, adaptation=adaptation),
        num_chains=2,
        chain_method=method,
        progress_bar=False,
        **given,
    )
    mcmc.run(KEY, extra_fields=("num_steps", "potential_energy", "energy"))
    return mcmc


@pytest.fixture(scope="module")
def low_rank():
    with jax.numpy_rank_promotion("allow"):
        return run("low_rank")


def test_moments_are_those_of_the_closed_form(low_rank):
    draws = low_rank.get_samples(group_by_chain=True)
    for name, mean, variance in (
        ("x", np.zeros(SIZE), np.diag(COV)),
        ("scale", np.sqrt(2 / np.pi), 1 - 2 / np.pi),
    ):
        values = np.asarray(draws[name], np.float64)
        ess = effective_sample_size(values)
        assert np.all(ess > 200)
        error = 4.5 * np.sqrt(variance / ess)
        assert np.all(np.abs(values.mean((0, 1)) - mean) < error)
        np.testing.assert_allclose(values.var((0, 1)), variance, rtol=0.35)
    assert not np.any(low_rank.get_extra_fields()["diverging"])


def test_the_energy_is_that_of_the_draws(low_rank):
    """The state is that of the model, though the sampler runs in another space."""
    x, scale = (np.float64(low_rank.get_samples()[n]) for n in ("x", "scale"))
    precision = np.linalg.inv(COV)
    energy = 0.5 * np.einsum("ni,ij,nj->n", x, precision, x)
    energy += 0.5 * np.linalg.slogdet(2 * np.pi * COV)[1]
    energy += 0.5 * scale**2 - np.log(scale) - 0.5 * np.log(2 / np.pi)
    fields = low_rank.get_extra_fields()
    np.testing.assert_allclose(fields["potential_energy"], energy, rtol=1e-3, atol=0.1)
    assert np.all(fields["energy"] > fields["potential_energy"])
    gradient = precision @ np.float64(low_rank.last_state.z[0, 1:])
    found = low_rank.last_state.z_grad[0, 1:]
    np.testing.assert_allclose(found, gradient, atol=0.02 * np.abs(gradient).max())


def test_the_matrix_is_found_and_saves_steps(low_rank):
    matrix = low_rank.last_state.adapt_state.mm_state.inverse_mass_matrix
    sigma, directions, lengths = (np.asarray(part[0], np.float64) for part in matrix)
    inverse = np.eye(SIZE + 1) + directions * (lengths - 1) @ directions.T
    inverse = (sigma[:, None] * inverse * sigma)[1:, 1:]
    ratio = np.linalg.eigvals(np.linalg.solve(COV, inverse)).real
    assert ratio.max() / ratio.min() < 30  # 30,000 and more before
    before = COV / np.outer(*[np.sqrt(np.diag(COV))] * 2)
    assert np.linalg.cond(before) > 1000
    steps = np.asarray(low_rank.get_extra_fields()["num_steps"])
    assert steps.mean() < 30


@pytest.mark.slow
def test_numpyros_warm_up_needs_many_times_the_steps(low_rank):
    numpyros = run("numpyro")
    steps = [
        np.asarray(m.get_extra_fields()["num_steps"]).mean()
        for m in (numpyros, low_rank)
    ]
    assert steps[0] > 5 * steps[1]


@pytest.mark.parametrize(
    "method", ["sequential", pytest.param("vectorized", marks=pytest.mark.slow)]
)
def test_numpyros_mcmc_takes_the_same_steps(method):
    """Over the end of a window, after which the matrix is another one."""
    settings = {"num_warmup": 30, "num_samples": 3, "method": method, "model": mild}
    ours, numpyros = (run("low_rank", cls, **settings) for cls in (CompiledMCMC, MCMC))
    np.testing.assert_array_equal(
        ours.get_extra_fields()["num_steps"], numpyros.get_extra_fields()["num_steps"]
    )
    for name, draws in numpyros.get_samples().items():
        np.testing.assert_allclose(
            ours.get_samples()[name], draws, rtol=0.02, atol=0.02
        )


@pytest.mark.wrong_types
def test_bad_settings_say_what_was_expected():
    with pytest.raises(ValueError, match="'numpyro' or 'low_rank', got 'full'"):
        FlatNUTS(stretched, adaptation="full")
    for given in ({"dense_mass": True}, {"adapt_mass_matrix": False}):
        with pytest.raises(TypeError, match=rf"leave out \['{next(iter(given))}'\]"):
            FlatNUTS(stretched, adaptation="low_rank", **given)
    with pytest.raises(TypeError, match="inverse_mass_matrix"):
        FlatNUTS(
            stretched, adaptation="low_rank", inverse_mass_matrix=jnp.ones(SIZE + 1)
        )

    def rows(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 6, subsample_size=2):
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=numpyro.subsample(y, 0))

    with pytest.raises(TypeError, match="cannot run inside another kernel"):
        MCMC(
            HMCECS(FlatNUTS(rows, adaptation="low_rank"), num_blocks=2),
            num_warmup=2,
            num_samples=2,
            progress_bar=False,
        ).run(KEY, jnp.ones(6))
