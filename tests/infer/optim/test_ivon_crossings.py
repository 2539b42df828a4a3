"""IVON with every kind of module, prior and run."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from crossing_runs import CLOSE, KEY, STEPS, over, own
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from numpyro.optim import SGD, Adam

import pyrox_ppl as px
from pyrox_ppl import infer
from pyrox_ppl.infer import IVON

__all__ = ["own"]
pytestmark = pytest.mark.rank_promotion
X = jax.random.normal(jax.random.key(3), (8, 3))
Y = jnp.sin(X.sum(1))


def assert_same(one, other):
    for got, expected in zip(
        jax.tree.leaves((one.params, one.losses, one.state.optim_state)),
        jax.tree.leaves((other.params, other.losses, other.state.optim_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(got, expected)


def run(own, make=SVI, guide=AutoNormal):
    guide = guide(own.crossing.training)
    svi = own.svi(guide, make, IVON(0.05, clip_radius=0.1, optim=Adam(0.01)))
    fit = svi.run(KEY, STEPS, own.crossing.x, y=own.crossing.y, progress_bar=False)
    return guide, fit


@over(often=("state-normal",))
def test_a_first_step_is_adams_but_for_the_normals(own):
    """The draw and the gradient are those of any optimiser; so is what is learned."""
    (x, y), guide = (own.crossing.x, own.crossing.y), AutoNormal(own.crossing.training)
    ends, grads = {}, {}
    for name, optim in (
        ("IVON", IVON(0.1, b1=0.0, b2=0.9, optim=Adam(0.01))),
        ("Adam", Adam(0.01)),
        ("SGD", SGD(1.0)),
    ):
        svi = own.svi(guide, infer.CompiledSVI, optim)
        state = svi.init(KEY, x, y=y)
        start = svi.optim.get_params(state.optim_state)
        state, _ = jax.jit(svi.update)(state, x, y=y)
        ends[name] = svi.optim.get_params(state.optim_state)
        grads = {n: start[n] - v for n, v in ends[name].items()}
    for name, value in ends["IVON"].items():
        if not name.endswith(("_auto_loc", "_auto_scale")):
            np.testing.assert_allclose(value, ends["Adam"][name], **CLOSE)
        elif name.endswith("_auto_loc"):
            u = np.asarray(start[name.replace("_loc", "_scale")], np.float64)
            sigma = np.log1p(np.exp(u))
            g_sigma = grads[name.replace("_loc", "_scale")] * (1.0 + np.exp(-u))
            h_hat = (g_sigma + 1.0 / sigma) / sigma
            precision = sigma**-2
            correction = 0.5 * 0.1**2 * (precision - h_hat) ** 2 / precision
            precision = 0.9 * precision + 0.1 * h_hat + correction
            moved = start[name] - 0.1 * grads[name] / precision
            np.testing.assert_allclose(value, moved, rtol=2e-3, atol=2e-3)
            end = np.log1p(np.exp(ends["IVON"][name.replace("_loc", "_scale")]))
            np.testing.assert_allclose(end, precision**-0.5, rtol=2e-3)


@over(often=("mlp-around",))
def test_compiled_svi_is_svi(own):
    (_, plain), (_, compiled) = run(own), run(own, infer.CompiledSVI)
    np.testing.assert_allclose(compiled.losses, plain.losses, rtol=1e-3)
    for name, value in plain.params.items():
        np.testing.assert_allclose(compiled.params[name], value, err_msg=name, **CLOSE)


@over(often=("convolution-normal",))
def test_a_tree_of_the_fit(own):
    guide, fit = run(own, infer.CompiledSVI, infer.AutoFlatNormal)
    tree = own.tree_of_fit(fit, guide)
    assert np.isfinite(tree["sample_stats"]["lp"].values).all()
    assert set(own.crossing.latent()) <= {
        v.attrs.get("numpyro_name", n) for n, v in tree["posterior"].data_vars.items()
    }


class Died(BaseException):
    """What stands for the end of a process."""


@over(often=("learned-normal",))
def test_a_resumed_run_is_bit_for_bit_the_whole(own, tmp_path, monkeypatch):
    def whole(path):
        guide = AutoNormal(own.crossing.training)
        return infer.run_svi(
            own.svi(guide, optim=IVON(lambda i: 0.1 / (1.0 + i))),
            KEY,
            12,
            own.crossing.x,
            path=tmp_path / path,
            y=own.crossing.y,
            segment=5,
            stable_update=True,
            progress_bar=False,
        )

    expected, passed = whole("whole"), []

    def reached(point):
        passed.append(point)
        if passed.count("manifest") == 2:
            raise Died

    monkeypatch.setattr(infer.resumable._store, "reached", reached)
    with pytest.raises(Died):
        whole("killed")
    monkeypatch.undo()
    assert_same(whole("killed"), expected)


def test_minibatches_are_resumed(tmp_path):
    net = eqx.nn.MLP(3, "scalar", 4, 1, key=KEY)
    loader = infer.MinibatchLoader((X, Y), 4, rng_key=KEY)

    def model(x, y):
        with px.bayesianize():
            f = jax.vmap(px.bind(net, "net"))(x)
        with numpyro.plate("row", loader.num_rows, subsample_size=len(x)):
            numpyro.sample("y", dist.Normal(f, 0.1), obs=y)

    def whole(**kwargs):
        svi = SVI(model, AutoNormal(model), IVON(0.1), TraceMeanField_ELBO())
        return infer.run_minibatches(
            svi, KEY, loader, 3, segment=2, progress_bar=False, **kwargs
        )

    expected = whole(path=tmp_path / "fit")
    assert_same(whole(path=tmp_path / "fit"), expected)
    assert expected.losses.shape == (6,)


def test_a_bfloat16_module_takes_small_steps():
    net = eqx.nn.Linear(3, "scalar", key=KEY)
    net = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), net)

    def model(x, y):
        with px.bayesianize(prior_std=1.0):
            f = jax.vmap(px.bind(net, "net"))(x.astype(jnp.bfloat16))
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(f.astype(jnp.float32), 0.5), obs=y)

    guide = AutoNormal(model, init_loc_fn=infer.init_to_stored)
    svi = SVI(model, guide, IVON(1e-4), Trace_ELBO())
    fit = svi.run(KEY, 200, X, Y, progress_bar=False)
    start = svi.get_params(svi.init(KEY, X, Y))
    for name, value in fit.params.items():
        assert value.dtype == jnp.float32
        assert (value != start[name]).all(), name
    assert np.isfinite(fit.losses).all()


def test_guides_of_several_kinds():
    """Normals by IVON; an encoder's weights and a mode by the other optimiser."""

    def model(y):
        level = numpyro.sample("level", dist.HalfNormal(1.0))
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 8, subsample_size=4) as rows:
            u = numpyro.sample("u", dist.Normal(shift, level))
            numpyro.sample("y", dist.Normal(u, 0.3), obs=y[rows])

    def others(model):
        guide = AutoGuideList(model)
        guide.append(AutoNormal(handlers.block(model, hide=["shift"])))
        guide.append(AutoDelta(handlers.block(model, expose=["shift"])))
        return guide

    encoder = eqx.nn.Linear("scalar", 2, key=KEY)
    guide = px.AmortizedGuide(
        model, encoder, plate="row", context=lambda y: y, guide=others
    )
    ends = {}
    for name, optim in (("IVON", IVON(0.1, optim=Adam(0.01))), ("Adam", Adam(0.01))):
        svi = infer.CompiledSVI(model, guide, optim, Trace_ELBO())
        state = svi.init(KEY, Y)
        start = svi.get_params(state)
        ends[name] = svi.get_params(jax.jit(svi.update)(state, Y)[0])
    assert {"level_auto_loc", "level_auto_scale", "shift_auto_loc"} < set(start)
    for name, value in ends["IVON"].items():
        assert (value != start[name]).any(), name
        same = np.allclose(value, ends["Adam"][name], rtol=1e-6)
        assert same is not name.startswith("level"), name
    with pytest.raises(ValueError, match="no pair of param sites"):
        SVI(model, AutoDelta(model), IVON(0.1), Trace_ELBO()).init(KEY, Y)


def test_the_scale_of_the_loss_moves_no_fixed_point():
    """Per-group weights in a plate, and a loss that is divided by the rows."""
    net = eqx.nn.Linear(3, "scalar", key=KEY)

    def model(x, y):
        with handlers.scale(scale=1.0 / 8.0):
            with px.bayesianize(prior_std=1.0), numpyro.plate("group", 2):
                nets = px.bind(net, "net", plate="group")
            f = eqx.filter_vmap(lambda net: jax.vmap(net)(x))(nets)
            with numpyro.plate("groups", 2, dim=-2), numpyro.plate("row", 8):
                numpyro.sample("y", dist.Normal(f, 0.5), obs=y)

    def guide_of(model):
        auto = AutoNormal(model)
        return handlers.scale(auto, scale=1.0 / 8.0)

    both = jnp.stack([Y, 2.0 * Y])
    svi = SVI(model, guide_of(model), IVON(0.5, b2=0.99), TraceMeanField_ELBO())
    svi.loss = TraceMeanField_ELBO(num_particles=8)
    fit = svi.run(KEY, 4000, X, both, progress_bar=False)
    design = np.concatenate([X, np.ones((8, 1))], 1)
    precision = design.T @ design / 0.25 + np.eye(4)
    scales = np.concatenate(
        [
            fit.params["net.weight_auto_scale"].reshape(2, 3),
            fit.params["net.bias_auto_scale"].reshape(2, 1),
        ],
        1,
    )
    np.testing.assert_allclose(scales**-2, [np.diag(precision)] * 2, rtol=0.1)
