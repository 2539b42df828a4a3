"""run_mcmc with other kernels, chain methods, states and MCMC classes."""

import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import AIES, MCMC, NUTS
from numpyro.infer.mcmc import MCMCKernel

from pyrox_ppl.infer import CompiledMCMC, FlatNUTS, run_mcmc
from pyrox_ppl.infer.resumable import _store

KEY = jax.random.key(3)
Y = np.array([0.3, 0.9, 1.4], np.float32)


class Died(BaseException):
    """What stands for the end of a process."""


def potential(z):
    return 0.5 * jnp.sum(z**2)


def model(y, wide=False):
    mean = numpyro.sample("mean", dist.Normal(0.0, 10.0 if wide else 1.0))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    numpyro.deterministic("ratio", mean / spread)
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mean, spread), obs=y)


def make(kernel, cls=MCMC, **kwargs):
    settings = {"num_warmup": 4, "num_samples": 6, "progress_bar": False} | kwargs
    return cls(kernel, **settings)


def interrupted(monkeypatch, path, make, *args, **kwargs):
    """A run that dies after its third commit, and one that goes on."""
    committed = []

    def reached(point):
        committed.append(point == "committed")
        if sum(committed) == 4:  # the first is of the beginning
            raise Died

    options = {"segment": 2} | kwargs
    with monkeypatch.context() as patch:
        patch.setattr(_store, "reached", reached)
        with pytest.raises(Died):
            run_mcmc(make(), KEY, *args, path=path, **options)
    return run_mcmc(make(), KEY, *args, path=path, **options)


def bits(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    leaf = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    return leaf.reshape(-1).view(np.uint8)


def assert_same(mcmc, reference):
    for one, other in (
        (mcmc._states, reference._states),
        (mcmc.last_state, reference.last_state),
    ):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        for leaf, expected in zip(
            jax.tree.leaves(one), jax.tree.leaves(other), strict=True
        ):
            assert (leaf.dtype, leaf.shape) == (expected.dtype, expected.shape)
            np.testing.assert_array_equal(bits(leaf), bits(expected))


class WalkState(NamedTuple):
    """A kernel's state of dtypes that NumPy does not know."""

    x: Any
    rng_key: Any
    other_key: Any
    count: Any
    seen: Any


class Walk(MCMCKernel):
    """A random walk in bfloat16, with keys of two kinds."""

    sample_field = "x"

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        other = jax.random.key(1, impl="rbg")
        low = {"a": jnp.zeros(3, jnp.bfloat16), "b": jnp.bfloat16(1.0)}
        return WalkState(low, rng_key, other, jnp.int8(0), jnp.bool_(False))

    def sample(self, state, model_args, model_kwargs):
        key, sub = jax.random.split(state.rng_key)
        other, seed = jax.random.split(state.other_key)
        low = {
            "a": state.x["a"] + jax.random.normal(sub, (3,), jnp.bfloat16),
            "b": state.x["b"] * jax.random.normal(seed, (), jnp.bfloat16),
        }
        return WalkState(low, key, other, state.count + jnp.int8(1), ~state.seen)


def test_bfloat16_and_typed_keys_survive_the_disk(tmp_path, monkeypatch):
    """NumPyro's own run is the reference; it does not collect keys."""
    reference = make(Walk())
    reference.run(KEY, extra_fields=("count", "seen"))
    extra = ("count", "seen", "other_key")
    mcmc = interrupted(
        monkeypatch, tmp_path / "r", lambda: make(Walk()), extra_fields=extra
    )
    assert mcmc.last_state.other_key.dtype == jax.random.key(0, impl="rbg").dtype
    assert mcmc.get_samples()["a"].dtype == jnp.bfloat16
    keys = mcmc._states.pop("other_key")
    assert keys.shape == (1, 6)
    assert keys[0, -1] == mcmc.last_state.other_key
    assert_same(mcmc, reference)


def test_an_ensemble_of_chains(tmp_path, monkeypatch):
    def ensemble():
        kernel = AIES(model, moves={AIES.DEMove(): 0.5, AIES.StretchMove(): 0.5})
        return make(kernel, num_chains=4, chain_method="vectorized")

    reference = ensemble()
    reference.run(KEY, Y)
    mcmc = interrupted(monkeypatch, tmp_path / "r", ensemble, Y)
    assert mcmc.get_samples(group_by_chain=True)["ratio"].shape == (4, 6)
    assert_same(mcmc, reference)


def test_a_state_after_warm_up_is_where_it_starts(tmp_path, monkeypatch):
    chains = {"num_chains": 2, "chain_method": "sequential"}
    warm, zero = make(NUTS(potential_fn=potential), **chains), jnp.zeros((2, 3))
    warm.warmup(KEY, init_params=zero)
    state = warm.last_state

    def start(state=state):
        mcmc = make(NUTS(potential_fn=potential), **chains)
        mcmc.post_warmup_state = state
        return mcmc

    options = {"segment": 1, "init_params": zero}
    reference = start()
    reference.run(KEY, init_params=zero)
    mcmc = interrupted(monkeypatch, tmp_path / "r", start, **options)
    assert_same(mcmc, reference)
    np.testing.assert_array_equal(
        mcmc.last_state.adapt_state.step_size, state.adapt_state.step_size
    )
    for another in (None, state._replace(z=state.z + 1e-3)):
        with pytest.raises(ValueError, match="initial states"):
            run_mcmc(start(another), KEY, path=tmp_path / "r", **options)


@pytest.mark.parametrize(
    "kernel", [pytest.param(NUTS, marks=pytest.mark.slow), FlatNUTS]
)
def test_compiled_mcmc_is_resumed_bit_for_bit(tmp_path, monkeypatch, kernel):
    made = kernel(model)

    def compiled():
        return make(made, CompiledMCMC)

    reference = run_mcmc(compiled(), KEY, Y, True, path=tmp_path / "whole", segment=2)
    mcmc = interrupted(monkeypatch, tmp_path / "r", compiled, Y, True)
    assert isinstance(mcmc, CompiledMCMC)
    assert set(mcmc.get_samples()) == {"mean", "spread", "ratio"}
    assert_same(mcmc, reference)
    for another in (make(made), make(made, jit_model_args=True)):
        with pytest.raises(ValueError, match="class was CompiledMCMC and is MCMC"):
            run_mcmc(another, KEY, Y, True, path=tmp_path / "r", segment=2)


PARALLEL = """
import jax, numpy as np, numpyro, pytest
numpyro.set_host_device_count(2)
from pathlib import Path
from numpyro.infer import MCMC, NUTS
from pyrox_ppl.infer import CompiledMCMC, run_mcmc, shard_data
from pyrox_ppl.infer.resumable._segments import Segments
from infer.resumable.test_resumable_kernels import (
    KEY, Y, assert_same, interrupted, make, model)
kernel, folder = NUTS(model), Path({folder!r})
placed, run = set(), Segments.run
def recorded(*args):
    state, *others = run(*args)
    shards = state.potential_energy.addressable_shards
    placed.add(tuple(shard.data.shape for shard in shards))
    return state, *others
Segments.run = recorded
settings = dict(num_chains=4, chain_method="parallel")
def chains():
    return make(kernel, CompiledMCMC, **settings)
mcmc = interrupted(pytest.MonkeyPatch(), folder / "r", chains, Y)
assert placed == {{((2,), (2,))}}
assert_same(mcmc, run_mcmc(chains(), folder / "whole", KEY, Y, segment=2))
settings["num_chains"] = 2
numpyros, ours = (make(kernel, **settings) for _ in range(2))
numpyros.run(KEY, Y)
run_mcmc(ours, folder / "two", KEY, Y)
for name, draws in numpyros.get_samples(group_by_chain=True).items():
    np.testing.assert_allclose(ours.get_samples(True)[name], draws, rtol=1e-4)
mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
y = shard_data(mesh, np.tile(Y, 2))
with pytest.raises(ValueError, match="spread over them already"):
    run_mcmc(chains(), KEY, y, path=folder / "sharded")
print(mcmc.get_samples(group_by_chain=True)["ratio"].shape)
"""


@pytest.mark.slow
def test_parallel_chains_two_on_a_device(tmp_path):
    out = subprocess.run(
        [sys.executable, "-c", PARALLEL.format(folder=str(tmp_path))],
        capture_output=True,
        text=True,
        check=False,
        cwd=__file__.rpartition("/infer/")[0],
    )
    assert out.stdout.strip() == "(4, 6)", out.stderr


def test_another_environment_does_not_excuse_another_model(tmp_path, monkeypatch):
    def run(potential, **kwargs):
        kernel, options = NUTS(potential_fn=potential, **kwargs), {"segment": 2}
        options |= {"allow_other_environment": True, "init_params": jnp.ones(2)}
        return run_mcmc(make(kernel), KEY, path=tmp_path / "run", **options)

    mcmc = run(potential)
    with pytest.raises(ValueError, match="computations of the model"):
        run(lambda z: 2.0 * potential(z))
    with pytest.raises(ValueError, match="initial states"):
        run(potential, step_size=0.5)
    monkeypatch.setattr(numpyro, "__version__", "0.0.1")
    assert_same(run(potential), mcmc)
    with pytest.warns(UserWarning, match="a change of them cannot be detected"):
        run(lambda z: 2.0 * potential(z))


def test_a_state_of_other_dtypes_is_reported(tmp_path):
    def run():
        kernel, options = NUTS(potential_fn=potential), {"segment": 2}
        options |= {"allow_other_environment": True, "init_params": np.ones(2)}
        return run_mcmc(make(kernel), KEY, path=tmp_path / "run", **options)

    with jax.enable_x64(True):
        run()
    with (
        pytest.warns(UserWarning, match="another environment"),
        pytest.raises(ValueError, match="the state on disk has other arrays"),
    ):
        run()
