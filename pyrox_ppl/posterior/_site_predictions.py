"""SitePredictions: what a tree says about one observed site, as arrays."""

import dataclasses
from typing import Any, Self

import numpy as np
import xarray as xr

import pyrox_ppl.posterior._stats as _stats
import pyrox_ppl.scores as scores
from pyrox_ppl.posterior._observed import (
    check_rows,
    choose_site,
    labels_and_probabilities,
    observed_and_drawn,
    outcome_in,
    uncertainty_of_draws,
)


@dataclasses.dataclass(frozen=True, eq=False)
class SitePredictions:
    """Observations of a site and what the draws of a tree say about them.

    Rows and events keep their axes; the axis of draws comes first. Masked entries are
    left out, as in the tree.

    Attributes:
        site: The name of the site.
        outcome: The kind of its outcome.
    """

    site: str
    outcome: str
    _tree: xr.DataTree

    @classmethod
    def read(
        cls, tree: Any, site: str | None, function: str, outcome: str | None = None
    ) -> Self:
        """Find a site in a tree.

        Raises:
            TypeError: If `tree` is not a DataTree.
            ValueError: If the tree lacks the groups or the site, or neither it nor
                `outcome` says what the site's integers are.
        """
        groups = ("posterior_predictive", "observed_data")
        _stats.check_tree(tree, function, *groups)
        site = choose_site(tree, site)
        return cls(site, outcome_in(tree, site, outcome), tree)

    @property
    def number(self) -> int:
        """The number of predictive draws."""
        sizes = _stats.group(self._tree, "posterior_predictive").sizes
        return sizes["chain"] * sizes["draw"]

    @property
    def is_ordered(self) -> bool:
        """Whether the order of the classes means something."""
        return bool(self._observed.attrs.get("ordered", 0))

    @property
    def unit(self) -> str:
        """The unit of the observations, or ""."""
        return str(self._observed.attrs.get("units", ""))

    @property
    def has_probabilities(self) -> bool:
        """Whether the tree has class probabilities, not only draws of classes."""
        return f"{self.site}_probability" in _stats.group(self._tree, "uncertainty")

    @property
    def _observed(self) -> xr.DataArray:
        return _stats.group(self._tree, "observed_data")[self.site]

    def observed(self) -> np.ndarray:
        """The observations."""
        return self.observed_and_draws()[0]

    def observed_and_draws(self) -> tuple[np.ndarray, np.ndarray]:
        """The observations, and predictive draws ``(draws, *observations)``."""
        return observed_and_drawn(self._tree, self.site)

    def labels_and_probabilities(self) -> tuple[np.ndarray, np.ndarray]:
        """The labels ``(*rows)``, and the probabilities of the classes beside them."""
        return labels_and_probabilities(self._tree, self.site, self.outcome)

    def probabilities(self) -> np.ndarray:
        """Class probabilities ``(*rows, classes)``; of a binary outcome those of 1."""
        return self.labels_and_probabilities()[1]

    @property
    def hides_elements(self) -> bool:
        """Whether a mask hides single values of vectors."""
        dims = self._observed.dims
        return bool(dims) and str(dims[-1]).startswith(f"{self.site}_element")

    def event_ndims(self) -> int:
        """How many of the last axes are those of one vector."""
        if self.outcome != "multivariate":
            return 0
        return int(self._observed.attrs.get("value_ndim", 1))

    def log_scores(self) -> np.ndarray | None:
        """The log score of every row; None if the tree has no log likelihood.

        Raises:
            ValueError: If a log likelihood is NaN, or they are of other rows.
        """
        group = _stats.group(self._tree, "log_likelihood")
        if self.site not in group:
            return None
        check_rows(
            f"the log likelihoods of {self.site!r}", group[self.site], self._observed
        )
        own = [axis for axis in self._observed.dims if axis in group[self.site].dims]
        values = group[self.site].transpose("chain", "draw", *own, ...).values
        if broken := np.count_nonzero(np.isnan(values)):
            raise ValueError(
                f"the log likelihood of {self.site!r} is NaN for {broken} of "
                f"{values.size} draws and observations, where parameters are NaN or "
                "outside the support of the distribution: ask `diagnose` which."
            )
        return scores.log_score(values.reshape(-1, *values.shape[2:]))

    def mean(self) -> np.ndarray:
        """The predictive mean: the exact mean over the draws where the tree has it."""
        exact = self._uncertainty("mean")
        if exact is not None:
            return exact
        return self.observed_and_draws()[1].mean(0, dtype=np.float64)

    def uncertainty(self, part: str) -> np.ndarray:
        """The part of the uncertainty: total, aleatoric or epistemic."""
        values = self._uncertainty(part)
        if values is None:
            raise ValueError(
                f"the tree has no {part} uncertainty of {self.site!r}: make it with "
                "the model, px.to_datatree(draws, x, y=y, model=model). Vectors, "
                "angles, distributions without a variance in NumPyro, and sites that "
                "depend on an undrawn discrete latent have none."
            )
        return values

    def row_numbers(self) -> np.ndarray:
        """The place of every leading entry in the data, of which a mask hides some."""
        observed = self._observed
        if not observed.dims:
            return np.zeros(1, int)
        entry = observed.dims[0]
        if not str(entry).startswith((f"{self.site}_entry", f"{self.site}_element")):
            return np.arange(observed.shape[0])
        places = [
            place.values
            for name, place in observed.coords.items()
            if place.dims == (entry,) and name != entry
        ]
        # Entries are in the order of the data, so places on the first axis never fall.
        rising = (place for place in places if (np.diff(place) >= 0).all())
        return next(rising, np.zeros(observed.shape[0], int))

    def _uncertainty(self, part: str) -> np.ndarray | None:
        group, name = uncertainty_of_draws(self._tree, self.site), f"{self.site}_{part}"
        if name not in group:
            return None
        check_rows(f"the uncertainty of {self.site!r}", group[name], self._observed)
        return group[name].transpose(*self._observed.dims, ...).values
