"""What explain() found: records of parameters and sites, totals, and how they print."""

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np

from pyrox_ppl._parameter import Parameter
from pyrox_ppl.explanation._table import as_html, as_text, in_bytes


@dataclasses.dataclass(frozen=True)
class ExplainedParameter:
    """A parameter that the model reads, and what becomes of it.

    Attributes:
        name: Its site's name, or that which the site would have.
        shape: The shape of its value, with a plate's axes if ``bind`` was given one.
        becomes: ``"constant"``, or the type of its NumPyro site: ``"sample"``,
            ``"param"``, ``"deterministic"``; ``"observed"`` if it is conditioned on,
            ``"generated"`` if it has a value and no site.
        handler: The handler that decided; None for a constant.
        prior: Its distribution as a string, where it has one.
        parameter: The record that ``where`` and ``prior`` callables see.
    """

    name: str
    shape: tuple[int, ...]
    becomes: str
    handler: str | None
    prior: str | None
    parameter: Parameter


@dataclasses.dataclass(frozen=True)
class ExplainedSite:
    """A site of the model.

    Attributes:
        name: Its name.
        type: ``"sample"``, ``"observed"``, ``"deterministic"`` or ``"param"``.
        shape: The shape of its value.
        distribution: Its distribution as a string, where it has one.
        plates: The names of the plates that it stands in, the innermost first.
        num_bytes: The size of its value in bytes.
        latent_dim: How many real numbers inference has to find for it, with every
            member of a subsampled plate; 0 unless it is latent and continuous.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    distribution: str | None
    plates: tuple[str, ...]
    num_bytes: int
    latent_dim: int


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found; it prints as a table, in a notebook as HTML.

    Attributes:
        parameters: Every parameter that the model reads, once for every meaning that it
            has there.
        sites: Every other site of the model.
        parameter_sites: The sites of the parameters themselves.
    """

    parameters: tuple[ExplainedParameter, ...]
    sites: tuple[ExplainedSite, ...]
    parameter_sites: tuple[ExplainedSite, ...]
    _predictive: Callable = dataclasses.field(repr=False, compare=False)

    @property
    def latent_dim(self) -> int:
        """How many real numbers inference has to find, over all latent sites."""
        return sum(site.latent_dim for site in (*self.parameter_sites, *self.sites))

    @property
    def learned(self) -> int:
        """How many numbers SVI trains in the model: the size of its ``param`` sites."""
        sites = (*self.parameter_sites, *self.sites)
        return sum(math.prod(site.shape) for site in sites if site.type == "param")

    @property
    def constant(self) -> int:
        """How many numbers of the modules stay the constants that are stored."""
        rows = (row for row in self.parameters if row.becomes == "constant")
        return sum(math.prod(row.parameter.shape) for row in rows)

    @property
    def also_constant(self) -> tuple[str, ...]:
        """Names of parameters that a block answers, and that are constants outside."""
        made = {row.name for row in self.parameters if row.becomes != "constant"}
        rows = (row for row in self.parameters if row.becomes == "constant")
        return tuple(row.name for row in rows if row.name in made)

    def memory(self, num_samples: int) -> int:
        """Bytes of `num_samples` draws of every sample and deterministic site.

        That is what ``Predictive(model, num_samples=...)`` returns, and about what the
        draws of a posterior and the predictions from them take together.
        """
        sites = (*self.parameter_sites, *self.sites)
        kept = (site for site in sites if site.type != "param")
        return num_samples * sum(site.num_bytes for site in kept)

    def prior_scale(
        self, rng_key: jax.Array, num_samples: int = 100
    ) -> dict[str, float]:
        """Root mean square of every other site under the prior, observed ones drawn.

        Where this is far from the data's, the prior is. Unlike the rest it runs the
        model, `num_samples` times; parameters that are learned are at their start.

        Args:
            rng_key: A PRNG key.
            num_samples: How many draws.

        Returns:
            The root mean square over draws and entries, by site.
        """
        draws = self._predictive(rng_key, num_samples)
        others = {site.name for site in self.sites if site.type != "param"}
        return {
            name: float(np.sqrt(np.mean(np.square(np.asarray(value, np.float64)))))
            for name, value in draws.items()
            if name in others
        }

    def __str__(self) -> str:
        tables = [as_text(*table) for table in self._tables()]
        return "\n\n".join([*tables, "\n".join(self._totals())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        tables = "".join(as_html(*table) for table in self._tables())
        return f"{tables}<p>{'<br>'.join(self._totals())}</p>"

    def _tables(self) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
        parameters = [
            (row.name, str(row.shape), row.becomes, row.handler or "", row.prior or "")
            for row in self.parameters
        ]
        ties = [
            (row.name, ".".join(map(str, path)))
            for row in self.parameters
            for path in row.parameter.tied
        ]
        sites = [
            (s.name, str(s.shape), s.type, ", ".join(s.plates), s.distribution or "")
            for s in self.sites
        ]
        tables = [
            (("parameter", "shape", "becomes", "by", "prior"), parameters),
            (("tied", "is also at"), ties),
            (("other site", "shape", "type", "plates", "distribution"), sites),
        ]
        return [table for table in tables if table[1]]

    def _totals(self) -> list[str]:
        totals = [
            f"latent dimension {self.latent_dim:,}, learned {self.learned:,}, "
            f"constant {self.constant:,}",
            f"1,000 draws of every site take {in_bytes(self.memory(1000))}",
        ]
        if self.also_constant:
            totals.append(
                "read outside their block, too, as the constants that are stored: "
                + ", ".join(self.also_constant)
            )
        return totals
