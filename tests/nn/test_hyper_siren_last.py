"""HyperSIREN with a generated readout: a trunk, and a linear subspace over it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers

import pyrox_ppl as px
from pyrox_ppl.nn import SIREN, HyperSIREN

KEY = jax.random.key(0)
OMEGAS = {"first_omega": 5.0, "hidden_omega": 3.0}
rng = np.random.default_rng(0)
X = np.float32(rng.uniform(-1, 1, size=(4, 6, 2)))
Z = np.float32(rng.normal(size=(4, 6, 3)))
NET = eqx.nn.MLP(3, 5, 8, 1, activation=jnp.tanh, key=jax.random.key(1))


def make(parameterized="last", cond_dim=5, parameter_net=NET, depth=4, **kwargs):
    latent = {"cond_dim": cond_dim, "parameter_net": parameter_net, "depth": depth}
    options = {"parameterized": parameterized, "key": KEY, **OMEGAS, **kwargs}
    return HyperSIREN(2, 8, 3, **latent, **options)


def features(trunk, x):
    """What the trunk makes of points, in NumPy."""
    for i, layer in enumerate(trunk):
        weight, bias = np.asarray(layer.weight, float), np.asarray(layer.bias, float)
        x = np.sin((3.0 if i else 5.0) * (x @ weight.T + bias))
    return x


@pytest.mark.parametrize("contexts", ["single", "group", "row"])
def test_the_context_makes_the_readout_of_the_trunk(contexts):
    module = make(init_scale=0.7)
    z = {"single": Z[0, 0], "group": Z[:, :1], "row": Z}[contexts]
    (layer,), rows = module.hyper_layers, np.broadcast_to(z, Z.shape)
    latent = np.asarray(jax.vmap(jax.vmap(NET))(rows))
    flat = latent @ np.asarray(layer.generator.weight).T
    flat = flat + np.asarray(layer.generator.bias)
    weight, bias = flat[..., : 3 * 8].reshape(4, 6, 3, 8), flat[..., 3 * 8 :]
    h = features(module.trunk, X)
    expected = np.einsum("...ci,...i->...c", weight, h) + bias
    np.testing.assert_allclose(module(X, z), expected, rtol=1e-4, atol=1e-4)


def fields(module, latents):
    """The fields of some latents at 40 points, one a row."""
    x = rng.uniform(-1, 1, size=(1, 40, 2))
    return np.asarray(module(jnp.asarray(x), latents[:, None])).reshape(20, -1)


@pytest.mark.parametrize("cond_dim", [1, 3])
def test_the_field_is_affine_in_the_latent_so_its_variation_has_rank_k(cond_dim):
    latents = jnp.asarray(rng.normal(size=(20, cond_dim))).at[0].set(0.0)
    identity = {"cond_dim": cond_dim, "parameter_net": lambda z: z, "init_scale": 1.0}
    spectrum = {}
    for parameterized in ("all", "last"):
        values = fields(make(parameterized, **identity), latents)
        spectrum[parameterized] = np.linalg.svd(values - values[0], compute_uv=False)
    last, everything = spectrum["last"] / spectrum["last"][0], spectrum["all"]
    assert np.all(last[cond_dim:] < 1e-5)
    assert np.all(last[:cond_dim] > 1e-2)
    assert everything[cond_dim] > 1e-2 * everything[0]


@pytest.mark.parametrize(("points", "rows"), [(1, 6), (4, 24)])
def test_the_features_of_a_point_are_made_once_for_all_contexts(points, rows):
    module = make()
    traced = jax.make_jaxpr(module)(X[:points], Z[:, :1])
    sines = [e.outvars[0].aval for e in traced.eqns if "sin" in e.primitive.name]
    assert [aval.size for aval in sines] == [rows * 8] * 3


def test_its_draws_are_those_of_a_siren_and_of_the_last_generator():
    module = make(c=1.5)
    siren = SIREN.init(2, 8, 3, depth=4, key=KEY, **OMEGAS, c=1.5)
    assert eqx.tree_equal(module.trunk, siren.layers[:-1])
    everything = make("all", c=1.5)
    assert everything.trunk == ()
    assert eqx.tree_equal(module.hyper_layers, everything.hyper_layers[-1:])
    assert eqx.tree_equal(everything, make("all", c=1.5))


def test_the_smallest_has_one_layer_in_its_trunk():
    module = make(depth=2)
    assert len(module.trunk) == len(module.hyper_layers) == 1
    assert module(X, Z).shape == (4, 6, 3)


def test_a_learned_trunk_under_a_random_readout():
    traces = []

    def run():
        model = handlers.seed(px.bayesianize(px.learn(make(), where=px.is_backbone)), 0)
        traces.append(handlers.trace(model).get_trace(X, Z))

    jax.eval_shape(run)  # names and types, and nothing is compiled
    (trace,) = traces
    kinds = {name: site["type"] for name, site in trace.items()}
    readout = {f"hyper_siren.hyper_layers.0.generator.{x}" for x in ("weight", "bias")}
    assert {name for name, kind in kinds.items() if kind == "sample"} == readout
    learned = {name for name, kind in kinds.items() if kind == "param"}
    trunk = {f"hyper_siren.trunk.{i}.{x}" for i in range(3) for x in ("weight", "bias")}
    assert trunk < learned
    assert {name.split(".")[1] for name in learned} == {"trunk", "parameter_net"}


@pytest.mark.wrong_types
@pytest.mark.parametrize("bad", ["first", "", None, 1, True])
def test_an_unknown_choice_is_named_with_the_two(bad):
    with pytest.raises(ValueError, match="parameterized must be 'all' or 'last', got"):
        make(bad)
