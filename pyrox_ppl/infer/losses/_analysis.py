"""One pass over a program: which weights may be drawn anew for each row of data.

The pass follows each weight to the operation that meets it with data, and the noise
that could be drawn there to the density. Nothing but the program is asked, so a plate,
a batch norm, attention and a multivariate likelihood are all judged by what they
compute.
"""

from collections.abc import Sequence
from typing import Any

from pyrox_ppl._jaxpr import open_jaxpr
from pyrox_ppl.infer._jaxpr import (
    CALLS,
    CHECKPOINTS,
    OWN_DERIVATIVE,
    inner_jaxpr,
    scan_counts,
)
from pyrox_ppl.infer.losses._array_rules import dependence_of_results
from pyrox_ppl.infer.losses._book import Book
from pyrox_ppl.infer.losses._dependence import (
    Dependence,
    Mixed,
    add_states,
    apply_nonlinear,
)
from pyrox_ppl.infer.losses._loops import carried_states, slice_value, stacked_state
from pyrox_ppl.infer.losses._uses import (
    Path,
    Step,
    Value,
    count_readers,
)
from pyrox_ppl.infer.losses._weight_rules import apply_weight_rule, draw, draw_value


class Pass:
    """One pass over a program and the bodies of its calls and loops."""

    def __init__(self, book: Book) -> None:
        self.book = book

    def walk(
        self,
        jaxpr: Any,
        constants: list[Value],
        inputs: Sequence[Value],
        path: Path,
        depth: int = 0,
    ) -> list[Value]:
        """What is known of the results, given what is known of the inputs."""
        readers, known = count_readers(jaxpr), {}

        def write(var: Any, value: Value, where: Path) -> None:
            shape = tuple(getattr(var.aval, "shape", ()))
            lazy = value.lazy
            # Two readers of rows must see the same noise, so it is drawn before them.
            if lazy is not None and lazy.repeats(shape) and readers.get(var, 0) > 1:
                value = draw_value(self.book, value, shape, shape, where, "sharing")
            known[var] = value

        for k, (var, value) in enumerate(
            zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *inputs), strict=True)
        ):
            write(var, value, (*path, "in", k))
        for i, eqn in enumerate(jaxpr.eqns):
            values = [
                known.get(a, Value({})) if not hasattr(a, "val") else Value({})
                for a in eqn.invars
            ]
            here = (*path, i)
            for k, (var, value) in enumerate(
                zip(eqn.outvars, self._results(eqn, values, here, depth), strict=True)
            ):
                write(var, value, (*here, "out", k))
        return [
            Value({}) if hasattr(atom, "val") else known[atom] for atom in jaxpr.outvars
        ]

    def _results(
        self, eqn: Any, values: list[Value], path: Path, depth: int
    ) -> list[Value]:
        name = eqn.primitive.name
        if not any(value.lazy or value.dependence for value in values):
            return [Value({})] * len(eqn.outvars)
        if name in CALLS:
            if name in OWN_DERIVATIVE:
                values = self._draw_all(eqn, values, path)
            jaxpr, constants = inner_jaxpr(eqn.params)
            results = self.walk(
                jaxpr, [Value({})] * len(constants), values, path, depth
            )
            if any(value.lazy for value in values):
                self.book.steps[path] = Step("enter")
            if name in CHECKPOINTS:
                # Its body is traced anew, so only arrays leave it.
                pairs = zip(results, eqn.outvars, strict=True)
                results = [
                    self._settle(value, var, (*path, "result", k), name)
                    for k, (value, var) in enumerate(pairs)
                ]
            return results
        if name == "scan":
            return self._scan(eqn, values, path, depth)
        if name == "cond":
            return self._cond(eqn, self._draw_all(eqn, values, path), path, depth)
        # Of two lazy operands, that with rows is drawn, and the other meets its rows.
        for draw_lazy in (_draw_nothing, self._draw_repeated, self._draw_all):
            values = draw_lazy(eqn, values, path)
            if any(value.lazy for value in values):
                results = apply_weight_rule(self.book, eqn, values, path)
                if results is not None:
                    return results
        dependences = [value.dependence for value in values]
        results = dependence_of_results(self.book, eqn, dependences, path)
        return [Value(dependence) for dependence in results]

    def _draw_all(self, eqn: Any, values: list[Value], path: Path) -> list[Value]:
        return [
            draw(self.book, eqn, values, k, (*path, "operand", k))
            if value.lazy is not None
            else value
            for k, value in enumerate(values)
        ]

    def _draw_repeated(self, eqn: Any, values: list[Value], path: Path) -> list[Value]:
        shapes = [tuple(getattr(atom.aval, "shape", ())) for atom in eqn.invars]
        return [
            draw(self.book, eqn, values, k, (*path, "operand", k))
            if value.lazy is not None and value.lazy.repeats(shape)
            else value
            for k, (value, shape) in enumerate(zip(values, shapes, strict=True))
        ]

    def _settle(self, value: Value, var: Any, path: Path, by: str) -> Value:
        if value.lazy is None:
            return value
        shape = tuple(var.aval.shape)
        return draw_value(self.book, value, shape, shape, path, by)

    def _cond(
        self, eqn: Any, values: list[Value], path: Path, depth: int
    ) -> list[Value]:
        """One of several branches; which one must not depend on the noise."""
        results = []
        for b, closed in enumerate(eqn.params["branches"]):
            jaxpr, constants = open_jaxpr(closed)
            results.append(
                self.walk(
                    jaxpr,
                    [Value({})] * len(constants),
                    values[1:],
                    (*path, "branch", b),
                    depth,
                )
            )
        joined = [
            add_states(value.dependence for value in branches)
            for branches in zip(*results, strict=True)
        ]
        chooser = values[0].dependence
        if not chooser:
            return [Value(dependence) for dependence in joined]
        everything = [noise for part in (chooser, *joined) for noise in part]
        self.book.meet(everything, everything, "cond")
        return [Value(_mix([chooser, part], "cond")) for part in joined]

    def _scan(
        self, eqn: Any, values: list[Value], path: Path, depth: int
    ) -> list[Value]:
        """A loop: the slices of its inputs are rows, what it carries is followed."""
        num_constants, num_carry = scan_counts(eqn.params)
        jaxpr, constants = open_jaxpr(eqn.params["jaxpr"])
        level = -(depth + 1)
        outer, carry, slices = (
            values[:num_constants],
            values[num_constants : num_constants + num_carry],
            values[num_constants + num_carry :],
        )
        lazy = any(value.lazy for value in values)
        carry = [
            self._settle(value, var, (*path, "carry", k), "scan")
            for k, (value, var) in enumerate(
                zip(carry, eqn.invars[num_constants:], strict=False)
            )
        ]
        variables = eqn.invars[num_constants + num_carry :]
        slices = [
            slice_value(self.book, value, var, level, (*path, "slice", k))
            for k, (value, var) in enumerate(zip(slices, variables, strict=True))
        ]
        outer = [
            value
            if value.lazy is None
            else value._replace(
                lazy=value.lazy._replace(loops=(*value.lazy.loops, level))
            )
            for value in outer
        ]
        if lazy:
            self.book.steps[path] = Step("enter")
        while True:
            results = self.walk(
                jaxpr,
                [Value({})] * len(constants),
                [*outer, *carry, *slices],
                path,
                depth + 1,
            )
            results = [
                self._settle(value, var, (*path, "result", k), "scan")
                for k, (value, var) in enumerate(
                    zip(results, jaxpr.outvars, strict=True)
                )
            ]
            after = [
                Value(add_states([old.dependence, carried_states(new, level, path)]))
                for old, new in zip(carry, results, strict=False)
            ]
            if after == carry:
                break
            carry = after
        stacked = [
            Value({n: stacked_state(s, level, path) for n, s in v.dependence.items()})
            for v in results[num_carry:]
        ]
        return [*carry, *stacked]


def _draw_nothing(eqn: Any, values: list[Value], path: Path) -> list[Value]:
    return values


def _mix(parts: list[Dependence], by: str) -> Dependence:
    mixed = apply_nonlinear(parts, by)
    return {noise: Mixed(by) for noise in mixed}
