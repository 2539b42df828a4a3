"""What AutoSWAG refuses: settings, models, and fits that do not hold enough."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta
from numpyro.optim import SGD

import pyrox_ppl as px
from pyrox_ppl.infer import AutoSWAG, CompiledSVI

KEY = jax.random.key(0)


def model(y=None):
    numpyro.sample("a", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    numpyro.sample("b", dist.Normal(0.0, 1.0))


def guide_of(model=model, rank=4, start=3, every=2):
    return AutoSWAG(model, rank=rank, start=start, every=every)


def train(guide, make=CompiledSVI, loss=None, number=30):
    svi = make(guide.model, guide, SGD(0.01), loss or Trace_ELBO())
    return svi.run(KEY, number, progress_bar=False)


@pytest.fixture(scope="module")
def fitted():
    guide = guide_of()
    return guide, train(guide)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"rank": 1}, "rank must be 0"),
        ({"rank": -2}, "rank must be 0"),
        ({"start": -1}, "start must be a number of steps"),
        ({"every": 0}, "every at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        guide_of(**wrong)


def test_too_few_iterates_are_refused(fitted):
    guide, fit = fitted
    many = guide_of(rank=14)
    with pytest.raises(ValueError, match="has not seen the model"):
        many.median(fit.params)
    handlers.seed(many, KEY)()
    with pytest.raises(ValueError, match=r"collected 13 .* 14 for rank=14.*rank=13"):
        many.median(fit.params)
    none = {**fit.params["auto_moments"], "count": jnp.array(0)}
    with pytest.raises(ValueError, match="collected 0 iterates with start=3"):
        guide.sample_posterior(KEY, {**fit.params, "auto_moments": none})
    with pytest.raises(ValueError, match="collected 0 iterates"):
        px.to_datatree({**fit.params, "auto_moments": none}, guide=guide)


def test_the_fit_of_another_guide_is_refused(fitted):
    guide, fit = fitted

    def other():
        numpyro.sample("a", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    small = guide_of(other)
    handlers.seed(small, KEY)()
    with pytest.raises(ValueError, match="trained with this guide"):
        small.median(fit.params)
    mode = SVI(model, AutoDelta(model), SGD(0.01), Trace_ELBO())
    params = mode.run(KEY, 2, progress_bar=False).params
    with pytest.raises(ValueError, match="no 'auto_moments'"):
        guide.median(params)


def test_models_that_it_cannot_take_are_refused():
    def discrete():
        numpyro.sample("z", dist.Bernoulli(0.5))

    def local():
        with numpyro.plate("row", 20, subsample_size=5):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    def empty():
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=1.0)

    with pytest.raises(RuntimeError, match="no latent sites"):
        train(guide_of(empty), SVI)
    with pytest.raises(ValueError, match=r"'z' stands in the plate 'row'.*5 of its 20"):
        train(guide_of(local), SVI)
    error = pytest.raises(ValueError, match="discrete sample site 'z'")
    with pytest.warns(FutureWarning, match="enumerate"), error:
        train(guide_of(discrete), SVI)
    with pytest.raises(ValueError, match="num_particles=2"):
        train(guide_of(), loss=Trace_ELBO(num_particles=2))
