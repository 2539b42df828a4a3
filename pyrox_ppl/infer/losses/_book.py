"""The book of an analysis: which weights are drawn where, and which must be drawn once.

A weight is drawn once, for all rows, if any of these holds; else each use of it may
have noise of its own:

- two uses meet in a nonlinear operation: their noise would have to agree;
- an operation that is not linear in the weights takes them before rows of data do.
"""

from collections.abc import Hashable, Iterable

from pyrox_ppl.infer.losses._dependence import Dependence, Rows, State
from pyrox_ppl.infer.losses._uses import Lazy, Path, Step, Use


class Book:
    """What an analysis has found so far.

    Attributes:
        steps: What the second pass does, by path.
        uses: The places where weights are drawn, by path.
        dropped: The weights that must be drawn once, and why.
    """

    def __init__(self) -> None:
        self.steps: dict[Path, Step] = {}
        self.uses: dict[Path, Use] = {}
        self.dropped: dict[str, str] = {}
        self._rivals: dict[Path, set[Path]] = {}

    def drop(self, lazy: Lazy, reason: str) -> None:
        """Draw the weights of an array once."""
        for part in lazy.parts:
            self.dropped.setdefault(part.weight, reason)

    def add_use(
        self, path: Path, lazy: Lazy, rows: Iterable[int], before: Dependence
    ) -> dict[tuple[Hashable, int], State]:
        """Draw an array with independent noise along some axes.

        `before` is the dependence of the array itself, on noise of other uses.
        """
        use = Use(path, lazy.parts, (*rows, *lazy.loops))
        if path not in self.uses:
            self._rivals[path] = {
                other.path for other in self.uses.values() if _overlap(use, other)
            }
            for other in self._rivals[path]:
                self._rivals[other].add(path)
        self.uses[path] = use
        self.meet(before, [(path, 0)], "a second product with it")
        noise = {(path, axis): Rows((axis,)) for axis in use.rows}
        return {**before, **noise}

    def meet(
        self,
        left: Iterable[tuple[Path, int]],
        right: Iterable[tuple[Path, int]],
        by: str,
    ) -> None:
        """Drop weights of which two uses meet in a nonlinear operation."""
        here = {noise[0] for noise in left}
        there = {noise[0] for noise in right}
        for path in here:
            for other in self._rivals[path] & there:
                pairs = (
                    part.weight
                    for part in self.uses[path].parts
                    for second in self.uses[other].parts
                    if part.overlaps(second)
                )
                for weight in pairs:
                    self.dropped.setdefault(
                        weight, f"used more than once for the same row ({by})"
                    )


def _overlap(use: Use, other: Use) -> bool:
    return any(a.overlaps(b) for a in use.parts for b in other.parts)
