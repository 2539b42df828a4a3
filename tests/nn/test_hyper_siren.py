"""HyperSIREN against a SIREN built by hand from what its generators make."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import Counted
from numpyro import handlers

import pyrox_ppl as px
from pyrox_ppl.nn import SIREN, HyperSIREN

KEY = jax.random.key(0)
SIZES = {"in_features": 2, "hidden_features": 8, "out_features": 3}
rng = np.random.default_rng(0)
X = rng.uniform(-1, 1, size=(4, 6, 2)).astype(np.float32)
Z = rng.normal(size=(4, 6, 3)).astype(np.float32)
NET = eqx.nn.MLP(3, 5, 8, 1, activation=jnp.tanh, key=jax.random.key(1))


def make(**kwargs):
    defaults = {"depth": 4, "cond_dim": 5, "parameter_net": NET, "key": KEY}
    omegas = {"first_omega": 5.0, "hidden_omega": 7.0}
    return HyperSIREN(**(SIZES | defaults | omegas | kwargs))


def generated(module, latent):
    """The layers (W, b) that the generators make of one latent."""
    for layer in module.hyper_layers:
        flat = np.asarray(layer.generator.weight) @ latent
        flat = flat + np.asarray(layer.generator.bias)
        split = layer.target_out * layer.target_in
        yield flat[:split].reshape(layer.target_out, -1), flat[split:]


def pre_activations(layers, x, first_omega, hidden_omega):
    """What each layer's sine takes, and what the readout returns."""
    h, taken = x, []
    for i, (w, b) in enumerate(layers):
        taken.append((hidden_omega if i else first_omega) * (h @ w.T + b))
        h = np.sin(taken[-1])
    return [*taken[:-1], taken[-1] / hidden_omega]


@pytest.mark.parametrize("contexts", ["single", "group", "row"])
def test_the_field_is_the_siren_that_its_generators_make(contexts):
    module = make(init_scale=0.7)
    z = {"single": Z[0, 0], "group": Z[:, :1], "row": Z}[contexts]
    rows = np.broadcast_to(z, Z.shape).reshape(-1, 3)
    expected = [
        pre_activations(generated(module, np.asarray(NET(z))), x[None], 5.0, 7.0)[-1][0]
        for x, z in zip(X.reshape(-1, 2), jnp.asarray(rows), strict=True)
    ]
    result = module(X, z).reshape(-1, 3)
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)


WIDE = {"in_features": 4, "hidden_features": 128, "out_features": 64}


@pytest.mark.parametrize("cond_dim", [1, 4, 64])
def test_every_layer_has_the_pre_activations_of_a_siren_at_construction(cond_dim):
    wide = {"depth": 5, "cond_dim": cond_dim, "parameter_net": lambda z: z}
    module = HyperSIREN(**WIDE, **wide, key=KEY)
    at = np.random.default_rng(1)
    x, contexts = at.uniform(-1, 1, size=(64, 4)), at.normal(size=(60, cond_dim))

    def spread(contexts):
        """The standard deviation of each layer over points, contexts and units."""
        taken = [
            pre_activations(generated(module, np.float32(z)), x, 30.0, 30.0)
            for z in contexts
        ]
        return np.array([np.std(layer) for layer in zip(*taken, strict=True)])

    # Its mean is a SIREN, as the draws of the generators' biases show further down.
    ratio = spread(contexts) / spread(np.zeros((1, cond_dim)))
    print(f"K={cond_dim}: ratio to the SIREN, layer by layer: {np.round(ratio, 3)}")
    assert len(ratio) == 5
    assert np.abs(ratio - 1).max() < 0.1


def test_its_pre_activations_are_those_of_independent_sirens():
    keys = jax.random.split(KEY, 12)
    x = np.random.default_rng(1).uniform(-1, 1, size=(200, 4))
    net = {"cond_dim": 1, "parameter_net": lambda z: z}
    ours, theirs = [], []
    for one, other in zip(keys[:6], keys[6:], strict=True):
        module = HyperSIREN(**WIDE, **net, depth=3, key=one)
        ours.append(pre_activations(generated(module, np.ones(1)), x, 30.0, 30.0))
        siren = SIREN.init(**WIDE, depth=3, key=other)
        layers = [(np.asarray(s.weight), np.asarray(s.bias)) for s in siren.layers]
        theirs.append(pre_activations(layers, x, 30.0, 30.0))
    of_layers = (zip(*members, strict=True) for members in (ours, theirs))
    for one, other in zip(*of_layers, strict=True):
        assert np.std(one) == pytest.approx(np.std(other), rel=0.1)


@pytest.mark.parametrize("cond_dim", [1, 4, 64])
def test_init_scale_is_the_variation_relative_to_the_layer(cond_dim):
    net = {"cond_dim": cond_dim, "parameter_net": lambda z: z}
    module = HyperSIREN(**WIDE, **net, depth=3, key=KEY, init_scale=0.5)
    z = np.random.default_rng(0).normal(size=(400, cond_dim))
    for layer in module.hyper_layers:
        split = layer.target_out * layer.target_in
        varying = z @ np.asarray(layer.generator.weight).T
        fixed = np.asarray(layer.generator.bias)
        for part in (slice(split), slice(split, None)):
            relative = varying[:, part].std() / fixed[part].std()
            assert relative == pytest.approx(0.5, rel=0.15)


def test_generators_draw_the_three_regimes_of_theorem_1():
    sizes = {"in_features": 9, "hidden_features": 64, "out_features": 64}
    latent = {"cond_dim": 4, "parameter_net": lambda z: z, "init_scale": 0.5}
    module = HyperSIREN(**sizes, **latent, depth=3, key=KEY, hidden_omega=7.0, c=1.5)
    limits = [1 / 9, np.sqrt(1.5 / 64) / 7, np.sqrt(1.5 / 64) / 7]
    for layer, limit in zip(module.hyper_layers, limits, strict=True):
        n, split = layer.target_in, layer.target_in * layer.target_out
        weight = np.asarray(layer.generator.weight)
        bias = np.asarray(layer.generator.bias)
        spread = 0.5 / np.sqrt(4)
        for draws, half_width in (
            (bias[:split], limit),
            (bias[split:], n**-0.5),
            (weight[:split], spread * limit),
            (weight[split:], spread * n**-0.5),
        ):
            assert np.abs(draws).max() <= half_width
            ordered = np.sort(draws, axis=None) / half_width
            steps = (np.arange(ordered.size) + 0.5) / ordered.size
            distance = np.abs(steps - (ordered + 1) / 2).max()
            assert distance < 1.95 / np.sqrt(ordered.size)


def test_the_columns_of_a_generator_and_its_layers_are_different_draws():
    sizes = {"in_features": 8, "hidden_features": 8, "out_features": 8}
    module = make(**sizes)
    drawn = [
        row[:8]
        for layer in module.hyper_layers
        for row in (layer.generator.bias, *layer.generator.weight.T)
    ]
    orders = {tuple(np.argsort(row).tolist()) for row in drawn}
    assert len(orders) == len(drawn) == 4 * (1 + 5)


def test_init_is_the_constructor():
    one = HyperSIREN.init(2, 8, 3, depth=4, cond_dim=5, parameter_net=NET, key=KEY)
    other = HyperSIREN(2, 8, 3, depth=4, cond_dim=5, parameter_net=NET, key=KEY)
    assert eqx.tree_equal(one, other)
    assert (one.first_omega, one.hidden_omega) == (30.0, 30.0)


@pytest.mark.parametrize(
    ("z", "calls"), [(Z[0, 0], 1), (Z[:, :1], 4), (Z[:1], 6), (Z, 24)]
)
def test_the_parameter_net_runs_once_for_each_context(z, calls):
    net = Counted(NET)
    module = make(parameter_net=net)
    assert net.calls == 0
    jax.block_until_ready(eqx.filter_jit(module)(X, z))
    assert net.calls == calls


def test_a_module_of_the_package_encodes_all_contexts_at_once():
    net = SIREN.init(3, 8, 5, depth=2, key=KEY, first_omega=1.0, hidden_omega=1.0)
    one, each = make(parameter_net=net), make(parameter_net=lambda z: net(z))
    np.testing.assert_allclose(one(X, Z), each(X, Z), rtol=1e-4, atol=1e-5)


RAW = {
    "MLP": lambda: (eqx.nn.MLP(4, 5, 8, 1, key=KEY), 4),
    "MLP of a scalar": lambda: (eqx.nn.MLP("scalar", 5, 8, 1, key=KEY), 1),
    "one raw parameter": lambda: (eqx.nn.MLP(1, 5, 8, 1, key=KEY), 1),
    "as many as the latent": lambda: (eqx.nn.Linear(5, 5, key=KEY), 5),
    "Sequential": lambda: (eqx.nn.Sequential([eqx.nn.Linear(7, 5, key=KEY)]), 7),
    "a module of the package": lambda: (SIREN.init(3, 4, 5, depth=2, key=KEY), 3),
    "a function": lambda: (lambda z: jnp.tile(z, 5)[:5], 2),
}


@pytest.mark.parametrize("name", RAW)
def test_the_parameter_net_maps_raw_parameters_to_a_latent_of_cond_dim(name):
    net, width = RAW[name]()
    module = make(parameter_net=net)
    assert module.cond_dim == 5
    assert all(layer.cond_dim == 5 for layer in module.hyper_layers)
    z = jnp.asarray(rng.normal(size=(4, 6, width)), jnp.float32)

    def by_hand(x, z):
        latent = net(z[0] if name == "MLP of a scalar" else z)
        layers = generated(module, np.asarray(latent))
        return pre_activations(layers, x[None], 5.0, 7.0)[-1][0]

    for contexts in (z, z[:, :1], z[0, 0]):
        rows = jnp.broadcast_to(contexts, z.shape)
        expected = [[by_hand(X[i, j], rows[i, j]) for j in (0, 5)] for i in (0, 3)]
        result = module(X, contexts)[::3, ::5]
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)
    if name != "a function":  # which takes any number
        message = rf"^z has shape \(4, 6, {width + 1}\), but HyperSIREN .* P={width} "
        with pytest.raises(ValueError, match=message):
            module(X, jnp.ones((4, 6, width + 1)))


@pytest.mark.parametrize("cond_dim", [1, 3, 6])
@pytest.mark.parametrize("name", [name for name in RAW if name != "a function"])
def test_a_net_that_returns_another_width_is_refused_at_construction(name, cond_dim):
    net, width = RAW[name]()
    message = rf"shape \({width},\) to shape \(5,\), but cond_dim={cond_dim}:"
    with pytest.raises(ValueError, match=message):
        make(parameter_net=net, cond_dim=cond_dim)


def test_construction_reads_no_parameter_net():
    with handlers.seed(rng_seed=0), handlers.trace() as trace, px.bayesianize():
        module = make(parameter_net=SIREN.init(3, 4, 5, depth=2, key=KEY))
        assert list(trace) == []
        module(X, Z)
    assert {name.split(".")[1] for name in trace} == {"hyper_layers"}


@pytest.mark.wrong_types
def test_bad_input_is_named():
    with pytest.raises(TypeError, match="parameter_net must be a callable"):
        make(parameter_net=3)
    for shape in ((), (2, 2), (0,), (4,), (1, 5)):
        module = make(parameter_net=lambda z, shape=shape: jnp.zeros(shape))
        for z in (Z, Z[0, 0]):
            with pytest.raises(ValueError, match=r"one latent of shape \(cond_dim,\)"):
                module(X, z)
    with pytest.raises(ValueError, match=r"depth counts the readout.* got 1"):
        make(depth=1)
    for name in ("init_scale", "first_omega", "hidden_omega", "c"):
        for bad in (0.0, -1.0, np.nan, None):
            with pytest.raises(ValueError, match=f"^{name} must be a positive number"):
                make(**{name: bad})
