"""Where a program uses its weights: contractions, look-ups and broadcasts, by path.

The analysis follows the entries of each site through operations that move them or act
on them one by one. It holds, for each array, the index of the entry that stands at each
place. A use is where such an array meets anything that depends on data: there the
program becomes a function of a small array, the output, to which a zero can be added
whose derivative is the gradient that the use sends back.

A site that is used in any other way has no rule. Nothing is wrong with it: its part of
the curvature is computed from Jacobian products, exactly, at a higher price.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from pyrox_ppl._jaxpr import open_jaxpr
from pyrox_ppl.infer._jaxpr import (
    CALLS,
    ELEMENTWISE,
    STRUCTURAL,
    inner_jaxpr,
    scan_counts,
)
from pyrox_ppl.infer.curvature._indices import (
    Index,
    count_distinct,
    lookup_axis,
    move_entries,
    own_axes,
    repeat,
)

Path = tuple[int, ...]


class Lazy(NamedTuple):
    """An array each of whose entries is a function of one entry of each of some sites.

    Attributes:
        entries: The flat index of that entry, by site.
        identity: Whether the entries are the sites' own, unchanged.
    """

    entries: dict[str, Index]
    identity: bool = True


class Fact(NamedTuple):
    """What is known of an array: if it comes from a use, and if it is lazy."""

    used: bool = False
    lazy: Lazy | None = None


class Use(NamedTuple):
    """A place where weights meet data.

    Attributes:
        kind: ``"dot_general"``, ``"conv_general_dilated"``, ``"gather"``; or
            ``"broadcast"``, where the array itself is repeated over data.
        operand: The position of the weights among the operands.
        lazy: The weights.
        shape: The shape of the output, to which a zero is added.
        loops: The lengths of the loops around.
        params: The parameters of the operation.
    """

    kind: str
    operand: int
    lazy: Lazy
    shape: tuple[int, ...]
    loops: tuple[int, ...]
    params: Any


class Uses(NamedTuple):
    """All uses of a program.

    Attributes:
        by_path: The uses; the last number of a path is the operand.
        entered: The calls and loops whose bodies hold uses.
        without_rule: The sites that are also used in other ways, and by what.
        active: Whether each result depends on a use.
    """

    by_path: dict[Path, Use]
    entered: set[Path]
    without_rule: dict[str, str]
    active: list[bool]


def find_uses(closed: Any, sites: list[str]) -> Uses:
    """Find the uses of a program whose first inputs are the values of these sites."""
    jaxpr, constants = open_jaxpr(closed)
    walk = _Walk()
    inputs = []
    for name, var in zip(sites, jaxpr.invars, strict=False):
        shape = tuple(var.aval.shape)
        index = np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)
        inputs.append(Fact(lazy=Lazy({name: index})))
    inputs += [Fact()] * (len(jaxpr.invars) - len(inputs))
    facts = walk.body(jaxpr, [Fact()] * len(constants), inputs, (), ())
    for fact in facts:
        walk.give_up(fact, "the likelihood")
    entered = {path[:n] for path in walk.uses for n in range(1, len(path) - 1)}
    return Uses(walk.uses, entered, walk.without_rule, [fact.used for fact in facts])


class _Walk:
    """One pass over a program and the bodies of its calls and loops."""

    def __init__(self) -> None:
        self.uses: dict[Path, Use] = {}
        self.without_rule: dict[str, str] = {}

    def give_up(self, fact: Fact, by: str) -> None:
        """Note that sites are used in a way that has no rule."""
        if fact.lazy is not None:
            for site in fact.lazy.entries:
                self.without_rule.setdefault(site, by)

    def body(
        self,
        jaxpr: Any,
        constants: list[Fact],
        inputs: list[Fact],
        path: Path,
        loops: tuple[int, ...],
    ) -> list[Fact]:
        """The facts of the results of a body."""
        facts = dict(
            zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *inputs), strict=True)
        )
        for i, eqn in enumerate(jaxpr.eqns):
            operands = [Fact() if hasattr(a, "val") else facts[a] for a in eqn.invars]
            results = self._results(eqn, operands, (*path, i), loops)
            facts.update(zip(eqn.outvars, results, strict=True))
        return [Fact() if hasattr(a, "val") else facts[a] for a in jaxpr.outvars]

    def _results(
        self, eqn: Any, operands: list[Fact], path: Path, loops: tuple[int, ...]
    ) -> list[Fact]:
        name = eqn.primitive.name
        used = any(fact.used for fact in operands)
        if name == "stop_gradient":
            return [Fact()]
        if name in CALLS and (used or _lazy(operands)):
            jaxpr, constants = inner_jaxpr(eqn.params)
            return self.body(jaxpr, [Fact()] * len(constants), operands, path, loops)
        if name == "scan" and (used or _lazy(operands)):
            return self._scan(eqn, operands, path, loops)
        lazy = _lazy(operands)
        result = None
        if not lazy:
            return [Fact(used=used)] * len(eqn.outvars)
        if len(lazy) == 1 and lazy[0] == 0 and name in STRUCTURAL:
            result = self._move(eqn, operands, path, loops)
        elif name in ("dot_general", "conv_general_dilated") and len(lazy) == 1:
            result = self._contract(eqn, operands, lazy[0], path, loops)
        if result is None and name in ELEMENTWISE and len(eqn.outvars) == 1:
            result = self._elementwise(eqn, operands, path, loops)
        if result is not None:
            return [result]
        for fact in operands:
            self.give_up(fact, f"`{name}`")
        return [Fact(used=used)] * len(eqn.outvars)

    def _add(
        self,
        eqn: Any,
        kind: str,
        k: int,
        lazy: Lazy,
        path: Path,
        loops: tuple[int, ...],
    ) -> Fact:
        shape, params = tuple(eqn.outvars[0].aval.shape), dict(eqn.params)
        self.uses[*path, k] = Use(kind, k, lazy, shape, loops, params)
        return Fact(used=True)

    def _move(
        self, eqn: Any, operands: list[Fact], path: Path, loops: tuple[int, ...]
    ) -> Fact | None:
        """Move the entries of one array; a look-up by data is a use."""
        name, lazy = eqn.primitive.name, operands[0].lazy
        if lazy is None or any(fact.used for fact in operands):
            return None
        if name == "gather":
            if not _is_lookup(eqn):
                return None
            return self._add(eqn, "gather", 0, lazy, path, loops)
        if name == "convert_element_type":
            inexact = jax.numpy.issubdtype(eqn.params["new_dtype"], jax.numpy.inexact)
            return operands[0] if inexact else None
        moved: dict[str, Index] = {}
        for site, array in lazy.entries.items():
            index = move_entries(eqn, array)
            if index is None:
                return None
            moved[site] = index
        return Fact(lazy=Lazy(moved, lazy.identity))

    def _contract(
        self,
        eqn: Any,
        operands: list[Fact],
        k: int,
        path: Path,
        loops: tuple[int, ...],
    ) -> Fact | None:
        lazy, name = operands[k].lazy, eqn.primitive.name
        conv = name == "conv_general_dilated"
        if lazy is None or (conv and (k == 0 or eqn.params["batch_group_count"] != 1)):
            return None
        return self._add(eqn, name, k, lazy, path, loops)

    def _elementwise(
        self, eqn: Any, operands: list[Fact], path: Path, loops: tuple[int, ...]
    ) -> Fact | None:
        """Act on entries one by one, where they do not meet data yet."""
        shape = tuple(eqn.outvars[0].aval.shape)
        merged: dict[str, Index] = {}
        repeated, lazies = False, _lazy(operands)
        for k in lazies:
            lazy = operands[k].lazy
            if lazy is None:
                continue
            for site, array in lazy.entries.items():
                index = repeat(array, shape)
                before = merged.get(site, index)
                if not np.array_equal(before, index):
                    return None
                merged[site] = index
                repeated |= count_distinct(index) < index.size
        others = any(
            fact.lazy is None and not hasattr(atom, "val") and atom.aval.shape
            for fact, atom in zip(operands, eqn.invars, strict=True)
        )
        meets = any(fact.used for fact in operands) or (repeated and others)
        if not meets:
            # An entry that stands where others vary has no slope of its own.
            axes = {site: set(own_axes(index)) for site, index in merged.items()}
            for site in [
                s for s, own in axes.items() if own < set().union(*axes.values())
            ]:
                self.without_rule.setdefault(site, f"`{eqn.primitive.name}`")
                del merged[site]
            lazy = operands[lazies[0]].lazy
            identity = lazy is not None and lazy.identity and len(merged) == 1
            return Fact(lazy=Lazy(merged, identity and eqn.primitive.name == "copy"))
        for k in lazies:
            lazy = operands[k].lazy
            if lazy is not None:
                index = {s: repeat(a, shape) for s, a in lazy.entries.items()}
                self._add(
                    eqn, "broadcast", k, lazy._replace(entries=index), path, loops
                )
        return Fact(used=True)

    def _scan(
        self, eqn: Any, operands: list[Fact], path: Path, loops: tuple[int, ...]
    ) -> list[Fact]:
        """A loop: weights may enter as constants of the body only."""
        num_constants, num_carry = scan_counts(eqn.params)
        jaxpr, constants = open_jaxpr(eqn.params["jaxpr"])
        for fact in operands[num_constants:]:
            self.give_up(fact, "a loop that carries or slices it")
        outer = operands[:num_constants]
        rest = [fact._replace(lazy=None) for fact in operands[num_constants:]]
        carry, slices = rest[:num_carry], rest[num_carry:]
        inside = (*loops, eqn.params["length"])
        while True:
            results = self.body(
                jaxpr,
                [Fact()] * len(constants),
                [*outer, *carry, *slices],
                path,
                inside,
            )
            for fact in results:
                self.give_up(fact, "a loop that returns it")
            results = [fact._replace(lazy=None) for fact in results]
            after = [
                Fact(old.used or new.used)
                for old, new in zip(carry, results, strict=False)
            ]
            if after == carry:
                return [*after, *results[num_carry:]]
            carry = after


def _lazy(operands: list[Fact]) -> list[int]:
    return [k for k, fact in enumerate(operands) if fact.lazy is not None]


def _is_lookup(eqn: Any) -> bool:
    shape = tuple(eqn.invars[0].aval.shape)
    return lookup_axis(eqn.params, shape) is not None
