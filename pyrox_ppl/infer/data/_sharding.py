"""Data spread over devices; the rest of data-parallel inference is JAX's own."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def shard_data(mesh: Mesh, *arrays: Any, axis: str | None = None) -> Any:
    """Spread the rows of arrays over the devices of a mesh.

    JAX's compiler then computes the likelihood of each shard on the device that holds
    it, with the weights replicated, and adds up the shards' log densities and gradients
    (an all-reduce). The data must reach the compiled program as its *arguments*. An
    array that a compiled function closes over becomes a constant, and JAX computes with
    all of it on every device, without a warning. So use

    - ``MCMC(..., jit_model_args=True).run(key, x, y=y)``, not the default;
    - ``jax.jit(svi.update)(state, x, y)``, not ``svi.run``;
    - :func:`run_mcmc` and :func:`run_svi`, which pass sharded data as arguments.

    The mesh must have ``Auto`` axes, because NumPyro does not specify shardings::

        mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        x, y = shard_data(mesh, x, y)

    With several processes (``jax.distributed.initialize``) each process passes the
    same, whole arrays, and puts only its own shards on its devices. All processes then
    call the same functions in the same order: ``jax.jit(svi.update)``, ``MCMC`` with
    ``jit_model_args=True``, :class:`CompiledMCMC`. A result without an axis of rows
    (losses, parameters, weights) is whole in each process. Of other sites a process may
    hold only a part; ``jax.experimental.multihost_utils.process_allgather(draws,
    tiled=True)`` returns all of it. Start the processes with the same
    ``PYTHONHASHSEED``: they must run one program, and ``Trace_ELBO`` adds up sites in
    the order of a set of strings, which is another one in each process.

    **Shapes**: ``(N, ...)`` with N a multiple of the size of the mesh's axis.

    Args:
        mesh: The devices.
        *arrays: The arrays, whose leading axis is sharded. None stays None.
        axis: The name of the mesh's axis. By default the first.

    Returns:
        The sharded array, or a tuple of sharded arrays if several were passed.

    Raises:
        ValueError: If the mesh has no such axis, if the axis is not ``Auto``, if its
            size does not divide the number of rows, or if the processes of the mesh
            were not started with the same ``PYTHONHASHSEED``.

    Example:
        >>> import jax, numpy as np
        >>> from pyrox_ppl.infer import shard_data
        >>> auto = jax.sharding.AxisType.Auto
        >>> mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(auto,))
        >>> x = shard_data(mesh, np.ones((16 * jax.device_count(), 3)))
        >>> print(x.sharding.spec)
        P('data',)
    """
    names = mesh.axis_names
    axis = names[0] if axis is None else axis
    if axis not in names:
        raise ValueError(f"the mesh has axes {names}, and none is named {axis!r}.")
    kind = mesh.axis_types[names.index(axis)]
    if kind != jax.sharding.AxisType.Auto:
        raise ValueError(
            f"the axis {axis!r} of the mesh has the type {kind}, for which a model "
            "must specify the sharding of every result: make the mesh with "
            "axis_types=(jax.sharding.AxisType.Auto,)."
        )
    if mesh.is_multi_process:
        _check_hash_seed()
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    placed = tuple(None if a is None else _place(a, sharding) for a in arrays)
    return placed[0] if len(placed) == 1 else placed


def _check_hash_seed() -> None:
    """Check that all processes order sets of strings alike."""
    mine = np.uint32(hash("sites") % 2**32)
    if len(np.unique(multihost_utils.process_allgather(mine))) > 1:
        raise ValueError(
            "the processes order sets of strings differently, and so would not run the "
            "same program: set the environment variable PYTHONHASHSEED to the same "
            "number, such as 0, where each is started."
        )


def _place(array: Any, sharding: NamedSharding) -> jax.Array:
    (axis,) = sharding.spec
    size = sharding.mesh.shape[axis]
    if np.ndim(array) == 0 or np.shape(array)[0] % size:
        raise ValueError(
            f"an array of shape {np.shape(array)} cannot be spread over {size} devices "
            f"along the axis {axis!r}: pass a multiple of {size} rows (leave some out, "
            "or pad with rows that a mask removes from the likelihood)."
        )
    return jax.device_put(array, sharding)
