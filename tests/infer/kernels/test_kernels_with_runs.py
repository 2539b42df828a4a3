"""The kernels in each way to run: compiled, continued bit for bit, over devices."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from compilations import compilations
from numpyro.infer import MCMC

from pyrox_ppl.infer import MCLMC, SGLD, CompiledMCMC, FlatNUTS, run_mcmc
from pyrox_ppl.infer.resumable import _store

pytestmark = pytest.mark.rank_promotion
KEY = jax.random.key(3)
Y, OTHER = jnp.array([0.3, 0.9, 1.4, -0.2]), jnp.array([1.0, 2.0, 0.5, 0.0])


def model(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("row", 4, subsample_size=2) as rows:
        numpyro.sample("y", dist.Normal(mean.sum(), spread), obs=y[rows])


def whole(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("row", 4):
        numpyro.sample("y", dist.Normal(mean.sum(), spread), obs=y)


KERNELS = {
    "MCLMC": lambda: MCLMC(whole),
    "SGLD": lambda: SGLD(model, 1e-3, control_variates=True),
    "low_rank": lambda: FlatNUTS(whole, adaptation="low_rank"),
}


def make(name, cls=CompiledMCMC, **kwargs):
    settings = {"num_warmup": 40, "num_samples": 6, "progress_bar": False} | kwargs
    return cls(KERNELS[name](), **settings)


def assert_close(ours, expected):
    for name, draws in expected.items():
        np.testing.assert_allclose(ours[name], draws, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "name", ["MCLMC", pytest.param("SGLD", marks=pytest.mark.slow)]
)
def test_ten_chains_compile_once_and_a_second_run_compiles_nothing(name):
    mcmc = make(name, num_chains=10, chain_method="vectorized")
    jax.block_until_ready((KEY, Y, OTHER, jax.random.split(KEY, 10)))
    with compilations() as names:
        mcmc.run(KEY, Y)
    assert len(names) <= 6, names
    first = mcmc.get_samples()
    with compilations() as names:
        mcmc.run(KEY, OTHER)
        mcmc.get_samples()
    assert len(names) <= 1, names
    assert np.abs(mcmc.get_samples()["mean"] - first["mean"]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("MCLMC", "sequential"),
        pytest.param("MCLMC", "vectorized", marks=pytest.mark.slow),
        pytest.param("SGLD", "vectorized", marks=pytest.mark.slow),
    ],
)
def test_chains_are_those_of_numpyros_mcmc(name, method):
    # Chains that start the same grow apart by rounding, so they are short.
    kwargs = {"num_chains": 2, "chain_method": method, "thinning": 2, "num_warmup": 15}
    ours, numpyros = (make(name, cls, **kwargs) for cls in (CompiledMCMC, MCMC))
    for mcmc in (ours, numpyros):
        mcmc.run(KEY, Y)
    assert_close(ours.get_samples(), numpyros.get_samples())
    assert ours.get_samples(group_by_chain=True)["mean"].shape == (2, 3, 2)


class Died(BaseException):
    """What stands for the end of a process."""


@pytest.mark.parametrize(
    "name",
    [
        "MCLMC",
        pytest.param("low_rank", marks=pytest.mark.slow),
        pytest.param("SGLD", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_continues_bit_for_bit(name, tmp_path, monkeypatch):
    def run(path):
        mcmc = make(name, num_chains=2, chain_method="vectorized")
        return run_mcmc(mcmc, KEY, Y, path=path, segment=2)

    reference, committed = run(tmp_path / "whole"), []

    def reached(point):
        committed.append(point == "committed")
        if sum(committed) == 4:
            raise Died

    with monkeypatch.context() as patch:
        patch.setattr(_store, "reached", reached)
        with pytest.raises(Died):
            run(tmp_path / "killed")
    continued = run(tmp_path / "killed")
    pairs = zip(
        jax.tree.leaves((continued._states, continued.last_state)),
        jax.tree.leaves((reference._states, reference.last_state)),
        strict=True,
    )
    for one, other in pairs:
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(one, other)


def test_a_run_on_disk_refuses_starts_that_are_not_one_for_each_chain(tmp_path):
    start = {"mean": jnp.zeros((3, 2)), "spread": jnp.zeros(3)}
    mcmc = make("MCLMC", num_chains=2, chain_method="sequential")
    with pytest.raises(ValueError, match="leading axis of the 2 chains"):
        run_mcmc(mcmc, KEY, Y, path=tmp_path / "run", init_params=start)


@pytest.mark.slow
def test_chains_are_spread_over_devices():
    code = """
import sys, jax, numpyro
numpyro.set_host_device_count(2)
sys.path += ["../..", "."]
from test_kernels_with_runs import KEY, MCMC, Y, assert_close, make
for name in ("MCLMC", "SGLD"):
    ours, one = make(name, num_chains=2), make(name, num_chains=2)
    one.chain_method = "sequential"
    for mcmc in (ours, one):
        mcmc.run(KEY, Y)
    assert ours.chain_method == "parallel"
    assert len(ours.last_state.z.devices()) == 2
    assert_close(ours.get_samples(), one.get_samples())
    later = [make(name, num_chains=2), one]
    for mcmc, state in zip(later, (ours.last_state, one.last_state), strict=True):
        mcmc.post_warmup_state = state
        mcmc.run(state.rng_key, Y)
    assert_close(*(mcmc.get_samples() for mcmc in later))
    one.post_warmup_state = None
    start = {"mean": jax.numpy.zeros((2, 2)), "spread": jax.numpy.zeros(2)}
    later = [make(name, num_chains=2), one]
    for mcmc in later:
        mcmc.run(KEY, Y, init_params=jax.device_put(start, jax.devices()[1]))
    assert_close(*(mcmc.get_samples() for mcmc in later))
    numpyros = make(name, MCMC, num_chains=2, chain_method="parallel")
    numpyros.run(KEY, Y)
    assert_close(ours.get_samples(), numpyros.get_samples())
print("spread")
"""
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=__file__.rpartition("/")[0],
    )
    assert out.stdout.strip() == "spread", out.stderr


def test_the_bar_says_how_the_steps_are(monkeypatch):
    state = make("MCLMC", MCMC).sampler.init(KEY, 4, None, (Y,), {})
    kernel = KERNELS["MCLMC"]()
    assert "energy variance=" in kernel.get_diagnostics_str(state)
    text = KERNELS["SGLD"]().get_diagnostics_str(
        KERNELS["SGLD"]().init(KEY, 4, None, (Y,), {})
    )
    assert text == "steps of size 1.00e-03. 0 diverging"


def test_sites_of_a_vector_cannot_be_asked_for():
    with pytest.raises(ValueError, match="one vector"):
        make("MCLMC").run(KEY, Y, extra_fields=("z.mean",))


def test_without_blackjax_the_package_runs_and_its_kernels_say_what_to_install():
    code = """
import sys
import pyrox_ppl.infer as infer
print("blackjax" in sys.modules)
sys.modules["blackjax"] = None
for make in (infer.MCLMC, lambda m: infer.SGLD(m, 0.1), lambda m: infer.SGHMC(m, 0.1),
             lambda m: infer.FlatNUTS(m, adaptation="low_rank")):
    try:
        make(print)
    except ImportError as error:
        print('pip install "pyrox-ppl[samplers]"' in str(error))
infer.FlatNUTS(print)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.split() == ["False", *["True"] * 4], out.stderr
