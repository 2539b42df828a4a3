"""A resumed run whose model computes something else under the same names is refused."""

import functools
import os
import subprocess
import sys
import types
from datetime import date
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

from pyrox_ppl.infer import MinibatchLoader, run_mcmc, run_minibatches, run_svi
from pyrox_ppl.infer.resumable._fingerprint import describe_program

KEY = jax.random.key(3)
Y = np.array([0.3, 0.9, 1.4], np.float32)
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)


def model_of(callback):
    """A model that asks Python for a number, on which the potential does not depend."""

    def model(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mean, 1.0).expand([3]).to_event(1), obs=y)
        shift = jax.pure_callback(callback, SCALAR, jnp.float32(0.0))
        numpyro.deterministic("shift", shift)

    return model


def one():
    def callback(x):
        return np.float32(x + 1.0)

    return callback


def other_constant():
    def callback(x):
        return np.float32(x + 2.0)

    callback.__qualname__ = one().__qualname__
    return callback


def closing_over(value):
    def callback(x):
        return np.float32(x + np.sum(value))

    return callback


def reading(settings):
    def callback(x):
        return np.float32(x + settings["by"])

    return callback


def defaulting(value):
    def callback(x, shift=value):
        return np.float32(x + shift)

    return callback


def nesting(value):
    inner = closing_over(value)

    def callback(x):
        return inner(x)

    return callback


def drawing(value):
    def callback(x):
        return np.float32(x + value * np.random.normal())  # noqa: NPY002 - hidden

    return callback


class Shift:
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return np.float32(x + self.by)

    def method(self, x):
        return np.float32(x + self.by)


def reading_a_global(value):
    place = {"np": np, "SHIFT": value}
    exec("def callback(x):\n    return np.float32(x + SHIFT)", place)
    return place["callback"]


def looking_up(value):
    settings = types.ModuleType("settings_of_a_callback")
    settings.shift = value
    place = {"np": np, "settings": settings}
    code = "def callback(x):\n    return np.float32(x + getattr(settings, 'shift'))"
    exec(code, place)
    return place["callback"]


CHANGES = {
    "a constant": (one(), other_constant()),
    "a number of the closure": (closing_over(1.0), closing_over(2.0)),
    "an array of the closure": (closing_over(np.ones(2)), closing_over(np.arange(2.0))),
    "a dictionary": (reading({"by": 1.0}), reading({"by": 2.0})),
    "a default": (defaulting(1.0), defaulting(2.0)),
    "a function within": (nesting(1.0), nesting(2.0)),
    "a partial": (
        functools.partial(defaulting(0.0), shift=1.0),
        functools.partial(defaulting(0.0), shift=2.0),
    ),
    "an object": (Shift(1.0), Shift(2.0)),
    "a method": (Shift(1.0).method, Shift(2.0).method),
    "a global": (reading_a_global(1.0), reading_a_global(2.0)),
    "an attribute of a module": (looking_up(1.0), looking_up(2.0)),
    "a factor of hidden noise": (drawing(1.0), drawing(2.0)),
    "a distribution": (
        closing_over(dist.Normal(0, 1)),
        closing_over(dist.Normal(0, 2)),
    ),
    "state in C": tuple(closing_over(np.random.default_rng(i)) for i in (0, 1)),
    "a set of objects": tuple(closing_over({date(1, 1, i)}) for i in (1, 2)),
}


def resume(path, model):
    mcmc = MCMC(NUTS(model), num_warmup=2, num_samples=2, progress_bar=False)
    return run_mcmc(mcmc, KEY, Y, path=path)


@pytest.mark.parametrize("change", CHANGES)
def test_a_callback_counts_by_all_that_it_reads(change):
    before, after = CHANGES[change]
    after_name = getattr(after, "__qualname__", "")
    assert after_name == getattr(before, "__qualname__", "")
    told = [
        describe_program(
            lambda x, f=f: jax.pure_callback(f, SCALAR, x), (jnp.float32(0.0),)
        )
        for f in (before, before, after)
    ]
    assert told[0] == told[1]
    assert told[0]["code"] != told[2]["code"]


def test_a_changed_callback_of_the_same_name_is_another_run(tmp_path):
    first = resume(tmp_path / "run", model_of(closing_over(1.0)))
    again = resume(tmp_path / "run", model_of(closing_over(1.0)))
    assert again.get_samples()["shift"].tolist() == [1.0, 1.0]
    assert again.get_samples()["mean"].tolist() == first.get_samples()["mean"].tolist()
    with pytest.raises(
        ValueError, match=r"calls back differ.*value was float 1\.0 and is float 2\.0"
    ):
        resume(tmp_path / "run", model_of(closing_over(2.0)))


SAME = """
import jax, jax.numpy as jnp, test_resumable_code as t
for callback, _ in t.CHANGES.values():
    f = lambda x, f=callback: jax.pure_callback(f, t.SCALAR, x)
    print(t.describe_program(f, (jnp.float32(0.0),)))
"""


def test_it_counts_the_same_in_every_process():
    place = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    told = {
        subprocess.run(
            [sys.executable, "-c", SAME],
            env={**os.environ, "PYTHONPATH": place, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(told) == 1
    assert len(told.pop().splitlines()) == len(CHANGES)


def compiled_with(constant):
    inner = jax.jit(lambda mean: mean + jnp.sum(constant) * 0.0 + constant[1])

    def model(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mean, 1.0).expand([3]).to_event(1), obs=y)
        numpyro.deterministic("sum", inner(mean))

    return model


def test_a_changed_array_of_a_function_compiled_within_is_another_run(tmp_path):
    first, other = np.array([1.0, 2.0, 3.0]), np.array([1.0, 5.0, 3.0])
    mcmc = resume(tmp_path / "run", compiled_with(first))
    draws = mcmc.get_samples()
    np.testing.assert_allclose(draws["sum"], draws["mean"] + 2.0, rtol=1e-6)
    with pytest.raises(ValueError, match="computations of the model"):
        resume(tmp_path / "run", compiled_with(other))


def optimiser(callback):
    def update(gradients, state, params=None):
        rate = jax.pure_callback(callback, SCALAR, jnp.float32(0.0))
        return jax.tree.map(lambda g: -rate * g, gradients), state

    return optax.GradientTransformation(lambda params: (), update)


def svi_of(rate, loss=None):
    def model(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 4, subsample_size=len(y)):
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    opt = optimiser(closing_over(rate))
    return SVI(model, AutoNormal(model), opt, loss or Trace_ELBO())


def test_svi_with_another_rate_from_python_is_another_run(tmp_path):
    path = tmp_path / "run"
    run_svi(svi_of(0.1), KEY, 2, Y, path=path, progress_bar=False)
    run_svi(svi_of(0.1), KEY, 2, Y, path=path, progress_bar=False)
    with pytest.raises(ValueError, match="calls back differ"):
        run_svi(svi_of(0.2), KEY, 2, Y, path=path, progress_bar=False)


def test_minibatches_with_another_held_out_loss_are_another_run(tmp_path):
    """The same steps, and another loss by which the best epoch is chosen."""
    loader = MinibatchLoader((np.arange(4.0, dtype=np.float32),), 2, rng_key=KEY)

    def run(spread):
        def model(y):
            mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
            wide = spread if len(y) == 3 else 1.0
            with numpyro.plate("row", 4, subsample_size=len(y)):
                numpyro.sample("y", dist.Normal(mean, wide), obs=y)

        svi = SVI(model, AutoNormal(model), numpyro.optim.Adam(0.1), Trace_ELBO())
        options = {"held_out": (Y,), "progress_bar": False}
        return run_minibatches(svi, KEY, loader, 2, path=tmp_path / "run", **options)

    assert run(1.0).held_out.tolist() == run(1.0).held_out.tolist()
    with pytest.raises(ValueError, match="held-out loss differ"):
        run(2.0)


def test_more_draws_come_by_the_way_that_the_error_names(tmp_path):
    def model(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mean, 1.0).expand([3]).to_event(1), obs=y)

    whole = MCMC(NUTS(model), num_warmup=5, num_samples=6, progress_bar=False)
    whole = run_mcmc(whole, KEY, Y, path=tmp_path / "whole").get_samples()
    mcmc = MCMC(NUTS(model), num_warmup=5, num_samples=4, progress_bar=False)
    mcmc = run_mcmc(mcmc, KEY, Y, path=tmp_path / "run")
    more = MCMC(NUTS(model), num_warmup=5, num_samples=6, progress_bar=False)
    with pytest.raises(ValueError, match=r"rest\.post_warmup_state = mcmc\.last_state"):
        run_mcmc(more, KEY, Y, path=tmp_path / "run")
    rest = MCMC(NUTS(model), num_warmup=5, num_samples=2, progress_bar=False)
    rest.post_warmup_state = mcmc.last_state
    rest = run_mcmc(rest, mcmc.last_state.rng_key, Y, path=tmp_path / "new")
    draws = [*mcmc.get_samples()["mean"], *rest.get_samples()["mean"]]
    np.testing.assert_allclose(draws, whole["mean"], rtol=1e-5)


def test_sites_of_any_name_are_stored(tmp_path):
    names = ["λ" * 50, "λ" * 49 + "μ", "x" * 300, "__x", "a/b", "a.b", "zarr.json", "."]

    def model(y):
        values = [numpyro.sample(name, dist.Normal(0.0, 1.0)) for name in names]
        numpyro.sample("empty", dist.Normal(0.0, 1.0).expand([0]).to_event(1))
        numpyro.sample("y", dist.Normal(values[0], 1.0).expand([3]).to_event(1), obs=y)

    draws = resume(tmp_path / "run", model).get_samples()
    reference = MCMC(NUTS(model), num_warmup=2, num_samples=2, progress_bar=False)
    reference.run(KEY, Y)
    for name in names:
        np.testing.assert_array_equal(draws[name], reference.get_samples()[name])
    assert draws["empty"].shape == (2, 0)
