"""summary: a row for every group of parameters instead of one for every weight."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import pyrox_ppl.posterior._stats as _stats
from pyrox_ppl.posterior._functions import FEWEST_DRAWS


def summary(tree: xr.DataTree, var_names: Sequence[str] | None = None) -> pd.DataFrame:
    r"""Summarise each group of parameters in one row.

    A scalar site is summarised by its value, an array (a layer's weight, say) by its
    root mean square :math:`\|\theta\| / \sqrt n`. Permuting or flipping the units of a
    layer changes every single weight but not the root mean square, so its R-hat and ESS
    are meaningful where those of single weights are not.

    Args:
        tree: A DataTree of :func:`~pyrox_ppl.to_datatree`.
        var_names: The variables of ``posterior`` to summarise; by default all but the
            deterministic sites.

    Returns:
        A ``pandas.DataFrame`` with a row per variable: ``size`` (the number of
        entries), ``of`` (``"value"`` or ``"rms"``), ``mean`` and ``sd`` of that over
        the draws (to three digits of ``sd``, and three decimals at least),
        ``ess_bulk``, ``ess_tail`` (in draws) and ``r_hat``. These three are there only
        for draws that may be Markov chains: not for the independent draws of a guide,
        or the members of an ensemble.

    Raises:
        TypeError: If `tree` is not a DataTree.
        ValueError: If a variable is not there.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> rng = np.random.default_rng(0)
        >>> draws = {"net.weight": rng.normal(size=(4, 100, 30, 20))}
        >>> table = px.summary(px.to_datatree(draws, batch_ndims=2))
        >>> row = table.loc["net.weight"]
        >>> int(row["size"]), row["of"], round(float(row["mean"]), 2)
        (600, 'rms', 1.0)
    """
    _stats.check_tree(tree, "summary", "posterior")
    posterior = _stats.group(tree, "posterior")
    _stats.check_axes("the draws of the posterior", posterior.sizes)
    names = [
        name
        for name in _stats.names(posterior)
        if not posterior[name].attrs.get("deterministic")
    ]
    if var_names is not None:
        missing = [name for name in var_names if name not in posterior.data_vars]
        if missing:
            raise ValueError(
                f"the posterior has no variables {missing}; it has "
                f"{list(posterior.data_vars)}."
            )
        names = list(var_names)
    are_chains = may_be_chains(tree)
    rows = {name: _row(_stats.by_draw(posterior, name), are_chains) for name in names}
    return pd.DataFrame.from_dict(rows, orient="index")


def may_be_chains(tree: xr.DataTree) -> bool:
    """Whether the draws of a tree are Markov chains, for all that it says of them."""
    is_point = bool(tree.attrs.get("point_estimate"))
    return tree.attrs.get("inference") in (None, "MCMC", "draws") and not is_point


def size_of_draws(values: np.ndarray) -> np.ndarray:
    """The value of a scalar, the root mean square of an array: ``(chain, draw)``."""
    if values.ndim == 2:
        return values.astype(np.float64)
    flat = values.reshape(*values.shape[:2], math.prod(values.shape[2:]))
    squares = np.einsum("cdi,cdi->cd", flat, flat, dtype=np.float64, casting="safe")
    return np.sqrt(squares / max(1, flat.shape[-1]))


def _row(values: np.ndarray, are_chains: bool) -> dict[str, Any]:
    sizes = size_of_draws(values)
    finite = bool(np.isfinite(sizes).all())
    with np.errstate(invalid="ignore"):  # NaN and infinity show in the table
        mean, sd = float(sizes.mean()), float(sizes.std())
    row: dict[str, Any] = {
        "size": int(np.prod(values.shape[2:])),
        "of": "value" if values.ndim == 2 else "rms",
        "mean": _rounded(mean, sd),
        "sd": _rounded(sd, sd),
    }
    if not are_chains:
        return row
    row |= {"ess_bulk": np.nan, "ess_tail": np.nan, "r_hat": np.nan}
    # ArviZ splits a chain twice, and divides by the variance.
    if finite and sizes.shape[1] >= FEWEST_DRAWS and np.ptp(sizes) > 0:
        row["ess_bulk"] = float(np.round(_stats.ess_bulk(sizes)[0]))
        row["ess_tail"] = float(np.round(_stats.ess_tail(sizes)[0]))
        row["r_hat"] = float(np.round(_stats.rhat(sizes)[0], 3))
    return row


def _rounded(value: float, sd: float) -> float:
    """Round to three digits of the standard deviation, but at least three decimals."""
    if not (np.isfinite(value) and np.isfinite(sd) and sd > 0):
        return value
    return round(value, max(3, 2 - math.floor(math.log10(sd))))
