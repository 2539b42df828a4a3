"""Which block each site gets: what the program and one batch of data allow."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pyrox_ppl.infer.curvature._arrange import axes_of
from pyrox_ppl.infer.curvature._at_mode import ModelAtMode, Values
from pyrox_ppl.infer.curvature._factored import Plan
from pyrox_ppl.infer.curvature._kron import start_kron
from pyrox_ppl.infer.curvature._program import (
    Program,
    make_program,
    run_batch,
    slopes,
)
from pyrox_ppl.infer.curvature._rows import PartPlan, plan_part
from pyrox_ppl.infer.curvature._uses import Path

# A site without a rule gets its exact block up to this size, as its cost is the size.
_BLOCK = 512
# Beyond this size a site without a rule would take too many products.
_PRODUCTS = 20_000
# A Kronecker factor of this width takes 256 MiB in single precision.
_WIDEST = 8192


def plan_sites(
    structure: str,
    at_mode: ModelAtMode,
    args: tuple,
    kwargs: dict[str, Any],
    key: jax.Array | None,
) -> tuple[Plan, Values]:
    """Choose a block for each site, and make the arrays of no data.

    Raises:
        ValueError: If rows are coupled, or a site is too large for what is left.
    """
    program = make_program(at_mode, key, args, kwargs)
    reasons, parts = dict(program.without_rule), []
    if program.arranged:
        send_back = _sender(at_mode, key, args, kwargs)
        for position in program.parts:
            parts.append(plan_part(program, position, send_back, reasons))
    changed = any(not use.lazy.identity for use in program.uses.by_path.values())
    scales = at_mode.run(_slopes, key, args, kwargs) if changed else {}
    kinds, arrays = {}, {}
    for site, start in at_mode.start.items():
        kind, axes = "products", None
        if site not in reasons:
            axes = _kron_axes(program, site, start.shape, scales)
            if structure == "kron" and axes is not None:
                kind = "kron"
            elif _is_aligned(program, site, parts):
                kind = "gradients"
            else:
                reasons[site] = "rows that stand in no order known"
        if kind == "products" and structure == "kron" and start.size <= _BLOCK:
            kind = "block"
        if kind == "products" and start.size > _PRODUCTS:
            raise ValueError(
                f"the site {site!r} has {start.size} entries and no rule for "
                f"structure={structure!r}, because it meets {reasons[site]}. Use "
                "structure='low_rank', or leave the site out with `where`."
            )
        kinds[site] = kind
        arrays |= _start(program, site, kind, axes, start)
    paths = tuple(sorted(program.uses.by_path))
    return Plan(tuple(parts), paths, tuple(kinds.items())), arrays


def _start(
    program: Program, site: str, kind: str, axes: Any, start: jax.Array
) -> Values:
    match kind:
        case "kron":
            form = program.arranged[program.paths_of(site)[0], site]
            return start_kron(site, form, axes, start.dtype)
        case "block":
            return {f"{site}.block": jnp.zeros((start.size,) * 2, start.dtype)}
        case _:
            return {f"{site}.diagonal": jnp.zeros_like(start)}


def _sender(at_mode: ModelAtMode, key: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A function from a result's derivative to arranged gradients by use.

    It is evaluated near the mode: exactly there, a readout of zeros would hide what the
    layers before it do.
    """
    rng = np.random.default_rng(3)
    near = {}
    for name, value in jax.device_get(at_mode.start).items():
        away = 0.05 * (np.std(value) + 0.1) * rng.normal(size=value.shape)
        near[name] = (value + away).astype(value.dtype)
    return lambda position, cotangent: at_mode.run(
        _send_back, position, cotangent, near, key, args, kwargs
    )


def _send_back(
    at_mode: ModelAtMode,
    position: int,
    cotangent: jax.Array,
    near: dict[str, Any],
    key: Any,
    args: tuple,
    kwargs: dict[str, Any],
) -> dict[Path, jax.Array]:
    program = make_program(at_mode, key, args, kwargs)
    gradients = run_batch(program, near).send_back(position, cotangent)
    forms = {path: form for (path, _), form in program.arranged.items()}
    return {path: form.gradient(gradients[path]) for path, form in forms.items()}


def _slopes(
    at_mode: ModelAtMode, key: Any, args: tuple, kwargs: dict[str, Any]
) -> dict[tuple[Path, str], jax.Array]:
    return slopes(make_program(at_mode, key, args, kwargs), at_mode.start)


def _kron_axes(
    program: Program, site: str, shape: tuple[int, ...], scales: dict
) -> tuple[int, ...] | None:
    """The order of axes that all uses of a site share; None if factors do not suit."""
    found = set()
    for path in program.paths_of(site):
        form = program.arranged[path, site]
        slope = scales.get((path, site))
        if slope is not None:
            slope = np.asarray(slope)
            if np.ptp(slope) > 1e-5 * np.abs(slope).max():
                return None
        _, inputs, outputs = form.entries.shape
        if outputs > _WIDEST or (inputs > _WIDEST and not form.lookup):
            return None
        if form.inputs is None:
            found.add(((), form.entries.shape, False))
            continue
        axes = axes_of(form.entries, shape)
        if axes is None:
            return None
        found.add((axes, form.entries.shape, form.lookup))
    return next(iter(found))[0] if len(found) == 1 else None


def _is_aligned(program: Program, site: str, parts: list[PartPlan]) -> bool:
    paths = program.paths_of(site)
    return all(path in dict(part.align) for part in parts for path in paths)
