"""ArviZ's statistics of arrays whose first two axes are chain and draw."""

import warnings
from collections.abc import Collection
from typing import Any

import arviz_stats
import numpy as np
import xarray as xr
from arviz_stats.base.array import array_stats

_STATS: Any = array_stats
_AXES: dict[str, int] = {"chain_axis": 0, "draw_axis": 1}


def rhat(values: np.ndarray) -> np.ndarray:
    """Rank-normalised split R-hat; a single chain is split into two first."""
    if len(values) == 1:
        half = values.shape[1] // 2
        values = np.stack([values[0, :half], values[0, -half:]])
    return np.atleast_1d(_STATS.rhat(values, **_AXES))


def ess_bulk(values: np.ndarray) -> np.ndarray:
    """Effective sample size of the bulk."""
    return np.atleast_1d(_STATS.ess(values, method="bulk", **_AXES))


def ess_tail(values: np.ndarray) -> np.ndarray:
    """Effective sample size of the 5 % and 95 % quantiles, the smaller one."""
    return np.atleast_1d(_STATS.ess(values, method="tail", prob=(0.05, 0.95), **_AXES))


def mcse(values: np.ndarray) -> np.ndarray:
    """Monte Carlo standard error of the mean."""
    return np.atleast_1d(_STATS.mcse(values, method="mean", **_AXES))


def bfmi(energy: np.ndarray) -> np.ndarray:
    """Bayesian fraction of missing information, of each chain."""
    return np.atleast_1d(_STATS.bfmi(energy, **_AXES))


def pareto_k(log_weights: np.ndarray) -> float:
    """The shape k of a generalised Pareto distribution of the largest weights.

    ArviZ's function takes log likelihoods, and the weights of leave-one-out are their
    inverses: hence the sign.
    """
    # Where most weights underflow beside the largest, ArviZ's fit overflows and returns
    # the small k of its prior, as if the weights were even.
    try:
        with np.errstate(over="raise", invalid="raise"):
            return float(np.asarray(_STATS.psislw(-log_weights)[1]))
    except FloatingPointError:
        return float("inf")


def loo(tree: xr.DataTree, site: str) -> Any:
    """ArviZ's PSIS-LOO of one site, pointwise.

    ArviZ's warning of a high Pareto k is dropped, because the caller reports every k.
    """
    # What overflows there is computed again below.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto")
        result: Any = arviz_stats.loo(tree, var_name=site, pointwise=True)  # pyright: ignore[reportPrivateImportUsage] - arviz_stats marks no exports
    densities = by_draw(group(tree, "log_likelihood"), site)
    densities = densities.reshape(-1, *densities.shape[2:])
    k = np.array(result.pareto_k)
    # A range of 600 nats is where weights begin to underflow; see `pareto_k`.
    for place in zip(*np.nonzero(np.ptp(densities, axis=0) > 600.0), strict=True):
        k[place] = pareto_k(-densities[(slice(None), *place)].astype(np.float64))
    result.pareto_k = result.pareto_k.copy(data=k)
    return result


def check_tree(tree: Any, function: str, *groups: str) -> None:
    """Raise unless `tree` is a DataTree that has these groups."""
    if isinstance(tree, xr.DataTree):
        missing = [name for name in groups if name not in tree.children]
        if not missing:
            return
        if tree.parent is not None:
            advice = f"pass the whole tree, not its group {tree.name!r}"
        elif missing == ["posterior"]:
            advice = "to_datatree(mcmc, ...) makes a tree with draws"
        else:
            advice = (
                "make it with the observations as arguments, "
                "px.to_datatree(draws, x, y=y, model=model)"
            )
        raise ValueError(
            f"{function} needs the group {missing[0]!r}, and this tree has "
            f"{sorted(tree.children)}: {advice}."
        )
    if isinstance(tree, xr.Dataset):
        advice = "pass the whole tree, not one group of it"
    elif hasattr(tree, "losses"):
        advice = f"{function}(px.to_datatree(fit, *args, guide=guide), ...)"
    elif isinstance(tree, dict):
        advice = f"{function}(px.to_datatree(draws, *args, model=model), ...)"
    else:
        advice = f"{function}(px.to_datatree(mcmc, *args), ...)"
    raise TypeError(
        f"{function} takes a DataTree (see to_datatree), got {type(tree).__name__}: "
        f"{advice}."
    )


def check_axes(what: str, dims: Collection[Any]) -> None:
    """Raise unless draws have the axes of chains and draws."""
    if lost := {"chain", "draw"} - set(dims):
        raise ValueError(
            f"{what} have no axis {sorted(lost)}: select draws by a list, such as "
            "tree.isel(draw=[0]), which keeps the axis, and `unstack` stacked axes."
        )


def group(tree: xr.DataTree, name: str) -> xr.Dataset:
    """A group of a tree as a dataset; an empty one where it is absent."""
    if name not in tree.children:
        return xr.Dataset()
    return tree.children[name].to_dataset()


def names(dataset: xr.Dataset) -> list[str]:
    """The names of a dataset's variables."""
    return [str(name) for name in dataset.data_vars]


def by_draw(dataset: xr.Dataset, name: str) -> np.ndarray:
    """A variable with chain and draw as its first axes."""
    return np.asarray(dataset[name].transpose("chain", "draw", ...).values)
