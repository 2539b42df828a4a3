"""Fourier features made by a context, against the loop over rows in NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import Counted
from numpyro import handlers

import pyrox_ppl as px
from pyrox_ppl.nn import SIREN, ConditionedRFFNet, HyperFourierFeatures

KEY = jax.random.key(0)
IN, N, K = 2, 5, 3
SIZE = IN * N + N + 1
rng = np.random.default_rng(0)
X = rng.normal(size=(4, 6, IN)).astype(np.float32)
Z = rng.normal(size=(4, 6, K)).astype(np.float32)
NET = eqx.nn.MLP(K, SIZE, 8, 1, activation=jnp.tanh, key=KEY)


def make(net=NET, **sizes):
    sizes = {"in_features": IN, "n_features": N, "cond_dim": K} | sizes
    return HyperFourierFeatures.init(parameter_net=net, **sizes)


def by_hand(x, z):
    """The features of one row, from the flat output W, b, log-lengthscale."""
    flat = np.asarray(NET(jnp.asarray(z)))
    w, b, lengthscale = flat[: IN * N].reshape(IN, N), flat[-N - 1 : -1], flat[-1]
    phase = w.T @ x / np.exp(lengthscale) + b
    return np.sqrt(1 / N) * np.concatenate([np.cos(phase), np.sin(phase)])


@pytest.mark.parametrize("contexts", ["single", "group", "row"])
def test_the_features_are_their_formula(contexts):
    z = {"single": Z[0, 0], "group": Z[:, :1], "row": Z}[contexts]
    rows = np.broadcast_to(z, (4, 6, K))
    groups = zip(X, rows, strict=True)
    expected = [[by_hand(*p) for p in zip(*group, strict=True)] for group in groups]
    np.testing.assert_allclose(make()(X, z), expected, rtol=1e-4, atol=1e-5)


def test_the_readout_is_linear_in_the_features():
    field = ConditionedRFFNet.init(feat=make(), out_features=3, key=KEY)
    beta, b = np.asarray(field.readout.weight).T, np.asarray(field.readout.bias)
    expected = np.asarray(make()(X, Z)) @ beta + b
    np.testing.assert_allclose(field(X, Z), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("z", "calls"), [(Z[0, 0], 1), (Z[:, :1], 4), (Z[:1], 6), (Z, 24)]
)
def test_the_network_runs_once_for_each_context(z, calls):
    net = Counted(NET)
    module = make(net)
    assert net.calls == 0
    jax.block_until_ready(eqx.filter_jit(module)(X, z))
    assert net.calls == calls


def test_points_that_share_a_context_share_its_frequencies():
    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.size for v in equation.outvars)

    x, z = jnp.zeros((4, 50, IN)), jnp.zeros((4, 1, K))
    largest = max(sizes(jax.make_jaxpr(make())(x, z).jaxpr))
    assert largest == 4 * 50 * 2 * N  # the features; weights per row are no smaller


def test_a_module_of_the_package_gets_all_contexts_at_once():
    net = SIREN.init(K, 8, SIZE, depth=2, key=KEY, first_omega=1.0, hidden_omega=1.0)
    each = make(lambda z: net(z))
    np.testing.assert_allclose(make(net)(X, Z), each(X, Z), rtol=1e-4, atol=1e-5)


def test_a_parameter_net_of_another_output_is_named_at_the_first_call():
    module = make(eqx.nn.MLP(K, 17, 8, 1, key=KEY))
    message = (
        r"\(17,\) for one context, but in_features=2 and n_features=5 need \(16,\)"
    )
    for z in (Z[0, 0], Z[:, :1], Z):
        with pytest.raises(ValueError, match=message):
            module(X, z)
    with pytest.raises(ValueError, match=r"shape \(16, 1\) for one context"):
        make(lambda z: jnp.zeros((16, 1)))(X, Z)


@pytest.mark.wrong_types
def test_bad_input_is_named_at_construction():
    with pytest.raises(TypeError, match="parameter_net must be a callable"):
        make(None)
    with pytest.raises(ValueError, match="takes 4 inputs, but cond_dim=3"):
        make(eqx.nn.MLP(4, SIZE, 8, 1, key=KEY))
    for bad in (None, lambda x, z: x):
        with pytest.raises(TypeError, match=r"feat must be .* integer `out_features`"):
            ConditionedRFFNet.init(feat=bad, out_features=1, key=KEY)


class Scaled(eqx.Module):
    """Features of the user's own: an integer `out_features` is all that is asked."""

    scale: jax.Array
    out_features: int = eqx.field(static=True)

    def __call__(self, x, z):
        return jnp.sin(self.scale * x[..., :1] * z[..., :1])


def test_features_of_another_number_than_they_tell_are_named():
    field = ConditionedRFFNet.init(
        feat=Scaled(jnp.ones(()), 3), out_features=1, key=KEY
    )
    message = r"output of feat has shape \(4, 6, 1\), but Cond.*out_features=3 entries"
    with pytest.raises(ValueError, match=message):
        field(X, Z)


def test_a_context_that_the_network_does_not_take_is_named():
    module = make(lambda z: NET(z), cond_dim=4)
    for z in (jnp.ones(4), jnp.ones((4, 6, 4))):
        with pytest.raises(ValueError, match=r"<lambda> does not take.* shape \(4,\)"):
            module(X, z)


def test_a_network_of_a_scalar_takes_contexts_of_one_entry():
    net = eqx.nn.MLP("scalar", SIZE, 8, 1, activation=jnp.tanh, key=KEY)
    module, z = make(net, cond_dim=1), Z[..., :1]
    each = make(lambda z: net(z[0]), cond_dim=1)
    np.testing.assert_allclose(module(X, z), each(X, z), rtol=1e-5)
    with pytest.raises(ValueError, match="takes 1 inputs, but cond_dim=3"):
        make(net)


def test_the_readout_of_features_of_the_users_own_is_backbone():
    field = ConditionedRFFNet.init(
        feat=Scaled(jnp.ones(()), 1), out_features=1, key=KEY
    )
    for where, sites in (
        (None, {"feat.scale"}),
        (px.is_backbone, {"readout.weight", "readout.bias"}),
    ):
        with handlers.seed(rng_seed=0), handlers.trace() as trace:
            px.bayesianize(field, where=where)(X, Z)
        assert set(trace) == {f"conditioned_rff_net.{name}" for name in sites}


def test_a_block_that_finds_only_a_readout_says_so():
    fixed = make(lambda z: jnp.concatenate([z, jnp.zeros(SIZE - K)]))
    field = ConditionedRFFNet.init(feat=fixed, out_features=1, key=KEY)
    with pytest.raises(ValueError, match="intercepted no parameter"):
        px.bayesianize(field)(X, Z)
