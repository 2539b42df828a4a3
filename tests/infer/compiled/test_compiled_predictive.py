"""CompiledPredictive: NumPyro's predictions, one compilation, and nothing stale."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from compilations import compilations
from numpyro import handlers
from numpyro.infer import Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal

import pyrox_ppl as px
from pyrox_ppl.infer import AmortizedGuide, CompiledPredictive, CompiledSVI

# NumPyro's own functions broadcast.
pytestmark = pytest.mark.rank_promotion

X = jnp.linspace(-1.0, 1.0, 4)
KEY = jax.random.key(1)


def model(x, y=None, power=1):
    scale = numpyro.param("scale", 0.5)
    weight = numpyro.sample("weight", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    mean = numpyro.deterministic("mean", weight[0] + weight[1] * x**power)
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Normal(mean, scale), obs=y)


def rejecting(x):
    """Samplers that loop until they accept."""
    shape = numpyro.sample("shape", dist.Gamma(2.0, 1.0))
    numpyro.sample("count", dist.Poisson(4.0 * shape * x))


def draws(number, seed=2):
    return {"weight": jax.random.normal(jax.random.key(seed), (number, 2))}


def assert_same(ours, numpyros):
    assert ours.keys() == numpyros.keys()
    for name, values in numpyros.items():
        assert (ours[name].shape, ours[name].dtype) == (values.shape, values.dtype)
        np.testing.assert_allclose(ours[name], values, rtol=1e-5, atol=1e-5)


def both(*args, inputs=(X,), key=KEY, **kwargs):
    """Ours is what NumPyro's returns; ours is given back."""
    ours = CompiledPredictive(*args, **kwargs)
    assert_same(ours(key, *inputs), Predictive(*args, **kwargs)(key, *inputs))
    return ours


@pytest.mark.parametrize(
    "settings",
    [
        {"posterior_samples": draws(6)},
        {"posterior_samples": draws(5), "params": {"scale": jnp.asarray(0.1)}},
        {"posterior_samples": draws(1)},
        {"posterior_samples": draws(6), "parallel": True},
        {"posterior_samples": draws(6), "return_sites": ["mean", "weight"]},
        {"posterior_samples": draws(6), "return_sites": {"y", "mean"}},
        {"posterior_samples": {"weight": jnp.ones(2)}, "batch_ndims": 0},
        {"posterior_samples": {"weight": draws(6)["weight"].reshape(2, 3, 2)}}
        | {"batch_ndims": 2},
        {"num_samples": 4, "batch_ndims": 0},
        {"num_samples": 5, "batch_ndims": 2},
        {"num_samples": 1},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_it_returns_what_numpyros_returns(settings):
    both(model, **settings)


def test_a_deterministic_site_among_the_draws_is_computed_or_taken():
    name = "condition_deterministic"
    if name not in CompiledPredictive(model, num_samples=1).__dict__:
        pytest.skip("NumPyro 0.21 has it under another name")
    samples = draws(3) | {"mean": jnp.full((3, 4), 100.0)}
    taken = both(model, samples, condition_deterministic=True)
    assert taken(KEY, X)["y"].min() > 90.0
    taken.condition_deterministic = False
    assert taken(KEY, X)["y"].max() < 90.0


def test_samplers_that_reject_draw_the_same_in_pairs():
    both(rejecting, num_samples=7, key=jax.random.PRNGKey(0), inputs=(jnp.ones(2),))


def test_discrete_sites_are_inferred_as_numpyro_does():
    pytest.importorskip("funsor")

    def mixture(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Normal(mean + 2.0 * z, 0.5), obs=y)

    samples = {"mean": jnp.linspace(-0.5, 0.5, 3)}
    both(mixture, samples, infer_discrete=True, inputs=(jnp.ones(20),))


@pytest.fixture(scope="module")
def guide():
    """A guide that is set up, and params that are no initial ones."""
    guide = AutoNormal(model)
    svi = CompiledSVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
    params = svi.get_params(svi.init(KEY, X, 2.0 * X))
    return guide, {name: value + 0.3 for name, value in params.items()}


@pytest.mark.parametrize("parallel", [False, True])
def test_a_guide(guide, parallel):
    settings = {"guide": guide[0], "num_samples": 4, "parallel": parallel}
    ours = both(model, params=guide[1], **settings)
    ours.params = {name: value + 1.0 for name, value in guide[1].items()}
    with compilations() as names:
        moved = ours(KEY, X)["mean"]
    assert not names
    expected = Predictive(model, params=ours.params, **settings)(KEY, X)["mean"]
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parallel", [False, True])
def test_a_batch_of_params(guide, parallel):
    shifts = jnp.array([0.0, 0.1, 0.2])
    params = jax.tree.map(lambda v: jax.vmap(lambda s: v + s)(shifts), guide[1])
    settings = {"num_samples": 2, "batch_ndims": 1, "parallel": parallel}
    params["scale"] = jnp.asarray([[0.5], [0.6], [0.7]])

    def local(x):
        weight = numpyro.sample("weight", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.deterministic("mean", weight[0] + weight[1] * x)

    ours = both(local, guide=guide[0], params=params, **settings)
    assert ours(KEY, X)["mean"].shape == (2, 3, 4)


def test_a_second_call_compiles_nothing_and_is_not_stale():
    ours = both(model, draws(6), params={"scale": jnp.asarray(0.5)})
    ours.posterior_samples, ours.params = draws(6, 7), {"scale": jnp.asarray(0.01)}
    key, x = jax.block_until_ready((jax.random.key(5), X + 1.0))
    numpyros = Predictive(model, ours.posterior_samples, params=ours.params)
    expected = numpyros(key, x)
    with compilations() as names:
        predicted = ours(key, x)
    assert not names
    assert_same(predicted, expected)


def test_other_settings_between_calls_are_heeded():
    ours = both(model, draws(6))
    ours.posterior_samples = draws(3)
    assert_same(ours(KEY, X), Predictive(model, draws(3))(KEY, X))
    assert ours.num_samples == 3
    ours.return_sites = ["mean"]
    assert ours(KEY, X).keys() == {"mean"}
    assert_same(
        ours(KEY, X[:2]), both(model, draws(3), return_sites=["mean"])(KEY, X[:2])
    )
    ours.posterior_samples, ours.num_samples = {}, 2
    assert ours(KEY, X)["mean"].shape == (2, 4)
    ours.num_samples = 5
    assert ours(KEY, X)["mean"].shape == (5, 4)
    ours.posterior_samples = {"weight": jnp.ones((2, 2)), "mean": jnp.ones((3, 4))}
    with pytest.raises(ValueError, match="should be the same"):
        ours(KEY, X)


def test_a_plain_argument_is_part_of_the_key_by_type_and_value():
    ours = CompiledPredictive(model, draws(2))
    for power in (1, 2, 1):
        mean = ours(KEY, X, power=power)["mean"]
        weight = draws(2)["weight"]
        expected = weight[:, :1] + weight[:, 1:] * X**power
        np.testing.assert_allclose(mean, expected, rtol=1e-5)


def test_a_handler_outside_is_never_missed():
    ours = CompiledPredictive(model, draws(2))
    plain = ours(KEY, X)
    with handlers.condition(data={"y": jnp.full(4, 9.0)}):
        np.testing.assert_array_equal(ours(KEY, X)["y"], 9.0)
    assert_same(ours(KEY, X), plain)


def test_within_jit_and_vmap_of_the_user():
    ours = CompiledPredictive(model, draws(3))
    xs = jnp.stack([X, X + 1.0])
    each = [ours(KEY, x)["y"] for x in xs]
    np.testing.assert_allclose(
        jax.jit(jax.vmap(lambda x: ours(KEY, x)["y"]))(xs), each, rtol=1e-5, atol=1e-6
    )

    @jax.jit
    def with_draws(samples):
        return CompiledPredictive(model, samples)(KEY, X)["y"]

    np.testing.assert_allclose(with_draws(draws(3)), each[0], rtol=1e-5, atol=1e-6)


def test_a_module_whose_parameters_are_read():
    net = eqx.nn.MLP(1, "scalar", 3, 1, key=KEY)

    def network(x):
        with px.bayesianize():
            f = jax.vmap(px.bind(net, "net"))(x[:, None])
        numpyro.sample("y", dist.Normal(f, 0.1).to_event(1))

    with handlers.seed(rng_seed=0):
        trace = handlers.trace(network).get_trace(X)
    samples = {
        name: jnp.stack([site["value"], -site["value"]])
        for name, site in trace.items()
        if name != "y"
    }
    assert len(samples) == 4
    predicted = both(network, samples)(KEY, X)
    assert predicted.keys() == {"y"}
    assert np.abs(predicted["y"][0] - predicted["y"][1]).max() > 0.5


def test_arrays_are_no_constants_of_the_program():
    ours = CompiledPredictive(model, draws(3), params={"scale": jnp.asarray(0.5)})
    whole = jax.make_jaxpr(lambda key, x: ours(key, x))(KEY, X)
    (call,) = [eqn for eqn in whole.eqns if "_predict" in str(eqn.params.get("name"))]
    # The key, two arrays of the attributes and one argument.
    assert len(call.invars) == 4
    assert not call.params["jaxpr"].consts


def test_a_copy_by_pickle_predicts_the_same():
    ours = CompiledPredictive(model, draws(2))
    assert_same(pickle.loads(pickle.dumps(ours))(KEY, X), ours(KEY, X))


def test_guides_that_are_not_set_up_are_refused(guide):
    parts = AutoGuideList(model)
    parts.append(AutoDelta(model))
    encoder = eqx.nn.MLP("scalar", 2, 2, 1, key=KEY)
    amortized = AmortizedGuide(model, encoder, plate="row", context=lambda x: x)
    fresh = AutoNormal(model)
    for new in (fresh, handlers.block(fresh, hide=["a"]), parts, amortized):
        with pytest.raises(ValueError, match=r"svi\.init"):
            CompiledPredictive(model, guide=new, num_samples=2)(KEY, X)
    assert fresh.prototype_trace is None


def test_python_that_needs_the_values_is_told_what_to_do():
    def reads(group):
        n = int(group.max()) + 1
        numpyro.sample("a", dist.Normal(0.0, 1.0).expand([n]).to_event(1))

    with pytest.raises(jax.errors.ConcretizationTypeError) as caught:
        CompiledPredictive(reads, num_samples=2)(KEY, jnp.arange(3))
    assert any("CompiledPredictive" in note for note in caught.value.__notes__)


def test_settings_that_numpyro_refuses():
    with pytest.raises(ValueError, match="must be specified"):
        CompiledPredictive(model)
