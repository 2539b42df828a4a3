"""calibration: whether the spread of predictions matches their errors."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy.special import logsumexp

import pyrox_ppl.posterior._stats as _stats


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How predictions and observations of a site agree.

    Attributes:
        site: The observed site.
        levels: Probabilities of the central predictive intervals.
        coverage: The share of observations inside each of them.
        pit: Probability integral transforms, uniform on [0, 1] if the predictions are
            calibrated; their shape is that of the observations.
        crps: Continuous ranked probability score of every observation, in units of the
            observation; smaller is better.
        elpd: Expected log predictive density, summed over the observations, in nats;
            None where the tree has no ``log_likelihood``.
        elpd_se: Its standard error; None for a single observation.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> def model(y=None):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("y", dist.Normal(mean, 1.0).expand([2]), obs=y)
        >>> draws = {"mean": jnp.zeros(100)}
        >>> tree = px.to_datatree(draws, y=jnp.array([0.0, 9.0]), model=model)
        >>> px.calibration(tree).coverage  # no interval reaches up to 9
        (0.5, 0.5, 0.5, 0.5)
    """

    site: str
    levels: tuple[float, ...]
    coverage: tuple[float, ...]
    pit: np.ndarray
    crps: np.ndarray
    elpd: float | None
    elpd_se: float | None

    def __str__(self) -> str:
        lines = [f"{self.site}: {self.pit.size} observations"]
        lines += [
            f"  {100 * level:g} % interval covers {100 * covered:.1f} %"
            for level, covered in zip(self.levels, self.coverage, strict=True)
        ]
        lines.append(f"  mean CRPS {self.crps.mean():.4g}")
        if self.elpd is not None:
            error = "" if self.elpd_se is None else f" ± {self.elpd_se:.1f}"
            lines.append(f"  ELPD {self.elpd:.1f}{error} nats")
        return "\n".join(lines)


def calibration(
    tree: xr.DataTree,
    site: str | None = None,
    *,
    levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95),
    seed: int = 0,
) -> Calibration:
    r"""Compare predictive draws with what was observed.

    Held-out data say most: ``px.to_datatree(tree, x_test, y=y_test, model=model)``
    makes a tree of them from the draws of another tree. With :math:`\tilde y_s` the
    S predictive draws of an observation y:

    - the PIT is :math:`(\#\{\tilde y_s < y\} + u (\#\{\tilde y_s = y\} + 1)) / (S +
      1)`, u uniform, which is exactly uniform for discrete data as well;
    - the CRPS is :math:`\frac1S \sum_s |\tilde y_s - y| - \frac1{2 S^2} \sum_{s,t}
      |\tilde y_s - \tilde y_t|`;
    - the ELPD is :math:`\sum_i \log \frac1S \sum_s p(y_i \mid \theta_s)`.

    Args:
        tree: A DataTree with ``posterior_predictive`` and ``observed_data``.
        site: The observed site; may be left out if there is one.
        levels: Probabilities of the central intervals.
        seed: The seed of the uniform numbers that break ties in the PIT.

    Returns:
        A `Calibration`; ``print`` it for a summary.

    Raises:
        TypeError: If `tree` is not a DataTree.
        ValueError: If the tree lacks the groups or the site; if there is no
            observation; if an observation or a predictive draw is not finite, or a log
            likelihood is NaN; if a level is not a probability.

    References:
        Gneiting and Raftery, "Strictly Proper Scoring Rules, Prediction, and
        Estimation", JASA 2007, equation 21. Dawid, "Statistical Theory: The Prequential
        Approach", JRSS A 1984 (PIT).

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> def model(y=None):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", 200):
        ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = jax.random.normal(jax.random.key(1), (200,))
        >>> tree = px.to_datatree({"mean": jnp.zeros(400)}, y=y, model=model)
        >>> scores = px.calibration(tree, levels=(0.9,))
        >>> 0.85 < scores.coverage[0] < 0.95
        True
    """
    _stats.check_tree(tree, "calibration", "posterior_predictive", "observed_data")
    wrong = [level for level in levels if not 0.0 <= level <= 1.0]
    if wrong:
        raise ValueError(f"levels are probabilities in [0, 1], got {wrong}.")
    sites = _stats.names(_stats.group(tree, "observed_data"))
    if site is None:
        if len(sites) != 1:
            raise ValueError(f"the tree has the observed sites {sites}: choose one.")
        site = sites[0]
    if site not in sites:
        raise ValueError(f"{site!r} is not an observed site; these are: {sites}.")
    y, draws = observed_and_drawn(tree, site)
    number = len(draws)
    tails = [q for level in levels for q in (0.5 - level / 2, 0.5 + level / 2)]
    edges = np.quantile(draws, tails, axis=0)
    covered = [
        float(np.mean((edges[2 * i] <= y) & (y <= edges[2 * i + 1])))
        for i in range(len(levels))
    ]
    uniform = np.random.default_rng(seed).uniform(size=y.shape)
    below, equal = (draws < y).sum(0), (draws == y).sum(0)
    pit = (below + uniform * (equal + 1)) / (number + 1)
    elpd, elpd_se = None, None
    likelihoods = _stats.group(tree, "log_likelihood")
    if site in likelihoods:
        densities = _stats.by_draw(likelihoods, site)
        densities = densities.reshape(number, -1).astype(np.float64)
        if np.isnan(densities).any():
            raise ValueError(
                f"the log likelihood of {site!r} is NaN for "
                f"{np.isnan(densities).sum()} of {densities.size} draws and "
                "observations, where parameters are NaN or outside the support of the "
                "distribution: ask `diagnose` which."
            )
        pointwise = logsumexp(densities, axis=0) - np.log(number)
        elpd = float(pointwise.sum())
        # An observation that is impossible at every draw has a log score of -inf.
        with np.errstate(invalid="ignore"):
            if pointwise.size > 1:
                elpd_se = float(pointwise.std() * np.sqrt(pointwise.size))
    return Calibration(
        site,
        tuple(levels),
        tuple(covered),
        pit,
        _crps(draws, y),
        elpd,
        elpd_se,
    )


def observed_and_drawn(tree: xr.DataTree, site: str) -> tuple[np.ndarray, np.ndarray]:
    """The observations of a site, and the predictive draws of each along axis 0."""
    observed = _stats.group(tree, "observed_data")[site]
    predicted = _stats.group(tree, "posterior_predictive")
    if site not in predicted:
        raise ValueError(
            f"the tree has no predictive draws of {site!r}, only of "
            f"{_stats.names(predicted)}."
        )
    predicted = predicted[site]
    if set(predicted.dims) != {"chain", "draw", *observed.dims}:
        raise ValueError(
            f"the predictive draws of {site!r} have the axes {predicted.dims}, the "
            f"observations {observed.dims}: they belong to different data."
        )
    if observed.size == 0:
        raise ValueError(
            f"there is no observation of {site!r} to compare with: the data are empty "
            "or all masked."
        )
    y = _real("the observations", site, observed.values)
    draws = predicted.transpose("chain", "draw", *observed.dims).values
    draws = _real("the predictive draws", site, draws.reshape(-1, *y.shape))
    return y, draws


def along_one_axis(tree: xr.DataTree, sites: list[str]) -> xr.DataTree:
    """The observations and their predictive draws, with a single axis of data."""
    observations, predictions = {}, {}
    for name in sites:
        observed, drawn = observed_and_drawn(tree, name)
        chains, draws = _stats.group(tree, "posterior_predictive")[name].shape[:2]
        axis = f"{name}_entry"
        observations[name] = (axis, observed.reshape(-1))
        predictions[name] = (
            ("chain", "draw", axis),
            drawn.reshape(chains, draws, -1),
        )
    groups = {"posterior_predictive": predictions, "observed_data": observations}
    return xr.DataTree.from_dict({k: xr.Dataset(v) for k, v in groups.items()})


def _real(what: str, site: str, values: np.ndarray) -> np.ndarray:
    """Refuse values without an order: complex, NaN or infinite ones."""
    if values.dtype == bool:
        return values.astype(np.int8)
    if values.dtype.kind not in "iuf":
        raise ValueError(
            f"{what} of {site!r} must be real numbers, got {values.dtype}."
        )
    broken = int((~np.isfinite(values)).sum())
    if broken:
        raise ValueError(
            f"{what} of {site!r} are not finite (NaN or infinite) at {broken} of "
            f"{values.size} values: mask missing observations "
            "(`numpyro.handlers.mask`, `obs_mask`), and ask `diagnose` where "
            "predictions break down."
        )
    return values


def _crps(draws: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The CRPS of every observation.

    With the draws in order, the mean distance of two of them is a weighted sum: S log S
    operations instead of the S squared of all pairs.
    """
    number = len(draws)
    error = np.zeros(y.shape)
    for draw in draws:
        error += np.abs(draw.astype(np.float64) - y)
    weights = (2 * np.arange(1, number + 1) - number - 1) / number**2
    spread = np.tensordot(weights, np.sort(draws, axis=0).astype(np.float64), axes=1)
    return error / number - spread
