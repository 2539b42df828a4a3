"""Programs belong to one object, and its copies never run those of another one."""

import copy
import gc
import pickle
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from compilations import compilations
from jax.core import Tracer
from numpyro.infer import NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta

from pyrox_ppl.infer import (
    CompiledMCMC,
    CompiledPredictive,
    CompiledSVI,
    run_ensemble,
)
from pyrox_ppl.infer._computed_once import computed_once
from pyrox_ppl.infer.compiled import _programs, _svi_program

pytestmark = pytest.mark.rank_promotion

KEY = jax.random.key(0)


def model(upper=1.0):
    numpyro.sample("a", dist.Uniform(0.0, upper))


def other(upper=1.0):
    numpyro.sample("a", dist.Uniform(5.0, 5.0 + upper))


@pytest.mark.parametrize("copied", [copy.copy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_with_another_part_runs_that_part(copied):
    mcmc = CompiledMCMC(NUTS(model), num_warmup=2, num_samples=2, progress_bar=False)
    mcmc.run(KEY)
    again = copied(mcmc)
    again.sampler = NUTS(other)
    again.run(KEY)
    assert again.get_samples()["a"].min() > 5.0
    mcmc.run(KEY)
    assert mcmc.get_samples()["a"].max() < 1.0
    predictive = CompiledPredictive(model, num_samples=2)
    predictive(KEY)
    again = copied(predictive)
    again.model = other
    assert again(KEY)["a"].min() > 5.0
    assert predictive(KEY)["a"].max() < 1.0


def svi(cls=CompiledSVI):
    return cls(model, AutoDelta(model), numpyro.optim.Adam(0.1), Trace_ELBO())


def test_copies_of_an_svi_keep_the_supports_of_their_own_arguments():
    """Bounds are constants of a program, which copies share."""
    first = svi()
    second = copy.copy(first)
    second.guide = AutoDelta(model)
    for ours, upper in ((first, jnp.asarray(1.0)), (second, jnp.asarray(8.0))):
        fit = ours.run(KEY, 3, upper, progress_bar=False)
        theirs = svi(SVI).run(KEY, 3, upper, progress_bar=False)
        assert jnp.allclose(fit.params["a_auto_loc"], theirs.params["a_auto_loc"])


def test_an_svi_reads_its_params_with_the_optimiser_that_it_has():
    ours = svi()
    fit = ours.run(KEY, 3, progress_bar=False)
    jax.block_until_ready(KEY)
    with compilations() as names:
        first, second = (ours.get_params(fit.state) for _ in range(2))
    assert len(names) <= 1
    assert first == second == fit.params
    ours.optim = numpyro.optim.SGD(0.1)
    state = ours.init(KEY)
    assert ours.get_params(state).keys() == fit.params.keys()


def test_what_numpyro_predicts_is_not_shared_with_an_object_of_the_same_model():
    objects = [CompiledPredictive(model, num_samples=2) for _ in range(2)]
    assert objects[0]._programs is not objects[1]._programs
    expected = Predictive(model, num_samples=2)(KEY)["a"]
    for predictive in objects:
        assert jnp.allclose(predictive(KEY)["a"], expected)


def by_svi(fn):
    svi = CompiledSVI(fn, AutoDelta(fn), numpyro.optim.Adam(0.1), Trace_ELBO())
    svi.run(KEY, 2, progress_bar=False)


def by_ensemble(fn):
    svi = SVI(fn, AutoDelta(fn), numpyro.optim.Adam(0.1), Trace_ELBO())
    run_ensemble(svi, KEY, 2, 2, progress_bar=False)


def by_mcmc(fn):
    mcmc = CompiledMCMC(NUTS(fn), num_warmup=2, num_samples=2, progress_bar=False)
    mcmc.run(KEY)


@pytest.mark.parametrize(
    "use",
    [
        by_svi,
        pytest.param(by_ensemble, marks=pytest.mark.slow),
        by_mcmc,
        lambda fn: CompiledPredictive(fn, num_samples=2)(KEY),
    ],
)
def test_no_program_keeps_a_model_that_is_gone(use):
    upper = jnp.ones(())

    def own():
        numpyro.sample("a", dist.Uniform(0.0, upper))

    use(own)
    alive = weakref.ref(own)
    del own
    gc.collect()
    assert alive() is None


def keeping(weight):
    def model(y=None):
        """The mean starts at an array that the caller holds as well."""
        loc = numpyro.param("loc", weight)
        numpyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)

    return CompiledSVI(
        model, lambda y=None: None, numpyro.optim.Adam(0.1), Trace_ELBO()
    )


@pytest.mark.parametrize("bar", [False, True])
def test_a_run_deletes_no_array_that_others_hold(bar):
    weight, start, y = jnp.ones(3), jnp.full(3, 2.0), jnp.arange(3.0)
    own = keeping(weight)
    options = {"y": y, "progress_bar": bar}
    first = own.run(KEY, 2, **options)
    other = own.run(KEY, 2, init_params={"loc": start}, **options)
    begun = own.init(KEY, y=y, init_params={"loc": start})
    later = own.run(KEY, 2, init_state=begun, **options)
    again = own.run(KEY, 2, init_state=later.state, **options)
    held = (weight, start, y, first.state, first.params, other.state, other.params)
    held += (begun, later.state, later.params, again.state, again.params)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(held))
    np.testing.assert_array_equal(weight, np.ones(3))
    np.testing.assert_array_equal(start, np.full(3, 2.0))
    np.testing.assert_array_equal(own.get_params(begun)["loc"], start)
    np.testing.assert_allclose(later.params["loc"], other.params["loc"], rtol=1e-6)
    assert not np.allclose(again.params["loc"], later.params["loc"])


def test_the_arrays_of_a_closure_are_inputs_of_the_first_program(monkeypatch):
    weight, given, traced = jnp.ones(3), [], _programs.run_jaxpr

    def watched(jaxpr, constants, *inputs):
        given.extend(constants)
        return traced(jaxpr, constants, *inputs)

    monkeypatch.setattr(_programs, "run_jaxpr", watched)
    own = keeping(weight)
    for y in (jnp.zeros(3), jnp.ones(3)):
        state = own.init(KEY, y=y)
    np.testing.assert_array_equal(own.get_params(state)["loc"], weight)
    (constant,) = given
    assert isinstance(constant, Tracer)
    assert constant.shape == weight.shape


@pytest.mark.parametrize(
    ("number", "bar", "known"), [(7, False, 7), (40, True, 2), (41, True, None)]
)
def test_the_steps_are_a_number_that_the_program_knows(number, bar, known, monkeypatch):
    """A GPU else waits after each step to learn whether it was the last."""
    bounds, loop = [], jax.lax.fori_loop

    def watched(first, stop, body, start):
        bounds.append(None if isinstance(stop, Tracer) else (first, stop))
        return loop(first, stop, body, start)

    monkeypatch.setattr(_svi_program.lax, "fori_loop", watched)
    losses = svi().run(KEY, number, progress_bar=bar).losses
    assert set(bounds) == {known and (0, known)}
    theirs = svi(SVI).run(KEY, number, progress_bar=False).losses
    assert jnp.allclose(losses, theirs, atol=1e-5)


@pytest.mark.parametrize(("backend", "barriers"), [("cpu", 1), ("gpu", 0)])
def test_a_gpu_fuses_what_a_cpu_computes_once(backend, barriers, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    jaxpr = jax.make_jaxpr(lambda one: computed_once(one))(jnp.ones(2))
    assert str(jaxpr).count("optimization_barrier") == barriers
