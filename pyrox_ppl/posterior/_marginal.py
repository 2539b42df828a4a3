"""Discrete latents that were summed out, not drawn: log densities without them."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from pyrox_ppl._dependence import abstract_trace, find_dependence


@dataclass(frozen=True)
class UndrawnDiscrete:
    """The discrete latents that were not drawn.

    Attributes:
        supports: For each its values, along the first axis.
        shapes: For each the shape of one draw.
        causes: For every sample site the undrawn latents on which its distribution
            depends, directly or through each other.
        obstacles: For some sites the reason why their causes cannot be summed out.
    """

    supports: Mapping[str, np.ndarray] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    causes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    obstacles: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def find(
        cls, undrawn: set[str], trace: Mapping[str, Any], run: Callable[[], Any]
    ) -> Self:
        """Find out which sites of a model depend on latents that were not drawn."""
        if not undrawn:
            return cls()

        def latents_and_distributions() -> tuple[dict[str, Any], dict[str, Any]]:
            sites = abstract_trace(run)
            samples = {n: s for n, s in sites.items() if s["type"] == "sample"}
            latents = {name: samples[name]["value"] for name in undrawn}
            return latents, {n: _arrays(s["fn"]) for n, s in samples.items()}

        direct = find_dependence(latents_and_distributions)
        # The jaxpr does not show which sites depend on a latent inside a scan or cond,
        # so all sites count.
        hidden = {n for n in undrawn if trace[n].get("_control_flow_done")}
        causes = {n: _with_causes(of | hidden, direct) for n, of in direct.items()}
        supports, shapes = {}, {}
        for name in sorted(undrawn - hidden):
            fn = trace[name]["fn"]
            support = np.asarray(fn.enumerate_support(expand=False))
            supports[name] = support.reshape(len(support), *fn.event_shape)
            shapes[name] = fn.shape()
        reasons = {n: _obstacle(trace, n, of, hidden) for n, of in causes.items()}
        obstacles = {name: reason for name, reason in reasons.items() if reason}
        return cls(supports, shapes, causes, obstacles)

    def sum_out(
        self,
        name: str,
        log_densities: Callable[[dict[str, Any]], dict[str, jax.Array]],
    ) -> jax.Array:
        r"""The log density of a site with its discrete causes summed out.

        .. math::
            \log p(y_i \mid \theta)
            = \log \sum_z p(z \mid \theta)\, p(y_i \mid z, \theta)

        The members of a plate are independent, so a sum over their joint values is a
        product of sums: all members take the first value, then all the second, and each
        is summed by itself, as in NumPyro's own enumeration. Several latents take every
        combination of their values.

        Args:
            name: The site.
            log_densities: From values of the latents to the log densities of the site
                and of these latents, their axes aligned from the right.
        """
        latents = self.causes[name]
        sizes = [range(len(self.supports[latent])) for latent in latents]
        combinations = jnp.array(list(itertools.product(*sizes)))

        def log_joint(choice: jax.Array) -> jax.Array:
            terms = log_densities(
                {
                    latent: jnp.broadcast_to(
                        jnp.asarray(self.supports[latent])[choice[place]],
                        self.shapes[latent],
                    )
                    for place, latent in enumerate(latents)
                }
            )
            total = terms[name]
            for latent in latents:
                term = terms[latent]
                # `obstacles` has ruled out axes of more than one entry that the site
                # lacks, so leading axes of the latent can be dropped.
                shape = (1,) * total.ndim + term.shape
                total = total + term.reshape(shape[len(shape) - total.ndim :])
            return total

        return jax.scipy.special.logsumexp(jax.vmap(log_joint)(combinations), axis=0)


def _arrays(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]


def _with_causes(names: set[str], direct: Mapping[str, set[str]]) -> tuple[str, ...]:
    """The names, and all on which they depend."""
    done: set[str] = set()
    while names - done:
        done |= names
        names = names.union(*(direct[name] for name in names))
    return tuple(sorted(done))


def _obstacle(
    trace: Mapping[str, Any], name: str, latents: tuple[str, ...], hidden: set[str]
) -> str:
    """Why the latents behind a site cannot be summed out of it, "" if they can."""
    site_frames = {(f.name, f.dim) for f in trace[name]["cond_indep_stack"]}
    for latent in latents:
        if latent in hidden:
            return f"{latent!r} is inside a scan or cond"
        site = trace[latent]
        stack = site["cond_indep_stack"]
        others = sorted(f.name for f in stack if (f.name, f.dim) not in site_frames)
        if others:
            return f"{latent!r} is on the plates {others}, and {name!r} is not"
        batch = np.array(site["fn"].batch_shape, int)
        if np.sum(batch > 1) > sum(f.size > 1 for f in stack):
            return f"{latent!r} has axes that are not on a plate"
    return ""
