"""CompiledMCMC: NumPyro's draws, few compilations, and nothing stale."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from compilations import compilations
from numpyro import handlers
from numpyro.infer import HMC, MCMC, NUTS, SA, init_to_median, init_to_value

from pyrox_ppl.infer import CompiledMCMC, FlatNUTS

# NumPyro's own model of a seed, its transforms and its reparameterised prior broadcast.
pytestmark = pytest.mark.rank_promotion

X = jnp.linspace(-1.0, 1.0, 10)
Y, Y2 = 2.0 * X + 0.5 * jnp.sin(9.0 * X), 0.5 - X**2
KEY = jax.random.key(1)


def model(x, y=None, power=1):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    weight = numpyro.sample("weight", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    mean = numpyro.deterministic("mean", weight[0] + weight[1] * x**power)
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Normal(mean, scale), obs=y)


def make(kernel=None, cls=CompiledMCMC, **kwargs):
    kwargs = {"num_warmup": 10, "num_samples": 6, "progress_bar": False} | kwargs
    return cls(NUTS(model) if kernel is None else kernel, **kwargs)


@pytest.fixture(scope="module")
def run_twice():
    """A run, a second one on other data, and what each compiled."""
    mcmc = make()
    jax.block_until_ready((Y, Y2, KEY))
    results = []
    for y in (Y, Y2):
        with compilations() as names:
            mcmc.run(KEY, X, y, extra_fields=("potential_energy",))
            draws = mcmc.get_samples()
        results.append((draws, mcmc.get_extra_fields(), len(names)))
    return mcmc, results


def assert_same(draws, expected, atol=5e-3):
    """Equal up to rounding, which the dynamics enlarge; other draws differ by 0.1."""
    assert draws.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(draws[name], expected[name], rtol=5e-3, atol=atol)


def test_three_compilations_and_none_for_the_second_run(run_twice):
    _, [(_, _, first), (_, _, second)] = run_twice
    assert first <= 3
    assert second == 0


def test_arguments_that_were_put_on_a_device_compile_no_more():
    placed = jax.device_put((X, Y), jax.devices()[0])
    with compilations() as names:
        make().run(jax.block_until_ready(KEY), *placed)
    assert len(names) <= 2


def test_both_runs_have_the_draws_of_numpyro(run_twice):
    numpyros = make(cls=MCMC, jit_model_args=True)  # one program for both
    for y, (draws, extra, _) in zip((Y, Y2), run_twice[1], strict=True):
        numpyros.run(KEY, X, y, extra_fields=("potential_energy",))
        assert_same(draws, numpyros.get_samples())
        assert_same(extra, numpyros.get_extra_fields(), atol=2e-2)


def test_a_plain_argument_is_part_of_the_key_by_type_and_value(run_twice):
    mcmc, [(draws, _, _), _] = run_twice
    with compilations() as names:
        mcmc.run(KEY, X, Y, power=2)
    assert names
    squared = mcmc.get_samples()
    np.testing.assert_allclose(
        squared["mean"],
        squared["weight"][:, :1] + squared["weight"][:, 1:] * X**2,
        rtol=1e-5,
    )
    assert np.abs(squared["weight"] - draws["weight"]).max() > 0.01


def test_arguments_of_other_shapes_are_traced_again(run_twice):
    run_twice[0].run(KEY, X[:4], Y[:4])
    assert run_twice[0].get_samples()["mean"].shape == (6, 4)


def test_a_handler_outside_is_never_missed(run_twice):
    mcmc = run_twice[0]
    with handlers.substitute(data={"weight": jnp.array([3.0, 4.0])}):
        mcmc.run(KEY, X, Y)
    inside = mcmc.get_samples()
    np.testing.assert_allclose(inside["mean"][0], 3.0 + 4.0 * X, rtol=1e-5)
    mcmc.run(KEY, X, Y)
    assert np.abs(mcmc.get_samples()["weight"] - 3.0).min() > 1e-3


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
def test_chains_are_those_of_numpyro(method):
    keys = {"num_chains": 2, "chain_method": method, "thinning": 2}
    ours, numpyros = make(**keys), make(cls=MCMC, **keys)
    for mcmc in (ours, numpyros):
        mcmc.run(KEY, X, Y, extra_fields=("~z.mean", "num_steps"))
    draws = ours.get_samples(group_by_chain=True)
    assert draws["weight"].shape == (2, 3, 2)
    assert_same(draws, numpyros.get_samples(group_by_chain=True))
    assert "mean" not in draws
    np.testing.assert_array_equal(
        ours.get_extra_fields()["num_steps"], numpyros.get_extra_fields()["num_steps"]
    )


def test_a_deterministic_site_is_evaluated_for_the_draws_that_are_kept():
    calls = []

    def square(x):
        calls.append(x)
        return x**2

    def counted():
        x = jax.lax.stop_gradient(numpyro.sample("x", dist.Normal(0.0, 1.0)))
        numpyro.deterministic("square", jax.pure_callback(square, x, x))

    mcmc = make(NUTS(counted), num_samples=17, thinning=5)
    mcmc.run(KEY)
    draws = mcmc.get_samples()
    np.testing.assert_allclose(draws["square"], draws["x"] ** 2, rtol=1e-6)
    assert len(calls) == len(draws["x"]) == 3


def test_the_bar_changes_nothing_and_a_state_can_be_used_twice(run_twice, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.delenv("CI", raising=False)
    mcmc = make(progress_bar=True)
    assert mcmc.progress_bar
    mcmc.run(KEY, X, Y)
    draws = mcmc.get_samples()
    # In pieces it is another program: equal up to rounding, which chaos enlarges.
    assert_same({k: v[:3] for k, v in draws.items()}, first(run_twice[1][0][0], 3))
    mcmc.post_warmup_state = mcmc.last_state
    runs = []
    for _ in range(2):
        mcmc.run(mcmc.post_warmup_state.rng_key, X, Y)
        runs.append(mcmc.get_samples())
    assert_same(runs[0], runs[1], atol=0)


def first(draws, n):
    return {name: values[:n] for name, values in draws.items()}


def test_warm_up_apart_from_sampling_is_numpyros():
    ours, numpyros = make(), make(cls=MCMC)
    for mcmc in (ours, numpyros):
        mcmc.warmup(KEY, X, Y, collect_warmup=True)
        assert mcmc.get_samples()["weight"].shape == (10, 2)
        assert mcmc.post_warmup_state is mcmc.last_state
        mcmc.run(jax.random.key(2), X, Y)
    assert_same(ours.get_samples(), numpyros.get_samples())


@pytest.mark.parametrize(
    "kernel",
    [
        HMC(model, trajectory_length=1.0, init_strategy=init_to_median),
        NUTS(
            model,
            dense_mass=[("scale", "weight")],
            inverse_mass_matrix={("scale", "weight"): jnp.eye(3)},
            init_strategy=init_to_value(values={"scale": 0.5}),
        ),
    ],
    ids=["HMC", "blocks"],
)
def test_other_kernels_and_strategies(kernel):
    ours, numpyros = make(kernel), make(kernel, cls=MCMC)
    for mcmc in (ours, numpyros):
        mcmc.run(KEY, X, Y)
    assert_same(ours.get_samples(), numpyros.get_samples())


def test_it_runs_inside_a_jit(run_twice):
    def draw(key):
        mcmc = make()
        mcmc.run(key, X, Y)
        return mcmc.get_samples()

    assert_same(jax.jit(draw)(KEY), run_twice[1][0][0])


def test_another_sampler_has_other_programs():
    mcmc = make(NUTS(model, step_size=0.1, adapt_step_size=False), num_samples=1)
    steps = []
    for size in (0.1, 0.2):
        mcmc.sampler = NUTS(model, step_size=size, adapt_step_size=False)
        mcmc.run(KEY, X, Y)
        steps.append(float(mcmc.last_state.adapt_state.step_size))
    np.testing.assert_allclose(steps, [0.1, 0.2], rtol=1e-6)


def test_initial_values_that_cannot_be_are_an_error_and_no_nan():
    def impossible(x):
        numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.factor("never", -jnp.inf * x)

    with pytest.raises(RuntimeError, match="Cannot find valid initial parameters"):
        make(FlatNUTS(impossible)).run(KEY, jnp.ones(()))
    with pytest.raises(RuntimeError, match="not finite at the start of chains"):
        make().run(KEY, X, Y, init_params={"scale": jnp.nan, "weight": jnp.zeros(2)})
    with pytest.raises(ValueError, match="leading axis of the 2 chains"):
        make(num_chains=2).run(KEY, X, Y, init_params={"scale": jnp.zeros(3)})


def test_python_that_needs_the_values_is_told_what_to_do():
    def reads(group):
        n = int(group.max()) + 1
        numpyro.sample("a", dist.Normal(0.0, 1.0).expand([n]).to_event(1))

    with pytest.raises(jax.errors.ConcretizationTypeError) as caught:
        make(NUTS(reads)).run(KEY, jnp.arange(3))
    assert any("Pass sizes" in note for note in caught.value.__notes__)


def test_an_argument_that_can_change_unseen_is_read_each_time():
    class Options:
        shift = 0.0

    def shifted(options):
        numpyro.sample("a", dist.Normal(options.shift, 0.01))

    mcmc, options = make(NUTS(shifted, init_strategy=init_to_median)), Options()
    for shift in (0.0, 5.0):
        options.shift = shift
        with pytest.warns(UserWarning, match="compiled anew"):
            mcmc.run(KEY, options)
        assert np.abs(mcmc.get_samples()["a"] - shift).max() < 0.2


@pytest.mark.wrong_types
def test_bad_settings_say_what_was_expected():
    with pytest.raises(TypeError, match=r"numpyro\.infer\.MCMC"):
        make(SA(model))
    with pytest.raises(ValueError, match="num_chains"):
        make(num_chains=0)
    with pytest.raises(ValueError, match="chain_method"):
        make(chain_method="serial")
    with pytest.warns(UserWarning, match="cannot be spread"):
        assert make(num_chains=2, chain_method="parallel").chain_method == "sequential"
    assert make(num_chains=2).chain_method == "sequential"


def test_chains_are_spread_over_devices():
    code = """
import sys, jax, numpy as np, numpyro
jax.config.update("jax_enable_x64", True)
numpyro.set_host_device_count(2)
sys.path.append("../..")
from test_compiled_mcmc import KEY, MCMC, X, Y, compilations, make
one, two = make(num_chains=2), make(num_chains=4)
old = make(cls=MCMC, num_chains=2)
with compilations() as names:
    one.run(jax.block_until_ready(jax.random.split(KEY)), X, Y)
assert len(names) <= 4, names
for mcmc in (two, old):
    mcmc.run(KEY, X, Y)
assert one.chain_method == two.chain_method == "parallel"
assert len(one.last_state.potential_energy.devices()) == 2
for name, draws in old.get_samples(group_by_chain=True).items():
    ours = one.get_samples(group_by_chain=True)[name]
    # In double precision rounding stays small, however the dynamics enlarge it.
    np.testing.assert_allclose(ours, draws, rtol=1e-8, atol=1e-8)
print(two.get_samples(group_by_chain=True)["weight"].shape)
"""
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=__file__.rpartition("/")[0],
    )
    assert out.stdout.strip() == "(4, 6, 2)", out.stderr
