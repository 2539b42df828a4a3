"""The curvature as one block for each site: a diagonal, Kronecker factors, or exact."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from pyrox_ppl.infer.curvature._at_mode import ModelAtMode, Values
from pyrox_ppl.infer.curvature._curvature import AbstractCurvature, AbstractPosterior
from pyrox_ppl.infer.curvature._diag import DiagonalPosterior, SiteUse, sum_squares
from pyrox_ppl.infer.curvature._full import FullPosterior, gram
from pyrox_ppl.infer.curvature._jacobian import jacobian_at_mode
from pyrox_ppl.infer.curvature._kron import KronPosterior, sum_inputs, sum_outputs
from pyrox_ppl.infer.curvature._layout import Layout
from pyrox_ppl.infer.curvature._prior import DiagonalPrior
from pyrox_ppl.infer.curvature._program import (
    Batch,
    Program,
    make_program,
    run_batch,
    slopes,
)
from pyrox_ppl.infer.curvature._rows import PartPlan
from pyrox_ppl.infer.curvature._uses import Path


class Plan(NamedTuple):
    """How a batch is accumulated.

    Attributes:
        parts: The rows of each result.
        paths: The uses, to recognise the program of another batch.
        kinds: By site: ``"kron"``, ``"gradients"`` (a diagonal from the gradients of
            each datum), ``"block"`` or ``"products"`` (exact, and a diagonal, from
            Jacobian products).
    """

    parts: tuple[PartPlan, ...]
    paths: tuple[Path, ...]
    kinds: tuple[tuple[str, str], ...]


class Factored(AbstractCurvature):
    """A block for each site; products of different sites are left out."""

    arrays: Values
    layout: Layout = eqx.field(static=True)
    plan: Plan | None = eqx.field(static=True, default=None)

    def add_batch(
        self,
        at_mode: ModelAtMode,
        args: tuple,
        kwargs: dict[str, Any],
        weight: jax.Array,
        key: jax.Array | None,
    ) -> Self:
        """Add the weighted curvature of one batch."""
        if self.plan is None:
            raise ValueError(
                "this curvature was restored from its arrays: make one from the model "
                "with make_curvature to accumulate data."
            )
        kinds, arrays = dict(self.plan.kinds), dict(self.arrays)
        if {"kron", "gradients"} & set(kinds.values()):
            program = make_program(at_mode, key, args, kwargs)
            _check_same(program, self.plan)
            batch = run_batch(program, at_mode.start)
            work = _Work(program, batch, slopes(program, at_mode.start), kinds)
            for part in self.plan.parts:
                for name, value in work.add_part(
                    part, at_mode.num_samples, key
                ).items():
                    arrays[name] = arrays[name] + weight * value
            for name, value in work.inputs(self.plan.parts).items():
                arrays[name] = arrays[name] + value
        for site, kind in kinds.items():
            if kind in ("block", "products"):
                restricted = at_mode.restrict((site,))
                value = _by_products(restricted, kind, key, args, kwargs)
                name = f"{site}.{'block' if kind == 'block' else 'diagonal'}"
                arrays[name] = arrays[name] + weight * value
        return type(self)(arrays, self.layout, self.plan)

    def posterior(
        self, prior: DiagonalPrior, *, damping: Any = 0.0
    ) -> "FactoredPosterior":
        """The posterior with a prior's precision."""
        parts = {}
        for name, shape, _ in self.layout.parts():
            precision = jnp.asarray(prior.arrays[name]) + damping
            if f"{name}.block" in self.arrays:
                full = jnp.broadcast_to(precision, shape).reshape(-1)
                parts[name] = FullPosterior.of(
                    self.arrays[f"{name}.block"],
                    jnp.diag(full),
                    Layout.of({name: shape}),
                )
                continue
            kron = f"{name}.outputs" in self.arrays
            kind = KronPosterior if kron else DiagonalPosterior
            parts[name] = kind.of(name, self.arrays, precision, shape)
        return FactoredPosterior(parts=parts, layout=self.layout)


class FactoredPosterior(AbstractPosterior):
    """Independent normal posteriors of the sites."""

    parts: dict[str, Any]
    layout: Layout = eqx.field(static=True)

    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> Values:
        """Draw deviations from the mode."""
        keys = jax.random.split(key, len(self.parts))
        return {
            name: _of_site(part.sample(k, shape), name)
            for k, (name, part) in zip(keys, sorted(self.parts.items()), strict=True)
        }

    def solve(self, values: Values) -> Values:
        """Multiply the covariance with a vector."""
        found = {}
        for name, part in self.parts.items():
            whole = isinstance(part, FullPosterior)
            given = {name: values[name]} if whole else values[name]
            found[name] = _of_site(part.solve(given), name)
        return found

    def log_det(self) -> jax.Array:
        """The log-determinant of the precision."""
        terms = (part.log_det() for part in self.parts.values())
        return jnp.asarray(sum(terms, start=jnp.zeros(())))

    def diagonal(self) -> Values:
        """The marginal variances."""
        return {n: _of_site(part.diagonal(), n) for n, part in self.parts.items()}

    def check(self) -> None:
        """Raise a ValueError that names a site whose precision is not positive."""
        for part in self.parts.values():
            part.check()


def _of_site(value: Any, name: str) -> jax.Array:
    return value[name] if isinstance(value, dict) else value


def _check_same(program: Program, plan: Plan) -> None:
    if tuple(sorted(program.uses.by_path)) != plan.paths:
        raise ValueError(
            "the model runs another program on this batch than on the one that the "
            "curvature was made with, so that its weights meet data elsewhere. Give "
            "all batches the same number of rows, or leave out a last one of one row."
        )


def _by_products(
    at_mode: ModelAtMode, kind: str, key: Any, args: tuple, kwargs: dict[str, Any]
) -> jax.Array:
    """One site's block, or its diagonal, from products with the Jacobian."""
    ((name, start),) = at_mode.start.items()
    layout = Layout.of({name: start.shape})
    jacobian = jacobian_at_mode(at_mode, layout, key, args, kwargs)
    if kind == "block":
        return gram(jacobian, layout.size, start.dtype)
    return jacobian.diagonal(layout.size, start.dtype).reshape(start.shape)


class _Work(NamedTuple):
    """One batch at work."""

    program: Program
    batch: Batch
    slopes: dict[tuple[Path, str], jax.Array]
    kinds: dict[str, str]

    def add_part(
        self, plan: PartPlan, num_samples: int | None, key: jax.Array | None
    ) -> Values:
        """What one result adds: a derivative sent back for each of its columns.

        A few samples may take the place of more columns z_c: sums with random signs
        s_c, each row with its own, whose products have the expectation of all columns,
        E[(sum_c s_c z_c) (sum_c s_c z_c)^T] = sum_c z_c z_c^T.
        """
        shape = self.program.parts[plan.position].shape
        columns = tuple(n if a not in plan.rows else 1 for a, n in enumerate(shape))
        num = math.prod(columns)

        def one_column(i: jax.Array) -> jax.Array:
            picked = (jnp.arange(num) == i).astype(jnp.float32)
            return jnp.broadcast_to(picked.reshape(columns), shape)

        if num_samples is None or key is None or num <= num_samples:
            return self._add_derivatives(plan, one_column, num)
        base = jax.random.fold_in(jax.random.fold_in(key, 2), plan.position)

        def signs(i: jax.Array) -> jax.Array:
            return jax.random.rademacher(jax.random.fold_in(base, i), shape, float)

        total = self._add_derivatives(plan, signs, num_samples)
        return {name: value / num_samples for name, value in total.items()}

    def _add_derivatives(
        self, plan: PartPlan, derivative: Callable[[jax.Array], jax.Array], num: int
    ) -> Values:
        """The sum over numbered derivatives of what each sends back."""

        def add(i: jax.Array) -> Values:
            gradients = self.batch.send_back(plan.position, derivative(i))
            return self._of_column(plan, gradients)

        if num == 1:
            return add(jnp.asarray(0))
        start = jax.tree.map(
            lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(add, jnp.asarray(0))
        )

        def body(total: Values, i: jax.Array) -> tuple[Values, None]:
            return jax.tree.map(jnp.add, total, add(i)), None

        return lax.scan(body, start, jnp.arange(num))[0]

    def _of_column(self, plan: PartPlan, gradients: dict[Path, Any]) -> Values:
        shape = self.program.parts[plan.position].shape
        rows = math.prod(shape[a] for a in plan.rows)
        align, added = dict(plan.align), {}
        for site, kind in self.kinds.items():
            if kind not in ("kron", "gradients"):
                continue
            uses = [
                (p, self.program.arranged[p, site]) for p in self.program.paths_of(site)
            ]
            if kind == "kron":
                added[f"{site}.outputs"] = sum(
                    sum_outputs(form, gradients[p], self.slopes.get((p, site)))
                    for p, form in uses
                )
                continue
            index = self.program.names.index(site)
            entries = tuple(self.program.closed.in_avals[index].shape)
            added[f"{site}.diagonal"] = sum_squares(
                [
                    SiteUse(
                        form,
                        align[p],
                        self.batch.met.get(p),
                        gradients[p],
                        self.slopes.get((p, site)),
                    )
                    for p, form in uses
                ],
                rows,
                entries,
            )
        return added

    def inputs(self, parts: tuple[PartPlan, ...]) -> Values:
        """The factors of inputs, over the positions of rows that count."""
        added: Values = {}
        for site, kind in self.kinds.items():
            for path in self.program.paths_of(site) if kind == "kron" else ():
                form = self.program.arranged[path, site]
                if form.inputs is None:
                    continue
                active = self._active(path, parts)
                index = self.program.names.index(site)
                dtype = jnp.promote_types(
                    self.program.closed.in_avals[index].dtype, jnp.float32
                )
                total = sum_inputs(form, self.batch.met[path], active, dtype)
                for name, value in (("inputs", total), ("count", jnp.sum(active))):
                    full = f"{site}.{name}"
                    added[full] = added[full] + value if full in added else value
        return added

    def _active(self, path: Path, parts: tuple[PartPlan, ...]) -> jax.Array:
        """Which positions belong to rows that no mask leaves out."""
        form = next(f for (p, _), f in self.program.arranged.items() if p == path)
        positions = math.prod(form.positions)
        found = []
        for plan in parts:
            align = dict(plan.align).get(path)
            if align is None:
                return jnp.ones(positions)
            part = self.program.parts[plan.position]
            weight = self.batch.results[self.program.weights[part.site]]
            others = tuple(a for a in range(weight.ndim) if a not in plan.rows)
            row = (jnp.max(weight, others) > 0).astype(jnp.float32).reshape(-1)
            places = align.split(jnp.arange(positions), form.positions, row.size)
            found.append(jnp.zeros(positions).at[places].set(row[:, None]))
        return jnp.max(jnp.stack(found), 0)
