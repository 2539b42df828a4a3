"""A fit that diverged says so: its run warns, and its parameters are refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta
from numpyro.infer.svi import SVIRunResult
from numpyro.primitives import mutable

import pyrox_ppl as px
from pyrox_ppl._divergence import warn_of_divergence
from pyrox_ppl.infer import (
    CompiledSVI,
    MinibatchLoader,
    run_ensemble,
    run_minibatches,
    run_svi,
)

KEY = jax.random.key(0)
Y = np.arange(4, dtype=np.float32)
LOADER = MinibatchLoader((Y,), 4, rng_key=KEY)
NAN, STEPS = np.nan, 4


def model(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def make(kind=SVI, rate=1e38, guide=AutoDelta):
    return kind(model, guide(model), optax.sgd(rate), Trace_ELBO())


RUNS = {
    "CompiledSVI": lambda **options: make(CompiledSVI).run(KEY, STEPS, Y, **options),
    "run_minibatches": lambda **options: run_minibatches(
        make(), KEY, LOADER, STEPS, **options
    ),
    "run_ensemble": lambda **options: run_ensemble(make(), KEY, 2, STEPS, Y, **options),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_run_warns_and_its_tree_is_refused(run):
    with pytest.warns(
        RuntimeWarning, match=r"diverged: .* from steps? \[?[123]"
    ) as got:
        fit = run(progress_bar=False)
    assert len(got) == 1
    assert not np.isfinite(fit.losses[..., -1]).any()
    with pytest.raises(ValueError, match="'mean_auto_loc' of its parameters hold NaN"):
        px.to_datatree(fit, Y, guide=AutoDelta(model))


@pytest.mark.parametrize("bar", [True, False])
def test_a_run_that_leaves_out_such_steps_says_nothing(bar, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    svi = make(CompiledSVI, 0.1)
    fit = svi.run(KEY, STEPS, Y, stable_update=True, progress_bar=bar)
    assert np.isfinite(fit.losses).all()


def with_a_running_mean(y, rows=4):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    state = mutable("state", {"mean": jnp.zeros(())})
    state["mean"] = 0.9 * state["mean"] + 0.1 * y.mean()
    with numpyro.plate("row", rows, subsample_size=len(y)):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def make_with_state(kind=SVI):
    guide = AutoDelta(with_a_running_mean)
    return kind(with_a_running_mean, guide, optax.sgd(0.1), Trace_ELBO())


SPOILT = np.array([0.0, 1.0, NAN, 3.0], np.float32)
HALVES = MinibatchLoader((SPOILT,), 2, rng_key=KEY, shuffle=False)
STABLE = {"stable_update": True, "progress_bar": False}


def of_compiled_svi():
    svi = make_with_state(CompiledSVI)
    state = svi.init(KEY, SPOILT[:2])
    for rows in (SPOILT[:2], SPOILT[2:], SPOILT[:2], SPOILT[2:]):
        fit = svi.run(KEY, 1, rows, init_state=state, **STABLE)
        state = fit.state
    return fit


@pytest.mark.parametrize(
    "run",
    [
        lambda: run_minibatches(make_with_state(), KEY, HALVES, 2, **STABLE),
        lambda: run_ensemble(make_with_state(), KEY, 2, 4, HALVES, **STABLE),
        of_compiled_svi,
    ],
)
@pytest.mark.filterwarnings("ignore:stable_update left out every step")
def test_a_step_that_is_left_out_leaves_the_state_of_layers_too(run):
    mean = run().state.mutable_state["state"]["mean"]
    # That of the start, and of both steps on the first half.
    np.testing.assert_allclose(mean, 0.5 * (1.0 - 0.9**3), rtol=1e-6)


def test_a_state_that_diverged_is_refused():
    svi = make_with_state()
    state = svi.init(KEY, SPOILT[:2])
    for rows in (SPOILT[2:], SPOILT[:2]):
        state, loss = jax.jit(svi.stable_update)(state, rows)
    assert np.isfinite(loss)
    fit = SVIRunResult(svi.get_params(state), state, jnp.ones(2))
    with pytest.raises(
        ValueError, match="diverged: 'state' of its parameters hold NaN"
    ):
        px.to_datatree(fit, Y, guide=svi.guide)


def test_a_run_that_is_continued_warns_at_once(tmp_path):
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="diverged") as got:
            run_svi(make(), KEY, STEPS, Y, path=tmp_path / "run", progress_bar=False)
        assert len(got) == 1


@pytest.mark.parametrize(
    ("losses", "stable", "message"),
    [
        ([1.0, NAN, NAN], False, "the fit diverged: .* from step 1 of 9 on"),
        ([NAN, NAN], False, "from step 0 of 9 on"),
        ([1.0, np.inf], False, "from step 1 of 9 on"),
        ([[1.0, NAN, NAN], [1.0, 1.0, 1.0], [1.0, 1.0, NAN]], False,
         r"of members \[0, 2\] diverged: .* from steps \[1, 2\] of 9 on"),
        ([NAN, NAN], True, "left out every step: no loss is finite"),
        ([[1.0, NAN], [NAN, NAN]], True, r"left out every step of members \[1\]"),
        ([1.0, NAN, 1.0], False, None),
        ([1.0, NAN, NAN], True, None),
        ([[1.0, 2.0], [NAN, 1.0]], False, None),
    ],
)  # fmt: skip
def test_the_warning_names_the_step(losses, stable, message):
    if message is None:
        assert not warn_of_divergence(np.array(losses), 9, stable=stable)
        return
    with pytest.warns(RuntimeWarning, match=message):
        assert warn_of_divergence(np.array(losses), 9, stable=stable)


def test_an_ensemble_goes_on_without_a_member_that_diverged():
    svi = make(rate=0.1)
    fit = run_ensemble(svi, KEY, 3, 2, Y, progress_bar=False)
    means = fit.params["mean_auto_loc"]
    broken = fit._replace(params={"mean_auto_loc": means.at[1].set(jnp.nan)})
    with pytest.raises(ValueError, match=r"fit of members \[1\] diverged") as error:
        px.to_datatree(broken, Y, guide=svi.guide)
    recipe = str(error.value).partition("others: ")[2].removesuffix(".")
    names = {"jax": jax, "jnp": jnp, "fit": broken}
    exec(recipe, names)
    tree = px.to_datatree(names["fit"], Y, guide=svi.guide)
    np.testing.assert_array_equal(
        tree["posterior"]["mean"].values[:, 0], np.asarray(means)[[0, 2]]
    )


def test_the_posterior_of_an_encoder_that_diverged_is_refused():
    def of_rows(y):
        with numpyro.plate("row", len(y)):
            latent = numpyro.sample("latent", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(latent, 1.0), obs=y)

    encoder = eqx.nn.Linear("scalar", 2, key=KEY)
    guide = px.AmortizedGuide(of_rows, encoder, plate="row", context=lambda y: y)
    svi = SVI(of_rows, guide, optax.sgd(0.1), Trace_ELBO())
    params = svi.get_params(svi.init(KEY, jnp.asarray(Y)))
    guide.posterior(params, jnp.asarray(Y))
    jax.jit(lambda p: guide.posterior(p, jnp.asarray(Y))["latent"].mean)(params)
    spoilt = jax.tree.map(lambda a: a * jnp.nan, params)
    with pytest.raises(ValueError, match="the fit diverged: 'encoder"):
        guide.posterior(spoilt, jnp.asarray(Y))
