"""Every crossing under each way to infer: draws and densities against the hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from crossing_runs import (
    CLOSE,
    FITTED,
    KEY,
    STEPS,
    check_joint,
    check_tree,
    draws_in,
    over,
    own,
    state_of,
    state_of_run,
)
from crossings import NON_CENTRED
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoNormal
from numpyro.infer.util import log_density
from numpyro.optim import SGD, Adam
from scipy import stats

import pyrox_ppl as px
from pyrox_ppl import infer

__all__ = ["own"]
pytestmark = pytest.mark.rank_promotion
SHALLOW = {"max_tree_depth": 3}


def check_run(own, mcmc):
    """The draws of a run: what they mean, and the energy that NUTS saw."""
    draws = jax.device_get(mcmc.get_samples())
    assert set(draws) == own.crossing.latent() | own.crossing.deterministic()
    state = state_of_run(own)
    hands = own.hands(own.crossing.x, draws, params={}, state=state)
    np.testing.assert_allclose(draws["f"], np.stack([h.f for h in hands]), **CLOSE)
    for path in own.crossing.kind.fan_in:
        found = draws.get(f"net.{path}", np.stack([h.theta[path] for h in hands]))
        expected = np.stack([h.theta[path] for h in hands])
        np.testing.assert_allclose(found, expected, err_msg=path, **CLOSE)
    check_joint(-mcmc.get_extra_fields()["potential_energy"], hands)


@over(often=("learned-normal",))
def test_flat_nuts(own):
    check_run(own, own.run(infer.FlatNUTS(own.crossing.model, **SHALLOW)))


@over(often=("plate-hierarchical",))
def test_compiled_flat_nuts(own):
    kernel = infer.FlatNUTS(own.crossing.model, **SHALLOW)
    check_run(own, own.run(kernel, infer.CompiledMCMC))


# By default posterior/test_crossings_trees.py has the draws of compiled runs by hand.
@over(often=())
def test_compiled_nuts(own):
    kernel = NUTS(own.crossing.model, **SHALLOW)
    mcmc = own.run(kernel, infer.CompiledMCMC)
    check_run(own, mcmc)
    first = jax.device_get(mcmc.get_samples()["f"])
    mcmc.run(KEY, own.crossing.x, y=own.crossing.y + 0.5)
    assert not np.allclose(mcmc.get_samples()["f"], first)


@over(often=("batchnorm-normal",))
def test_a_resumable_run(own, tmp_path):
    def run(cls):
        mcmc = cls(
            NUTS(own.crossing.model, **SHALLOW),
            num_warmup=6,
            num_samples=8,
            progress_bar=False,
        )
        return infer.run_mcmc(
            mcmc,
            KEY,
            own.crossing.x,
            path=tmp_path / "run",
            y=own.crossing.y,
            segment=4,
            extra_fields=("potential_energy",),
        )

    whole = run(MCMC)
    check_run(own, whole)
    again = run(MCMC)
    for name, draws in whole.get_samples().items():
        np.testing.assert_array_equal(again.get_samples()[name], draws)


@over(often=("state-normal",))
def test_compiled_svi_is_numpyros(own):
    fit, plain = own.fit, own.train(AutoNormal(own.crossing.training))
    np.testing.assert_allclose(fit.losses, plain.losses, rtol=1e-3)
    for name, value in plain.params.items():
        np.testing.assert_allclose(fit.params[name], value, err_msg=name, **CLOSE)
    assert len(fit.losses) == STEPS
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4),
        jax.tree.leaves(state_of(fit)),
        jax.tree.leaves(state_of(plain)),
    )


@over(often=("mlp-hierarchical",))
def test_the_tree_of_a_flat_guide(own):
    guide = infer.AutoFlatNormal(own.crossing.training)
    fit = own.train(guide, infer.CompiledSVI)
    tree = own.tree_of_fit(fit, guide)
    hands = check_tree(
        own, tree, own.crossing.x, params=fit.params, state=state_of(fit)
    )
    draws = draws_in(tree)
    columns = []
    for site in sorted(own.crossing.latent()):
        u = np.asarray(draws[site], np.float64).reshape(FITTED, -1)
        columns.append(np.log(u) if site.endswith("scale") else u)
    loc, scale = fit.params["auto_loc"], fit.params["auto_scale"]
    density = stats.norm.logpdf(np.concatenate(columns, 1), loc, scale).sum(1)
    expected = [h.log_joint + h.jacobian for h in hands] - density
    weights = tree["sample_stats"]["log_weight"].values.ravel()
    np.testing.assert_allclose(weights, expected, rtol=2e-5, atol=0.05)


@over(often=("state-normal",))
def test_a_resumable_fit_is_numpyros(own, tmp_path):
    def run():
        return infer.run_svi(
            own.svi(AutoDelta(own.crossing.training)),
            KEY,
            STEPS,
            own.crossing.x,
            path=tmp_path / "fit",
            y=own.crossing.y,
            segment=7,
            progress_bar=False,
        )

    plain = own.train(AutoDelta(own.crossing.training))
    for fit in (run(), run()):
        np.testing.assert_allclose(fit.losses, plain.losses, rtol=1e-4)
        for name, value in plain.params.items():
            np.testing.assert_allclose(fit.params[name], value, **CLOSE)


def point(own, params):
    """The draw that AutoDelta stands for."""
    return {
        name: np.asarray(params[f"{name}_auto_loc"]) for name in own.crossing.latent()
    }


def has_minibatches(crossing):
    return crossing.kind.log_prior is None and crossing.kind.training is None


@over(often=("plate-normal", "state-normal"), where=has_minibatches)
def test_the_loss_of_every_minibatch(own):
    """A guide that does not move: the loss is the scaled log joint at one point."""
    x, y = own.crossing.x, own.crossing.y
    # Not `own`: it keeps the trees of other tests, which no key describes.
    groups, training = own.crossing.kind.groups, own.crossing.training
    by_row = y.swapaxes(0, 1) if groups else y
    loader = infer.MinibatchLoader((x, by_row), 2, rng_key=KEY, shuffle=False)

    def model(x, y, size):
        return training(x, y.swapaxes(0, 1) if groups else y, size)

    svi = SVI(model, AutoDelta(model), SGD(0.0), Trace_ELBO())
    fit = infer.run_minibatches(svi, KEY, loader, 2, size=6, progress_bar=False)
    draw, expected, mean = point(own, fit.params), [], 0.1 * x[:2].mean(0)
    for start in (0, 2, 4, 0, 2, 4):
        batch = slice(start, start + 2)
        hand = own.crossing.by_hand(
            draw, x[batch], y[..., batch, :], state={"mean": mean}
        )
        prior = sum(map(np.sum, hand.log_prior.values()))
        expected.append(-(3.0 * hand.log_likelihood.sum() + prior))
        mean = 0.9 * mean + 0.1 * x[batch].mean(0)
    np.testing.assert_allclose(fit.losses, expected, rtol=1e-4)
    assert np.ptp(expected) > 1e-2 * abs(expected[0])


@over(often=("mlp-horseshoe",))
def test_sharded_data_are_the_data(own):
    auto = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(auto,))
    x, y = infer.shard_data(mesh, own.crossing.x, own.crossing.y)
    # JAX's arrays: NumPyro's scan looks a step up in them by a traced number.
    draw = {name: jnp.asarray(own.draws[name][3]) for name in own.crossing.latent()}
    draw |= own.params

    def density(x, y):
        return log_density(own.crossing.model, (x, y), {}, draw)[0]

    hand = own.hands(own.crossing.x)[3]
    assert float(jax.jit(density)(x, y)) == pytest.approx(hand.log_joint, rel=2e-5)


def starts(own, guide):
    """The point where SVI begins."""
    svi = own.svi(guide, infer.CompiledSVI)
    state = svi.init(KEY, own.crossing.x, y=own.crossing.y)
    return svi.get_params(state)


@over(often=("mlp-hierarchical", "ties-normal"))
def test_a_parameter_starts_where_the_module_is(own):
    guide = AutoDelta(own.crossing.training, init_loc_fn=infer.init_to_stored)
    params = starts(own, guide)
    draw = point(own, params)
    hand = own.crossing.by_hand(draw, own.crossing.x, params=params)
    for path, stored in own.crossing.stored().items():
        np.testing.assert_allclose(
            np.reshape(hand.theta[path], (-1, *stored.shape)),
            np.broadcast_to(stored, (max(own.crossing.kind.groups, 1), *stored.shape)),
            **CLOSE,
        )
    for site, value in draw.items():  # a median of few draws
        if site.endswith(".scale"):
            law = stats.halfcauchy(scale=0.1)
            law = stats.halfnorm() if own.crossing.prior == "hierarchical" else law
            np.testing.assert_allclose(value, law.median(), rtol=0.9)


def is_all_parameters(crossing):
    return crossing.prior not in NON_CENTRED and not crossing.kind.log_prior


@over(often=("mlp-student_t",), where=is_all_parameters)
def test_the_flat_guide_starts_where_the_module_is(own):
    params = starts(own, infer.AutoFlatNormal(own.crossing.training))
    stored = own.crossing.stored()
    groups = max(own.crossing.kind.groups, 1)
    sites = sorted(own.crossing.latent())
    expected = [np.tile(stored[s.removeprefix("net.")].ravel(), groups) for s in sites]
    np.testing.assert_allclose(params["auto_loc"], np.concatenate(expected), **CLOSE)


def has_own_rows(crossing):
    return not (crossing.kind.groups or crossing.kind.log_prior or crossing.kind.state)


@over(often=("learned-normal",), where=has_own_rows)
def test_an_encoder_of_every_row(own):
    width = own.crossing.y.shape[-1]

    def model(x, y=None):
        with numpyro.plate("row", len(x)):
            u = numpyro.sample("u", dist.Normal(0.0, 1.0).expand([width]).to_event(1))
        own.crossing.model(x, None if y is None else y - u)

    encoder = eqx.nn.Linear(width, 2 * width, key=KEY)
    guide = px.AmortizedGuide(model, encoder, plate="row", context=lambda x, y: y)
    svi = infer.CompiledSVI(model, guide, Adam(0.01), Trace_ELBO())
    x, y = own.crossing.x, own.crossing.y
    fit = svi.run(KEY, STEPS, x, y, progress_bar=False)
    draws = guide.sample_posterior(KEY, fit.params, x, y, sample_shape=(5,))
    weight, bias = (np.asarray(fit.params[f"encoder.{k}"]) for k in ("weight", "bias"))
    out = y @ weight.T + bias
    laws = guide.posterior(fit.params, y)["u"]
    np.testing.assert_allclose(laws.mean, out[:, :width], **CLOSE)
    spread = np.log1p(np.exp(out[:, width:]))
    np.testing.assert_allclose(laws.variance, spread**2, rtol=1e-3)
    standard = (np.asarray(draws["u"]) - out[:, :width]) / spread
    assert np.abs(standard).max() < 5.0
    assert 0.6 < standard.std() < 1.4
    assert set(draws) == {"u"} | own.crossing.latent()
