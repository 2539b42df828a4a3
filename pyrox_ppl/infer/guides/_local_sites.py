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
    """A latent site in the plate, with the form of its unconstrained value.

    Attributes:
        name: The site's name.
        support: Its support.
        event_dim: The number of event axes of the unconstrained value.
        axis: The plate's axis in that value, from the right.
        shape: The shape of that value without the plate's axis.
        frames: The plates around the site.
    """

    name: str
    support: Any
    event_dim: int
    axis: int
    shape: tuple[int, ...]
    frames: tuple[CondIndepStackFrame, ...]

    @property
    def size(self) -> int:
        """The number of unconstrained values per datum."""
        return math.prod(self.shape)

    @property
    def is_real(self) -> bool:
        """Whether the unconstrained value is the value itself."""
        support = self.support
        if isinstance(support, constraints.independent):
            support = support.base_constraint
        return support is constraints.real

    def arrange(self, rows: jax.Array) -> jax.Array:
        """Reshape ``(datum, numbers)`` to the site's unconstrained shape."""
        return jnp.moveaxis(rows.reshape(-1, *self.shape), 0, self.axis)

    def constrain(self, base: dist.Distribution) -> dist.Distribution:
        """Transform a distribution over unconstrained values to the support."""
        if self.is_real:
            return base
        return dist.TransformedDistribution(base, biject_to(self.support))


@dataclasses.dataclass(frozen=True)
class PlateSummary:
    """A plate of a model, and the latent sites in it.

    Attributes:
        size: The plate's size.
        frame: The plate's frame: its name, axis and number of members in a minibatch.
        sites: The latent sites in the plate.
        has_global: Whether there are latent sites outside the plate.
    """

    size: int
    frame: CondIndepStackFrame
    sites: tuple[LocalSite, ...]
    has_global: bool

    @property
    def dim(self) -> int:
        """The number of unconstrained values per datum, over all sites."""
        return sum(site.size for site in self.sites)

    def parts(self) -> Iterator[tuple[LocalSite, slice]]:
        """The sites, each with its slice of the numbers of a datum."""
        start = 0
        for site in self.sites:
            yield site, slice(start, start + site.size)
            start += site.size

    @property
    def names(self) -> set[str]:
        """The names of the local sites."""
        return {site.name for site in self.sites}

    def plates(self) -> dict[str, numpyro.plate]:
        """A new plate for each plate around the sites, for use in the guide."""
        plates = {}
        for frame in (frame for site in self.sites for frame in site.frames):
            if frame.name not in plates:
                size = self.size if frame.name == self.frame.name else frame.size
                plates[frame.name] = numpyro.plate(
                    frame.name, size, subsample_size=frame.size, dim=frame.dim
                )
        return plates

    def rows(self, context: Any, members: ArrayLike) -> Any:
        """The contexts of the minibatch, taken from all contexts if these are given."""
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(context)]
        if shapes and all(shape[:1] == (self.size,) for shape in shapes):
            return jax.tree.map(lambda leaf: jnp.asarray(leaf)[members], context)
        if shapes and all(shape[:1] == (self.frame.size,) for shape in shapes):
            return context
        raise ValueError(
            "context must return arrays whose first axis is the data: "
            f"{self.size} for the whole plate {self.frame.name!r} or "
            f"{self.frame.size} for the minibatch. Got the shapes {shapes}."
        )


def find_local_sites(
    model: Callable, plate: str, args: tuple, kwargs: dict[str, Any]
) -> PlateSummary:
    """Run the model once, hidden from the handlers outside, for its shapes.

    Raises:
        ValueError: If the model has no such plate, or no latent site in it, or one that
            is discrete or in another subsampled plate.
    """
    key = numpyro.prng_key()
    if key is None:
        raise ValueError(
            "AmortizedGuide needs a PRNG key from a handler: run it in SVI or "
            "Predictive, or in `with numpyro.handlers.seed(rng_seed=0):`."
        )
    with handlers.block():
        # Only shapes are needed, and a feasible point costs less than a draw.
        at = handlers.substitute(
            handlers.seed(model, key), substitute_fn=init_to_feasible()
        )
        trace = handlers.trace(at).get_trace(*args, **kwargs)
    plates = {
        n: site["args"][0] for n, site in trace.items() if site["type"] == "plate"
    }
    if plate not in plates:
        raise ValueError(
            f"the model has no plate {plate!r} for AmortizedGuide. Its plates are "
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
            f"no latent site stands in the plate {plate!r}, so AmortizedGuide has "
            f"nothing to amortise. The latent sites are {sorted(latent)}: use an "
            "ordinary autoguide for them. (If the observations are missing, pass the "
            "same arguments to the guide as to the model.)"
        )
    sites = tuple(_local_site(site, plate, plates) for site in local.values())
    frame = next(f for f in sites[0].frames if f.name == plate)
    return PlateSummary(
        plates[plate], frame, sites, has_global=len(latent) > len(local)
    )


def _local_site(site: dict[str, Any], plate: str, plates: dict[str, int]) -> LocalSite:
    name, fn, frames = site["name"], site["fn"], tuple(site["cond_indep_stack"])
    if fn.support.is_discrete:
        raise ValueError(
            f"the local site {name!r} is discrete, but AmortizedGuide is Gaussian over "
            "unconstrained values: sum the site out in the model."
        )
    for other in frames:
        if other.name != plate and plates[other.name] != other.size:
            raise ValueError(
                f"the local site {name!r} also stands in the subsampled plate "
                f"{other.name!r}, but AmortizedGuide subsamples only {plate!r}: do not "
                f"subsample {other.name!r}."
            )
    value_shape = jnp.shape(site["value"])
    shape = biject_to(fn.support).inverse_shape(value_shape)
    event_dim = fn.event_dim + len(shape) - len(value_shape)
    axis = next(f.dim for f in frames if f.name == plate) - event_dim
    rest = list(shape)
    del rest[axis]
    return LocalSite(name, fn.support, event_dim, axis, tuple(rest), frames)
