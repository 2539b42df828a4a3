"""The structures of the curvature by name."""

from collections.abc import Mapping
from typing import Any

import jax

from pyrox_ppl.infer.curvature._at_mode import ModelAtMode, Values
from pyrox_ppl.infer.curvature._curvature import AbstractCurvature
from pyrox_ppl.infer.curvature._factored import Factored
from pyrox_ppl.infer.curvature._full import Full
from pyrox_ppl.infer.curvature._layout import Layout
from pyrox_ppl.infer.curvature._low_rank import LowRank
from pyrox_ppl.infer.curvature._plan import plan_sites
from pyrox_ppl.infer.curvature._prior import (
    DensePrior,
    DiagonalPrior,
    dense_prior,
    diagonal_prior,
)

STRUCTURES = ("diag", "kron", "low_rank", "full")
_CLASSES: dict[str, Any] = {
    "full": Full,
    "low_rank": LowRank,
    "diag": Factored,
    "kron": Factored,
}


def make_curvature(
    structure: str,
    at_mode: ModelAtMode,
    args: tuple,
    kwargs: dict[str, Any],
    *,
    rank: int = 20,
    key: jax.Array | None = None,
) -> AbstractCurvature:
    """Make a curvature of no data, of a structure that suits the model.

    Args:
        structure: ``"diag"``, ``"kron"``, ``"low_rank"`` or ``"full"``.
        at_mode: The model at the mode.
        args: The arguments of the model, for a batch.
        kwargs: The keyword arguments of the model.
        rank: The rank of ``"low_rank"``.
        key: A PRNG key, for sampled labels.

    Returns:
        The curvature.

    Raises:
        ValueError: If the structure is not known or does not suit the model.
    """
    layout = _layout(at_mode)
    _check_structure(structure)
    match structure:
        case "full":
            return Full.zeros(layout)
        case "low_rank":
            return LowRank.zeros(layout, rank)
        case _:
            plan, arrays = plan_sites(structure, at_mode, args, kwargs, key)
            return Factored(arrays, layout, plan)


def restore_curvature(
    structure: str, arrays: Values, shapes: Mapping[str, tuple[int, ...]]
) -> AbstractCurvature:
    """Make a curvature of the arrays of another one.

    Args:
        structure: Its structure.
        arrays: Its arrays.
        shapes: The shapes of the unconstrained values, by site.

    Returns:
        The curvature.
    """
    _check_structure(structure)
    return _CLASSES[structure](dict(arrays), Layout.of(shapes))


def prior_precision(
    structure: str, at_mode: ModelAtMode, args: tuple, kwargs: dict[str, Any]
) -> Any:
    """Compute the precision of the prior at the mode, as a structure takes it.

    Args:
        structure: The structure of the curvature.
        at_mode: The model at the mode.
        args: The arguments of the model.
        kwargs: The keyword arguments of the model.

    Returns:
        The prior.

    Raises:
        ValueError: If the prior does not suit the structure; it names the site.
    """
    _check_structure(structure)
    make = dense_prior if structure == "full" else diagonal_prior
    return make(at_mode, _layout(at_mode), args, kwargs)


def restore_prior(
    structure: str, arrays: Values, shapes: Mapping[str, tuple[int, ...]]
) -> DensePrior | DiagonalPrior:
    """Make a prior of the arrays of another one."""
    kind = DensePrior if structure == "full" else DiagonalPrior
    return kind(dict(arrays), Layout.of(shapes))


def _layout(at_mode: ModelAtMode) -> Layout:
    return Layout.of({name: value.shape for name, value in at_mode.start.items()})


def _check_structure(structure: str) -> None:
    if structure not in STRUCTURES:
        raise ValueError(
            f"structure must be one of {list(STRUCTURES)}, got {structure!r}."
        )
