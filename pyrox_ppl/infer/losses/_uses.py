"""Records of what is known of an array before any number is: weights, rows, uses."""

from typing import Any, NamedTuple

from pyrox_ppl.infer.losses._dependence import Dependence

Path = tuple[Any, ...]


class Part(NamedTuple):
    """Which entries of a weight stand in an array.

    Attributes:
        weight: The name of its site.
        region: The first and last index, exclusive, along each axis of the weight.
        axes: Which axis of the weight each axis of the array is; None where it is none
            alone, so that later slices are not followed.
    """

    weight: str
    region: tuple[tuple[int, int], ...]
    axes: tuple[int | None, ...]

    def overlaps(self, other: "Part") -> bool:
        """Whether both may hold the same entry of the same weight."""
        if self.weight != other.weight:
            return False
        pairs = zip(self.region, other.region, strict=True)
        return all(a[0] < b[1] and b[0] < a[1] for a, b in pairs)


class Lazy(NamedTuple):
    """A normal array that has not been drawn: weights, or a linear map of weights.

    Attributes:
        own: Whether the entries along an axis are other entries of the weights. Along
            any other axis the array repeats itself, or belongs to other rows of data.
            Entries with the same indices on those axes are independent.
        parts: The weights.
        loops: The loops around, counted from -1 outwards in, whose iterations all see
            the same array.
    """

    own: tuple[bool, ...]
    parts: tuple[Part, ...]
    loops: tuple[int, ...] = ()

    def repeats(self, shape: tuple[int, ...]) -> list[int]:
        """The axes along which it repeats itself, or meets rows of data."""
        axes = zip(self.own, shape, strict=True)
        return [axis for axis, (own, size) in enumerate(axes) if not own and size > 1]


class Value(NamedTuple):
    """What is known of an array: on which noise it depends, and if it is lazy."""

    dependence: Dependence
    lazy: Lazy | None = None


class Use(NamedTuple):
    """A place where an array is drawn, with a row of noise for each row of data.

    Attributes:
        path: Where in the program.
        parts: The weights that are drawn.
        rows: The axes of the drawn array that are rows; negative numbers are loops.
    """

    path: Path
    parts: tuple[Part, ...]
    rows: tuple[int, ...]


class Step(NamedTuple):
    """What the second pass does at one operation with a lazy operand.

    Attributes:
        action: The rule.
        operand: The position of the lazy operand.
    """

    action: str
    operand: int = 0


def whole(weight: str, shape: tuple[int, ...]) -> Lazy:
    """A whole weight."""
    region = tuple((0, size) for size in shape)
    part = Part(weight, region, tuple(range(len(shape))))
    return Lazy((True,) * len(shape), (part,))


def count_readers(jaxpr: Any) -> dict[Any, int]:
    """How often each variable of a jaxpr is read."""
    counts: dict[Any, int] = {}
    atoms = [atom for eqn in jaxpr.eqns for atom in eqn.invars]
    for atom in (*atoms, *jaxpr.outvars):
        if not hasattr(atom, "val"):
            counts[atom] = counts.get(atom, 0) + 1
    return counts
