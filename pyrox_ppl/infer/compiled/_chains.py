"""How chains are run: the choice from devices, and a map over chains."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pyrox_ppl.infer._arrays import is_sharded

METHODS = ("auto", "parallel", "sequential", "vectorized")


def choose_method(method: str | Callable, num_chains: int) -> str | Callable:
    """The method that is used for what was asked.

    ``auto``: ``parallel`` where chains can be spread evenly over several devices; else
    ``vectorized`` on an accelerator and ``sequential`` on a CPU, where a vectorised
    NUTS waits for the longest tree of all chains.
    """
    if callable(method):
        return method
    if method not in METHODS:
        raise ValueError(
            f"chain_method must be a callable or one of {METHODS}, got {method!r}."
        )
    spread = devices(num_chains)
    if method == "auto":
        if num_chains == 1:
            return "sequential"
        if len(spread) > 1:
            return "parallel"
        return "sequential" if jax.default_backend() == "cpu" else "vectorized"
    if method == "parallel" and num_chains > 1 and len(spread) == 1:
        warnings.warn(
            f"{num_chains} chains cannot be spread over {jax.local_device_count()} "
            "device(s): they are drawn sequentially. On a CPU call "
            f"`numpyro.set_host_device_count({num_chains})` before JAX starts.",
            stacklevel=4,
        )
        return "sequential"
    return method


def devices(num_chains: int) -> list[Any]:
    """The most local devices over which the chains can be spread evenly."""
    local = jax.local_devices()
    number = max(n for n in range(1, len(local) + 1) if num_chains % n == 0)
    return local[:number]


def mesh(num_chains: int) -> Mesh:
    """A mesh of one axis over these devices."""
    return Mesh(np.array(devices(num_chains)), ("chain",))


def replicate(tree: Any, num_chains: int) -> Any:
    """Put the data that all chains share on every device that they are spread over.

    Raises:
        ValueError: If an array is laid out over several devices itself.
    """
    if any(is_sharded(leaf) for leaf in jax.tree.leaves(tree)):
        raise ValueError(
            "an argument is laid out over several devices, and so would the chains "
            "be: give chain_method='sequential' or 'vectorized'."
        )
    return jax.device_put(tree, NamedSharding(mesh(num_chains), PartitionSpec()))


def check_init_params(init_params: Any, num_chains: int) -> None:
    """Raise if initial values are not there for each of several chains."""
    if num_chains == 1:
        return
    for leaf in jax.tree.leaves(init_params):
        if np.ndim(leaf) == 0 or np.shape(leaf)[0] != num_chains:
            raise ValueError(
                f"init_params must have a leading axis of the {num_chains} chains, got "
                f"the shape {np.shape(leaf)}."
            )


def over_chains(
    fn: Callable, method: str | Callable, num_chains: int
) -> Callable[[Any, Any], Any]:
    """Make ``fn(of_one_chain, shared)`` a function of all chains, by their first axis.

    With one chain, or where the kernel itself is vectorised, it is `fn` unchanged.
    """
    if num_chains == 1 or method == "vectorized":
        return fn
    if method == "sequential":
        return lambda chains, shared: lax.map(lambda one: fn(one, shared), chains)
    if method == "parallel":
        spread = mesh(num_chains)
        chain, everywhere = PartitionSpec("chain"), PartitionSpec()

        def here(chains: Any, shared: Any) -> Any:
            if num_chains > spread.size:
                return lax.map(lambda one: fn(one, shared), chains)
            result = fn(jax.tree.map(lambda x: x[0], chains), shared)
            return jax.tree.map(lambda x: x[None], result)

        # Chains do not talk to one another, so nothing is to be checked across them.
        return jax.shard_map(
            here,
            mesh=spread,
            in_specs=(chain, everywhere),
            out_specs=chain,
            check_vma=False,
        )
    if isinstance(method, str):
        raise ValueError(f"unknown chain_method {method!r}.")
    return lambda chains, shared: method(lambda one: fn(one, shared))(chains)
