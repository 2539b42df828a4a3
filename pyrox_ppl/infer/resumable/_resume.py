"""Begin a run on disk or go on with it; its state as a JAX tree."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pyrox_ppl.infer._arrays import from_numpy, stored_as, to_numpy
from pyrox_ppl.infer.resumable._fingerprint import check
from pyrox_ppl.infer.resumable._store import RunStore


def check_one_process(name: str) -> None:
    """Refuse to commit what several processes compute together.

    Raises:
        ValueError: If JAX runs in several processes.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"{name} works in one process, and jax.process_count() is "
            f"{jax.process_count()}: processes that are killed at different moments "
            "would go on from different commits. Start it without "
            "jax.distributed.initialize, or use CompiledMCMC or jax.jit(svi.update), "
            "which commit nothing."
        )


@contextlib.contextmanager
def open_or_begin(
    path: Path,
    *,
    fingerprint: dict[str, Any],
    allow_other_environment: bool,
    state: Any,
    **layout: Any,
) -> Iterator[RunStore]:
    """Open the run at a path if there is one that fits, else begin it.

    Args:
        path: The directory.
        fingerprint: What the run must have been begun with.
        allow_other_environment: Whether another environment will do.
        state: The state at the beginning, a tree of arrays.
        **layout: The other arguments of :meth:`RunStore.begin`.

    Raises:
        ValueError: If there is something at the path that does not fit.
    """
    # An empty directory is nothing.
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        with RunStore.open(path) as store:
            check(store.fingerprint, fingerprint, path, allow_other_environment)
            yield store
    else:
        leaves = [to_numpy(leaf) for leaf in jax.tree.leaves(state)]
        with RunStore.begin(
            path, fingerprint=fingerprint, state=leaves, **layout
        ) as store:
            yield store


def load_state(store: RunStore, like: Any) -> Any:
    """The committed state as a tree like another one.

    Raises:
        ValueError: If its file is damaged, or it is no such tree.
    """
    leaves, structure = jax.tree.flatten(like)
    arrays = store.state()
    if [(a.shape, a.dtype.name) for a in arrays] != [stored_as(x) for x in leaves]:
        raise ValueError(
            f"{store.path}: the state on disk has other arrays than the run would "
            "have now: start again under a new path. Nothing was changed."
        )
    pairs = zip(arrays, leaves, strict=True)
    return jax.tree.unflatten(structure, [from_numpy(a, leaf) for a, leaf in pairs])


def save_state(
    store: RunStore,
    progress: dict[str, Any],
    state: Any,
    rows: dict[str, np.ndarray] | None = None,
) -> None:
    """Commit a tree of arrays as the state, with a block of rows if there is one."""
    store.commit(progress, [to_numpy(leaf) for leaf in jax.tree.leaves(state)], rows)
