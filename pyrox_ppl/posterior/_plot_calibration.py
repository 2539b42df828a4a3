"""plot_calibration: whether predictions are as often right as they say, drawn."""

from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

import pyrox_ppl.posterior._stats as _stats
from pyrox_ppl.posterior._calibration import calibration
from pyrox_ppl.posterior._calibration_records import (
    Calibration,
    CircularCalibration,
    ClassCalibration,
)
from pyrox_ppl.posterior._observed import choose_site
from pyrox_ppl.posterior._pyplot import pyplot

_BAND = 0.9  # the probability of all bands and bars
_EDGE = "0.5"


def plot_calibration(
    tree: xr.DataTree,
    site: str | None = None,
    *,
    outcome: str | None = None,
    bins: int | None = None,
    seed: int = 0,
    axes: Any = None,
) -> Any:
    """Draw whether predictions are calibrated, two panels for each site.

    For numbers: the empirical distribution of the PIT (see
    :func:`~pyrox_ppl.calibration`) less the uniform one, and the coverage of central
    intervals of every level. Both stay in the grey band with a probability of 90 % if
    the predictions are calibrated and the observations independent (the band is that of
    the Kolmogorov-Smirnov statistic). Too wide predictions have a PIT curve below zero
    at the left and above it at the right, and a coverage curve above the diagonal.

    For classes: the reliability curve, on the diagonal if the predictions are
    calibrated, with Clopper-Pearson intervals of 90 %; and how many predictions there
    are in each bin. For a binary outcome, the probability of 1 against how often it is
    1; for a categorical one, the largest probability against the accuracy.

    Args:
        tree: A DataTree with ``posterior_predictive`` and ``observed_data``, best of
            held-out data: ``px.to_datatree(tree, x_test, y=y_test, model=model)``.
        site: The observed site; by default all of them.
        outcome: The kind of outcome, where the tree does not say it.
        bins: The number of bins for classes; 15 if None.
        seed: The seed of the uniform numbers that break ties in the PIT.
        axes: Matplotlib axes to draw on, two for each site; a new row of two if not
            given. For one column of a paper, stack them: ``plt.subplots(2, 1)[1]``.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the tree lacks the groups or the site; if an outcome is circular;
            if there are not two axes for each site; and as `calibration` does.

    References:
        Dawid, "Statistical Theory: The Prequential Approach", JRSS A 1984. Guo et al.,
        "On Calibration of Modern Neural Networks", ICML 2017.

    Example:
        >>> import matplotlib; matplotlib.use("agg")
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> def model(y=None):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", 50):
        ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = jax.random.normal(jax.random.key(1), (50,))
        >>> tree = px.to_datatree({"mean": jnp.zeros(100)}, y=y, model=model)
        >>> [axis.get_title() for axis in px.plot_calibration(tree).axes]
        ['PIT of y', 'coverage of y']
    """
    plt = pyplot("plot_calibration")
    _stats.check_tree(tree, "plot_calibration", "posterior_predictive", "observed_data")
    sites = _stats.names(_stats.group(tree, "observed_data"))
    chosen = sites if site is None else [choose_site(tree, site)]
    records: list[Calibration | ClassCalibration] = []
    for name in chosen:
        record = calibration(tree, name, outcome=outcome, bins=bins, seed=seed)
        if isinstance(record, CircularCalibration):
            raise ValueError(
                f"{name!r} is circular: angles have no intervals and no PIT to draw. "
                f"Choose another site of {sites}."
            )
        records.append(record)
    if axes is None:
        height = 3.2 * len(records)
        axes = plt.subplots(
            len(records), 2, figsize=(7.0, height), layout="constrained"
        )[1]
    panels = np.ravel(axes)
    if len(panels) != 2 * len(records):
        raise ValueError(
            f"each of the sites {chosen} needs two axes, got {len(panels)} in all."
        )
    for record, pair in zip(records, panels.reshape(-1, 2), strict=True):
        if isinstance(record, ClassCalibration):
            _reliability(record, pair[0])
            _counts(record, pair[1])
        else:
            _pit(record, pair[0])
            _coverage(record, pair[1])
    return panels[0].figure


def _pit(record: Calibration, axis: Any) -> None:
    places, shares = _distribution(record.pit)
    half = _half_width(record.pit.size)
    axis.axhspan(-half, half, color="0.9", label=f"{100 * _BAND:g} % band", zorder=0)
    axis.axhline(0.0, color=_EDGE, linestyle="--", linewidth=1)
    axis.plot(places, shares - places, color="C0", label="predictions")
    axis.set(
        title=f"PIT of {record.site}",
        xlabel="probability integral transform",
        ylabel="empirical minus uniform CDF",
        xlim=(0, 1),
    )
    low, high = axis.get_ylim()
    reach = max(abs(low), abs(high), 1.5 * half)
    axis.set_ylim(-reach, reach)
    axis.legend(loc="best", frameon=False)


def _coverage(record: Calibration, axis: Any) -> None:
    # An observation is in the central interval of level L if |PIT - 1/2| <= L / 2.
    levels, shares = _distribution(2 * np.abs(record.pit - 0.5))
    half, ideal = 100 * _half_width(record.pit.size), np.array([0.0, 100.0])
    label = f"{100 * _BAND:g} % band"
    axis.fill_between(
        ideal, ideal - half, ideal + half, color="0.9", linewidth=0, label=label
    )
    axis.plot(ideal, ideal, color=_EDGE, linestyle="--", linewidth=1)
    axis.plot(100 * levels, 100 * shares, color="C0", label="predictions")
    axis.set(
        title=f"coverage of {record.site}",
        xlabel="level of the central interval / %",
        ylabel="observations covered / %",
        xlim=(0, 100),
        ylim=(0, 100),
        aspect="equal",
    )
    axis.legend(loc="lower right", frameon=False)


def _reliability(record: ClassCalibration, axis: Any) -> None:
    curve, is_binary = record.reliability, record.outcome == "binary"
    seen = curve.count > 0
    x, y = curve.confidence[seen], curve.frequency[seen]
    bars = np.stack([y - curve.lower[seen], curve.upper[seen] - y])
    axis.plot([0, 1], [0, 1], color=_EDGE, linestyle="--", linewidth=1)
    axis.errorbar(
        x,
        y,
        yerr=np.maximum(bars, 0.0),
        color="C0",
        marker="o",
        markersize=3.5,
        linewidth=1,
        elinewidth=1,
        label=f"{100 * curve.level:g} % intervals",
    )
    axis.set(
        title=f"reliability of {record.site}",
        xlabel=f"P({record.site} = 1)" if is_binary else "largest class probability",
        ylabel=f"frequency of {record.site} = 1" if is_binary else "accuracy",
        xlim=(-0.02, 1.02),  # points at 0 and 1 are whole
        ylim=(-0.02, 1.02),
        aspect="equal",
    )
    axis.legend(loc="upper left", frameon=False)


def _counts(record: ClassCalibration, axis: Any) -> None:
    curve, error = record.reliability, record.calibration_error
    axis.stairs(curve.count, curve.edges, fill=True, color="C0", alpha=0.5)
    axis.set(
        title=f"ECE {error.value:.3f}, {len(error.count)} bins",
        xlabel=f"P({record.site} = 1)"
        if record.outcome == "binary"
        else "largest class probability",
        ylabel="number of predictions",
        xlim=(0, 1),
        ylim=(0, None),
    )


def _distribution(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The empirical distribution function as a staircase from (0, 0) to (1, 1)."""
    ordered = np.sort(values, axis=None)
    shares = np.arange(len(ordered) + 1) / len(ordered)
    places = np.concatenate([[0.0], np.repeat(ordered, 2), [1.0]])
    return places, np.repeat(shares, 2)


def _half_width(number: int) -> float:
    """How far the empirical distribution of uniform numbers may be from uniform."""
    return float(stats.kstwo.ppf(_BAND, number))
