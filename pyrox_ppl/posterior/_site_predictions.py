"""SitePredictions: what a tree says about one observed site, as arrays."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import xarray as xr

import pyrox_ppl.posterior._stats as _stats
import pyrox_ppl.scores as scores
from pyrox_ppl.posterior._axes import variable_name
from pyrox_ppl.posterior._calibration import observed_and_drawn

CLASSES = ("binary", "categorical")


@dataclasses.dataclass(frozen=True, eq=False)
class SitePredictions:
    """Observations of a site and what the draws of a tree say about them.

    Rows and events keep their axes; the axis of draws comes first. Masked entries are
    left out, as in the tree.

    Attributes:
        site: The name of the site.
        outcome: The kind of its outcome.
        is_ordered: Whether its classes are ordered.
        unit: The unit of the observations, or "".
    """

    site: str
    outcome: str
    is_ordered: bool
    unit: str
    _tree: xr.DataTree

    @staticmethod
    def check(tree: Any, function: str) -> None:
        """Refuse what is no tree, and a tree without observations or predictions."""
        groups = ("posterior_predictive", "observed_data")
        _stats.check_tree(tree, function, *groups)

    @classmethod
    def read(cls, tree: xr.DataTree, site: str) -> Self:
        """Read a site of a tree.

        Raises:
            ValueError: If the tree does not say what the site's integers are.
        """
        observed = _stats.group(tree, "observed_data")[site]
        outcome = observed.attrs.get("outcome")
        if outcome is None and observed.dtype.kind != "f":
            raise ValueError(
                f"the observations of {site!r} are {observed.dtype}, and the tree does "
                "not say whether they are classes or counts: make it with the model, "
                "px.to_datatree(draws, x, y=y, model=model)."
            )
        return cls(
            site,
            outcome or "continuous",
            bool(observed.attrs.get("ordered", False)),
            str(observed.attrs.get("units", "")),
            tree,
        )

    @property
    def has_classes(self) -> bool:
        """Whether the outcome is a class."""
        return self.outcome in CLASSES

    @property
    def number(self) -> int:
        """The number of predictive draws."""
        sizes = _stats.group(self._tree, "posterior_predictive")[self.site].sizes
        return sizes["chain"] * sizes["draw"]

    def observed(self) -> np.ndarray:
        """The observations."""
        return self.observed_and_draws()[0]

    def observed_and_draws(self) -> tuple[np.ndarray, np.ndarray]:
        """The observations, and predictive draws ``(draws, *observations)``."""
        return observed_and_drawn(self._tree, self.site)

    def event_ndims(self) -> int:
        """How many of the last axes are those of one vector."""
        if self.outcome != "multivariate":
            return 0
        attrs = _stats.group(self._tree, "observed_data")[self.site].attrs
        return int(attrs.get("value_ndim", 1))

    def log_scores(self) -> np.ndarray | None:
        """The log score of every row; None if the tree has no log likelihood."""
        group = _stats.group(self._tree, "log_likelihood")
        if self.site not in group:
            return None
        dims = _stats.group(self._tree, "observed_data")[self.site].dims
        own = [axis for axis in dims if axis in group[self.site].dims]
        values = group[self.site].transpose("chain", "draw", *own, ...).values
        return scores.log_score(values.reshape(-1, *values.shape[2:]))

    def mean(self) -> np.ndarray:
        """The predictive mean: the exact mean over the draws where the tree has it."""
        exact = self._uncertainty("mean")
        if exact is not None:
            return exact
        return self.observed_and_draws()[1].mean(0, dtype=np.float64)

    def probabilities(self) -> np.ndarray:
        """Class probabilities, averaged over the draws.

        ``(*rows, classes)``; of a binary outcome those of 1, ``(*rows)``.
        """
        values = self._uncertainty("probability")
        if values is None:
            raise ValueError(
                f"the tree has no class probabilities of {self.site!r}: make it with "
                "the model, px.to_datatree(draws, x, y=y, model=model)."
            )
        return values

    def uncertainty(self, part: str) -> np.ndarray:
        """The part of the uncertainty: total, aleatoric or epistemic."""
        values = self._uncertainty(part)
        if values is None:
            raise ValueError(
                f"the tree has no {part} uncertainty of {self.site!r}: make it with "
                "the model, px.to_datatree(draws, x, y=y, model=model), whose "
                "distribution must have a mean and a variance in NumPyro."
            )
        return values

    def row_numbers(self) -> np.ndarray:
        """The place of every leading entry in the data, of which a mask hides some."""
        observed = _stats.group(self._tree, "observed_data")[self.site]
        entry = observed.dims[0]
        if not str(entry).startswith((f"{self.site}_entry", f"{self.site}_element")):
            return np.arange(observed.shape[0])
        along = [observed[n].values for n in observed.coords if n != entry]
        # Entries are in the order of the data, so places on the first axis never fall.
        return next(places for places in along if (np.diff(places) >= 0).all())

    def _uncertainty(self, part: str) -> np.ndarray | None:
        group, name = _stats.group(self._tree, "uncertainty"), f"{self.site}_{part}"
        if name not in group:
            return None
        number = group.attrs.get("number_of_draws", self.number)
        if number != self.number:
            raise ValueError(
                f"the tree has {self.number} predictive draws, and its group "
                f"'uncertainty' is of {number}: thin the draws first, then make a tree "
                "of them, px.to_datatree(thinned, x, y=y, model=model)."
            )
        dims = _stats.group(self._tree, "observed_data")[self.site].dims
        return group[name].transpose(*dims, ...).values


def choose_site(trees: Mapping[str, xr.DataTree], site: str | None) -> str:
    """The site that is asked for, or the only one that all trees observe."""
    observed = {
        name: _stats.names(_stats.group(tree, "observed_data"))
        for name, tree in trees.items()
    }
    if site is not None:
        site = variable_name(site)
        for name, sites in observed.items():
            if site not in sites:
                raise ValueError(
                    f"{site!r} is not an observed site of {name}; these are: {sites}."
                )
        return site
    common = [s for s in next(iter(observed.values())) if _all_have(observed, s)]
    if len(common) != 1:
        found = "; ".join(f"{name}: {sites}" for name, sites in observed.items())
        raise ValueError(
            f"site= must choose one observed site, which all trees have ({found})."
        )
    return common[0]


def _all_have(observed: Mapping[str, list[str]], site: str) -> bool:
    return all(site in sites for sites in observed.values())
