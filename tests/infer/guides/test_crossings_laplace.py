"""AutoLaplace on every crossing: tree, diagnosis, predictions, file, by the hand."""

import contextlib

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from crossing_runs import KEY, over, own
from curvature_cases import check_expectation, over_keys
from numpyro import handlers
from numpyro.infer import Trace_ELBO
from numpyro.optim import Adam

import pyrox_ppl as px
from pyrox_ppl.infer import AutoLaplace, CompiledSVI
from pyrox_ppl.infer.curvature import ModelAtMode, make_curvature

__all__ = ["own"]
pytestmark = pytest.mark.rank_promotion
# Each as often as the time allows; the others are slow.
FULL = ("walk-normal",)
KRON = ()  # test_laplace_traced.py saves the factors of a convolution and loads them
DRAWS = 5


def fitted(crossing, structure, **options):
    """A guide after a few steps, and its fit with curvature."""
    guide = AutoLaplace(crossing.training, structure, **options)
    svi = CompiledSVI(crossing.training, guide, Adam(0.01), Trace_ELBO())
    fit = svi.run(KEY, 3, crossing.x, y=crossing.y, progress_bar=False)
    # These are no modes: what counts here is that sites and shapes fit together.
    fit = guide.add_curvature(
        fit, crossing.x, y=crossing.y, model=crossing.model, max_decrement=np.inf
    )
    return guide, fit


def at(group, x, crossing, params, state, place=()):
    """The function by hand, at the parameters that a group of a tree holds."""
    values = {
        variable.attrs.get("numpyro_name", name): np.float64(variable.values[place])
        for name, variable in group.data_vars.items()
    }
    theta = {
        path: values.get(f"net.{path}", params.get(f"net.{path}"))
        for path in crossing.kind.fan_in
    }
    return {**theta, **({"z": values["z"]} if "z" in values else {})}


def tangent(crossing, x, mode, draw, state):
    """The function at the mode, and its derivative by differences."""

    def f(step):
        theta = {n: mode[n] + step * (draw[n] - mode[n]) for n in mode}
        return crossing.kind.forward(theta, np.float64(x), state)

    return f(0.0) + (f(1e-5) - f(-1e-5)) / 2e-5


@over(often=FULL)
def test_a_saved_tree_predicts_by_the_tangent(own, tmp_path):
    check(own.crossing, "full", tmp_path)


def has_factors(crossing):
    """A Student-t curves otherwise at each weight, which Kronecker factors refuse."""
    return crossing.kind.log_prior is None and crossing.prior != "student_t"


@over(often=KRON, where=has_factors)
def test_so_does_one_of_kronecker_factors(own, tmp_path):
    check(own.crossing, "kron", tmp_path)


def check(crossing, structure, folder):
    """The tree, its diagnosis, and predictions before and after a file."""
    # Away from a mode a heavy-tailed prior has no curvature, or a negative one.
    guide, fit = fitted(crossing, structure, damping=10.0)
    state = (fit.state.mutable_state or {}).get("state")
    tree = px.to_datatree(
        fit,
        crossing.x,
        y=crossing.y,
        guide=guide,
        model=crossing.model,
        num_samples=DRAWS,
    )
    assert set(tree.posterior.data_vars) == crossing.latent() | crossing.deterministic()
    params = jax.device_get(fit.params)
    mode = at(tree.linearized_at, crossing.x, crossing, params, state)
    for i in range(DRAWS):
        draw = at(tree.posterior, crossing.x, crossing, params, state, (0, i))
        f = tangent(crossing, crossing.x, mode, draw, state)
        np.testing.assert_allclose(
            tree.posterior["f"][0, i], f, rtol=1e-3, atol=1e-3 * np.abs(f).max()
        )
    px.save(folder / "fit.nc", tree)
    loaded = px.load(folder / "fit.nc").posterior
    expected = None
    for one in (tree, loaded):
        px.diagnose(one, crossing.model, crossing.new_x, loo=False)
        found = px.predict(crossing.model, one, crossing.new_x, sites=["f"])["f"]
        expected = found if expected is None else expected
        np.testing.assert_array_equal(found.mean, expected.mean)
        np.testing.assert_array_equal(found.std, expected.std)
        if crossing.kind.inputs is not None:
            given = crossing.kind.inputs(crossing.new_x, state)
            called = {"name": "net", "call": crossing.kind.called}
            alone = px.predict(crossing.kind.module, one, *given, **called)
            size = np.abs(expected.mean).max()
            np.testing.assert_allclose(
                alone.mean, expected.mean, rtol=1e-3, atol=1e-3 * size
            )
            np.testing.assert_allclose(
                alone.std, expected.std, rtol=1e-2, atol=1e-3 * size
            )
            px.diagnose(one, crossing.kind.module, *given, loo=False, **called)
            with pytest.raises(ValueError, match="tangent at a mode"):
                px.modules_from_draws(crossing.kind.module, one, name="net")


def with_classes(crossing):
    """The crossing's function, as the logits of four classes."""

    def model(x):
        with handlers.block(hide=["y"]), handlers.trace() as sites:
            crossing.model(x)
        f = sites["f"]["value"]
        logits = f @ np.linspace(-1.0, 2.0, 4 * f.shape[-1]).reshape(-1, 4)
        law = dist.Categorical(logits=logits)
        sizes = law.batch_shape
        with contextlib.ExitStack() as plates:
            for axis, size in enumerate(reversed(sizes), start=1):
                plates.enter_context(numpyro.plate(f"class_{axis}", size, dim=-axis))
            numpyro.sample("class", law, obs=np.zeros(sizes, int))

    return model


@over(often=())
@pytest.mark.parametrize("structure", ["diag", "kron"])
def test_random_columns_have_the_mean_of_all_columns(own, structure):
    crossing = own.crossing
    guide = AutoLaplace(crossing.training)
    svi = CompiledSVI(crossing.training, guide, Adam(0.01), Trace_ELBO())
    params = svi.get_params(svi.init(KEY, crossing.x, y=crossing.y))
    state = {} if crossing.kind.state is None else {"state": crossing.kind.state}
    mode, batch = guide._unconstrained(params), (crossing.x,)
    exact, sampled = (
        ModelAtMode(
            with_classes(crossing), mode, params=params | state, num_samples=num
        )
        for num in (None, 1)
    )
    whole = make_curvature(structure, exact, batch, {}, key=KEY)
    whole = whole.accumulate(exact, batch, {}, key=KEY)
    keys = jax.random.split(KEY, 300)
    samples = over_keys(structure, sampled, batch, keys)
    some = {"kron", "gradients"} & set(dict(whole.plan.kinds).values())
    check_expectation(samples, whole.arrays, differ=bool(some))
