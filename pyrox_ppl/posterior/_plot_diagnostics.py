"""plot_diagnostics: the figures of a diagnosis as a picture."""

import textwrap
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

import pyrox_ppl.posterior._checks as _checks
from pyrox_ppl.posterior._diagnosis import Diagnosis
from pyrox_ppl.posterior._functions import FunctionStatistics
from pyrox_ppl.posterior._pyplot import put_legend_below, pyplot

_LIMIT = MappingProxyType({"color": "0.5", "linestyle": "--", "linewidth": 1})


def plot_diagnostics(diagnosis: Diagnosis, *, axes: Any = None) -> Any:
    """Draw the figures of a diagnosis, a panel for each kind, with their limits.

    R-hat and effective sample size of the functions at the probes; for an ensemble how
    far its members are apart; the Pareto k of every observation; the losses of SVI.

    Args:
        diagnosis: What :func:`~pyrox_ppl.diagnose` returned.
        axes: Matplotlib axes to draw on, one for each panel; a new figure with two
            panels a row and the verdict on top if not given.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the diagnosis has nothing to draw, or if there is not one of the
            axes for each panel.

    Example:
        >>> import matplotlib; matplotlib.use("agg")
        >>> import equinox as eqx, jax, jax.numpy as jnp, pyrox_ppl as px
        >>> linear = eqx.nn.Linear(1, 1, key=jax.random.key(0))
        >>> weights = jax.random.normal(jax.random.key(1), (4, 500, 1, 1))
        >>> tree = px.to_datatree({"linear.weight": weights}, batch_ndims=2)
        >>> diagnosis = px.diagnose(tree, linear, jnp.linspace(0.5, 1.0, 5)[:, None])
        >>> [axis.get_title() for axis in px.plot_diagnostics(diagnosis).axes]
        ['R-hat of the function', 'effective sample size']
    """
    plt = pyplot("plot_diagnostics")
    panels: list[Any] = []
    if diagnosis.functions is not None:
        functions, limit = diagnosis.functions, _checks.ESS_PER_CHAIN * diagnosis.chains
        panels += [partial(_rhat, functions), partial(_ess, functions, limit)]
    if diagnosis.distances is not None:
        panels.append(partial(_distances, diagnosis.distances))
    panels += [partial(_pareto, n, result) for n, result in diagnosis.loo.items()]
    if diagnosis.loss is not None:
        panels.append(partial(_loss, diagnosis.loss))
    if not panels:
        raise ValueError(
            "this diagnosis has nothing to draw: diagnose with probe inputs, or a tree "
            "with log_likelihood or the losses of SVI."
        )
    if axes is None:
        axes = _new_axes(plt, diagnosis, len(panels))
    axes = np.ravel(axes)
    if len(axes) != len(panels):
        raise ValueError(
            f"this diagnosis needs {len(panels)} axes, one for each panel, got "
            f"{len(axes)}."
        )
    for panel, axis in zip(panels, axes, strict=True):
        panel(axis)
    return axes[0].figure


def _new_axes(plt: Any, diagnosis: Diagnosis, number: int) -> list[Any]:
    """Two panels a row; the last one fills its row."""
    rows = (number + 1) // 2
    figure = plt.figure(figsize=(7.0, 0.5 + 3.0 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, 2)
    cells = [grid[place // 2, place % 2] for place in range(number)]
    if number % 2:
        cells[-1] = grid[-1, :]
    verdict = "fine" if diagnosis.ok else f"not fine: {', '.join(diagnosis.failed)}"
    title = textwrap.fill(f"{diagnosis.title}: {verdict}", 80)
    figure.suptitle(title, fontsize="medium")
    return [figure.add_subplot(cell) for cell in cells]


def _rhat(functions: FunctionStatistics, axis: Any) -> None:
    axis.plot(functions.rhat, ".", color="C0")
    axis.axhline(_checks.RHAT, label=f"at most {_checks.RHAT:g}", **_LIMIT)
    axis.set(title="R-hat of the function", xlabel=_index(functions), ylabel="R-hat")
    axis.ticklabel_format(axis="y", useOffset=False)
    _finish(axis)


def _ess(functions: FunctionStatistics, limit: int, axis: Any) -> None:
    axis.plot(functions.ess_bulk, ".", color="C0", label="bulk")
    axis.plot(functions.ess_tail, "x", color="C1", label="tail", markersize=4)
    axis.axhline(limit, label=f"at least {limit}", **_LIMIT)
    axis.set(
        title="effective sample size",
        xlabel=_index(functions),
        ylabel="effective number of draws",
        ylim=(0, None),
    )
    _finish(axis)


def _distances(distances: np.ndarray, axis: Any) -> None:
    others = distances[~np.eye(len(distances), dtype=bool)].reshape(len(distances), -1)
    numbers = np.arange(len(distances))
    axis.plot(np.repeat(numbers, others.shape[1]), others.ravel(), ".", color="0.6")
    axis.plot(numbers, others.mean(1), "_", color="C0", label="mean", markersize=12)
    axis.set(
        title="distance of members",
        xlabel="member",
        ylabel="to each other one",
        ylim=(0, None),
    )
    _finish(axis)


def _pareto(name: str, result: Any, axis: Any) -> None:
    axis.plot(np.ravel(result.pareto_k), ".", color="C0")
    axis.axhline(result.good_k, label=f"at most {result.good_k:.2g}", **_LIMIT)
    axis.set(
        title=f"PSIS-LOO of {name}", xlabel=f"index in {name}", ylabel="Pareto shape k"
    )
    _finish(axis)


def _loss(losses: np.ndarray, axis: Any) -> None:
    runs = np.atleast_2d(losses)
    for number, loss in enumerate(runs):
        # One entry in the legend stands for all runs.
        labels = (None, None) if number else ("each step", "moving average")
        axis.plot(loss, color="C0", linewidth=0.5, alpha=0.4, label=labels[0])
        width = max(1, loss.size // 50)
        with np.errstate(invalid="ignore"):
            mean = np.convolve(loss, np.ones(width) / width, mode="valid")
        axis.plot(np.arange(mean.size) + width // 2, mean, color="C0", label=labels[1])
    axis.set(title="loss of SVI", xlabel="step", ylabel="negative ELBO / nats")
    # The first losses can be so large that the others would look constant.
    late = runs[:, runs.shape[1] // 20 :]
    late = late[np.isfinite(late)]
    if late.size:
        low, high = np.quantile(late, [0.0, 0.99])
        if low < high:
            axis.set_ylim(low - 0.05 * (high - low), high + 0.2 * (high - low))
    _finish(axis)


def _index(functions: FunctionStatistics) -> str:
    return textwrap.shorten(f"index in {functions.what}", 40, placeholder=" ...")


def _finish(axis: Any) -> None:
    axis.xaxis.get_major_locator().set_params(integer=True)
    put_legend_below(axis, columns=3)
