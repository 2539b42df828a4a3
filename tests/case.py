"""What an entry of the table in tests/cases.py says of a module."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

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
        rare: Whether its parts stand in other entries, so that its laws are slow tests.
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
    rare: bool = False

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


def linear(prefix: str, n_out: int, n_in: int) -> Shapes:
    dot = "." if prefix else ""
    return {f"{prefix}{dot}weight": (n_out, n_in), f"{prefix}{dot}bias": (n_out,)}
