"""Convergence of functions: R-hat, ESS and MCSE of predictions, block by block."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
import xarray as xr

import pyrox_ppl.posterior._stats as _stats
from pyrox_ppl.infer.draws import Draws
from pyrox_ppl.infer.loop import keys_of_draws
from pyrox_ppl.infer.model_prediction import site_blocks, sites_at
from pyrox_ppl.infer.module_prediction import Function
from pyrox_ppl.posterior._model import safe

_OF_EACH = (
    _stats.rhat,
    _stats.ess_bulk,
    _stats.ess_tail,
    _stats.mcse,
    lambda values: values.std((0, 1)),
)


@dataclasses.dataclass(frozen=True)
class Functions:
    """Statistics of functions of the draws, one for every probe.

    Attributes:
        what: What the functions are.
        rhat: Rank-normalised split R-hat.
        ess_bulk: Effective sample size of the bulk, in draws.
        ess_tail: Effective sample size of the 5 % and 95 % tails, in draws.
        mcse: Monte Carlo standard error of the mean, in units of the function.
        std: Standard deviation over the draws.
    """

    what: str
    rhat: np.ndarray
    ess_bulk: np.ndarray
    ess_tail: np.ndarray
    mcse: np.ndarray
    std: np.ndarray


def of_module(
    module: eqx.Module,
    tree: xr.DataTree,
    inputs: tuple,
    kwargs: dict[str, Any],
    name: str | None,
    batch_size: int | None,
) -> Functions:
    """The values of a module at probe inputs."""
    draws = Draws.of(tree)
    function = Function(module, draws, inputs, kwargs, name=name, batch_size=batch_size)
    blocks = (values for _, values in _once(function.blocks()))
    what = f"the values of {type(module).__name__}"
    return _statistics(what, blocks, draws.shape)


def of_model(
    model: Callable,
    tree: xr.DataTree,
    inputs: tuple,
    kwargs: dict[str, Any],
    sites: Sequence[str] | None,
    batch_size: int | None,
) -> Functions:
    """The deterministic sites of a model at probe inputs."""
    draws = Draws.of(tree)
    at = (draws.on_device(), keys_of_draws(jax.random.key(0), draws.number))
    kinds = ("deterministic",) if sites is None else ("sample", "deterministic")
    one = sites_at(model, draws.params, inputs, kwargs, sites, kinds)
    shapes = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], at))
    if not shapes:
        raise ValueError(
            "the model has no deterministic site to look at, and its samples are "
            "blurred by noise: write `numpyro.deterministic('f', f)` in it, give "
            "`sites`, or diagnose with the module itself."
        )
    blocks = (
        values
        for name, shape in shapes.items()
        for _, values in _once(site_blocks(one, name, shape.size, at, batch_size))
    )
    return _statistics(f"the sites {list(shapes)}", blocks, draws.shape)


def of_tree(tree: xr.DataTree) -> Functions | None:
    """What a tree holds of functions already: deterministic sites, else likelihoods."""
    names = _deterministic(tree)
    group = "posterior" if names else "log_likelihood"
    dataset = _stats.group(tree, group)
    keys = [safe(name) for name in names] or _stats.names(dataset)
    arrays = [_stats.by_draw(dataset, key) for key in keys]
    if not arrays:
        return None
    shape = arrays[0].shape[:2]
    what = f"the sites {names}" if group == "posterior" else "the log likelihoods"
    blocks = (a.reshape(shape[0] * shape[1], -1) for a in arrays)
    return _statistics(what, blocks, shape)


def _deterministic(tree: xr.DataTree) -> list[str]:
    posterior = _stats.group(tree, "posterior")
    return [
        posterior[name].attrs.get("numpyro_name", name)
        for name in _stats.names(posterior)
        if posterior[name].attrs.get("deterministic")
    ]


def _once(blocks: Iterator[tuple[Any, np.ndarray]]) -> Iterator[tuple[Any, np.ndarray]]:
    """Blocks of which the last does not repeat what the one before it had."""
    done = 0
    for where, values in blocks:
        if isinstance(where, slice):
            yield where, values[:, max(0, done - where.start) :]
            done = where.stop
        else:
            yield where, values


def _statistics(
    what: str, blocks: Iterator[np.ndarray], shape: tuple[int, ...]
) -> Functions:
    columns: list[list[np.ndarray]] = [[], [], [], [], []]
    for values in blocks:
        by_chain = values.astype(np.float64).reshape(*shape, -1)
        # Of what does not move there are no statistics, and ArviZ divides by zero.
        moving = np.ptp(by_chain, axis=(0, 1)) > 0
        of_moving = by_chain[..., moving]
        for column, statistic in zip(columns, _OF_EACH, strict=True):
            found = np.full(moving.size, np.nan)
            if moving.any():
                found[moving] = statistic(of_moving)
            column.append(found)
        columns[-1][-1][~moving] = 0.0
    return Functions(what, *(np.concatenate(column) for column in columns))
