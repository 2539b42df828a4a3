"""Run a program with a zero added at each use, and keep what the weights meet there."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pyrox_ppl._jaxpr import bind_eqn, open_jaxpr
from pyrox_ppl.infer._jaxpr import inner_jaxpr, scan_counts
from pyrox_ppl.infer.curvature._uses import Path, Use, Uses

Arrays = dict[Path, Any]


def zeros_of(uses: Mapping[Path, Use], dtypes: Mapping[Path, Any]) -> Arrays:
    """The zeros to add, with an axis for each loop around a use."""
    return {
        path: jnp.zeros((*use.loops, *use.shape), dtypes[path])
        for path, use in uses.items()
    }


class Instrument:
    """Evaluates a program; `weights` asks for the weights at each use."""

    def __init__(self, uses: Uses, *, weights: bool = False) -> None:
        self.uses = uses
        self.weights = weights

    def run(
        self, closed: Any, inputs: Sequence[Any], zeros: Arrays
    ) -> tuple[list[Any], Arrays]:
        """The results of a program, and what the weights meet at each use."""
        jaxpr, constants = open_jaxpr(closed)
        return self._body(jaxpr, constants, inputs, (), zeros)

    def _body(
        self,
        jaxpr: Any,
        constants: Sequence[Any],
        inputs: Sequence[Any],
        path: Path,
        zeros: Arrays,
    ) -> tuple[list[Any], Arrays]:
        variables = (*jaxpr.constvars, *jaxpr.invars)
        values = dict(zip(variables, (*constants, *inputs), strict=True))
        met: Arrays = {}
        for i, eqn in enumerate(jaxpr.eqns):
            here = (*path, i)
            operands = [a.val if hasattr(a, "val") else values[a] for a in eqn.invars]
            if here not in self.uses.entered:
                results = self._apply(eqn, operands, here, zeros, met)
            elif eqn.primitive.name == "scan":
                results = self._scan(eqn, operands, here, zeros, met)
            else:
                inner, consts = inner_jaxpr(eqn.params)
                results, more = self._body(inner, consts, operands, here, zeros)
                met |= more
            values.update(zip(eqn.outvars, results, strict=True))
        results = [a.val if hasattr(a, "val") else values[a] for a in jaxpr.outvars]
        return results, met

    def _apply(
        self, eqn: Any, operands: list[Any], path: Path, zeros: Arrays, met: Arrays
    ) -> list[Any]:
        """Apply an operation; where it is a use, add the zero."""
        added = []
        for k, operand in enumerate(operands):
            use = self.uses.by_path.get((*path, k))
            if use is None:
                continue
            key = (*path, k)
            if self.weights:
                met[key] = operand
            if use.kind == "broadcast":
                operands[k] = jnp.broadcast_to(operand, use.shape)
                if key in zeros:
                    operands[k] = operands[k] + zeros[key].astype(operand.dtype)
                continue
            if not self.weights:
                met[key] = operands[1 if use.kind == "gather" else 1 - k]
            if key in zeros:
                added.append(zeros[key])
        results = bind_eqn(eqn, operands)
        for zero in added:
            results = [results[0] + zero.astype(results[0].dtype)]
        return results

    def _scan(
        self, eqn: Any, operands: list[Any], path: Path, zeros: Arrays, met: Arrays
    ) -> list[Any]:
        """Run a loop whose iterations each take their slice of the zeros."""
        params = eqn.params
        num_constants, num_carry = scan_counts(params)
        jaxpr, constants = open_jaxpr(params["jaxpr"])
        outer, rest = operands[:num_constants], operands[num_constants:]
        here = {key: z for key, z in zeros.items() if key[: len(path)] == path}

        def body(carry: list[Any], inputs: tuple) -> tuple[list[Any], tuple]:
            slices, inner = inputs
            results, found = self._body(
                jaxpr, constants, [*outer, *carry, *slices], path, inner
            )
            return results[:num_carry], (results[num_carry:], found)

        carry, (stacked, found) = lax.scan(
            body,
            rest[:num_carry],
            (rest[num_carry:], here),
            params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
        met |= found
        return [*carry, *stacked]


def held(value: Any) -> Any:
    """The arrays, without their derivatives."""
    return jax.tree.map(lax.stop_gradient, value)
