"""The modules of pyrox_ppl.nn as a table: what the laws in tests/nn run over."""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from pyrox_ppl.nn import (
    SIREN,
    AffineModulation,
    ConcatConditioner,
    ConditionedINR,
    HyperLinear,
    SirenDense,
)

C, C_IN, K, HIDDEN, OUT = 4, 3, 2, 5, 1
Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Argument:
    """An array that a module is called with."""

    name: str
    width: int
    named: str  # what an error about the width calls the width


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A module of small, pairwise different widths, and what is expected of it.

    Attributes:
        name: The test's id.
        make: The constructor but for the key; its sizes can be given anew.
        sizes: The arguments of `make` that must be positive integers.
        arguments: What the module is called with.
        out: The width of the result.
        count: The number of parameters, as the formula of the module's page has it.
        root: The root of the parameters' names.
        generators: Names (without the root) and shapes of the parameters that
            handlers select by default.
        backbone: Those of the other parameters.
    """

    name: str
    make: Callable[..., eqx.Module]
    sizes: tuple[str, ...]
    arguments: tuple[Argument, ...]
    out: int
    count: int
    root: str
    generators: Shapes
    backbone: Shapes = dataclasses.field(default_factory=dict)

    @property
    def conditional(self) -> bool:
        """Whether it is called with features and a context."""
        return len(self.arguments) == 2

    @property
    def parameters(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Full name -> (shape, role) of every parameter."""
        roles = {"generator": self.generators, "backbone": self.backbone}
        return {
            f"{self.root}.{name}": (shape, role)
            for role, shapes in roles.items()
            for name, shape in shapes.items()
        }

    def build(self, seed: int = 0) -> Any:
        """The module away from its construction, where a value may have no effect."""
        return _build(self, seed, jax.config.read("jax_enable_x64"))

    def inputs(self, batch: tuple[int, ...], seed: int = 2) -> list[jax.Array]:
        """Standard normal arguments with the same batch axes."""
        rng = np.random.default_rng(seed)
        shapes = [(*batch, argument.width) for argument in self.arguments]
        return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


@functools.cache
def _build(case: Case, seed: int, x64: bool) -> Any:
    """The tests of a process share the module, which has the precision they ask for."""
    rng = np.random.default_rng(seed)

    def move(leaf: Any) -> Any:
        if not eqx.is_inexact_array(leaf):
            return leaf
        return jnp.asarray(np.asarray(leaf) + rng.normal(0.0, 0.3, leaf.shape))

    with jax.enable_x64(False):
        module = case.make(key=jax.random.key(seed))
    return jax.tree.map(move, module)


H, Z = Argument("h", C, "num_features"), Argument("z", K, "cond_dim")
X = Argument("x", C_IN, "in_features")


def _linear(prefix: str, n_out: int, n_in: int) -> Shapes:
    dot = "." if prefix else ""
    return {f"{prefix}{dot}weight": (n_out, n_in), f"{prefix}{dot}bias": (n_out,)}


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
        generators=_linear("generator", 2 * C, K),
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
        generators=_linear("", C, C_IN),
    )


def _siren(key: jax.Array) -> SIREN:
    return SIREN.init(
        C_IN, HIDDEN, OUT, depth=3, key=key, first_omega=4.0, hidden_omega=2.0
    )


def _mlp(key: jax.Array) -> eqx.nn.MLP:
    return eqx.nn.MLP(C_IN, OUT, HIDDEN, depth=2, activation=jnp.tanh, key=key)


# Three layers of widths C_IN -> HIDDEN -> HIDDEN -> OUT, in either network.
LAYERS = {
    **_linear("layers.0", HIDDEN, C_IN),
    **_linear("layers.1", HIDDEN, HIDDEN),
    **_linear("layers.2", OUT, HIDDEN),
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
    widths = [HIDDEN, HIDDEN] if mode == "feature" else [C_IN]
    generators: Shapes = {}
    for i, width in enumerate(widths):
        generators |= _linear(f"conditioners.{i}.generator", *shape(width))
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
        generators=_linear("generator", C, C + K),
    ),
    Case(
        name="HyperLinear",
        make=partial(HyperLinear.init, target_in=C_IN, target_out=C, cond_dim=K),
        sizes=("target_in", "target_out", "cond_dim"),
        arguments=(Argument("h", C_IN, "target_in"), Z),
        out=C,
        count=K * (C * C_IN + C) + C * C_IN + C,
        root="hyper_linear",
        generators=_linear("generator", C * C_IN + C, K),
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
]
