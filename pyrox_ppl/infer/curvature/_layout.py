"""The sites that a curvature covers, as parts of one vector in the order of names."""

import dataclasses
import math
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names and shapes of unconstrained values, and how they make one vector.

    Attributes:
        names: The names of the sites, sorted.
        shapes: Their shapes.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> "Layout":
        """The layout of sites of these shapes."""
        names = tuple(sorted(shapes))
        return cls(names, tuple(tuple(shapes[name]) for name in names))

    @property
    def size(self) -> int:
        """The length of the vector."""
        return sum(math.prod(shape) for shape in self.shapes)

    def parts(self) -> Iterator[tuple[str, tuple[int, ...], slice]]:
        """Each site's name, its shape and its place in the vector."""
        start = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            stop = start + math.prod(shape)
            yield name, shape, slice(start, stop)
            start = stop

    def ravel(self, values: Mapping[str, jax.Array]) -> jax.Array:
        """Join values by site along one last axis; axes before the sites' stay."""
        parts = []
        for name, shape, _ in self.parts():
            value = jnp.asarray(values[name])
            batch = value.shape[: value.ndim - len(shape)]
            parts.append(value.reshape(*batch, -1))
        return jnp.concatenate(parts, -1)

    def unravel(self, vector: jax.Array) -> dict[str, jax.Array]:
        """Undo :meth:`ravel`."""
        return {
            name: vector[..., part].reshape(*vector.shape[:-1], *shape)
            for name, shape, part in self.parts()
        }

    def site_of(self, index: int) -> str:
        """The name of the site that an entry of the vector belongs to."""
        return next(name for name, _, part in self.parts() if index < part.stop)
