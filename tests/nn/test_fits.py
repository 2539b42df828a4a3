"""The three patterns of conditional field learn sin(a x), and know it at a new a."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pyrox_ppl.nn import (
    SIREN,
    ConditionedINR,
    ConditionedRFFNet,
    FiLM,
    HyperFourierFeatures,
    HyperSIREN,
)

STEPS = 1000  # at most 2,000, as is asked
OMEGAS = {"first_omega": 4.0, "hidden_omega": 4.0}


def film_siren(net_key, key):
    inner = SIREN.init(1, 32, 1, depth=3, key=net_key, **OMEGAS)
    return ConditionedINR.init(inner, conditioner_cls=FiLM, cond_dim=1, key=key)


def hyper_rff(net_key, key):
    net = eqx.nn.MLP(1, 2 * 32 + 1, 32, 2, activation=jnp.tanh, key=net_key)
    feat = HyperFourierFeatures.init(
        parameter_net=net, in_features=1, n_features=32, cond_dim=1
    )
    return ConditionedRFFNet.init(feat=feat, out_features=1, key=key)


def hyper_siren(net_key, key):
    net = eqx.nn.MLP(1, 4, 32, 2, activation=jnp.tanh, key=net_key)
    sizes = {"depth": 3, "cond_dim": 4, "parameter_net": net}
    return HyperSIREN(1, 32, 1, **sizes, key=key, **OMEGAS)


def curves(a, x):
    """Coordinates, contexts in [-1, 1] and values, a context for each curve."""
    a, x = jnp.float32(a)[:, None, None], jnp.float32(x)[None, :, None]
    return x, (a - 2.5) / 1.5, jnp.sin(a * x)


def error(field, x, z, u):
    return jnp.mean((field(x, z) - u) ** 2)


@eqx.filter_jit
def train(field, x, z, u):
    """Adam on all curves at once."""
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))
    arrays, static = eqx.partition(field, eqx.is_inexact_array)

    def step(carry, _):
        arrays, state = carry
        slope = jax.grad(lambda a: error(eqx.combine(a, static), x, z, u))(arrays)
        updates, state = optimiser.update(slope, state)
        return (optax.apply_updates(arrays, updates), state), None

    start = (arrays, optimiser.init(arrays))
    return eqx.combine(jax.lax.scan(step, start, length=STEPS)[0][0], static)


@pytest.mark.parametrize(
    "make",
    [
        film_siren,
        pytest.param(hyper_rff, marks=pytest.mark.slow),
        pytest.param(hyper_siren, marks=pytest.mark.slow),
    ],
)
@pytest.mark.rank_promotion  # optax multiplies arrays by its scalars
def test_it_learns_the_family_and_holds_at_contexts_it_has_not_seen(make):
    field = make(*jax.random.split(jax.random.key(0)))
    seen = curves(np.linspace(1, 4, 16), np.linspace(-3, 3, 64))
    unseen = curves(np.random.default_rng(0).uniform(1, 4, 20), np.linspace(-3, 3, 101))
    before = error(field, *unseen)
    mse = error(train(field, *seen), *unseen)
    print(f"{make.__name__}: test MSE {before:.2g} -> {mse:.2g} in {STEPS} steps")
    assert mse < 1e-3 < before / 100
