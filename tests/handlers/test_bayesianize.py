"""bayesianize: every form of a prior, and what does not fit."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from models import H, Z, make_field, make_film, make_mlp, run, sites
from numpyro.handlers import seed, trace
from numpyro.infer.util import log_density

import pyrox_ppl as px
from pyrox_ppl.nn import SIREN

WEIGHT = "affine_modulation.generator.weight"
BIAS = "affine_modulation.generator.bias"


def film_model(**kwargs):
    def model():
        with px.bayesianize(**kwargs):
            return make_film()(H, Z)

    return model


def scales(model):
    return {n: float(s["fn"].variance.max()) ** 0.5 for n, s in sites(model).items()}


def test_every_axis_is_an_event_axis_and_the_entries_are_independent():
    found = sites(film_model(prior_std=0.5))
    value = found[WEIGHT]["value"]
    assert found[WEIGHT]["fn"].event_shape == (6, 2)
    assert found[WEIGHT]["fn"].batch_shape == ()
    log_prob = float(found[WEIGHT]["fn"].log_prob(value))
    by_hand = -np.sum((np.asarray(value) / 0.5) ** 2) / 2
    by_hand -= 12 * np.log(0.5 * np.sqrt(2 * np.pi))
    assert log_prob == pytest.approx(float(by_hand), rel=1e-5)


def test_the_draw_is_what_the_module_computes_with():
    film = make_film()

    def model():
        with px.bayesianize():
            return film(H, Z)

    found = sites(model, seed=5)
    by_hand = eqx.tree_at(
        lambda f: (f.generator.weight, f.generator.bias),
        film,
        (found[WEIGHT]["value"], found[BIAS]["value"]),
    )
    np.testing.assert_allclose(run(model, seed=5), by_hand(H, Z), rtol=1e-6)


def test_a_distribution_is_the_prior_of_every_entry():
    found = sites(film_model(prior=dist.Laplace(1.0, 2.0)))
    np.testing.assert_array_equal(found[BIAS]["fn"].mean, np.ones(6))
    np.testing.assert_allclose(found[WEIGHT]["fn"].variance, 8.0 * np.ones((6, 2)))


def test_a_dict_of_globs_the_first_match_wins():
    rules = {
        "*.bias": dist.Normal(0.0, 0.1),
        "*generator*": lambda p: dist.Normal(0.0, p.fan_in**-0.5),
    }
    expected = {WEIGHT: pytest.approx(2**-0.5), BIAS: pytest.approx(0.1)}
    assert scales(film_model(prior=rules)) == expected


@pytest.mark.rank_promotion
def test_a_prior_broadcasts_over_the_leading_axes():
    per_input = dist.Normal(0.0, jnp.array([1.0, 2.0]))
    found = sites(film_model(prior={"*.weight": per_input, "*": dist.Normal(0.0, 1.0)}))
    expected = np.broadcast_to([1.0, 4.0], (6, 2))
    np.testing.assert_allclose(found[WEIGHT]["fn"].variance, expected)


@pytest.mark.rank_promotion
def test_a_multivariate_prior_takes_the_last_axis():
    covariance = jnp.array([[1.0, 0.5], [0.5, 1.0]])
    rules = {
        "*.weight": dist.MultivariateNormal(jnp.zeros(2), covariance),
        "*": dist.Normal(0.0, 1.0),
    }
    site = sites(film_model(prior=rules))[WEIGHT]
    assert site["fn"].event_shape == (6, 2)
    row = dist.MultivariateNormal(jnp.zeros(2), covariance)
    by_hand = sum(float(row.log_prob(value)) for value in site["value"])
    log_prob = float(site["fn"].log_prob(site["value"]))
    assert log_prob == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("prior", "error", "match"),
    [
        (dist.Normal(jnp.zeros(7), 1.0), ValueError, r"batch shape \(7,\)"),
        (dist.Normal(jnp.zeros((2, 6, 2)), 1.0), ValueError, "does not broadcast"),
        (dist.Dirichlet(jnp.ones(3)), ValueError, r"event shape \(3,\)"),
        (dist.LKJ(3), ValueError, "does not broadcast"),
        (dist.Poisson(1.0), ValueError, "discrete"),
        (lambda p: 0.3, TypeError, "distribution"),
        (0.3, TypeError, "distribution"),
        ({"*": 0.3}, TypeError, "distribution"),
        ({3: dist.Normal(0.0, 1.0)}, TypeError, "glob"),
    ],
)
def test_a_prior_that_does_not_fit_is_refused(prior, error, match):
    with pytest.raises(error, match=match):
        sites(film_model(prior=prior))


@pytest.mark.parametrize("prior_std", [0, -1.0, float("inf"), float("nan")])
def test_prior_std_must_be_positive(prior_std):
    with pytest.raises(ValueError, match="prior_std"):
        px.bayesianize(prior_std=prior_std)


def test_prior_and_prior_std_together_are_refused():
    with pytest.raises(ValueError, match="not both"):
        px.bayesianize(prior_std=0.5, prior=dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("where", [3, [], ["*", 3]])
def test_where_of_another_type_is_refused(where):
    with pytest.raises(TypeError, match="where"):
        px.bayesianize(where=where)


def test_a_traced_prior_std_is_a_hierarchical_scale():
    film = make_film()

    def model():
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        with px.bayesianize(prior_std=scale):
            film(H, Z)

    params = {"scale": 0.3, WEIGHT: jnp.ones((6, 2)), BIAS: jnp.ones(6)}
    logp, _ = log_density(model, (), {}, params)
    by_hand = dist.HalfNormal(1.0).log_prob(0.3)
    by_hand += 18 * dist.Normal(0, 0.3).log_prob(1.0)
    assert float(logp) == pytest.approx(float(by_hand), rel=1e-5)


def hierarchical(parameter):
    scale = numpyro.sample(f"{parameter.name}.scale", dist.HalfNormal(2.0))
    return dist.Normal(0.0, scale)


def test_a_prior_may_sample_and_its_sites_are_global():
    film = make_film()

    def model():
        with (
            numpyro.plate("outside", 5),
            px.scope("net"),
            px.bayesianize(prior=hierarchical),
            px.scope("inner"),
            numpyro.plate("inside", 7),
        ):
            film(H, Z)
            film(H, Z)

    found = sites(model)
    assert {name: site["value"].shape for name, site in found.items()} == {
        f"net.inner.{WEIGHT}.scale": (),
        f"net.inner.{WEIGHT}": (6, 2),
        f"net.inner.{BIAS}.scale": (),
        f"net.inner.{BIAS}": (6,),
    }
    assert all(site["cond_indep_stack"] == [] for site in found.values())


def test_the_density_of_a_hierarchical_prior_is_that_by_hand():
    params = {
        f"{WEIGHT}.scale": 0.3, WEIGHT: jnp.ones((6, 2)),
        f"{BIAS}.scale": 0.6, BIAS: jnp.ones(6),
    }  # fmt: skip
    logp, _ = log_density(film_model(prior=hierarchical), (), {}, params)
    by_hand = sum(
        dist.HalfNormal(2.0).log_prob(s) + n * dist.Normal(0, s).log_prob(1.0)
        for s, n in ((0.3, 12), (0.6, 6))
    )
    assert float(logp) == pytest.approx(float(by_hand), rel=1e-5)


def test_by_default_the_generators_are_bayesian_and_the_backbone_is_not():
    field = make_field(depth=4)

    def model(**kwargs):
        with px.bayesianize(**kwargs):
            field(jnp.ones(2), Z)

    assert len(sites(model)) == 6
    assert all(".conditioners." in name for name in sites(model))
    whole = sites(lambda: model(where="*"))
    backbone = sites(lambda: model(where=px.is_backbone))
    assert len(whole) == 14
    assert set(whole) - set(sites(model)) == set(backbone)
    assert all(".inner." in name for name in backbone)


@pytest.mark.parametrize(
    "module",
    [make_mlp(), SIREN.init(2, 4, 1, depth=2, key=jax.random.key(0))],
    ids=["mlp", "siren"],
)
def test_a_module_that_holds_no_generator_is_taken_whole(module):
    def model():
        with px.bayesianize():
            px.bind(module, "net")

    assert len(sites(model)) == 4


def test_in_a_users_module_conditioners_are_generators_and_the_rest_is_backbone():
    class Net(eqx.Module):
        encoder: eqx.nn.Linear
        films: list

    net = Net(eqx.nn.Linear(2, 3, key=jax.random.key(0)), [make_film(0), make_film(1)])

    def model():
        with px.bayesianize():
            px.bind(net)

    assert sorted(sites(model)) == [
        f"net.films.{i}.generator.{leaf}" for i in (0, 1) for leaf in ("bias", "weight")
    ]


def test_it_decorates_a_model_as_every_numpyro_handler():
    film = make_film()
    plain = px.bayesianize(lambda h: film(h, Z), prior_std=0.2)
    assert set(trace(seed(plain, 0)).get_trace(H)) == {WEIGHT, BIAS}

    @px.bayesianize
    def decorated(h):
        """A model."""
        return film(h, Z)

    assert set(trace(seed(decorated, 0)).get_trace(H)) == {WEIGHT, BIAS}
    assert decorated.__doc__ == "A model."

    with_options = px.bayesianize(prior_std=0.2)(lambda h: film(h, Z))
    assert set(trace(seed(with_options, 0)).get_trace(H)) == {WEIGHT, BIAS}


def test_the_log_determinant_and_the_call_see_one_value():
    film = px.nn.FiLM.init(3, 2, key=jax.random.key(0), gamma_activation="exp")

    def model():
        with px.bayesianize():
            jacobian = jax.jacfwd(lambda h: film(h, Z))(H)
            return film.log_det(Z), jnp.linalg.slogdet(jacobian)[1]

    assert len(sites(model)) == 2
    np.testing.assert_allclose(*run(model), rtol=1e-4)
