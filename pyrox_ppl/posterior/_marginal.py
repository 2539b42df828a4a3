"""Discrete latents that were summed out, and not drawn: the densities without them."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from pyrox_ppl.prediction._dependence import abstract_trace, dependence


@dataclasses.dataclass(frozen=True)
class Discrete:
    """The discrete latents of which there are no draws.

    Attributes:
        supports: For each its values, along the first axis.
        shapes: For each the shape of one draw.
        behind: For every sample site those on which its distribution depends, and those
            on which these depend in turn.
        hindered: Why a site cannot be summed over the latents behind it, if so.
    """

    supports: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    behind: dict[str, tuple[str, ...]]
    hindered: dict[str, str]

    @classmethod
    def of(
        cls,
        undrawn: set[str],
        trace: Mapping[str, Any],
        model: Callable,
        args: tuple,
        kwargs: dict[str, Any],
    ) -> Self:
        """Find out which sites depend on latents that were not drawn."""
        if not undrawn:
            return cls({}, {}, {}, {})

        def run() -> tuple[dict[str, Any], dict[str, Any]]:
            sites = abstract_trace(model, args, kwargs)
            samples = {n: s for n, s in sites.items() if s["type"] == "sample"}
            causes = {name: samples[name]["value"] for name in undrawn}
            return causes, {n: _arrays(s["fn"]) for n, s in samples.items()}

        direct = dependence(run)
        # What a scan or cond did inside is not seen.
        hidden = {n for n in undrawn if trace[n].get("_control_flow_done")}
        behind = {n: _closure(of | hidden, direct) for n, of in direct.items()}
        supports, shapes = {}, {}
        for name in sorted(undrawn - hidden):
            fn = trace[name]["fn"]
            support = np.asarray(fn.enumerate_support(expand=False))
            supports[name] = support.reshape(len(support), *fn.event_shape)
            shapes[name] = fn.shape()
        why = {n: _why_not(trace, n, of, hidden) for n, of in behind.items()}
        return cls(supports, shapes, behind, {n: w for n, w in why.items() if w})

    def log_density(
        self,
        name: str,
        density: Callable[[dict[str, Any]], dict[str, jax.Array]],
    ) -> jax.Array:
        r"""The log density of a site, the discrete latents behind it summed out.

        .. math::
            \log p(y_i \mid \theta)
            = \log \sum_z p(z \mid \theta)\, p(y_i \mid z, \theta)

        Every member of a plate is summed by itself: it takes one value after the other
        at the same time as the others do, as in NumPyro's own enumeration.

        Args:
            name: The site.
            density: Values of the latents -> the log densities of the site and of the
                latents behind it, right-aligned.
        """
        latents = self.behind[name]
        sizes = [range(len(self.supports[latent])) for latent in latents]
        every = jnp.array(list(itertools.product(*sizes)))

        def at(choice: jax.Array) -> jax.Array:
            found = density(
                {
                    latent: jnp.broadcast_to(
                        jnp.asarray(self.supports[latent])[choice[place]],
                        self.shapes[latent],
                    )
                    for place, latent in enumerate(latents)
                }
            )
            total = found[name]
            for latent in latents:
                of_latent = found[latent]
                shape = (1,) * total.ndim + of_latent.shape
                total = total + of_latent.reshape(shape[len(shape) - total.ndim :])
            return total

        return jax.scipy.special.logsumexp(jax.vmap(at)(every), axis=0)


def _arrays(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]


def _closure(names: set[str], direct: Mapping[str, set[str]]) -> tuple[str, ...]:
    """The names, and all on which they depend."""
    found: set[str] = set()
    while names - found:
        found |= names
        names = names.union(*(direct[name] for name in names))
    return tuple(sorted(found))


def _why_not(
    trace: Mapping[str, Any], name: str, latents: tuple[str, ...], hidden: set[str]
) -> str:
    """Why the latents behind a site cannot be summed out for it, "" if they can."""
    of_site = {(f.name, f.dim) for f in trace[name]["cond_indep_stack"]}
    for latent in latents:
        if latent in hidden:
            return f"{latent!r} is inside a scan or cond"
        site = trace[latent]
        stack = site["cond_indep_stack"]
        others = sorted(f.name for f in stack if (f.name, f.dim) not in of_site)
        if others:
            return f"{latent!r} is on the plates {others}, and {name!r} is not"
        batch = np.array(site["fn"].batch_shape, int)
        if np.sum(batch > 1) > sum(f.size > 1 for f in stack):
            return f"{latent!r} has axes that are on no plate"
    return ""
