"""The local latent sites of a model: those in one plate, one set for each datum."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to
from numpyro.infer.initialization import init_to_feasible
from numpyro.primitives import CondIndepStackFrame


@dataclasses.dataclass(frozen=True)
class LocalSite:
    """A latent site in the plate, and its numbers per datum in unconstrained space.

    Attributes:
        name: The site's name.
        support: Its support.
        event_dim: Number of event axes of its unconstrained value.
        axis: The plate's axis in that value, from the right.
        shape: That value's shape without the plate's axis.
        frames: The plates that it stands in.
    """

    name: str
    support: Any
    event_dim: int
    axis: int
    shape: tuple[int, ...]
    frames: tuple[CondIndepStackFrame, ...]

    @property
    def size(self) -> int:
        """How many numbers a datum has here."""
        return math.prod(self.shape)

    @property
    def is_real(self) -> bool:
        """Whether the unconstrained value is the value itself."""
        support = self.support
        if isinstance(support, constraints.independent):
            support = support.base_constraint
        return support is constraints.real

    def arranged(self, rows: jax.Array) -> jax.Array:
        """From (datum, numbers) to the site's unconstrained shape."""
        return jnp.moveaxis(rows.reshape(-1, *self.shape), 0, self.axis)

    def constrained(self, base: dist.Distribution) -> dist.Distribution:
        """The law on the support, of one in unconstrained space."""
        if self.is_real:
            return base
        return dist.TransformedDistribution(base, biject_to(self.support))


@dataclasses.dataclass(frozen=True)
class Locals:
    """What one run of a model says of a plate.

    Attributes:
        size: The plate's size.
        frame: The plate's frame: its name, axis and number of members in a minibatch.
        sites: The latent sites in the plate.
        has_global: Whether there are latent sites outside of it.
    """

    size: int
    frame: CondIndepStackFrame
    sites: tuple[LocalSite, ...]
    has_global: bool

    @property
    def dim(self) -> int:
        """How many numbers a datum has, over all sites."""
        return sum(site.size for site in self.sites)

    def parts(self) -> Iterator[tuple[LocalSite, slice]]:
        """The sites, each with its place among the numbers of a datum."""
        start = 0
        for site in self.sites:
            yield site, slice(start, start + site.size)
            start += site.size

    @property
    def names(self) -> set[str]:
        """The names of the local sites."""
        return {site.name for site in self.sites}

    def plates(self) -> dict[str, numpyro.plate]:
        """A plate of the guide's own for every one that the sites stand in."""
        plates = {}
        for frame in (frame for site in self.sites for frame in site.frames):
            if frame.name not in plates:
                size = self.size if frame.name == self.frame.name else frame.size
                plates[frame.name] = numpyro.plate(
                    frame.name, size, subsample_size=frame.size, dim=frame.dim
                )
        return plates

    def rows(self, context: Any, members: ArrayLike) -> Any:
        """The contexts of the minibatch, of all the contexts or of its own."""
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(context)]
        if shapes and all(shape[:1] == (self.size,) for shape in shapes):
            return jax.tree.map(lambda leaf: jnp.asarray(leaf)[members], context)
        if shapes and all(shape[:1] == (self.frame.size,) for shape in shapes):
            return context
        raise ValueError(
            "context must return arrays with the data on their first axis, "
            f"{self.size} for the whole plate {self.frame.name!r} or "
            f"{self.frame.size} for the minibatch, got the shapes {shapes}."
        )


def local_sites(
    model: Callable, plate: str, args: tuple, kwargs: dict[str, Any]
) -> Locals:
    """Run the model once, unseen by the handlers outside, for its shapes.

    Raises:
        ValueError: If the plate is not there, holds no latent site, or one that is
            discrete or stands in another plate that is subsampled.
    """
    key = numpyro.prng_key()
    if key is None:
        raise ValueError(
            "AmortizedGuide draws with the PRNG key of a handler outside: run it in "
            "SVI or Predictive, or in `with numpyro.handlers.seed(rng_seed=0):`."
        )
    with handlers.block():
        # At a feasible point: to draw would cost more, and only shapes are asked for.
        at = handlers.substitute(
            handlers.seed(model, key), substitute_fn=init_to_feasible()
        )
        trace = handlers.trace(at).get_trace(*args, **kwargs)
    plates = {
        n: site["args"][0] for n, site in trace.items() if site["type"] == "plate"
    }
    if plate not in plates:
        raise ValueError(
            f"the model has no plate {plate!r} for AmortizedGuide; its plates are "
            f"{sorted(plates)}."
        )
    latent = {
        name: site
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }
    local = {
        name: site
        for name, site in latent.items()
        if plate in (frame.name for frame in site["cond_indep_stack"])
    }
    if not local:
        raise ValueError(
            f"no latent site stands in the plate {plate!r}, so that AmortizedGuide has "
            f"nothing to amortise; the latent sites are {sorted(latent)}. An ordinary "
            "autoguide does for these. (If the observations are missing, give the "
            "guide and the model the same arguments.)"
        )
    sites = tuple(_local_site(site, plate, plates) for site in local.values())
    frame = next(f for f in sites[0].frames if f.name == plate)
    return Locals(plates[plate], frame, sites, has_global=len(latent) > len(local))


def _local_site(site: dict[str, Any], plate: str, plates: dict[str, int]) -> LocalSite:
    name, fn, frames = site["name"], site["fn"], tuple(site["cond_indep_stack"])
    if fn.support.is_discrete:
        raise ValueError(
            f"the local site {name!r} is discrete, but AmortizedGuide is Gaussian in "
            "unconstrained space: sum it out in the model."
        )
    for other in frames:
        if other.name != plate and plates[other.name] != other.size:
            raise ValueError(
                f"the local site {name!r} stands in the plate {other.name!r}, too, "
                f"which is subsampled: AmortizedGuide subsamples {plate!r} alone."
            )
    value_shape = jnp.shape(site["value"])
    shape = biject_to(fn.support).inverse_shape(value_shape)
    event_dim = fn.event_dim + len(shape) - len(value_shape)
    axis = next(f.dim for f in frames if f.name == plate) - event_dim
    rest = list(shape)
    del rest[axis]
    return LocalSite(name, fn.support, event_dim, axis, tuple(rest), frames)
