"""Say that a fit diverged, where its losses or its parameters show it."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_PACKAGE = str(Path(__file__).parent)
_ADVICE = (
    "Look for NaN and infinite numbers in the data, take a smaller learning rate, or "
    "clip the gradients (optax.clip_by_global_norm)"
)


def warn_of_divergence(
    losses: np.ndarray | jax.Array, num_steps: int, *, stable: bool
) -> bool:
    """Warn if losses are not finite any more, and say whether they are.

    Of a run inside a ``jit`` or ``vmap`` of the user nothing is known yet.

    Args:
        losses: The losses so far, ``(steps,)`` or ``(member, steps)``.
        num_steps: The number of steps of the whole run.
        stable: Whether the run leaves out steps that are not finite. Then it is lost
            only if it has left out all of them.
    """
    if isinstance(losses, Tracer):
        return False
    finite = np.isfinite(np.atleast_2d(losses))
    length = finite.shape[1]
    # The step after the last finite loss.
    first = np.where(finite.any(1), length - finite[:, ::-1].argmax(1), 0)
    lost = np.flatnonzero(first < (1 if stable else length))
    if not lost.size:
        return False
    alone = np.ndim(losses) == 1
    of_members = "" if alone else f" of members {lost.tolist()}"
    if stable:
        what = f"stable_update left out every step{of_members}: no loss is finite."
        advice = _ADVICE
    else:
        steps = f"step {first[0]}" if alone else f"steps {first[lost].tolist()}"
        what = f"the fit{of_members} diverged: the losses are not finite from {steps} "
        what += f"of {num_steps} on, nor are the parameters of use after that."
        advice = f"{_ADVICE}; stable_update=True leaves out steps that are not finite"
    warnings.warn(f"{what} {advice}.", RuntimeWarning, skip_file_prefixes=(_PACKAGE,))
    return True


def mean_of_finite(losses: np.ndarray) -> float:
    """The mean of what is finite, or NaN."""
    finite = losses[np.isfinite(losses)]
    return float(finite.mean()) if finite.size else float("nan")


def check_trained_values(params: Mapping[str, Any], members: int | None = None) -> None:
    """Refuse trained values that hold NaN.

    Args:
        params: The values by name; of an ensemble with a first axis of members.
        members: The number of members of an ensemble.

    Raises:
        ValueError: If one is NaN.
    """
    wrong = [
        name for name in params if any(part.any() for part in _parts(params[name]))
    ]
    if not wrong:
        return
    shown = ", ".join(map(repr, wrong[:3])) + (", ..." if len(wrong) > 3 else "")
    if members is None:
        of_members, advice = "", "The losses say from which step on."
    else:
        lost = sorted(set().union(*(_members(params[name]) for name in wrong)))
        of_members = f" of members {lost}"
        advice = (
            f"To go on with the others: keep = jnp.delete(jnp.arange({members}), "
            f"jnp.array({lost})); params, state, losses = jax.tree.map(lambda a: "
            "a[keep], fit[:3]); fit = fit._replace(params=params, state=state, "
            "losses=losses)."
        )
    raise ValueError(
        f"the fit{of_members} diverged: {shown} of its parameters hold NaN. {_ADVICE}. "
        f"{advice}"
    )


def _members(value: Any) -> set[int]:
    return {
        int(member)
        for part in _parts(value)
        for member in np.flatnonzero(part.reshape(len(part), -1).any(1))
    }


def _parts(value: Any) -> Iterable[np.ndarray]:
    for leaf in jax.tree.leaves(value):
        # Values inside a compiled function are not known.
        is_known = isinstance(leaf, np.ndarray | jax.Array) and not isinstance(
            leaf, Tracer
        )
        if is_known and jnp.issubdtype(leaf.dtype, jnp.inexact):
            yield np.isnan(np.asarray(leaf))
