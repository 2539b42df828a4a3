"""Explanation: records of a model's parameters and sites, and their totals."""

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np

from pyrox_ppl._parameter import Parameter
from pyrox_ppl._table import as_html, as_text, in_bytes


@dataclasses.dataclass(frozen=True)
class ExplainedParameter:
    """A parameter that the model reads, and what becomes of it.

    Attributes:
        name: The name of its site, or the name that the site would have.
        shape: The shape of its value, with the axes of a plate given to ``bind``.
        becomes: ``"constant"``, or the type of its NumPyro site: ``"sample"``,
            ``"param"``, ``"deterministic"``; ``"observed"`` if it is conditioned on,
            ``"generated"`` if it has a value but no site.
        handler: The handler that decided; None for a constant.
        prior: Its distribution as a string, or None.
        parameter: The record that ``where`` and ``prior`` callables see.
        noise: How the loss draws it; None for a parameter that it does not draw, or if
            ``explain`` got no loss.
    """

    name: str
    shape: tuple[int, ...]
    becomes: str
    handler: str | None
    prior: str | None
    parameter: Parameter
    noise: str | None = None


@dataclasses.dataclass(frozen=True)
class ExplainedSite:
    """A site of the model.

    Attributes:
        name: Its name.
        type: ``"sample"``, ``"observed"``, ``"deterministic"`` or ``"param"``.
        shape: The shape of its value.
        distribution: Its distribution as a string, or None.
        plates: The names of the plates around it, innermost first.
        num_bytes: The size of its value in bytes.
        latent_dim: How many real numbers inference must find for it, over all members
            of a subsampled plate; 0 unless it is latent and continuous.
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
    """The result of :func:`explain`; it prints as a table, in a notebook as HTML.

    Attributes:
        parameters: The parameters that the model reads, one record for each meaning.
        sites: All sites of the model except those of parameters.
        parameter_sites: The sites of the parameters.

    Example:
        >>> import jax, jax.numpy as jnp, pyrox_ppl as px
        >>> film = px.nn.FiLM.init(3, 2, key=jax.random.key(0))
        >>> def model(h, z):
        ...     with px.bayesianize():
        ...         return film(h, z)
        >>> explanation = px.explain(model, jnp.ones(3), jnp.ones(2))
        >>> explanation.parameters[0].becomes, explanation.latent_dim
        ('sample', 18)
    """

    parameters: tuple[ExplainedParameter, ...]
    sites: tuple[ExplainedSite, ...]
    parameter_sites: tuple[ExplainedSite, ...]
    _predictive: Callable = dataclasses.field(repr=False, compare=False)

    @property
    def latent_dim(self) -> int:
        """How many real numbers inference must find, over all latent sites."""
        return sum(site.latent_dim for site in (*self.parameter_sites, *self.sites))

    @property
    def learned(self) -> int:
        """How many numbers SVI trains in the model: the size of its ``param`` sites."""
        sites = (*self.parameter_sites, *self.sites)
        return sum(math.prod(site.shape) for site in sites if site.type == "param")

    @property
    def constant(self) -> int:
        """How many numbers of the modules stay stored constants."""
        rows = (row for row in self.parameters if row.becomes == "constant")
        return sum(math.prod(row.parameter.shape) for row in rows)

    @property
    def constant_outside(self) -> tuple[str, ...]:
        """Names of parameters that are read in a block, and as constants outside it."""
        made = {row.name for row in self.parameters if row.becomes != "constant"}
        rows = (row for row in self.parameters if row.becomes == "constant")
        return tuple(row.name for row in rows if row.name in made)

    def memory(self, num_samples: int) -> int:
        """Count the bytes of `num_samples` draws of all sites but ``param`` sites.

        ``Predictive(model, num_samples=...)`` returns as much. The draws of a posterior
        and the predictions from them take about as much together.
        """
        sites = (*self.parameter_sites, *self.sites)
        kept = (site for site in sites if site.type != "param")
        return num_samples * sum(site.num_bytes for site in kept)

    def prior_scale(
        self, rng_key: jax.Array, num_samples: int = 100
    ) -> dict[str, float]:
        """Estimate the root mean square of each site in `sites` under the prior.

        Observed sites are drawn, so compare their scale with that of the data to judge
        the prior. This runs the model `num_samples` times; learned parameters keep
        their initial values.

        Args:
            rng_key: A PRNG key.
            num_samples: The number of draws.

        Returns:
            The root mean square over draws and entries, by site name.
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
        noise = [(row.name, row.noise) for row in self.parameters if row.noise]
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
            (("parameter", "noise of the loss"), noise),
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
        if self.constant_outside:
            totals.append(
                "also read outside their block, as stored constants: "
                + ", ".join(self.constant_outside)
            )
        return totals
