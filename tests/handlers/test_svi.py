"""Parameters made sites in NumPyro's SVI: every autoguide that fits, every ELBO."""

import functools

import equinox as eqx
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from models import BIAS, OBSERVED, ROWS, WEIGHT, Z, make_film
from models import film_regression as model
from numpyro import handlers
from numpyro.infer import (
    SVI,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    autoguide,
)

import pyrox_ppl as px

FILM, KEY = make_film(), jax.random.key(1)


def per_row(h, y=None):
    """All latent sites are on a plate, as batched guides ask."""
    with numpyro.plate("row", h.shape[0]), px.bayesianize(prior_std=0.5):
        film = px.bind(FILM, plate="row")
    mean = eqx.filter_vmap(lambda member, row: member(row, Z))(film, h)
    with numpyro.plate("row", h.shape[0]):
        numpyro.sample("y", dist.Normal(mean, 0.3).to_event(1), obs=y)


def with_local_latents(h, y):
    """A latent site per row, rows in minibatches, the parameters global."""
    return local_part(global_part(h), y)


def global_part(h):
    with px.bayesianize(prior_std=0.5):
        return FILM(h, Z)


def local_part(mean, y):
    with numpyro.plate("row", 5, subsample_size=2) as rows:
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
        likelihood = dist.Normal(mean[rows] + shift[:, None], 0.3).to_event(1)
        numpyro.sample("y", likelihood, obs=y[rows])


BASES = {"AutoContinuous", "AutoGuide"}
IN_TESTS_OF_THEIR_OWN = {"AutoGuideList", "AutoSemiDAIS"}
GUIDES = {
    name: functools.partial(getattr(autoguide, name), model)
    for name in autoguide.__all__
    if name not in BASES | IN_TESTS_OF_THEIR_OWN
}
for batched in [name for name in GUIDES if name.startswith("AutoBatched")]:
    GUIDES[batched] = functools.partial(
        getattr(autoguide, batched), per_row, batch_ndim=1
    )
GUIDES["AutoBNAFNormal"] = functools.partial(
    autoguide.AutoBNAFNormal, model, hidden_factors=[2]
)
GUIDES["AutoSurrogateLikelihoodDAIS"] = functools.partial(
    autoguide.AutoSurrogateLikelihoodDAIS, model, lambda: model(ROWS, OBSERVED)
)

# Each has a near relative that compiles in less time.
RARE = {
    "AutoBNAFNormal",
    "AutoSurrogateLikelihoodDAIS",
    "AutoLowRankMultivariateNormal",
}
RARE |= {name for name in GUIDES if name.startswith("AutoBatched")}


def fit(model, guide, *args, steps=5, elbo=Trace_ELBO, then=lambda params: params):
    """What `then` makes of the params, all in one program instead of hundreds."""
    svi = SVI(model, guide, numpyro.optim.Adam(0.05), elbo())

    @jax.jit
    def run(key):
        result = svi.run(key, steps, *args, progress_bar=False)
        return result.losses, then(result.params)

    losses, found = run(jax.random.key(0))
    assert np.isfinite(losses).all()
    return found


@pytest.mark.rank_promotion
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in RARE else ()) for n in GUIDES],
)
def test_svi_with_every_autoguide(name):
    guide = GUIDES[name]()
    # The Hessian of AutoLaplaceApproximation is positive definite near the mode.
    steps = 500 if name == "AutoLaplaceApproximation" else 5

    def sample(params):
        data = (ROWS, OBSERVED)
        return guide.sample_posterior(KEY, params, *data, sample_shape=(2,))

    draws = fit(guide.model, guide, ROWS, OBSERVED, steps=steps, then=sample)
    assert draws[WEIGHT].shape[-2:] == (6, 2)
    assert draws[WEIGHT].shape[0] == 2


def test_svi_with_a_list_of_guides():
    guides = autoguide.AutoGuideList(model)
    guides.append(autoguide.AutoDelta(handlers.block(model, hide=[WEIGHT])))
    guides.append(autoguide.AutoNormal(handlers.block(model, expose=[WEIGHT])))
    params = fit(model, guides, ROWS, OBSERVED)
    assert set(params) == {
        f"{BIAS}_auto_loc",
        f"{WEIGHT}_auto_loc",
        f"{WEIGHT}_auto_scale",
    }


@pytest.mark.rank_promotion
def test_svi_with_semi_dais():
    def whole():
        with_local_latents(ROWS, OBSERVED)

    base = autoguide.AutoNormal(lambda: global_part(ROWS))
    guide = autoguide.AutoSemiDAIS(
        whole, lambda mean: local_part(mean, OBSERVED), base, K=2
    )
    params = fit(whole, guide)
    assert params[f"{WEIGHT}_auto_loc"].shape == (6, 2)


def test_svi_in_minibatches_learns_global_parameters_and_local_latents():
    guide = autoguide.AutoNormal(with_local_latents)
    params = fit(with_local_latents, guide, ROWS, OBSERVED)
    assert params[f"{WEIGHT}_auto_loc"].shape == (6, 2)
    assert params["shift_auto_loc"].shape == (5,)


@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO, TraceGraph_ELBO, TraceEnum_ELBO])
def test_svi_with_every_elbo(elbo):
    fit(model, autoguide.AutoNormal(model), ROWS, OBSERVED, steps=3, elbo=elbo)
