"""Fourier features, and the modules with a parameter net: a part of the table."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from case import C_IN, HIDDEN, OUT, Argument, Case, K, Shapes, X, Z, linear

from pyrox_ppl.nn import (
    ConditionedRFFNet,
    HyperFourierFeatures,
    HyperSIREN,
    RandomKitchenSinks,
    RBFFourierFeatures,
)

N, LATENT, WIDTH = 5, 4, 3
SIZE = C_IN * N + N + 1


def _net(out: int, key: jax.Array) -> eqx.nn.MLP:
    return eqx.nn.MLP(K, out, WIDTH, depth=1, activation=jnp.tanh, key=key)


def _net_shapes(prefix: str, out: int) -> Shapes:
    first = linear(f"{prefix}.layers.0", WIDTH, K)
    return first | linear(f"{prefix}.layers.1", out, WIDTH)


def _net_count(out: int) -> int:
    return WIDTH * K + WIDTH + out * WIDTH + out


def _hyper_fourier(*, key: jax.Array, **sizes: Any) -> HyperFourierFeatures:
    net = _net(SIZE, key)
    given = {"in_features": C_IN, "n_features": N, "cond_dim": K} | sizes
    return HyperFourierFeatures.init(parameter_net=net, **given)


def _hyper_rff(*, key: jax.Array, out_features: Any = OUT) -> ConditionedRFFNet:
    net_key, key = jax.random.split(key)
    feat = _hyper_fourier(key=net_key)
    return ConditionedRFFNet.init(feat=feat, out_features=out_features, key=key)


def _sinks(*, key: jax.Array, out_features: Any = OUT) -> RandomKitchenSinks:
    rff_key, key = jax.random.split(key)
    rff = RBFFourierFeatures.init(C_IN, N, key=rff_key)
    return RandomKitchenSinks.init(rff, out_features, key=key)


def _hyper_siren(*, key: jax.Array, **sizes: Any) -> HyperSIREN:
    net_key, key = jax.random.split(key)
    given = {
        "in_features": C_IN,
        "hidden_features": HIDDEN,
        "out_features": OUT,
        "depth": 3,
        "cond_dim": LATENT,
    }
    net = _net(LATENT, net_key)
    omegas = {"first_omega": 2.0, "hidden_omega": 1.5}
    return HyperSIREN(**(given | sizes), parameter_net=net, key=key, **omegas)


_SIREN_SIZES = [
    HIDDEN * C_IN + HIDDEN,
    HIDDEN * HIDDEN + HIDDEN,
    OUT * HIDDEN + OUT,
]
_RFF: Shapes = {"frequencies": (C_IN, N), "log_lengthscale": ()}

HYPER_CASES = [
    Case(
        name="HyperFourierFeatures",
        make=_hyper_fourier,
        sizes=("in_features", "n_features", "cond_dim"),
        arguments=(X, Z),
        out=2 * N,
        count=_net_count(SIZE),
        root="hyper_fourier_features",
        generators=_net_shapes("parameter_net", SIZE),
    ),
    Case(
        name="ConditionedRFFNet",
        make=_hyper_rff,
        sizes=("out_features",),
        arguments=(X, Z),
        out=OUT,
        count=_net_count(SIZE) + 2 * N * OUT + OUT,
        root="conditioned_rff_net",
        generators=_net_shapes("feat.parameter_net", SIZE),
        backbone=linear("readout", OUT, 2 * N),
    ),
    Case(
        name="RBFFourierFeatures",
        make=partial(RBFFourierFeatures.init, in_features=C_IN, n_features=N),
        sizes=("in_features", "n_features"),
        arguments=(X,),
        out=2 * N,
        count=C_IN * N + 1,
        root="rbf_fourier_features",
        generators=_RFF,
    ),
    Case(
        name="RandomKitchenSinks",
        make=_sinks,
        sizes=("out_features",),
        arguments=(X,),
        out=OUT,
        count=C_IN * N + 1 + 2 * N * OUT + OUT,
        root="random_kitchen_sinks",
        generators={f"rff.{name}": shape for name, shape in _RFF.items()}
        | linear("readout", OUT, 2 * N),
    ),
    Case(
        name="HyperSIREN",
        make=_hyper_siren,
        sizes=("in_features", "hidden_features", "out_features", "depth", "cond_dim"),
        arguments=(X, Argument("z", K, "P")),
        out=OUT,
        count=sum(LATENT * size + size for size in _SIREN_SIZES) + _net_count(LATENT),
        root="hyper_siren",
        generators={
            name: shape
            for i, size in enumerate(_SIREN_SIZES)
            for name, shape in linear(
                f"hyper_layers.{i}.generator", size, LATENT
            ).items()
        },
        backbone=_net_shapes("parameter_net", LATENT),
    ),
    Case(
        name="HyperSIREN-last",
        make=partial(_hyper_siren, parameterized="last"),
        sizes=("in_features", "hidden_features", "out_features", "depth", "cond_dim"),
        arguments=(X, Argument("z", K, "P")),
        out=OUT,
        count=sum(_SIREN_SIZES[:-1])
        + (LATENT + 1) * _SIREN_SIZES[-1]
        + _net_count(LATENT),
        root="hyper_siren",
        generators=linear("hyper_layers.0.generator", _SIREN_SIZES[-1], LATENT),
        backbone=_net_shapes("parameter_net", LATENT)
        | linear("trunk.0", HIDDEN, C_IN)
        | linear("trunk.1", HIDDEN, HIDDEN),
    ),
]
