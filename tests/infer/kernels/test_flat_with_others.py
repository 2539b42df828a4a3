"""The flat kernel and guide: pickle, enumeration, HMCECS, sites without entries."""

import copy
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import HMCECS, MCMC, NUTS, SVI, Trace_ELBO, TraceEnum_ELBO
from numpyro.infer.autoguide import AutoDiagonalNormal
from numpyro.infer.util import log_density

from pyrox_ppl.infer import (
    AutoFlatNormal,
    CompiledMCMC,
    CompiledPredictive,
    CompiledSVI,
    FlatNUTS,
)

pytestmark = pytest.mark.rank_promotion

KEY = jax.random.key(0)
Y = jnp.array([0.3, 1.1, -0.4, 0.8, 0.2, 0.5])


def model(y=None):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("none", dist.Normal(0.0, 1.0).expand([0, 3]).to_event(2))
    with numpyro.plate("row", 6):
        numpyro.sample("y", dist.Normal(mean[0] * mean[1], scale), obs=y)


@pytest.fixture(scope="module")
def fitted():
    svi = CompiledSVI(
        model, AutoFlatNormal(model), numpyro.optim.Adam(0.05), Trace_ELBO()
    )
    return svi, svi.run(KEY, 20, Y, progress_bar=False)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))]
)
def test_a_guide_that_was_used_can_be_copied_and_pickled(copied, fitted):
    svi, fit = fitted
    other = copied(svi.guide)
    for name, value in svi.guide.median(fit.params).items():
        np.testing.assert_array_equal(other.median(fit.params)[name], value)

    def loss(guide):
        evaluate = jax.jit(lambda p: Trace_ELBO().loss(KEY, p, model, guide, Y))
        return evaluate(fit.params)

    assert loss(svi.guide) == loss(other)


def test_what_a_guide_says_is_what_numpyros_says_of_the_same_vector(fitted):
    """NumPyro orders by the model, we by name: `scale`, which is first, is last."""
    svi, fit = fitted
    theirs = AutoDiagonalNormal(model)
    CompiledSVI(model, theirs, numpyro.optim.Adam(0.05), Trace_ELBO()).init(KEY, Y)
    order = jnp.array([2, 0, 1])
    params = {name: value[order] for name, value in fit.params.items()}
    quantiles = [0.1, 0.5, 0.9]
    for ours, expected in (
        (svi.guide.median(fit.params), theirs.median(params)),
        (
            svi.guide.quantiles(fit.params, quantiles),
            theirs.quantiles(params, quantiles),
        ),
    ):
        assert ours.keys() == expected.keys() == {"scale", "mean", "none"}
        for name, value in expected.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-5)
    draws = svi.guide.sample_posterior(KEY, fit.params, sample_shape=(500,))
    assert {name: value.shape for name, value in draws.items()} == {
        "scale": (500,),
        "mean": (500, 2),
        "none": (500, 0, 3),
    }
    np.testing.assert_allclose(
        np.median(draws["scale"]), svi.guide.median(fit.params)["scale"], rtol=0.1
    )


def test_sites_without_entries_in_the_compiled_classes():
    for kernel in (NUTS, FlatNUTS):
        mcmc = CompiledMCMC(
            kernel(model), num_warmup=3, num_samples=2, progress_bar=False
        )
        mcmc.run(KEY, Y)
        draws = mcmc.get_samples()
        assert draws["none"].shape == (2, 0, 3)
    assert CompiledPredictive(model, draws)(KEY)["y"].shape == (2, 6)


def mixture(y):
    means = numpyro.sample("means", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("row", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        numpyro.sample(
            "y", dist.Normal(jnp.where(z == 1, means[1], means[0]), 1.0), obs=y
        )


def test_discrete_sites_are_summed_out_beside_the_guide():
    pytest.importorskip("funsor")
    guide = AutoFlatNormal(numpyro.handlers.block(mixture, hide=["z"]), init_scale=0.2)
    loss = TraceEnum_ELBO(num_particles=4000)
    svi = CompiledSVI(mixture, guide, numpyro.optim.Adam(0.1), loss)
    state = svi.init(KEY, Y)
    params = svi.get_params(state) | {"auto_loc": jnp.array([0.5, -1.0])}

    def by_hand(means):
        each = dist.Normal(means, 1.0).log_prob(Y[:, None])
        likelihood = jax.nn.logsumexp(each + jnp.log(jnp.array([0.7, 0.3])), axis=1)
        return likelihood.sum() + dist.Normal(0.0, 1.0).log_prob(means).sum()

    law = dist.Normal(params["auto_loc"], params["auto_scale"])
    draws = law.sample(jax.random.key(5), (4000,))
    expected = np.mean(law.log_prob(draws).sum(-1) - jax.vmap(by_hand)(draws))
    found = jax.jit(lambda p: loss.loss(KEY, p, mixture, guide, Y))(params)
    np.testing.assert_allclose(found, expected, atol=0.15)
    assert np.isfinite(jax.jit(svi.update)(state, Y)[1])


def subsampled(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 6, subsample_size=3):
        batch = numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=batch)


def test_hmcecs_takes_the_flat_kernel_as_it_takes_nuts():
    draws = []
    for kernel in (
        NUTS(subsampled, init_strategy=FlatNUTS(subsampled)._init_strategy),
        FlatNUTS(subsampled),
    ):
        mcmc = MCMC(
            HMCECS(kernel, num_blocks=2),
            num_warmup=5,
            num_samples=5,
            progress_bar=False,
        )
        mcmc.run(KEY, Y)
        draws.append(mcmc.get_samples()["mean"])
    np.testing.assert_allclose(draws[1], draws[0], rtol=1e-4)


def test_a_field_by_site_is_refused_with_the_way_out():
    mcmc = CompiledMCMC(FlatNUTS(model), num_warmup=1, num_samples=1)
    with pytest.raises(ValueError, match=r"'z\.mean'.*one vector.*NUTS\(model\)"):
        mcmc.run(KEY, Y, extra_fields=("z.mean",))


def test_losses_have_the_precision_of_numpyros():
    with jax.enable_x64(True):
        y = jnp.asarray(np.asarray(Y, np.float64))
        fits = []
        for cls in (SVI, CompiledSVI):
            svi = cls(
                model, AutoFlatNormal(model), numpyro.optim.Adam(0.05), Trace_ELBO()
            )
            run = partial(svi.run, progress_bar=False)
            if cls is SVI:  # compiled whole: it is a hundred small programs
                run = jax.jit(run, static_argnums=1)
            fits.append(run(KEY, 3, y))
        assert fits[0].losses.dtype == fits[1].losses.dtype == jnp.float64
        np.testing.assert_allclose(fits[1].losses, fits[0].losses, rtol=1e-10)
        at = {"scale": 0.5, "mean": jnp.ones(2), "none": jnp.zeros((0, 3))}
        assert np.isfinite(log_density(model, (y,), {}, at)[0])
