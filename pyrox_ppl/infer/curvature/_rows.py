"""Which axes are rows of data: found by sending random derivatives back.

Rows are apart if no gradient at any position depends on two of them. Multiply each
row's derivative with a number of its own: every gradient must then be multiplied by one
of these numbers, which says to which row the position belongs. The numbers are signed
powers of four, so this holds exactly whatever the network and its precision, and the
mean of two of them is none of them. Of many rows some share a number, so several
choices are tried.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from pyrox_ppl.infer.curvature._arrange import Arranged
from pyrox_ppl.infer.curvature._program import Part, Program
from pyrox_ppl.infer.curvature._uses import Path

Gradients = dict[Path, np.ndarray]
_TOLERANCE = 1e-3
_CHOICES = 4
_POWERS = range(-2, 3)


class Align(NamedTuple):
    """Where the rows are among the positions of a use.

    Attributes:
        axes: The axis of positions of each axis of rows; or the one axis that all rows
            share with the positions within a datum.
        order: ``"axes"``; or, for the one axis, ``"major"`` if the rows come first and
            ``"minor"`` if the positions within a datum do.
    """

    axes: tuple[int, ...]
    order: str = "axes"

    def split(self, array: Any, positions: tuple[int, ...], rows: int) -> Any:
        """Split the first axis into rows and positions within a datum."""
        rest = array.shape[1:]
        if self.order == "axes":
            array = array.reshape(*positions, *rest)
            array = _move_to_front(array, self.axes)
        else:
            (axis,) = self.axes
            size = positions[axis]
            pair = (rows, size // rows) if self.order == "major" else (-1, rows)
            shape = (*positions[:axis], *pair, *positions[axis + 1 :])
            place = axis if self.order == "major" else axis + 1
            array = _move_to_front(array.reshape(*shape, *rest), (place,))
        return array.reshape(rows, -1, *rest)


def _move_to_front(array: Any, axes: tuple[int, ...]) -> Any:
    return array.transpose(*axes, *(a for a in range(array.ndim) if a not in axes))


class PartPlan(NamedTuple):
    """What is known of the rows of one result.

    Attributes:
        position: The position of the result.
        rows: Its axes that are rows.
        align: The place of the rows by use; a use that has none is left out.
    """

    position: int
    rows: tuple[int, ...]
    align: tuple[tuple[Path, Align], ...]


def plan_part(
    program: Program,
    position: int,
    send_back: Callable[[int, np.ndarray], dict[Path, Any]],
    dropped: dict[str, str],
) -> PartPlan:
    """Find the rows of one result.

    Args:
        program: The program.
        position: The position of the result.
        send_back: From a derivative by the result to arranged gradients, by use.
        dropped: Where to note the sites whose values do not belong to rows.

    Returns:
        The plan.

    Raises:
        ValueError: If rows are coupled.
    """
    part = program.parts[position]
    # Rows are batch axes; a site whose axes are all of its event may hold them there.
    axes = range(part.batch_dim or len(part.shape) - 1)
    batch = [axis for axis in axes if part.shape[axis] > 1]
    base = np.random.default_rng(7).normal(size=part.shape).astype(np.float32)
    subsets = [
        axes
        for n in range(len(batch), 0, -1)
        for axes in itertools.combinations(batch, n)
    ]
    forms = {path: form for (path, _), form in program.arranged.items()}
    best: tuple | None = None
    for axes in subsets:
        probe = _Probe(program, position, send_back, base, axes)
        coupled = [path for path in forms if not probe.is_apart(path)]
        rows = math.prod(part.shape[a] for a in axes)
        shared = [p for p in coupled if math.prod(forms[p].positions) % rows]
        if len(shared) < len(coupled):
            continue
        cost = sum(forms[path].entries.size for path in shared)
        if best is None or cost < best[0]:
            best = cost, axes, shared, probe
        if cost == 0:
            break
    if not batch:
        _check_one_datum(part, forms)
        whole = tuple((path, Align(())) for path in forms)
        return PartPlan(position, (), whole)
    if best is None:
        raise ValueError(
            f"the rows of the observed site {part.site!r} are coupled: a datum's "
            "distribution depends on the inputs of other rows, as with batch "
            "normalisation in training mode or attention over the batch. Its diagonal "
            "and Kronecker factors are sums over rows: run the layer in inference "
            "mode, or use structure='low_rank' or 'full'."
        )
    _, axes, shared, probe = best
    for path in shared:
        for site in program.uses.by_path[path].lazy.entries:
            dropped.setdefault(site, f"data that all rows of {part.site!r} share")
    align = []
    for path, form in forms.items():
        place = None if path in shared else probe.find_rows(path, form)
        if place is not None:
            align.append((path, place))
    return PartPlan(position, axes, tuple(align))


def _check_one_datum(part: Part, forms: dict[Path, Arranged]) -> None:
    """Raise where one event may hold all rows of data."""
    positions = max((math.prod(form.positions) for form in forms.values()), default=1)
    if part.event_dim and part.shape[-1] > 1 and positions > 1:
        raise ValueError(
            f"the observed site {part.site!r} is one datum whose event couples the "
            f"{positions} places where weights meet data, as a multivariate normal "
            "over the rows does. Diagonal and Kronecker factors are sums over "
            "rows: use structure='low_rank' or 'full'."
        )


class _Probe:
    """Gradients of random derivatives for one choice of the axes of rows."""

    def __init__(
        self,
        program: Program,
        position: int,
        send_back: Callable,
        base: np.ndarray,
        axes: tuple[int, ...],
    ) -> None:
        shape = tuple(
            size if axis in axes else 1 for axis, size in enumerate(base.shape)
        )
        # Along rows the derivatives are alike, so that only their factors differ.
        first = tuple(
            slice(0, 1) if axis in axes else slice(None) for axis in range(base.ndim)
        )
        alike = np.broadcast_to(base[first], base.shape)
        rng = np.random.default_rng(8)
        self.factors = [_numbers(rng, shape) for _ in range(_CHOICES)]
        self.rows = tuple(base.shape[a] for a in axes)
        self.alike, *self.scaled = (
            jax.device_get(send_back(position, (alike * by).astype(base.dtype)))
            for by in (1.0, *self.factors)
        )

    def is_apart(self, path: Path) -> bool:
        """Whether every position's gradient comes from one row."""
        alike = np.asarray(self.alike[path], float)
        least = _TOLERANCE * _size(alike)
        for factors, scaled in zip(self.factors, self.scaled, strict=True):
            other, numbers = np.asarray(scaled[path], float), np.unique(factors)
            a, o = (g.reshape(len(g), -1) for g in (alike, other))
            square = np.sum(a * a, -1, keepdims=True)
            ratio = np.sum(a * o, -1, keepdims=True) / np.where(square > 0, square, 1)
            # A sum over rows has a ratio between their numbers.
            nearest = numbers[np.searchsorted((numbers[1:] + numbers[:-1]) / 2, ratio)]
            if not np.abs(o - nearest * a).max(initial=0) <= least:
                return False
        return True

    def find_rows(self, path: Path, form: Arranged) -> Align | None:
        """The place of the rows among the positions."""
        sizes, rows = form.positions, math.prod(self.rows)
        alike = np.asarray(self.alike[path], float)
        pairs = [
            (factors.reshape(rows, *(1,) * alike.ndim), np.asarray(scaled[path], float))
            for factors, scaled in zip(self.factors, self.scaled, strict=True)
        ]
        tolerance = _TOLERANCE * _size(alike)
        for align in _candidates(sizes, self.rows):
            left = np.asarray(align.split(alike, sizes, rows))
            away = (
                np.abs(np.asarray(align.split(scaled, sizes, rows)) - factors * left)
                for factors, scaled in pairs
            )
            if all(one.max(initial=0) <= tolerance for one in away):
                return align
        return None


def _numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Signed powers of four in random order, different ones for few rows."""
    levels = [sign * 4.0**power for power in _POWERS for sign in (-1, 1)]
    order = rng.permutation(math.prod(shape)) % len(levels)
    return np.array(levels)[order].reshape(shape)


def _size(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0))


def _candidates(positions: tuple[int, ...], rows: tuple[int, ...]) -> list[Align]:
    found = [
        Align(axes)
        for axes in itertools.permutations(range(len(positions)), len(rows))
        if tuple(positions[a] for a in axes) == rows
    ]
    total = math.prod(rows)
    for axis, size in enumerate(positions):
        if size % total == 0:
            found += [Align((axis,), "major"), Align((axis,), "minor")]
    return found
