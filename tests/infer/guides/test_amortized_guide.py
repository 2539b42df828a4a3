"""AmortizedGuide: exact local posteriors, supports, plates, and bad input."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO, autoguide

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledSVI

KEY = jax.random.key(0)
NOISE = 0.5


def linear_gaussian(loadings):
    def model(y):
        shift = numpyro.sample("shift", dist.Normal(0.0, 10.0))
        size = min(100, len(y))
        with numpyro.plate("data", len(y), subsample_size=size) as rows:
            u = numpyro.sample("u", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            mean = u @ loadings.T + shift
            numpyro.sample("y", dist.Normal(mean, NOISE).to_event(1), obs=y[rows])

    return model


@pytest.mark.rank_promotion
@pytest.mark.parametrize(
    ("family", "loadings", "steps", "particles"),
    [
        ("diagonal", [[1.0, 0.0], [0.0, 1.5], [1.0, 0.0]], 1500, 1),
        pytest.param(
            "full", [[1.0, 0.3], [0.5, -1.0], [0.2, 0.8]], 2000, 10,
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_the_local_posteriors_are_the_exact_ones(family, loadings, steps, particles):
    loadings = np.array(loadings)
    rng = np.random.default_rng(0)
    y = rng.normal(size=(2000, 2)) @ loadings.T + 0.7
    y = jnp.float32(y + NOISE * rng.normal(size=(2000, 3)))
    model = linear_gaussian(jnp.float32(loadings))
    width = 4 if family == "diagonal" else 5
    guide = px.AmortizedGuide(
        model, eqx.nn.Linear(3, width, key=KEY),
        plate="data", context=lambda y: y, family=family,
    )  # fmt: skip
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, steps))
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=particles))
    fit = svi.run(KEY, steps, y, progress_bar=False)
    new = jnp.float32(rng.normal(size=(50, 3)))
    posterior = guide.posterior(fit.params, new)["u"]
    covariance = np.linalg.inv(np.eye(2) + loadings.T @ loadings / NOISE**2)
    shift = float(fit.params["shift_auto_loc"])
    exact = (new - shift) @ loadings / NOISE**2 @ covariance
    assert shift == pytest.approx(0.7, abs=0.1)
    error = np.abs(posterior.mean - exact).max(0) / exact.std(0)
    assert error.max() < 0.05
    ratio = posterior.variance / np.diag(covariance)
    np.testing.assert_allclose(ratio, 1.0, atol=0.05)


PAIR = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
STICKS = dist.transforms.StickBreakingTransform()  # a simplex that is cheap to draw


def many_sites(y, b=4):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    numpyro.deterministic("twice", 2 * scale)
    with numpyro.plate("data", len(y), subsample_size=min(b, len(y)), dim=-2) as rows:
        p = numpyro.sample("p", dist.TransformedDistribution(PAIR, STICKS))
        r = numpyro.sample("r", dist.HalfNormal(1.0))
        with numpyro.plate("time", 4, dim=-1):
            t = numpyro.sample("t", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(t * r + p[..., 0], scale), obs=y[rows])


Y = jax.random.normal(KEY, (6, 4))
DIM = 2 + 1 + 4  # of a datum, in unconstrained space


def guide_of(model=many_sites, family="diagonal", **options):
    width = DIM + (DIM if family == "diagonal" else DIM * (DIM + 1) // 2)
    given = {"plate": "data", "context": lambda y, b=4: y, "family": family}
    encoder = eqx.nn.Linear(4, width, key=KEY)
    return px.AmortizedGuide(model, **{"encoder": encoder, **given, **options})


@pytest.fixture(
    scope="module", params=["diagonal", pytest.param("full", marks=pytest.mark.slow)]
)
def fitted(request):
    guide = guide_of(family=request.param)
    # Compiled whole: NumPyro's start is a few hundred small programs.
    svi = CompiledSVI(
        many_sites, guide, numpyro.optim.Adam(0.01), TraceMeanField_ELBO()
    )
    with jax.numpy_rank_promotion("allow"):
        fit = svi.run(KEY, 20, Y, progress_bar=False)
    assert np.isfinite(fit.losses).all()
    return guide, fit.params


@pytest.mark.rank_promotion
def test_supports_and_inner_plates_keep_their_shapes(fitted):
    guide, params = fitted
    assert {"encoder.weight", "encoder.bias", "scale_auto_loc"} <= params.keys()
    draws = guide.sample_posterior(KEY, params, Y, sample_shape=(3, 2))
    shapes = {name: value.shape for name, value in draws.items()}
    assert shapes == {
        "scale": (3, 2),
        "p": (3, 2, 4, 1, 3),
        "r": (3, 2, 4, 1),
        "t": (3, 2, 4, 4),
    }
    np.testing.assert_allclose(draws["p"].sum(-1), 1.0, rtol=1e-5)
    assert (draws["r"] > 0).all()


@pytest.mark.rank_promotion
def test_the_posterior_of_data_is_what_the_guide_samples(fitted):
    guide, params = fitted
    draws = guide.sample_posterior(KEY, params, Y, b=6, sample_shape=(2000,))
    for name, law in guide.posterior(params, Y).items():
        ours = law.sample(jax.random.key(1), (2000,))
        assert ours.shape == draws[name].shape
        # The medians of 2000 draws differ by 0.04 standard deviations, five times this
        # is no chance.
        apart = np.abs(np.median(ours, 0) - np.median(draws[name], 0))
        assert (apart < 0.2 * ours.std(0)).all()


def test_a_vector_in_an_outer_plate_has_a_mean_and_a_covariance():
    def model(y):
        with numpyro.plate("data", len(y), dim=-2):
            numpyro.sample("u", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    encoder = eqx.nn.Linear(4, 5, key=KEY)
    guide = guide_of(model, "full", encoder=encoder, context=lambda y: y)
    laws_of(guide)
    params = {"encoder.weight": encoder.weight, "encoder.bias": encoder.bias}
    law = guide.posterior(params, Y)["u"]
    raw = np.asarray(jax.vmap(encoder)(Y))
    factor = np.zeros((6, 2, 2))
    factor[:, 1, 0] = raw[:, 2]
    factor[:, [0, 1], [0, 1]] = jax.nn.softplus(raw[:, 3:])
    assert law.shape() == (6, 1, 2)
    np.testing.assert_allclose(law.mean[:, 0], raw[:, :2], rtol=1e-6)
    expected = factor @ factor.swapaxes(1, 2)
    np.testing.assert_allclose(law.covariance_matrix[:, 0], expected, rtol=1e-4)


@pytest.mark.rank_promotion
def test_predictive_takes_data_of_another_number(fitted):
    guide, params = fitted
    predict = Predictive(many_sites, guide=guide, params=params, num_samples=2)
    draws = predict(KEY, Y[:3], b=3)
    assert {n: v.shape for n, v in draws.items()} == {"twice": (2,), "y": (2, 3, 4)}


@pytest.mark.rank_promotion
def test_the_log_density_is_that_by_hand_under_the_scale_of_the_minibatch():
    guide = guide_of(family="full")
    with handlers.seed(rng_seed=0):
        trace = handlers.trace(guide).get_trace(Y)
    diagonal = handlers.trace(handlers.seed(guide_of(), 0)).get_trace(Y)
    members = np.asarray(trace["data"]["value"])
    assert len(members) == 4
    assert {trace[n]["scale"] for n in ("_encoder_latent", "p", "t")} == {1.5}
    net = guide.encoder
    # The Gaussian pushed to the supports: each datum's, from its own context.
    raw = jax.vmap(net)(Y[members])
    latent = trace["_encoder_latent"]["value"].reshape(4, DIM)
    np.testing.assert_allclose(trace["r"]["value"][:, 0], jnp.exp(latent[:, 2]), 1e-5)
    np.testing.assert_allclose(trace["t"]["value"], latent[:, 3:], rtol=1e-5)
    jacobian = trace["r"]["fn"].log_prob(trace["r"]["value"])[:, 0]
    np.testing.assert_allclose(jacobian, -latent[:, 2], rtol=1e-5)
    factor = np.zeros((4, DIM, DIM))
    factor[:, *np.tril_indices(DIM, -1)] = raw[:, DIM:-DIM]
    factor += np.asarray(jax.nn.softplus(raw[:, -DIM:]))[:, :, None] * np.eye(DIM)
    law = trace["_encoder_latent"]["fn"]
    np.testing.assert_allclose(law.loc[:, 0], raw[:, :DIM], rtol=1e-5)
    np.testing.assert_allclose(law.scale_tril[:, 0], factor, rtol=1e-4, atol=1e-6)
    raw = jax.vmap(guide_of().encoder)(Y[np.asarray(diagonal["data"]["value"])])
    by_hand = dist.Normal(raw[:, 3:7], jax.nn.softplus(raw[:, 10:]))
    value = diagonal["t"]["value"]
    np.testing.assert_allclose(
        diagonal["t"]["fn"].log_prob(value), by_hand.log_prob(value), rtol=1e-5
    )


def laws_of(guide, y=Y):
    """The distributions of the sites of a guide that runs for the first time.

    As shapes: which they are, and what is refused, needs no values.
    """
    laws = {}

    def run():
        for name, site in handlers.trace(handlers.seed(guide, 0)).get_trace(y).items():
            laws[name] = site.get("fn")

    jax.eval_shape(run)
    return laws


@pytest.mark.rank_promotion
def test_the_other_latents_get_the_guide_that_is_asked_for():
    hidden = handlers.block(many_sites, hide=["p", "r", "t", "twice"])
    for given in (autoguide.AutoDelta, autoguide.AutoDelta(hidden)):
        assert isinstance(laws_of(guide_of(guide=given))["scale"], dist.Delta)
    overlapping = guide_of(guide=autoguide.AutoNormal(many_sites))
    with pytest.raises(ValueError, match="samples the local sites"):
        laws_of(overlapping)


def only_global(y):
    mean = numpyro.sample("m", dist.Normal())
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(mean), obs=y)


def discrete(y):
    with numpyro.plate("data", len(y)):
        numpyro.sample("k", dist.Poisson(1.0))


@pytest.mark.rank_promotion
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"plate": "rows"}, r"no plate 'rows'.*\['data', 'time'\]"),
        ({"model": discrete}, "is discrete"),
        (
            {"encoder": eqx.nn.Linear(4, 9, key=KEY)},
            r"returns \(9,\).*must return \(14,\)",
        ),
        ({"context": lambda y: y[:5]}, r"6 for the whole plate.*\(5, 4\)"),
        ({"context": lambda y: 1.0}, "first axis"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        laws_of(guide_of(**options))


def test_a_plate_without_latents_is_refused():
    with pytest.raises(ValueError, match=r"no latent site.*\['m'\]"):
        laws_of(guide_of(only_global), Y[:, 0])


@pytest.mark.wrong_types
def test_what_can_be_seen_at_once_is_refused_at_once():
    with pytest.raises(ValueError, match="family"):
        guide_of(family="full ")
    with pytest.raises(ValueError, match="no parameters to learn"):
        guide_of(encoder=lambda y: y)
    with pytest.raises(ValueError, match="has not seen the model"):
        guide_of().posterior({}, Y)
    with (
        pytest.warns(UserWarning, match="seed"),  # NumPyro's own
        pytest.raises(ValueError, match="PRNG key from a handler"),
    ):
        guide_of()(Y)


@pytest.mark.rank_promotion
def test_params_of_another_guide_are_refused():
    guide = guide_of()
    handlers.seed(guide, 0)(Y)
    with pytest.raises(ValueError, match=r"params lacks.*encoder\.weight"):
        guide.posterior({"scale_auto_loc": 0.0}, Y)
