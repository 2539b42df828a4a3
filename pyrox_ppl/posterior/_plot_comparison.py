"""plot_comparison: the scores of several methods as a picture."""

from typing import Any

from pyrox_ppl.posterior._comparison import Comparison
from pyrox_ppl.posterior._pyplot import pyplot


def plot_comparison(comparison: Comparison) -> Any:
    """Draw each score of each method, and how sure its difference to the best is.

    A panel for each score, a line for each method, the best by the first score on top.
    The bar of a method is one paired standard error of its difference to the method
    that is best by this score, which has no bar. The dashed line is at the best score;
    for a coverage it is at the probability that the intervals should have.

    Args:
        comparison: What :func:`~pyrox_ppl.compare` returned.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> import matplotlib; matplotlib.use("agg")
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> def model(y=None):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", 3):
        ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = jnp.array([0.0, 1.0, 2.0])
        >>> def tree(mean):
        ...     return px.to_datatree({"mean": jnp.full(500, mean)}, y=y, model=model)
        >>> comparison = px.compare({"zero": tree(0.0), "one": tree(1.0)})
        >>> [axis.get_xlabel() for axis in px.plot_comparison(comparison).axes]
        ['ELPD / nats', 'RMSE', 'CRPS', '90 % coverage']
    """
    plt = pyplot("plot_comparison")
    scores = list(comparison.scores.values())
    places = {name: place for place, name in enumerate(comparison.methods)}
    names_width = 0.08 * max(map(len, places))
    figure, panels = plt.subplots(
        1,
        len(scores),
        figsize=(names_width + 2.0 * len(scores), 1.5 + 0.3 * len(places)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for panel, score in zip(panels[0], scores, strict=True):
        best, differences = score.best(), comparison.difference(score.name)
        goal = score.value[best] if isinstance(score.goal, str) else score.goal
        panel.axvline(goal, color="0.6", linestyle="--", linewidth=1)
        for name, difference in differences.items():
            panel.errorbar(
                score.value[name],
                places[name],
                # The best has no difference to itself.
                xerr=None if name == best else difference.se,
                fmt="o",
                color="C0" if name == best else "k",
                markersize=5,
                capsize=2,
            )
        if not isinstance(score.goal, str):
            title = "should be on the line"
        else:
            title = f"{score.goal} is better"
        panel.set_title(title, fontsize="small", color="0.4")
        panel.set_xlabel(score.label)
        panel.locator_params(axis="x", nbins=3)
        panel.spines[["top", "right"]].set_visible(False)
    first = panels[0][0]
    first.set_yticks(list(places.values()), list(places))
    first.set_ylim(len(places) - 0.5, -0.5)
    figure.supxlabel(
        "bars: ± 1 standard error of the paired difference to the best (blue)",
        fontsize="small",
        color="0.4",
    )
    return figure
