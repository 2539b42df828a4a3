"""plot_fit: predictions over one or two coordinates as a picture."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

import pyrox_ppl.posterior._stats as _stats
from pyrox_ppl.posterior._pyplot import put_legend_below, pyplot


class _Layer(NamedTuple):
    """One prediction, what it is of, and what its intervals are called."""

    interval: str
    what: str
    alpha: float
    mean: np.ndarray
    std: np.ndarray
    quantiles: dict[float, np.ndarray]


def plot_fit(
    prediction: Any,
    x: Any,
    *,
    predictive: Any = None,
    x_observed: Any = None,
    y_observed: Any = None,
    output: int = 0,
    tree: xr.DataTree | None = None,
    xlabel: str | Sequence[str] | None = None,
    ylabel: str | None = None,
    axes: Any = None,
    label: str | None = None,
) -> Any:
    """Draw a function and its uncertainty over one or two coordinates.

    A *credible* interval holds the function with its probability, a *predictive* one an
    observation, noise included. Over one coordinate: the mean, and a band between each
    pair of quantiles that lie symmetrically around the median. Over two: a panel for
    the mean, and one for each standard deviation.

    **Shapes**: `x` is ``(points,)`` or ``(points, 1)`` for curves, ``(points, 2)`` for
    fields; the predictions ``(points,)`` or ``(points, outputs)``.

    Args:
        prediction: The function at the points `x`: what :func:`~pyrox_ppl.predict`
            returned for a module, or for a deterministic site of a model. None to draw
            `predictive` alone.
        x: The coordinates of the points.
        predictive: Observations at the points `x`: what `predict` returned for an
            observed site of a model.
        x_observed: Coordinates of observations to draw as points.
        y_observed: Their values, which curves need.
        output: Which output of the predictions.
        tree: A DataTree whose observed site and input name the axes, if there is one of
            each, with the ``units`` among their ``attrs``.
        xlabel: The name of the coordinate, or of both. The units follow it if it names
            an input in ``tree.constant_data``.
        ylabel: The name of the predicted quantity. The units follow it if it names a
            site in ``tree.observed_data``.
        axes: Matplotlib axes to draw on: one for curves, one for each panel of a field;
            new ones if not given. For one column of a paper:
            ``plt.subplots(figsize=(3.4, 3.4), layout="constrained")[1]``, and for a
            field ``plt.subplots(2, 1, figsize=(3.4, 5), layout="compressed")[1]``.
        label: The name of the curve in the legend.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If a prediction is a dictionary of sites.
        ValueError: If there is no prediction; if `prediction` includes noise or
            `predictive` has none; if shapes or the number of axes do not match; if a
            field is not finite.

    Example:
        >>> import matplotlib; matplotlib.use("agg")
        >>> import equinox as eqx, jax, jax.numpy as jnp, pyrox_ppl as px
        >>> linear = eqx.nn.Linear(1, 1, key=jax.random.key(0))
        >>> draws = {"linear.weight": jnp.linspace(1.0, 2.0, 50)[:, None, None]}
        >>> x = jnp.linspace(0.0, 1.0, 20)[:, None]
        >>> figure = px.plot_fit(px.predict(linear, draws, x), x, xlabel="depth / m")
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['mean', '90 % credible interval of the function']
    """
    plt = pyplot("plot_fit")
    points = _points(x)
    dims = points.shape[1]
    if dims not in (1, 2):
        raise ValueError(
            "plot_fit draws over one or two coordinates: x must be (points,), (points, "
            f"1) or (points, 2), got {points.shape}."
        )
    layers = _layers(prediction, predictive, len(points), output)
    names = _coordinate_names(tree, xlabel, dims)
    default = "y" if prediction is None else "f(x)"
    quantity = _named(tree, "observed_data", ylabel, default)
    seen = None if x_observed is None else _points(x_observed)
    if seen is not None and seen.shape[1] != dims:
        raise ValueError(f"x has {dims} coordinates, and x_observed {seen.shape[1]}.")
    if dims == 1:
        axis = plt.subplots(layout="constrained")[1] if axes is None else axes
        _draw_curve(axis, points[:, 0], layers, label)
        if seen is not None:
            values = _observed_values(y_observed, len(seen))
            axis.plot(seen[:, 0], values, "k.", label="observed")
        axis.set(xlabel=names[0], ylabel=quantity)
        _legend_below(axis)
        return axis.figure
    panels = [("mean", layers[0].mean, "viridis")]
    panels += [(f"std of {one.what}", one.std, "magma") for one in layers]
    if axes is None:
        width, height = np.ptp(points, axis=0)
        size = 3.5 * len(panels), 1.5 + float(np.clip(2.6 * height / width, 1, 5))
        axes = plt.subplots(1, len(panels), figsize=size, layout="compressed")[1]
    axes = np.ravel(axes)
    if len(axes) != len(panels):
        raise ValueError(
            f"the field needs {len(panels)} axes, one for each of "
            f"{[name for name, *_ in panels]}, got {len(axes)}."
        )
    for axis, (name, values, colours) in zip(axes, panels, strict=True):
        _draw_field(axis, points, values, colours, f"{name}\n{quantity}")
        axis.set(xlabel=names[0], ylabel=names[1], aspect="equal")
        if seen is not None:
            style = {"color": "k", "markeredgecolor": "w", "markersize": 4}
            axis.plot(*seen.T, "o", label="observed", **style)
    if seen is not None:
        _legend_below(axes[-1])
    return axes[0].figure


def _points(x: Any) -> np.ndarray:
    """Coordinates as ``(points, dims)``."""
    points = np.asarray(x, float)
    return points[:, None] if points.ndim == 1 else points.reshape(len(points), -1)


def _layers(prediction: Any, predictive: Any, number: int, output: int) -> list[_Layer]:
    """The function and the observation, whichever there are, in this order."""
    given = [one for one in (prediction, predictive) if one is not None]
    if not given:
        raise ValueError("nothing to draw: give `prediction`, `predictive` or both.")
    sites = [list(one) for one in given if isinstance(one, Mapping)]
    if sites:
        raise TypeError(
            "plot_fit draws the prediction of one site, got a dictionary of the sites "
            f"{sites[0]}: pass one of its values."
        )
    if prediction is not None and prediction.has_noise:
        raise ValueError(
            "`prediction` includes the noise of observations, and is no function: "
            "plot_fit(None, x, predictive=prediction)."
        )
    if predictive is not None and not predictive.has_noise:
        raise ValueError(
            "`predictive` has no noise, so it is of no observation: pass "
            "predict(model, ...)[site] of an observed site of numbers."
        )
    words = [
        (prediction, "credible interval of the function", "the function", 0.4),
        (predictive, "predictive interval of an observation", "an observation", 0.15),
    ]
    return [
        _Layer(
            interval,
            what,
            alpha,
            _column(one.mean, number, output),
            _column(one.std, number, output),
            {q: _column(v, number, output) for q, v in one.quantiles.items()},
        )
        for one, interval, what, alpha in words
        if one is not None
    ]


def _draw_curve(
    axis: Any, x: np.ndarray, layers: list[_Layer], label: str | None
) -> None:
    order = np.argsort(x)
    line = axis.plot(x[order], layers[0].mean[order], label=label or "mean")[0]
    prefix = f"{label}: " if label else ""
    for layer in layers:
        pairs = list(_central_pairs(layer.quantiles))
        for place, (low, high) in enumerate(pairs):
            axis.fill_between(
                x[order],
                layer.quantiles[low][order],
                layer.quantiles[high][order],
                color=line.get_color(),
                # Inner bands are darker, in the legend as well.
                alpha=layer.alpha * (place + 1.5) / (len(pairs) + 0.5),
                linewidth=0,
                label=f"{prefix}{100 * (high - low):g} % {layer.interval}",
            )


def _central_pairs(levels: Mapping[float, Any]) -> Iterator[tuple[float, float]]:
    """The pairs of levels that lie symmetrically around the median, widest first."""
    for low in sorted(levels):
        high = next((q for q in levels if abs(q - (1 - low)) < 1e-9), None)
        if high is not None and low < high:
            yield low, high


def _draw_field(
    axis: Any, points: np.ndarray, values: np.ndarray, colours: str, label: str
) -> None:
    broken = int((~np.isfinite(values)).sum())
    if broken:
        raise ValueError(
            f"the prediction is NaN or infinite at {broken} of {len(points)} points, "
            "which have no colour: leave them out, and ask `diagnose` why."
        )
    # Vector formats have no smooth triangles: most viewers show seams between them.
    image = axis.tripcolor(
        *points.T, values, shading="gouraud", cmap=colours, rasterized=True
    )
    axis.margins(0)
    _add_colour_bar(axis, image, label)


def _add_colour_bar(axis: Any, image: Any, label: str) -> None:
    """A bar as wide as the axes, which the equal aspect makes narrower than a cell."""
    transforms = importlib.import_module("matplotlib.transforms")
    # In inches above the axes: the layout would cut off the label of a bar whose height
    # is a share of theirs.
    above = axis.figure.dpi_scale_trans + transforms.ScaledTranslation(
        0, 1, axis.transAxes
    )
    place = axis.inset_axes(
        (0, 0.08, 1, 0.1),
        transform=transforms.blended_transform_factory(axis.transAxes, above),
    )
    bar = axis.figure.colorbar(image, cax=place, orientation="horizontal")
    bar.set_label(label, multialignment="center")
    place.xaxis.set(label_position="top", ticks_position="top")
    place.locator_params(axis="x", nbins=4)


def _legend_below(axis: Any) -> None:
    is_wide = axis.get_position().width * axis.figure.get_figwidth() > 5
    put_legend_below(axis, columns=2 if is_wide else 1)


def _coordinate_names(
    tree: xr.DataTree | None, given: str | Sequence[str] | None, dims: int
) -> list[str]:
    if dims == 1:
        name = given if given is None or isinstance(given, str) else given[0]
        return [_named(tree, "constant_data", name, "x")]
    if given is None:
        return ["x[0]", "x[1]"]
    if isinstance(given, str) or len(given) != 2:
        raise ValueError(f"xlabel must name both coordinates, got {given!r}.")
    return [_named(tree, "constant_data", name, "") for name in given]


def _named(tree: xr.DataTree | None, group: str, name: str | None, default: str) -> str:
    """A name with its units; by default that of the only variable of the group."""
    variables = {} if tree is None else _stats.group(tree, group)
    if name is None and len(variables) == 1:
        name = str(next(iter(variables)))
    if name is None or name not in variables:
        return name or default
    units = variables[name].attrs.get("units", "")
    return f"{name} / {units}" if units else name


def _observed_values(y_observed: Any, number: int) -> np.ndarray:
    values = np.ravel(np.asarray(y_observed, float))
    if y_observed is None or len(values) != number:
        got = "none" if y_observed is None else len(values)
        raise ValueError(
            f"each of the {number} points x_observed needs a value, got {got} in "
            "y_observed."
        )
    return values


def _column(values: np.ndarray, number: int, output: int) -> np.ndarray:
    if values.shape[:1] != (number,) or values.ndim > 2:
        raise ValueError(
            f"the prediction has shape {values.shape}, and x has {number} points: the "
            "shapes must be (points,) or (points, outputs)."
        )
    if values.ndim == 1:
        return values
    if not -values.shape[1] <= output < values.shape[1]:
        raise ValueError(
            f"output {output} does not exist: the prediction has {values.shape[1]}."
        )
    return values[:, output]
