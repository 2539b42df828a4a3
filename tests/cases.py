"""The modules of pyrox_ppl.nn as a table: what the laws in tests/nn run over."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from case import C_IN, HIDDEN, OUT, Argument, C, Case, H, K, Shapes, X, Z, linear
from hyper_cases import HYPER_CASES

from pyrox_ppl.nn import (
    SIREN,
    AffineModulation,
    ConcatConditioner,
    ConditionedINR,
    HyperLinear,
    SirenDense,
)


def _affine(gamma_activation: str) -> Case:
    return Case(
        name=f"AffineModulation-{gamma_activation}",
        make=partial(
            AffineModulation.init,
            num_features=C,
            cond_dim=K,
            gamma_activation=gamma_activation,
        ),
        sizes=("num_features", "cond_dim"),
        arguments=(H, Z),
        out=C,
        count=2 * C * K + 2 * C,
        root="affine_modulation",
        rare=gamma_activation in ("softplus", "identity"),
        generators=linear("generator", 2 * C, K),
    )


def _siren_dense(regime: str) -> Case:
    return Case(
        name=f"SirenDense-{regime}",
        make=partial(
            SirenDense.init,
            in_features=C_IN,
            out_features=C,
            regime=regime,
            omega=3.0,
        ),
        sizes=("in_features", "out_features"),
        arguments=(X,),
        out=C,
        count=C * C_IN + C,
        root="siren_dense",
        generators=linear("", C, C_IN),
    )


def _siren(key: jax.Array) -> SIREN:
    return SIREN.init(
        C_IN, HIDDEN, OUT, depth=3, key=key, first_omega=4.0, hidden_omega=2.0
    )


def _mlp(key: jax.Array) -> eqx.nn.MLP:
    return eqx.nn.MLP(C_IN, OUT, HIDDEN, depth=2, activation=jnp.tanh, key=key)


# Three layers of widths C_IN -> HIDDEN -> HIDDEN -> OUT, in either network.
LAYERS = {
    **linear("layers.0", HIDDEN, C_IN),
    **linear("layers.1", HIDDEN, HIDDEN),
    **linear("layers.2", OUT, HIDDEN),
}
LAYERS_COUNT = HIDDEN * (C_IN + HIDDEN + OUT) + 2 * HIDDEN + OUT
INNERS = {"SIREN": _siren, "MLP": _mlp}

# Each conditioner's class, shape of its generator's weight at width C, and parameters.
CONDITIONERS: dict[str, tuple[type, Callable, Callable]] = {
    "Affine": (
        AffineModulation,
        lambda c: (2 * c, K),
        lambda c: 2 * c * K + 2 * c,
    ),
    "Concat": (
        ConcatConditioner,
        lambda c: (c, c + K),
        lambda c: (c + K) * c + c,
    ),
    "Hyper": (
        HyperLinear,
        lambda c: (c * c + c, K),
        lambda c: K * (c * c + c) + c * c + c,
    ),
}


def _make_field(*, inner: str, key: jax.Array, **kwargs: Any) -> ConditionedINR:
    inner_key, key = jax.random.split(key)
    return ConditionedINR.init(INNERS[inner](inner_key), key=key, **kwargs)


def _field(inner: str, conditioner: str, mode: str) -> Case:
    conditioner_cls, shape, count = CONDITIONERS[conditioner]
    widths = [C_IN] if mode == "input" else [HIDDEN, HIDDEN]
    generators: Shapes = {}
    for i, width in enumerate(widths):
        generators |= linear(f"conditioners.{i}.generator", *shape(width))
    return Case(
        name=f"ConditionedINR-{mode}-{inner}-{conditioner}",
        make=partial(
            _make_field,
            inner=inner,
            conditioner_cls=conditioner_cls,
            cond_dim=K,
            mode=mode,
        ),
        sizes=("cond_dim",),
        arguments=(X, Z),
        out=OUT,
        count=LAYERS_COUNT + sum(count(width) for width in widths),
        root="conditioned_inr",
        generators=generators,
        backbone={f"inner.{name}": shape for name, shape in LAYERS.items()},
        # By default each conditioner meets each mode, and each network each mode.
        rare=mode != "preactivation"
        and (inner == "SIREN") == ((mode == "feature") == (conditioner == "Concat")),
    )


CASES = [
    *(_affine(name) for name in ("one_plus_tanh", "exp", "softplus", "identity")),
    Case(
        name="ConcatConditioner",
        make=partial(ConcatConditioner.init, num_features=C, cond_dim=K),
        sizes=("num_features", "cond_dim"),
        arguments=(H, Z),
        out=C,
        count=(C + K) * C + C,
        root="concat_conditioner",
        generators=linear("generator", C, C + K),
    ),
    Case(
        name="HyperLinear",
        make=partial(HyperLinear.init, target_in=C_IN, target_out=C, cond_dim=K),
        sizes=("target_in", "target_out", "cond_dim"),
        arguments=(Argument("h", C_IN, "target_in"), Z),
        out=C,
        count=K * (C * C_IN + C) + C * C_IN + C,
        root="hyper_linear",
        generators=linear("generator", C * C_IN + C, K),
    ),
    *(_siren_dense(regime) for regime in ("first", "hidden", "last")),
    Case(
        name="SIREN",
        make=partial(
            SIREN.init,
            in_features=C_IN,
            hidden_features=HIDDEN,
            out_features=OUT,
            depth=3,
            first_omega=4.0,
            hidden_omega=2.0,
        ),
        sizes=("in_features", "hidden_features", "out_features", "depth"),
        arguments=(X,),
        out=OUT,
        count=LAYERS_COUNT,
        root="siren",
        generators=LAYERS,
    ),
    *(
        _field(inner, conditioner, mode)
        for mode in ("feature", "input")
        for inner in INNERS
        for conditioner in CONDITIONERS
    ),
    _field("SIREN", "Affine", "preactivation"),
    _field("MLP", "Hyper", "preactivation"),
    *HYPER_CASES,
]
