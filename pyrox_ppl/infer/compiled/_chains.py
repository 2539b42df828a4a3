"""How chains run: the choice of a method, and a map over chains."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pyrox_ppl._loop_convolutions import with_fast_convolutions
from pyrox_ppl.infer._arrays import is_sharded

METHODS = ("auto", "parallel", "sequential", "vectorized")


def choose_method(method: str | Callable, num_chains: int) -> str | Callable:
    """The method that a request leads to on the devices at hand.

    ``auto`` stands for ``parallel`` where the chains can be spread evenly over several
    devices, else for ``vectorized`` on an accelerator and ``sequential`` on a CPU: a
    vectorised NUTS waits for the longest tree of all chains.
    """
    if callable(method):
        return method
    if method not in METHODS:
        raise ValueError(
            f"chain_method must be a callable or one of {METHODS}, got {method!r}."
        )
    devices = chain_devices(num_chains)
    if method == "auto":
        if num_chains == 1:
            return "sequential"
        if len(devices) > 1:
            return "parallel"
        return "sequential" if jax.default_backend() == "cpu" else "vectorized"
    if method == "parallel" and num_chains > 1 and len(devices) == 1:
        warnings.warn(
            f"{num_chains} chains cannot be spread over {jax.local_device_count()} "
            "device(s), so they run one after the other. On a CPU, call "
            f"`numpyro.set_host_device_count({num_chains})` before JAX starts.",
            stacklevel=4,
        )
        return "sequential"
    return method


def chain_devices(num_chains: int) -> list[Any]:
    """The most local devices over which the chains can be spread evenly."""
    local = jax.local_devices()
    number = max(n for n in range(1, len(local) + 1) if num_chains % n == 0)
    return local[:number]


def chain_mesh(num_chains: int) -> Mesh:
    """A mesh of one axis over these devices."""
    return Mesh(np.array(chain_devices(num_chains)), ("chain",))


def replicate(tree: Any, num_chains: int) -> Any:
    """Copy the data that all chains share to each of their devices.

    Raises:
        ValueError: If an array is itself spread over several devices.
    """
    if any(is_sharded(leaf) for leaf in jax.tree.leaves(tree)):
        raise ValueError(
            "chain_method='parallel' spreads the chains over the devices, but an "
            "argument is spread over them already: pass chain_method='sequential' or "
            "'vectorized'."
        )
    return jax.device_put(tree, NamedSharding(chain_mesh(num_chains), PartitionSpec()))


def spread(tree: Any, num_chains: int) -> Any:
    """Put what each chain has for itself on its device, wherever it is now."""
    return jax.device_put(
        tree, NamedSharding(chain_mesh(num_chains), PartitionSpec("chain"))
    )


def check_init_params(init_params: Any, num_chains: int) -> None:
    """Raise unless each of several chains has its own initial values."""
    if num_chains == 1:
        return
    for leaf in jax.tree.leaves(init_params):
        if np.ndim(leaf) == 0 or np.shape(leaf)[0] != num_chains:
            raise ValueError(
                f"init_params must have a leading axis of the {num_chains} chains, got "
                f"the shape {np.shape(leaf)}."
            )


def put_chains_first(draws: Any, method: str | Callable, num_chains: int) -> Any:
    """Bring collected values to the axes ``(chain, draw, ...)``."""
    if num_chains == 1:
        return jax.tree.map(lambda leaf: leaf[None], draws)
    if method == "vectorized":
        return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), draws)
    return draws


def map_over_chains(
    fn: Callable, method: str | Callable, num_chains: int
) -> Callable[[Any, Any], Any]:
    """Turn ``fn(chain, shared)`` into a function of all chains, along the first axis.

    It stays as it is for one chain, and where the kernel itself is vectorised.
    """
    if num_chains == 1 or method == "vectorized":
        return fn
    if method == "sequential":
        return lambda chains, shared: lax.map(lambda one: fn(one, shared), chains)
    if method == "parallel":
        mesh = chain_mesh(num_chains)
        chain, everywhere = PartitionSpec("chain"), PartitionSpec()

        def run_on_device(chains: Any, shared: Any) -> Any:
            if num_chains > mesh.size:
                return lax.map(lambda one: fn(one, shared), chains)
            result = fn(jax.tree.map(lambda x: x[0], chains), shared)
            return jax.tree.map(lambda x: x[None], result)

        # Chains do not communicate, so JAX need not track what varies across devices.
        return jax.shard_map(
            with_fast_convolutions(run_on_device),  # from outside it is not opened
            mesh=mesh,
            in_specs=(chain, everywhere),
            out_specs=chain,
            check_vma=False,
        )
    if isinstance(method, str):
        raise ValueError(f"unknown chain_method {method!r}.")
    return lambda chains, shared: method(lambda one: fn(one, shared))(chains)
