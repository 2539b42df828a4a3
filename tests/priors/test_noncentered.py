"""A prior in its standard form: plates, second reads, inference, prediction."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from models import OBSERVED, ROWS, H, Z, make_film, sites
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import pyrox_ppl as px
from pyrox_ppl import priors

FILM = make_film()
W = "affine_modulation.generator.weight"
RULES = {"*.bias": priors.normal(0.5), "*": priors.hierarchical()}


def regression(h, y=None):
    with px.bayesianize(prior=RULES):
        mean = FILM(h, Z)
    with numpyro.plate("row", h.shape[0]):
        numpyro.sample("y", dist.Normal(mean, 0.3).to_event(1), obs=y)


def test_its_sites_are_global_and_the_value_is_of_them():
    def model():
        with (
            numpyro.plate("outside", 5),
            px.scope("net"),
            px.bayesianize(prior=RULES),
            px.scope("inner"),
            numpyro.plate("inside", 7),
        ):
            return FILM(H, Z) - FILM(H, Z)

    found = sites(model, types=("sample", "deterministic"))
    name = f"net.inner.{W}"
    assert all(site["cond_indep_stack"] == [] for site in found.values())
    expected = found[f"{name}.scale"]["value"] / 2**0.5
    expected = expected * found[f"{name}_decentered"]["value"]
    np.testing.assert_allclose(found[name]["value"], expected, rtol=1e-6)
    np.testing.assert_array_equal(handlers.seed(model, 0)(), 0.0)


@pytest.mark.parametrize("dim", [-1, -2])
@pytest.mark.parametrize("inside", [True, False])
def test_the_members_of_a_plate_share_the_scale_and_nothing_else(inside, dim):
    linear = eqx.nn.Linear(2, 3, use_bias=False, key=jax.random.key(0))

    def model():
        plate = numpyro.plate("group", 4, dim=dim)
        block = px.bayesianize(prior=priors.hierarchical())
        first, second = (block, plate) if inside else (plate, block)
        with first, second:
            return px.bind(linear, "net", plate="group")

    found = sites(model, types=("sample", "deterministic"))
    lead = (4,) if dim == -1 else (4, 1)
    assert found["net.weight.scale"]["value"].shape == ()
    for name in ("net.weight_decentered", "net.weight"):
        assert found[name]["value"].shape == (*lead, 3, 2)
        assert [f.name for f in found[name]["cond_indep_stack"]] == ["group"]
    assert handlers.seed(model, 0)().weight.shape == (4, 3, 2)
    assert len(np.unique(found["net.weight"]["value"])) == 24


@pytest.mark.parametrize(
    "family", [dist.Normal, dist.Laplace, dist.Cauchy, dist.Logistic]
)
def test_the_law_is_that_of_the_distribution(family):
    linear = eqx.nn.Linear(50, 40, use_bias=False, key=jax.random.key(0))

    def model():
        with px.bayesianize(prior=lambda p: priors.NonCentered(family(1.0, 0.5))):
            return px.bind(linear, "net").weight

    draws = np.asarray(handlers.seed(model, 1)()).ravel()
    quantiles = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
    expected = family(1.0, 0.5).icdf(jnp.asarray(quantiles))
    np.testing.assert_allclose(np.quantile(draws, quantiles), expected, atol=0.12)


def test_the_shape_parameters_of_a_family_stay():
    standard = priors.NonCentered(dist.StudentT(7.0, 1.0, 0.5)).standard
    assert (standard.df, standard.loc, standard.scale) == (7.0, 0.0, 1.0)


def test_nuts_keeps_the_weight_under_its_name_and_predictive_makes_it_again():
    kernel = NUTS(regression, max_tree_depth=2)
    settings = {"num_warmup": 2, "num_samples": 4, "progress_bar": False}
    mcmc = px.infer.CompiledMCMC(kernel, **settings)
    mcmc.run(jax.random.key(0), ROWS, OBSERVED)
    draws = mcmc.get_samples()
    expected = draws[f"{W}.scale"] / 2**0.5
    expected = expected[:, None, None] * draws[f"{W}_decentered"]
    np.testing.assert_allclose(draws[W], expected, rtol=1e-5)
    again = Predictive(regression, draws)(jax.random.key(1), ROWS)
    np.testing.assert_allclose(again[W], draws[W], rtol=1e-5)
    latent = {name: value for name, value in draws.items() if name != W}
    again = Predictive(regression, latent)(jax.random.key(1), ROWS)
    np.testing.assert_allclose(again[W], draws[W], rtol=1e-5)
    tree = px.to_datatree(mcmc, ROWS, y=OBSERVED)
    assert tree.posterior[W].shape == (1, 4, 6, 2)


@pytest.mark.rank_promotion
def test_svi_holds_the_standard_form():
    guide = AutoNormal(regression)
    svi = px.infer.CompiledSVI(
        regression, guide, numpyro.optim.Adam(0.01), Trace_ELBO()
    )
    fit = svi.run(jax.random.key(0), 3, ROWS, OBSERVED, progress_bar=False)
    assert f"{W}_decentered_auto_loc" in fit.params
    assert f"{W}_auto_loc" not in fit.params
    draws = guide.sample_posterior(jax.random.key(1), fit.params, sample_shape=(4,))
    assert draws[W].shape == (4, 6, 2)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [priors.hierarchical(), priors.horseshoe()])
def test_nuts_copes_with_a_learned_scale_on_real_data(rule, el_nino):
    field, x, z, y = el_nino

    def model(x, z, y=None):
        with px.bayesianize(prior=rule):
            f = field(x, z)[..., 0]
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        with numpyro.plate("year", f.shape[0], dim=-2), numpyro.plate("month", 9):
            numpyro.sample("y", dist.Normal(f, noise), obs=y)

    with jax.numpy_rank_promotion("allow"):
        mcmc = MCMC(NUTS(model), num_warmup=150, num_samples=150, progress_bar=False)
        mcmc.run(jax.random.key(0), x, z, y=y, extra_fields=("diverging",))
    assert int(mcmc.get_extra_fields()["diverging"].sum()) == 0


@pytest.fixture
def el_nino():
    """Real data, and a field of 8 features that reads the first three months."""
    path = px.__path__[0] + "/../tutorials/data/elnino.csv"
    celsius = np.loadtxt(path, delimiter=",", skiprows=1)[:45, 1:]
    mean, std = celsius.mean(0), celsius.std(0)
    z = ((celsius - mean) / std)[:, None, :3]
    anomaly = (celsius - mean)[:, 3:]
    phase = 2 * np.pi * np.arange(3, 12) / 12
    x = np.stack([np.cos(phase), np.sin(phase)], axis=-1)[None]
    keys = jax.random.split(jax.random.key(0))
    inner = px.nn.SIREN.init(
        2, 8, 1, depth=3, first_omega=2.0, hidden_omega=3.0, key=keys[0]
    )
    field = px.nn.ConditionedINR.init(
        inner, conditioner_cls=px.nn.FiLM, cond_dim=3, key=keys[1]
    )
    return field, *map(jnp.float32, (x, z, anomaly / anomaly.std()))
