"""The fields of a kernel's state that a run collects after each iteration."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import nested_attrgetter

from pyrox_ppl._numpyro import AbstractVectorNUTS
from pyrox_ppl.infer.kernels._vector_kernel import AbstractVectorKernel


class Fields(NamedTuple):
    """What is collected.

    Attributes:
        names: The fields. The first holds the sites, which are collected constrained.
        removed: The sites that are left out.
    """

    names: tuple[str, ...]
    removed: tuple[str, ...]

    def collect(
        self, state: Any, constrain: Callable, num_vectorized: int | None
    ) -> tuple:
        """The fields of a state, in the order of their names.

        Args:
            state: The state of one chain, or of several vectorised ones.
            constrain: The map from unconstrained values to constrained ones.
            num_vectorized: The number of chains in the state; None for one chain
                without an axis of its own.
        """
        found = nested_attrgetter(*self.names)(state)
        sites, *others = found if len(self.names) > 1 else (found,)
        if num_vectorized is None:
            sites = constrain(sites)
        elif jax.tree.leaves(sites):
            sites = jax.vmap(constrain)(sites)
        else:  # a model without latent sites has nothing to map over
            sites = jax.tree.map(
                lambda leaf: jnp.broadcast_to(leaf, (num_vectorized, *jnp.shape(leaf))),
                constrain(sites),
            )
        if self.removed:
            unknown = sorted(set(self.removed) - set(sites))
            if unknown:
                raise ValueError(
                    f"extra_fields leaves out the sites {unknown}, but the model has "
                    f"only {sorted(sites)}."
                )
            sites = {n: value for n, value in sites.items() if n not in self.removed}
        return (jax.tree.map(jnp.asarray, sites), *others)


def choose_fields(kernel: MCMCKernel, extra_fields: Iterable[str]) -> Fields:
    """The fields that a run collects; a site ``~z.name`` among them is left out.

    Raises:
        ValueError: If a kernel over one vector is asked for the field of a site.
    """
    drop = f"~{kernel.sample_field}."
    asked = (kernel.sample_field, *kernel.default_fields, *extra_fields)
    removed = [name.removeprefix(drop) for name in asked if name.startswith(drop)]
    names = [name for name in asked if not name.startswith(drop)]
    of_sites = [name for name in names if name.startswith(f"{kernel.sample_field}.")]
    if of_sites and isinstance(kernel, AbstractVectorNUTS | AbstractVectorKernel):
        raise ValueError(
            f"extra_fields has {of_sites}, but {type(kernel).__name__} keeps the "
            "unconstrained values of all sites in one vector: leave these fields out, "
            "as the draws are the constrained values, or run NUTS(model)."
        )
    return Fields(tuple(dict.fromkeys(names)), tuple(dict.fromkeys(removed)))
