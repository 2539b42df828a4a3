"""plot_fit, plot_calibration and plot_diagnostics: a posterior as pictures."""

import importlib
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

import pyrox_ppl.posterior._checks as _checks
import pyrox_ppl.posterior._stats as _stats
from pyrox_ppl.posterior._calibration import along_one_axis
from pyrox_ppl.posterior._diagnosis import Diagnosis
from pyrox_ppl.posterior._functions import FunctionStatistics
from pyrox_ppl.prediction._prediction import Prediction


def plot_fit(
    prediction: Prediction,
    x: Any,
    *,
    x_observed: Any = None,
    y_observed: Any = None,
    output: int = 0,
    axes: Any = None,
    label: str | None = None,
) -> Any:
    """Draw predicted curves as a band, or a field's mean and spread.

    Over one coordinate: the mean, and a band between each pair of quantiles that lie
    symmetrically around the median. Over two coordinates: the mean and the standard
    deviation, side by side.

    **Shapes**: `x` is ``(points,)`` or ``(points, 1)`` for curves, ``(points, 2)`` for
    fields; the prediction ``(points,)`` or ``(points, outputs)``.

    Args:
        prediction: What :func:`~pyrox_ppl.predict` returned for the points `x`.
        x: The coordinates of the points.
        x_observed: Coordinates of observations to draw as points.
        y_observed: Their values.
        output: Which output of the prediction.
        axes: Matplotlib axes to draw on: one for curves, two for fields; new ones if
            not given.
        label: The name of the curve in the legend.

    Returns:
        The axes: one for curves, an array of two for fields.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the shapes of coordinates and prediction do not match.

    Example:
        >>> import matplotlib; matplotlib.use("agg")
        >>> import equinox as eqx, jax, jax.numpy as jnp, pyrox_ppl as px
        >>> linear = eqx.nn.Linear(1, 1, key=jax.random.key(0))
        >>> draws = {"linear.weight": jnp.linspace(1.0, 2.0, 50)[:, None, None]}
        >>> x = jnp.linspace(0.0, 1.0, 20)[:, None]
        >>> axes = px.plot_fit(px.predict(linear, draws, x), x)
        >>> len(axes.lines), len(axes.collections)
        (1, 1)
    """
    plt = _pyplot("plot_fit")
    points = np.asarray(x, float)
    points = points.reshape(-1, 1) if points.ndim == 1 else points
    number, dims = len(points), points.shape[-1]
    mean = _column(prediction.mean, number, output)
    if points.ndim != 2 or dims not in (1, 2):
        raise ValueError(
            "plot_fit draws over one or two coordinates: x must be (points,), (points, "
            f"1) or (points, 2), got {np.shape(x)}."
        )
    seen = None if x_observed is None else np.asarray(x_observed, float)
    if dims == 1:
        if axes is None:
            axes = plt.subplots(layout="constrained")[1]
        order = np.argsort(points[:, 0])
        line = axes.plot(points[order, 0], mean[order], label=label or "mean")[0]
        levels = sorted(prediction.quantiles)
        for low in levels:
            high = next((q for q in levels if abs(q - (1 - low)) < 1e-9), None)
            if high is not None and low < high:
                edges = [
                    _column(prediction.quantiles[q], number, output)[order]
                    for q in (low, high)
                ]
                axes.fill_between(
                    points[order, 0],
                    *edges,
                    color=line.get_color(),
                    alpha=0.25,
                    linewidth=0,
                    label=f"{100 * (high - low):g} % of the draws",
                )
        if seen is not None:
            axes.plot(seen.ravel(), np.ravel(y_observed), "k.", label="observed")
        axes.legend()
        return axes
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")[1]
    std = _column(prediction.std, number, output)
    broken = int((~np.isfinite(mean + std)).sum())
    if broken:
        raise ValueError(
            f"the prediction is NaN or infinite at {broken} of {number} points, which "
            "have no colour: leave them out, and ask `diagnose` why."
        )
    for axis, values, title, colours in (
        (axes[0], mean, "mean", "viridis"),
        (axes[1], std, "standard deviation", "magma"),
    ):
        image = axis.tripcolor(*points.T, values, shading="gouraud", cmap=colours)
        axis.figure.colorbar(image, ax=axis)
        axis.set_title(title)
        if seen is not None:
            axis.plot(*seen.T, "o", color="k", markeredgecolor="w", markersize=3)
    return axes


def plot_calibration(
    tree: xr.DataTree, site: str | None = None, *, coverage: bool = False
) -> Any:
    """Draw whether predictions are calibrated: their PIT, or their coverage.

    ArviZ's ``plot_ppc_pit``: the difference between the distribution of the probability
    integral transforms and the uniform one; with `coverage` the same for central
    intervals, where a line above zero means that they cover too much. A small p value
    says that the predictions are not calibrated.

    Args:
        tree: A DataTree with ``posterior_predictive`` and ``observed_data``, best of
            held-out data: ``px.to_datatree(tree, x_test, y=y_test, model=model)``.
        site: The observed site; by default all of them.
        coverage: Whether to draw the coverage of central intervals.

    Returns:
        ArviZ's ``PlotCollection``; its ``savefig`` writes the picture.

    Raises:
        ImportError: If arviz-plots or matplotlib is not installed.
        ValueError: If the tree lacks the groups or the site.

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
        >>> type(px.plot_calibration(tree)).__name__
        'PlotCollection'
    """
    _pyplot("plot_calibration")
    azp = _import("arviz_plots", "plot_calibration")
    _stats.check_tree(tree, "plot_calibration", "posterior_predictive", "observed_data")
    sites = _stats.names(_stats.group(tree, "observed_data"))
    if site is not None and site not in sites:
        raise ValueError(f"{site!r} is not an observed site; these are: {sites}.")
    chosen = sites if site is None else [site]
    return azp.plot_ppc_pit(
        along_one_axis(tree, chosen),
        var_names=chosen,
        coverage=coverage,
        backend="matplotlib",
    )


def plot_diagnostics(diagnosis: Diagnosis) -> Any:
    """Draw the figures of a diagnosis, a panel for each kind, with their limits.

    R-hat and effective sample size of the functions at the probes; the Pareto k of
    every observation; the losses of SVI.

    Args:
        diagnosis: What :func:`~pyrox_ppl.diagnose` returned.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the diagnosis has nothing to draw.

    Example:
        >>> import matplotlib; matplotlib.use("agg")
        >>> import equinox as eqx, jax, jax.numpy as jnp, pyrox_ppl as px
        >>> linear = eqx.nn.Linear(1, 1, key=jax.random.key(0))
        >>> weights = jax.random.normal(jax.random.key(1), (4, 500, 1, 1))
        >>> tree = px.to_datatree({"linear.weight": weights}, batch_ndims=2)
        >>> diagnosis = px.diagnose(tree, linear, jnp.linspace(0.5, 1.0, 5)[:, None])
        >>> len(px.plot_diagnostics(diagnosis).axes)
        2
    """
    plt = _pyplot("plot_diagnostics")
    panels: list[Any] = []
    if diagnosis.functions is not None:
        functions, limit = diagnosis.functions, _checks.ESS_PER_CHAIN * diagnosis.chains
        panels += [partial(_rhat, functions), partial(_ess, functions, limit)]
    panels += [partial(_pareto, n, result) for n, result in diagnosis.loo.items()]
    if diagnosis.loss is not None:
        panels.append(partial(_loss, diagnosis.loss))
    if not panels:
        raise ValueError(
            "this diagnosis has nothing to draw: diagnose with probe inputs, or a tree "
            "with log_likelihood or the losses of SVI."
        )
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4 * len(panels), 3.4), layout="constrained"
    )
    for panel, axis in zip(panels, np.atleast_1d(axes), strict=True):
        panel(axis)
    verdict = "fine" if diagnosis.ok else f"not fine: {', '.join(diagnosis.failed)}"
    figure.suptitle(f"{diagnosis.title}: {verdict}", fontsize="medium")
    return figure


def _rhat(functions: FunctionStatistics, axis: Any) -> None:
    axis.plot(functions.rhat, ".", color="C0")
    axis.axhline(_checks.RHAT, color="0.5", linestyle="--")
    axis.set(title="R-hat of the function", xlabel="probe", ylabel="R-hat")


def _ess(functions: FunctionStatistics, limit: int, axis: Any) -> None:
    axis.plot(functions.ess_bulk, ".", color="C0", label="bulk")
    axis.plot(functions.ess_tail, "x", color="C1", label="tail", markersize=4)
    axis.axhline(limit, color="0.5", linestyle="--")
    axis.set(
        title="effective sample size", xlabel="probe", ylabel="draws", ylim=(0, None)
    )
    axis.legend()


def _pareto(name: str, result: Any, axis: Any) -> None:
    axis.plot(np.ravel(result.pareto_k), ".", color="C0")
    axis.axhline(result.good_k, color="0.5", linestyle="--")
    axis.set(title=f"LOO of {name}", xlabel="observation", ylabel="Pareto k")


def _loss(losses: np.ndarray, axis: Any) -> None:
    runs = np.atleast_2d(losses)
    for loss in runs:
        axis.plot(loss, color="C0", linewidth=0.5, alpha=0.4)
        width = max(1, loss.size // 50)
        with np.errstate(invalid="ignore"):
            mean = np.convolve(loss, np.ones(width) / width, mode="valid")
        axis.plot(np.arange(mean.size) + width // 2, mean, color="C0")
    axis.set(title="loss of SVI", xlabel="step", ylabel="-ELBO / nats")
    # The first losses can be so large that the others would look constant.
    late = runs[:, runs.shape[1] // 20 :]
    late = late[np.isfinite(late)]
    if late.size:
        low, high = np.quantile(late, [0.0, 0.99])
        if low < high:
            axis.set_ylim(low - 0.05 * (high - low), high + 0.2 * (high - low))


def _column(values: np.ndarray, number: int, output: int) -> np.ndarray:
    if values.shape[:1] != (number,) or values.ndim > 2:
        raise ValueError(
            f"the prediction has shape {values.shape}, and x has {number} points: the "
            "shapes must be (points,) or (points, outputs)."
        )
    if values.ndim == 1:
        return values
    if not -values.shape[1] <= output < values.shape[1]:
        raise ValueError(f"there is no output {output} among {values.shape[1]}.")
    return values[:, output]


def _pyplot(function: str) -> Any:
    return _import("matplotlib.pyplot", function)


def _import(name: str, function: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{function} needs {name.partition('.')[0]}, which is not installed: "
            "`pip install 'pyrox-ppl[plots]'`."
        ) from error
