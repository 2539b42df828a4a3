"""The plan of a program: which weights are drawn anew for each row of data, and where.

The program is a model's log-density as a jaxpr, a function of its weights. Noise that
is independent from row to row leaves the expectation as it is if the density is a sum
over these rows in the end, and if no row meets the same weight twice.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from pyrox_ppl._jaxpr import open_jaxpr
from pyrox_ppl.infer.losses._analysis import Pass
from pyrox_ppl.infer.losses._book import Book
from pyrox_ppl.infer.losses._dependence import Mixed
from pyrox_ppl.infer.losses._primitives import holds_squares
from pyrox_ppl.infer.losses._uses import Lazy, Path, Step, Use, Value, whole

_NOTHING: Mapping[str, str] = MappingProxyType({})


class Plan(NamedTuple):
    """What the second pass does.

    Attributes:
        steps: The rule for each operation with a lazy operand, by path.
        kept: The rows whose noise stays independent, by path of the use.
        uses: The uses, by path.
        dropped: The weights that are drawn once, and why.
        mixed: The operations that mixed rows of a use, by path of the use.
    """

    steps: dict[Path, Step]
    kept: dict[Path, tuple[int, ...]]
    uses: dict[Path, Use]
    dropped: dict[str, str]
    mixed: dict[Path, str]

    def is_full(self, path: Path) -> bool:
        """Whether all rows of a use are independent."""
        return self.kept[path] == self.uses[path].rows


def make_plan(
    closed: Any, weights: Sequence[str | None], once: Mapping[str, str] = _NOTHING
) -> Plan:
    """Analyse a program whose first inputs are the weights.

    A weight that is drawn once changes what the others meet, so the analysis is
    repeated until nothing is dropped any more. `once` has the weights that are drawn
    once in any case, and why.
    """
    jaxpr, constants = open_jaxpr(closed)
    dropped = dict(once)
    for name, var in zip(weights, jaxpr.invars, strict=False):
        if name is not None and not holds_squares(var.aval.dtype):
            why = f"its variance may vanish in {var.aval.dtype}"
            dropped.setdefault(name, why)
    while True:
        book = Book()
        inputs = [
            Value(
                {},
                None
                if name is None or name in dropped
                else whole(name, tuple(var.aval.shape)),
            )
            for name, var in zip(weights, jaxpr.invars, strict=False)
        ]
        inputs += [Value({})] * (len(jaxpr.invars) - len(inputs))
        results = Pass(book).walk(jaxpr, [Value({})] * len(constants), inputs, ())
        for value in results:
            if value.lazy is not None:
                book.drop(
                    value.lazy,
                    "a result of the model holds it before it meets rows of data",
                )
        kept, mixed = _kept_rows(book, results)
        if not book.dropped:
            for path, use in book.uses.items():
                if not kept[path]:
                    reason = f"`{mixed[path]}` combines the rows of data after it"
                    book.drop(Lazy((), use.parts), reason)
        if not book.dropped:
            return Plan(book.steps, kept, book.uses, dropped, mixed)
        dropped |= book.dropped


def _kept_rows(
    book: Book, results: list[Value]
) -> tuple[dict[Path, tuple[int, ...]], dict[Path, str]]:
    """The rows that no result mixes, and what mixed the others."""
    mixed: dict[Path, str] = {}
    lost: set[tuple[Path, int]] = set()
    for value in results:
        for noise, state in value.dependence.items():
            if isinstance(state, Mixed):
                lost.add(noise)
                mixed.setdefault(noise[0], state.by)
    kept = {
        path: tuple(row for row in use.rows if (path, row) not in lost)
        for path, use in book.uses.items()
    }
    return kept, mixed
