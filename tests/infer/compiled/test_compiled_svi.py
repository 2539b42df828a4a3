"""CompiledSVI: NumPyro's losses and parameters, few compilations, nothing stale."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from compilations import compilations
from jax.core import Tracer
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoNormal,
)

from pyrox_ppl.infer import (
    AutoFlatNormal,
    CompiledSVI,
)
from pyrox_ppl.infer.compiled._object_output import ObjectOutput
from pyrox_ppl.infer.compiled._svi_params import materialize_params

# NumPyro's own model of a seed, its transforms and its reparameterised prior broadcast.
pytestmark = pytest.mark.rank_promotion

X = jnp.linspace(-1.0, 1.0, 10)
Y, Y2 = 2.0 * X + 0.5 * jnp.sin(9.0 * X), 0.5 - X**2
KEY = jax.random.key(1)


def model(x, y=None, power=1, dynamic=False):
    """A param site, a deterministic one, a support that may depend on the arguments."""
    shift = numpyro.param("shift", jnp.asarray(0.1))
    upper = 2.0 + jnp.max(x) if dynamic else 3.0
    scale = numpyro.sample("scale", dist.Uniform(0.0, upper))
    weight = numpyro.sample("weight", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    mean = numpyro.deterministic("mean", weight[0] + weight[1] * x**power + shift)
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Normal(mean, scale), obs=y)


def by_hand(x, y=None, power=1):
    loc = numpyro.param("loc", jnp.zeros(2))
    numpyro.sample("weight", dist.Normal(loc, 0.1).to_event(1))
    numpyro.sample("scale", dist.Delta(numpyro.param("s", jnp.asarray(1.0))))


def parts(model):
    guide = AutoGuideList(model)
    rest = handlers.block(model, hide=["scale", "mean"])
    guide.append(AutoNormal(rest))
    guide.append(AutoDelta(handlers.block(model, expose=["scale"])))
    return guide


def make(guide=AutoNormal, cls=CompiledSVI, model=model):
    guide = guide if guide is by_hand else guide(model)
    return cls(model, guide, optax.adam(0.05), Trace_ELBO())


def run(svi, y=Y, steps=5, **kwargs):
    return svi.run(KEY, steps, X, y, **{"progress_bar": False} | kwargs)


def assert_same(ours, numpyros):
    np.testing.assert_allclose(ours.losses, numpyros.losses, rtol=1e-4)
    assert ours.params.keys() == numpyros.params.keys()
    for name, value in numpyros.params.items():
        np.testing.assert_allclose(ours.params[name], value, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def run_twice():
    svi, results = make(), []
    jax.block_until_ready((Y, Y2, KEY))
    for y in (Y, Y2):
        with compilations() as names:
            results.append((run(svi, y), len(names)))
    return svi, results


def test_two_compilations_and_none_for_the_second_run(run_twice):
    assert [number for _, number in run_twice[1]] == [2, 0]


@pytest.mark.parametrize(
    "guide", [AutoNormal, AutoDelta, parts, by_hand, AutoLaplaceApproximation]
)
def test_a_run_is_that_of_numpyro_and_the_guide_can_be_used_after(guide, run_twice):
    ours = run_twice[0] if guide is AutoNormal else make(guide)
    fit = run_twice[1][0][0] if guide is AutoNormal else run(ours)
    svi = make(guide, cls=SVI)
    expected = run(svi)
    assert_same(fit, expected)
    leaves = jax.tree.leaves(getattr(ours.guide, "prototype_trace", None))
    assert not any(isinstance(leaf, Tracer) for leaf in leaves)
    if guide in (AutoNormal, AutoDelta):
        for name, value in svi.guide.median(expected.params).items():
            found = ours.guide.median(fit.params)[name]
            np.testing.assert_allclose(found, value, rtol=1e-4)
        draws = [
            s.guide.sample_posterior(KEY, f.params, X, sample_shape=(3,))
            for s, f in ((ours, fit), (svi, expected))
        ]
        assert draws[0].keys() == draws[1].keys()
        np.testing.assert_allclose(draws[0]["scale"], draws[1]["scale"], rtol=1e-4)


def test_other_data_and_arguments_are_never_stale(run_twice):
    svi, [_, (second, _)] = run_twice
    assert_same(second, run(make(cls=SVI), Y2))
    squared, expected = run(svi, power=2), run(make(cls=SVI), power=2)
    assert_same(squared, expected)
    with handlers.substitute(data={"weight": jnp.array([3.0, 4.0])}):
        inside = run(svi)
    assert abs(inside.losses[0] - run(svi).losses[0]) > 1.0


def test_a_run_goes_on_from_a_state_and_the_bar_changes_nothing(run_twice, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    svi, [(fit, _), _] = run_twice
    ends = [
        svi.run(KEY, 5, X, Y, init_state=fit.state, progress_bar=bar)
        for bar in (True, False)
    ]
    assert_same(*ends)
    assert ends[0].losses[0] != fit.losses[0]
    spoilt = jnp.full(10, jnp.nan)
    with pytest.warns(RuntimeWarning, match="stable_update left out every step"):
        stable = run(svi, spoilt, stable_update=True, init_state=fit.state)
    np.testing.assert_array_equal(stable.params["shift"], fit.params["shift"])


def test_a_run_takes_nothing_away_from_the_user(run_twice):
    """The programs reuse the memory of their state, never that of another object."""
    svi, [(fit, _), _] = run_twice
    before = jax.tree.map(np.array, fit.state.optim_state)
    run(svi, init_state=fit.state)
    run(svi, init_state=fit.state, progress_bar=True)
    jax.tree.map(np.testing.assert_array_equal, fit.state.optim_state, before)
    weights = jnp.array([1.5, -0.5])

    def stored(x, y, power=1, dynamic=False):
        numpyro.sample("y", dist.Normal(numpyro.param("weights", weights)), obs=y[:2])

    svi = CompiledSVI(stored, lambda *_: None, optax.sgd(0.1), Trace_ELBO())
    assert run(svi).params["weights"][0] != weights[0]
    guide = make(AutoLaplaceApproximation)
    first = run(guide)
    np.testing.assert_array_equal(run(guide).losses, first.losses)


def test_a_step_computes_scales_and_gradients_once(run_twice):
    """The barriers stand in the program that takes the steps."""
    svi = run_twice[0]
    state = svi.init(KEY, X, Y)
    plain = jax.jit(svi.update).lower(state, X, Y).as_text()
    once = jax.jit(materialize_params(svi).update).lower(state, X, Y).as_text()
    assert plain.count("optimization_barrier") == 0
    assert once.count("optimization_barrier") == 2


def test_forward_mode_is_that_of_numpyro(run_twice):
    forward = run(run_twice[0], forward_mode_differentiation=True)
    assert_same(forward, run(make(cls=SVI)))


def test_init_is_numpyros_also_inside_a_jit_and_on_a_guide_that_has_run():
    expected = make(cls=SVI)
    state = expected.init(KEY, X, Y, init_params={"shift": jnp.asarray(7.0)})
    expected = expected.get_params(state)
    assert expected["shift"] == 7.0
    svi = make()
    svi.init(jax.random.key(7), X, Y)
    again = svi.init(KEY, X, Y, init_params={"shift": jnp.asarray(7.0)})
    inside = make()
    found = jax.jit(lambda key: inside.get_params(inside.init(key, X, Y)))(KEY)
    for name, value in expected.items():
        np.testing.assert_allclose(svi.get_params(again)[name], value, rtol=1e-5)
        if name != "shift":
            np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_a_run_inside_a_jit_of_the_user_is_numpyros():
    svi, options = make(by_hand), {"progress_bar": False}
    found = jax.jit(lambda key: svi.run(key, 3, X, Y, **options).losses)(KEY)
    expected = make(by_hand, SVI).run(KEY, 3, X, Y, **options).losses
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_run_under_a_vmap_of_the_user_is_numpyros_on_each_data_set():
    svi, by_numpyro = make(by_hand), make(by_hand, SVI)
    options = {"progress_bar": False}
    both = jnp.stack([Y, -Y])
    found = jax.vmap(lambda y: svi.run(KEY, 3, X, y, **options).losses)(both)
    expected = [by_numpyro.run(KEY, 3, X, y, **options).losses for y in both]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    after = svi.run(KEY, 3, X, Y, **options).losses
    np.testing.assert_allclose(after, expected[0], rtol=1e-4)


@pytest.mark.parametrize("guide", [AutoDelta, AutoFlatNormal])
def test_a_support_of_other_arguments_is_not_that_of_the_first(guide):
    svi, other = make(guide), make(guide)
    run(svi, dynamic=True)
    fits = [
        s.run(KEY, 5, 5.0 * X, Y, dynamic=True, progress_bar=False)
        for s in (svi, other)
    ]
    assert_same(*fits)
    for name, value in other.guide.median(fits[1].params).items():
        np.testing.assert_allclose(svi.guide.median(fits[0].params)[name], value)


def test_a_guide_that_is_an_object_has_the_support_of_its_arguments():
    class Guide:
        def __call__(self, x, y=None):
            upper = dist.constraints.interval(0.0, jnp.max(x))
            loc = numpyro.param("loc", 0.5 * jnp.max(x), constraint=upper)
            numpyro.sample("a", dist.Normal(loc, 0.1))

    def simple(x, y=None):
        numpyro.sample("a", dist.Normal(100.0, 1.0))

    svi = CompiledSVI(simple, Guide(), optax.adam(0.5), Trace_ELBO())
    for upper in (1.0, 3.0, 2.0):
        numpyros = SVI(simple, Guide(), optax.adam(0.5), Trace_ELBO())
        assert_same(*(run_on(s, upper * jnp.ones(2)) for s in (svi, numpyros)))


def run_on(svi, x):
    return svi.run(KEY, 5, x, progress_bar=False)


def test_no_initial_values_are_numpyros_error():
    def impossible(x):
        numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.factor("never", -jnp.inf * x)

    for guide in (AutoNormal, AutoFlatNormal):
        with pytest.raises(RuntimeError, match="Cannot find valid initial parameters"):
            make(guide, model=impossible).init(KEY, jnp.ones(()))
    with pytest.raises(ValueError, match="num_steps must be a positive"):
        run(make(), steps=0)


def test_another_loss_has_other_programs_also_in_a_copy(run_twice):
    svi, [(fit, _), _] = run_twice
    other = copy.copy(svi)
    other.loss = Trace_ELBO(num_particles=3)
    assert other.run(KEY, 5, X, Y, progress_bar=False).losses[0] != fit.losses[0]
    other.loss = svi.loss
    np.testing.assert_array_equal(run(other).losses, fit.losses)
    np.testing.assert_array_equal(run(svi).losses, fit.losses)


def test_an_object_that_a_program_returns_keeps_all_that_was_no_tracer():
    kept, rests = dist.constraints.positive, []

    @jax.jit
    def inside(x):
        made = {"a": [x + 1.0, kept], "f": jax.tree_util.Partial(jnp.add, x)}
        return ObjectOutput(made, rests)

    value = inside(jnp.asarray(2.0)).value()
    assert value["a"][0] == 3.0
    assert value["a"][1] is kept
    assert value["f"](1.0) == 3.0
