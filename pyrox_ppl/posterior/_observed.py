"""What was observed of a site, beside what a tree predicts of it."""

import numpy as np
import xarray as xr

import pyrox_ppl.posterior._stats as _stats

KINDS = ("binary", "categorical", "circular", "continuous", "count", "multivariate")
CLASSES = ("binary", "categorical")


def choose_site(tree: xr.DataTree, site: str | None) -> str:
    """The observed site of that name, or the only one."""
    sites = _stats.names(_stats.group(tree, "observed_data"))
    if site is None:
        if len(sites) != 1:
            raise ValueError(f"the tree has the observed sites {sites}: choose one.")
        return sites[0]
    if site not in sites:
        raise ValueError(f"{site!r} is not an observed site; these are: {sites}.")
    return site


def outcome_in(tree: xr.DataTree, site: str, outcome: str | None = None) -> str:
    """The kind of a site's outcome: that of its distribution, or what the user says.

    Raises:
        ValueError: If `outcome` is no kind, or takes classes for numbers; if neither
            the tree nor the user says what integers are.
    """
    observed = _stats.group(tree, "observed_data")[site]
    said = observed.attrs.get("outcome")
    if outcome is not None and outcome not in KINDS:
        raise ValueError(f"outcome is one of {KINDS}, got {outcome!r}.")
    if outcome is not None and said in CLASSES and outcome != said:
        raise ValueError(
            f"the model says that {site!r} is {said}, got outcome={outcome!r}: leave "
            "it out."
        )
    if outcome or said:
        return str(outcome or said)
    drawn = _stats.group(tree, "posterior_predictive").get(site, observed)
    # Labels and counts may come as floats.
    if _are_whole(observed) and _are_whole(drawn):
        raise ValueError(
            f"the observations of {site!r} are integers, and this tree does not say "
            "whether these are counts or names of classes: pass outcome='count', "
            "'binary', 'categorical' or 'continuous', or make the tree with "
            "`to_datatree`."
        )
    return "continuous"


def _are_whole(values: xr.DataArray) -> bool:
    """Whether all are whole numbers, as integers or as floats."""
    kind = values.dtype.kind
    is_whole = kind == "f" and values.size and (values % 1 == 0).all()
    return kind in "biu" or bool(is_whole)


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
    _stats.check_axes(f"the predictive draws of {site!r}", predicted.dims)
    if set(predicted.dims) != {"chain", "draw", *observed.dims}:
        raise ValueError(
            f"the predictive draws of {site!r} have the axes {predicted.dims}, the "
            f"observations {observed.dims}: they belong to different data."
        )
    check_rows(f"the predictive draws of {site!r}", predicted, observed)
    if observed.size == 0:
        raise ValueError(
            f"there is no observation of {site!r} to compare with: the data are empty "
            "or all masked."
        )
    y = _real("the observations", site, observed.values)
    draws = predicted.transpose("chain", "draw", *observed.dims).values
    draws = _real("the predictive draws", site, draws.reshape(-1, *y.shape))
    return y, draws


def check_rows(what: str, values: xr.DataArray, observed: xr.DataArray) -> None:
    """Refuse values of other rows than those observed, such as of one sliced group.

    Raises:
        ValueError: If an axis that both have differs in its size or its coordinates.
    """
    for dim in observed.dims:
        if dim not in values.dims:
            continue
        same = values.sizes[dim] == observed.sizes[dim]
        if same and dim in values.coords and dim in observed.coords:
            labels = values[dim], observed[dim]
            alike = labels[0].dtype.kind == labels[1].dtype.kind  # one was relabelled
            same = not alike or np.array_equal(*labels)
        if not same:
            raise ValueError(
                f"{what} and the observations have other rows along {dim!r} "
                f"({values.sizes[dim]} and {observed.sizes[dim]} of them): select rows "
                f"of the whole tree, tree.isel({dim}=[...]), not of one group."
            )


def labels_and_probabilities(
    tree: xr.DataTree, site: str, outcome: str
) -> tuple[np.ndarray, np.ndarray]:
    """The observed labels of a site, and the predictive probabilities of the classes.

    These are averages over the draws of what the model gives each class; where the tree
    has none, the frequencies of the classes among the predictive draws.

    Returns:
        Labels ``(*rows)``, and probabilities ``(*rows, classes)``, or ``(*rows)`` of
        label 1 for a binary outcome.
    """
    labels, draws = observed_and_drawn(tree, site)
    observed = _stats.group(tree, "observed_data")[site]
    means = uncertainty_of_draws(tree, site)
    name = f"{site}_probability"
    if name not in means:
        if outcome == "binary":
            return labels, (draws == 1).mean(0)
        highest = int(max(labels.max(), draws.max()))
        classes = int(observed.attrs.get("num_classes", highest + 1))
        return labels, np.stack([(draws == k).mean(0) for k in range(classes)], -1)
    more = {dim for dim in means[name].dims if dim not in observed.dims}
    if not set(observed.dims) <= set(means[name].dims) or len(more) > 1:
        raise ValueError(
            f"the probabilities of {site!r} have the axes {means[name].dims}, the "
            f"observations {observed.dims}: they belong to different data."
        )
    check_rows(f"the probabilities of {site!r}", means[name], observed)
    return labels, means[name].transpose(*observed.dims, ...).values


def uncertainty_of_draws(tree: xr.DataTree, site: str) -> xr.Dataset:
    """The group 'uncertainty', if it is of the tree's draws.

    It holds means over the draws, which stay what they were where the user thins,
    resamples or concatenates the draws. `to_datatree` numbers draws from 0, and xarray
    keeps the numbers, so they tell whether the draws are still the same.
    """
    means = _stats.group(tree, "uncertainty")
    draws = _stats.group(tree, "posterior_predictive")[site]
    axes = [np.sort(np.atleast_1d(draws[axis])) for axis in ("chain", "draw")]
    are_all = all(np.array_equal(axis, np.arange(axis.size)) for axis in axes)
    number = axes[0].size * axes[1].size
    if means and (not are_all or means.attrs.get("number_of_draws", number) != number):
        raise ValueError(
            "the draws of the tree were selected, resampled or joined, and its group "
            "'uncertainty' still averages the draws it was made of: make a tree of "
            "these draws, px.to_datatree(tree, x, y=y, model=model)."
        )
    return means


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
