"""What AutoLaplace refuses, and what it says."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.autoguide import AutoGuideList, AutoNormal

import pyrox_ppl as px
from pyrox_ppl.infer import AutoLaplace, MinibatchLoader

pytestmark = pytest.mark.rank_promotion
X = jnp.linspace(-1.0, 1.0, 12)
Y = 0.8 * X
# The mode of the regression below.
BEST = float(jnp.sum(X * Y) / 0.25 / (jnp.sum(X**2) / 0.25 + 1.0))
FIT = {"slope_auto_loc": jnp.array(BEST)}
KEY = jax.random.key(0)


def model(x, y=None, rows=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", rows or len(x), subsample_size=len(x)):
        numpyro.sample("y", dist.Normal(slope * x, 0.5), obs=y)


def seen(model, *args, structure="full", **kwargs):
    """A guide that has seen the model."""
    options = {n: kwargs.pop(n) for n in ("where", "linearized") if n in kwargs}
    guide = AutoLaplace(model, structure, **options)
    with handlers.seed(rng_seed=0), handlers.block():
        guide(*args, **kwargs)
    return guide


@pytest.fixture(scope="module")
def guide():
    return seen(model, X, Y)


def test_a_posterior_needs_curvature(guide):
    for ask in (
        lambda: guide.sample_posterior(KEY, FIT),
        lambda: guide.quantiles(FIT, [0.5]),
        lambda: guide.log_evidence(FIT),
        lambda: guide.tune_prior(FIT, X, Y),
        lambda: px.to_datatree(FIT, X, Y, guide=guide),
    ):
        with pytest.raises(ValueError, match="call fit = guide"):
            ask()
    with pytest.raises(ValueError, match="has not seen the model"):
        AutoLaplace(model).add_curvature(FIT, X, Y)


def test_a_fit_of_another_guide_is_refused(guide):
    with pytest.raises(ValueError, match=r"no location for the sites \['slope'\]"):
        guide.add_curvature({"other_auto_loc": jnp.zeros(())}, X, Y)
    fit = guide.add_curvature(FIT, X, Y)
    with pytest.raises(ValueError, match="another structure than 'low_rank'"):
        seen(model, X, Y, structure="low_rank").sample_posterior(KEY, fit)


def test_what_is_no_mode_is_refused_unless_it_is_accepted(guide):
    for params, y in [({"slope_auto_loc": jnp.array(BEST + 0.5)}, Y), (FIT, -Y)]:
        with pytest.raises(ValueError, match="no mode for these data"):
            guide.add_curvature(params, X, y)
        assert guide.add_curvature(params, X, y, max_decrement=100.0)
    nan = {"slope_auto_loc": jnp.array(jnp.nan)}
    with pytest.raises(ValueError, match=r"no mode for these data|not finite"):
        guide.add_curvature(nan, X, Y, max_decrement=jnp.inf)


def test_a_part_of_the_data_is_refused(guide):
    loader = MinibatchLoader((np.asarray(X), np.asarray(Y)), 5, rng_key=KEY)
    assert guide.add_curvature(FIT, loader, rows=12)
    with pytest.raises(ValueError, match=r"batch of 5 of 12 rows .* has the scale 1"):
        guide.add_curvature(FIT, loader)
    with pytest.raises(ValueError, match=r"sees a part of its data.*'row'"):
        guide.add_curvature(FIT, X[:5], Y[:5], rows=12)
    with pytest.raises(ValueError, match="as in the fit"):
        guide.add_curvature(FIT, X)


def scaled(x, y, scale=lambda x: 12 / len(x), other=1.0):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    for name, factor in (("y", 1.0), ("other", other)):
        with handlers.scale(scale=factor * scale(x)):
            numpyro.sample(name, dist.Normal(slope * x, 0.5), obs=y)


def drawn_again(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 12, subsample_size=len(x)) as rows:
        x, y = jnp.asarray(x)[rows], jnp.asarray(y)[rows]
        numpyro.sample("y", dist.Normal(slope * x, 0.5), obs=y)


# The last batch has two rows.
BATCHES = MinibatchLoader((np.asarray(X), np.asarray(Y)), 5, rng_key=KEY)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda x, y: scaled(x, y, lambda x: jnp.ones(()) / 1.0),
            "'y' has the scale 1",
        ),
        (lambda x, y: scaled(x, y, other=len(x) / 12), "'other' has the scale 1:"),
        (handlers.scale(model, scale=12 / 5), "scale 2.4, as the prior of 'slope' has"),
        (
            lambda x, y: scaled(x, y, lambda x: 12 / 5),
            r"'y' has the scales 2.4 and 2.4",
        ),
        (lambda x, y: model(x, y, rows=60), "plate 'row' takes 5 of 60 rows"),
        (drawn_again, "rows that the plate 'row' draws, of 12"),
    ],
)
def test_batches_that_do_not_count_for_all_rows_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        seen(wrong, X, Y).add_curvature(FIT, BATCHES, max_decrement=np.inf)


@pytest.mark.parametrize("prior", [1.0, 0.3])
def test_a_tempered_likelihood_is_tempered_in_batches_too(prior):
    likelihood = 0.3 * 12 / prior

    def tempered(x, y):
        with handlers.scale(scale=prior):
            scaled(x, y, lambda x: likelihood / len(x))

    guide = seen(tempered, X, Y)
    fit = guide.add_curvature(FIT, BATCHES, max_decrement=np.inf)
    spread = guide.quantiles(fit, [0.5, 0.8413447])["slope"]
    precision = prior + 0.3 * 2 * jnp.sum(X**2) / 0.25
    np.testing.assert_allclose(spread[1] - spread[0], precision**-0.5, rtol=1e-3)


def per_row(x, y):
    with numpyro.plate("row", len(x), subsample_size=4) as rows:
        u = numpyro.sample("u", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(u, 1.0), obs=y[rows])


def discrete(x, y):
    z = numpyro.sample("z", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(z * x, 1.0).to_event(1), obs=y)


def test_models_without_a_mode_are_refused():
    with pytest.raises(ValueError, match="'u' stands in the plate 'row'"):
        seen(per_row, X, Y)
    with pytest.raises(Exception, match="discrete"):
        seen(discrete, X, Y)
    with pytest.raises(RuntimeError, match="no latent sites"):
        seen(lambda x: numpyro.sample("y", dist.Normal(0.0, 1.0), obs=1.0), X)
    with pytest.raises(ValueError, match=r"the globs \['slop'\] of `where`"):
        seen(model, X, Y, where="slop")
    with pytest.raises(ValueError, match="predicate `where` selects no site"):
        seen(model, X, Y, where=lambda parameter: True)


@pytest.mark.wrong_types
def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="structure must be"):
        AutoLaplace(model, "dense")
    with pytest.raises(ValueError, match="rank must be at least 1"):
        AutoLaplace(model, damping=-1.0)


def flat(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    free = numpyro.sample("free", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(slope * x + 0 * free, 0.5).to_event(1), obs=y)


def test_a_singular_precision_is_refused_or_damped():
    fit = {**FIT, "free_auto_loc": jnp.zeros(())}
    values = {"slope": jnp.array(0.0), "free": jnp.array(0.0)}
    guide = AutoLaplace(
        flat, "full", init_loc_fn=numpyro.infer.init_to_value(values=values)
    )
    with handlers.seed(rng_seed=0), handlers.block():
        guide(X, Y)
    with pytest.raises(ValueError, match="'free'"):
        guide.add_curvature(fit, X, Y)
    guide.damping = 0.1
    fit = guide.add_curvature(fit, X, Y)
    spread = guide.quantiles(fit, [0.5, 0.8413447])["free"]
    np.testing.assert_allclose(spread[1] - spread[0], 10**0.5, rtol=1e-3)


def hierarchical(x, y):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.1))
    slope = numpyro.sample("slope", dist.Normal(0.0, scale))
    numpyro.sample("y", dist.Normal(slope * x, 0.5).to_event(1), obs=y)


def test_only_normal_priors_of_fixed_scale_are_tuned():
    fit = {**FIT, "scale_auto_loc": jnp.ones(())}
    guide = seen(hierarchical, X, Y)
    fit = guide.add_curvature(fit, X, Y, max_decrement=jnp.inf)
    with pytest.raises(ValueError, match=r"'slope' depends on \['scale'\]"):
        guide.tune_prior(fit, X, Y, groups=["slope"])
    with pytest.raises(ValueError, match="'scale' is LogNormal"):
        guide.tune_prior(fit, X, Y)
    with pytest.raises(ValueError, match="in several of the groups"):
        guide.tune_prior(fit, X, Y, groups=["slope", "s*"])


def test_a_part_of_a_list_of_guides_cannot_linearise():
    def two(x, y):
        offset = numpyro.sample("offset", dist.Normal(0.0, 1.0))
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(slope * x + offset, 0.5).to_event(1), obs=y)

    guide = AutoGuideList(two)
    part = AutoLaplace(handlers.block(two, hide=["offset"]), "full")
    guide.append(part)
    guide.append(AutoNormal(handlers.block(two, hide=["slope"])))
    with handlers.seed(rng_seed=0), handlers.block():
        guide(X, Y)
    fit = part.add_curvature(FIT, X, Y, model=model, max_decrement=jnp.inf)
    fit |= {"offset_auto_loc": jnp.zeros(()), "offset_auto_scale": jnp.ones(())}
    with pytest.raises(ValueError, match="a part of this AutoGuideList linearises"):
        px.to_datatree(fit, X, Y, guide=guide)


def test_a_tangent_of_integers_is_refused():
    linear = eqx.nn.Linear(1, 3, key=KEY)

    def classes(x, y=None):
        with px.bayesianize():
            net = px.bind(linear, "net")
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Categorical(logits=jax.vmap(net)(x)), obs=y)

    x, y = X[:, None], jnp.arange(12) % 3
    guide = seen(classes, x, y)
    fit = {f"net.{part}_auto_loc": getattr(linear, part) for part in ("weight", "bias")}
    fit = guide.add_curvature(fit, x, y, max_decrement=jnp.inf)
    tree = px.to_datatree(fit, x, y, guide=guide, num_samples=5)

    def label(net, x):
        return jnp.argmax(jax.vmap(net)(x), -1)

    with pytest.raises(ValueError, match="cannot be linearised"):
        px.predict(linear, tree, x, call=label, name="net")
    probability = px.predict(classes, tree, x)["y"].mean
    np.testing.assert_allclose(probability.sum(-1), 1.0, rtol=1e-5)
    middle = px.module_from_mean(linear, tree, name="net")
    np.testing.assert_array_equal(middle.weight, linear.weight)


def test_kronecker_factors_need_a_prior_that_is_a_product():
    # A Student-t curves less at a large weight.
    layer = eqx.nn.Linear(2, 2, use_bias=False, key=KEY)

    def student(x, y):
        with px.bayesianize(prior=px.priors.student_t()):
            net = px.bind(layer, "net")
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(jax.vmap(net)(x), 0.5).to_event(1), obs=y)

    x = jnp.stack([X, X**2], axis=1)
    guide = seen(student, x, x, structure="kron")
    fit = {"net.weight_auto_loc": jnp.array([[1.0, 0.1], [0.0, 0.9]])}
    with pytest.raises(ValueError, match=r"'net\.weight' .* Use structure='diag'"):
        guide.add_curvature(fit, x, x, max_decrement=jnp.inf)
