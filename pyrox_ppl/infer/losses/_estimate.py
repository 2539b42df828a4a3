"""The second pass over a program: run it with noise that is new for each row of data.

A weight travels as a `Gaussian` until it meets data. Where the plan says that every row
may have noise of its own, the product is drawn and not the weight:

    x W ~ Normal(x m, x^2 s^2),

the local reparameterisation. Where some rows must share their noise, as the positions
of an image in a convolution do, one draw of the weight gets random signs for each datum
instead, which leave its distribution as it is:

    x W = x m + r * ((x * t) (s * e)),    r, t = -1 or +1,

which is flipout. All operations that meet no `Gaussian` run unchanged.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pyrox_ppl._jaxpr import bind_eqn, open_jaxpr
from pyrox_ppl.infer._computed_once import computed_once
from pyrox_ppl.infer._jaxpr import (
    CHECKPOINTS,
    ELEMENTWISE,
    inner_jaxpr,
    scan_counts,
)
from pyrox_ppl.infer.losses._gaussian import (
    Gaussian,
    Pending,
    add_gaussians,
    apply_without_weights,
    drawn,
    is_whole_convolution,
    multiply_both,
    shorten,
)
from pyrox_ppl.infer.losses._noise import count_words, random_signs
from pyrox_ppl.infer.losses._plan import Plan
from pyrox_ppl.infer.losses._primitives import axis_map
from pyrox_ppl.infer.losses._uses import (
    Path,
    count_readers,
)


class Estimator:
    """Runs one program with one plan.

    Args:
        plan: The plan.
        local: Whether uses whose rows are all independent are drawn as outputs; if not,
            they get signs.
        key: A PRNG key.
    """

    def __init__(self, plan: Plan, local: bool, key: jax.Array) -> None:
        self.plan = plan
        self.local = local
        # All keys in one operation: many small ones cost more than their numbers.
        keys = jax.random.split(key, max(len(plan.uses), 1))
        self.keys = {path: keys[number] for number, path in enumerate(plan.uses)}

    def run(self, closed: Any, inputs: Sequence[Any]) -> list[jax.Array]:
        """The results of the whole program."""
        jaxpr, constants = open_jaxpr(closed)
        return [drawn(v) for v in self.walk(jaxpr, constants, inputs, (), ())]

    def walk(
        self,
        jaxpr: Any,
        constants: Sequence[Any],
        inputs: Sequence[Any],
        path: Path,
        loops: tuple[jax.Array, ...],
    ) -> list[Any]:
        """The results of a body; `loops` holds the iterations of the loops around."""
        readers, known = count_readers(jaxpr), {}

        def write(var: Any, value: Any, where: Path) -> None:
            if isinstance(value, Gaussian) and where in self.plan.steps:
                value = self._draw(value, value.loc.shape, where, loops)
            if isinstance(value, Pending) and readers.get(var, 0) != 1:
                value = value.draw()
            known[var] = value

        variables = zip(
            (*jaxpr.constvars, *jaxpr.invars), (*constants, *inputs), strict=True
        )
        for k, (var, value) in enumerate(variables):
            write(var, value, (*path, "in", k))
        for i, eqn in enumerate(jaxpr.eqns):
            here = (*path, i)
            values = [a.val if hasattr(a, "val") else known[a] for a in eqn.invars]
            results = self._apply(eqn, values, here, loops)
            for k, (var, value) in enumerate(zip(eqn.outvars, results, strict=True)):
                write(var, value, (*here, "out", k))
        return [a.val if hasattr(a, "val") else known[a] for a in jaxpr.outvars]

    def _apply(self, eqn: Any, values: list[Any], path: Path, loops: tuple) -> list:
        name = eqn.primitive.name
        for k, value in enumerate(values):
            where = (*path, "operand", k)
            if isinstance(value, Gaussian) and where in self.plan.steps:
                elementwise = name in ELEMENTWISE
                shape = eqn.outvars[0].aval.shape if elementwise else value.loc.shape
                values[k] = self._draw(value, shape, where, loops)
        if not any(isinstance(value, Gaussian) for value in values):
            return apply_without_weights(eqn, values)
        step = self.plan.steps[path]
        k = step.operand
        if step.action == "enter":
            return self._enter(eqn, values, path, loops)
        if step.action == "sum":
            return [add_gaussians(eqn, values)]
        value = values[k]
        others = [drawn(v) if v is not value else v for v in values]

        def apply(array: jax.Array, *rest: Any) -> jax.Array:
            operands = list(rest) if rest else list(others)
            operands[k] = array
            return bind_eqn(eqn, operands)[0]

        match step.action:
            case "map":
                return [Gaussian(*(apply(array) for array in value))]
            case "neg":
                return [Gaussian(-value.loc, value.variance, -value.shift)]
            case "shift":
                negative = name == "sub" and k == 1
                shift = -value.shift if negative else value.shift
                return [Gaussian(apply(value.loc), value.variance, shift)]
            case "scale" | "hold":
                other = others[1 - k]
                squares = [other * other] * 2
                return [
                    Gaussian(
                        apply(value.loc),
                        apply(value.variance, *squares),
                        apply(value.shift),
                    )
                ]
            case _:
                rows = jnp.asarray(others[1 - k])
                return [self._contract(eqn, k, value, rows, path, loops)]

    def _contract(
        self, eqn: Any, k: int, value: Gaussian, x: jax.Array, path: Path, loops: tuple
    ) -> Any:
        """Multiply weights with rows of data, and draw the product."""

        def product(weight: jax.Array, x: jax.Array) -> jax.Array:
            return bind_eqn(eqn, [weight, x] if k == 0 else [x, weight])[0]

        if self._is_local(path):
            mean, variance = product(value.loc, x), product(value.variance, x * x)
            return Pending(mean, variance, self._key(path, loops))
        name, kept = eqn.primitive.name, self._kept(path)
        shapes = [tuple(atom.aval.shape) for atom in eqn.invars]
        out = tuple(eqn.outvars[0].aval.shape)
        axes = axis_map(name, eqn.params, shapes, out, 1 - k)
        if axes is None:
            raise TypeError(f"{name} is not a contraction.")
        shared = {axis for axis in self.plan.uses[path].rows if axis not in kept}
        if name == "conv_general_dilated":
            # Windows overlap, so no sign of the input may change from place to place.
            features = eqn.params["dimension_numbers"].lhs_spec[1]
            keep = [new is not None and new in kept for new in axes.axes]
            keep[features] = True
        else:
            keep = [new not in shared for new in axes.axes]
        kept_in = shorten(x.shape, keep)
        kept_out = shorten(out, [axis not in shared for axis in range(len(out))])
        key, first = self._key(path, loops), count_words(kept_in)
        flips = random_signs(key, kept_out, value.loc.dtype, first=first)
        # Signs of the input that are the row's alone make the output's no more random.
        pairs = zip(kept_in, axes.axes, strict=True)
        alone = all(n == 1 or (m is not None and kept_out[m] > 1) for n, m in pairs)
        # A convolution does without: signs of its output leave each row's law as it is,
        # and the variance nearly, and both products are then one, for half the price.
        if alone or is_whole_convolution(eqn):
            mean, shifted = multiply_both(eqn, k, value, x)
        else:
            # Else XLA would make both anew for each of their readers.
            signed = computed_once(x * random_signs(key, kept_in, x.dtype))
            mean, shifted = product(value.loc, x), product(value.shift, signed)
        return computed_once(mean + flips * shifted)

    def _draw(
        self, value: Gaussian, shape: Sequence[int], path: Path, loops: tuple
    ) -> Any:
        """Draw an array that is repeated for the rows of data."""
        loc, key = jnp.broadcast_to(value.loc, shape), self._key(path, loops)
        if self._is_local(path):
            return Pending(loc, jnp.broadcast_to(value.variance, shape), key)
        use, kept = self.plan.uses[path], self._kept(path)
        keep = [a not in use.rows or a in kept for a in range(len(shape))]
        return loc + value.shift * random_signs(key, shorten(shape, keep), loc.dtype)

    def _is_local(self, path: Path) -> bool:
        return self.local and self.plan.is_full(path)

    def _kept(self, path: Path) -> tuple[int, ...]:
        return self.plan.kept[path]

    def _key(self, path: Path, loops: tuple[jax.Array, ...]) -> jax.Array:
        """The key of a use: one for each iteration of the loops that are rows."""
        key = self.keys[path]
        shared = set(self.plan.uses[path].rows) - set(self._kept(path))
        for depth, iteration in enumerate(loops):
            if -(depth + 1) not in shared:
                key = jax.random.fold_in(key, iteration)
        return key

    def _enter(self, eqn: Any, values: list[Any], path: Path, loops: tuple) -> list:
        """Run the body of a call or a loop with lazy inputs."""
        if eqn.primitive.name == "scan":
            return self._scan(eqn, values, path, loops)
        jaxpr, constants = inner_jaxpr(eqn.params)
        if eqn.primitive.name not in CHECKPOINTS:
            return self.walk(jaxpr, constants, values, path, loops)

        def body(values: list[Any], loops: tuple) -> list[jax.Array]:
            return self._settle(
                self.walk(jaxpr, constants, values, path, loops), path, "result", loops
            )

        options = {k: eqn.params[k] for k in ("prevent_cse", "policy")}
        return jax.checkpoint(body, **options)(
            [v if isinstance(v, Gaussian) else drawn(v) for v in values], loops
        )

    def _scan(self, eqn: Any, values: list[Any], path: Path, loops: tuple) -> list:
        params = eqn.params
        num_constants, num_carry = scan_counts(params)
        jaxpr, constants = open_jaxpr(params["jaxpr"])
        values = [v.draw() if isinstance(v, Pending) else v for v in values]
        outer, rest = values[:num_constants], values[num_constants:]
        carry = self._settle(rest[:num_carry], path, "carry", loops)
        slices = self._settle(rest[num_carry:], path, "slice", loops)

        def body(carry: list, inputs: tuple) -> tuple[list, list]:
            iteration, slices = inputs
            inner = (*loops, iteration)
            results = self.walk(
                jaxpr, constants, [*outer, *carry, *slices], path, inner
            )
            results = self._settle(results, path, "result", inner)
            return results[:num_carry], results[num_carry:]

        length = params["length"]
        carry, stacked = lax.scan(
            body,
            carry,
            (jnp.arange(length), slices),
            length,
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
        return [*carry, *stacked]

    def _settle(self, values: list, path: Path, kind: str, loops: tuple) -> list:
        """Draw what the plan draws at a boundary; other weights pass on."""
        settled = []
        for k, value in enumerate(values):
            where = (*path, kind, k)
            if isinstance(value, Gaussian) and where in self.plan.steps:
                value = self._draw(value, value.loc.shape, where, loops)
            settled.append(value if isinstance(value, Gaussian) else drawn(value))
        return settled
