"""Convergence of functions: R-hat, ESS and MCSE of predictions, block by block."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
import xarray as xr

import pyrox_ppl.posterior._stats as _stats
from pyrox_ppl.posterior._model import safe
from pyrox_ppl.prediction._draws import Draws
from pyrox_ppl.prediction._function import Function
from pyrox_ppl.prediction._loop import keys_of_draws
from pyrox_ppl.prediction._matching import REPARAMETERISED
from pyrox_ppl.prediction._model import site_blocks, sites_at

_OF_CHAINS = (_stats.rhat, _stats.ess_bulk, _stats.ess_tail, _stats.mcse)
# ArviZ asks for so many draws, to split a chain twice.
FEWEST_DRAWS = 8


@dataclasses.dataclass(frozen=True)
class Functions:
    """Statistics of functions of the draws, one for every probe.

    NaN where there is none: the function does not move, is not finite at every draw, or
    the draws are no Markov chains, or too few.

    Attributes:
        what: What the functions are.
        rhat: Rank-normalised split R-hat.
        ess_bulk: Effective sample size of the bulk, in draws.
        ess_tail: Effective sample size of the 5 % and 95 % tails, in draws.
        mcse: Monte Carlo standard error of the mean, in units of the function.
        std: Standard deviation over the draws.
        not_finite: The share of draws at which the function is NaN or infinite.
    """

    what: str
    rhat: np.ndarray
    ess_bulk: np.ndarray
    ess_tail: np.ndarray
    mcse: np.ndarray
    std: np.ndarray
    not_finite: np.ndarray


def of_module(
    module: eqx.Module,
    tree: xr.DataTree,
    inputs: tuple,
    kwargs: dict[str, Any],
    name: str | None,
    params: Mapping[str, Any] | None,
    batch_size: int | None,
    are_chains: bool,
) -> Functions:
    """The values of a module at probe inputs."""
    draws = Draws.of(tree)
    function = Function(
        module, draws, inputs, kwargs, name=name, params=params, batch_size=batch_size
    )
    blocks = (values for _, values in _once(function.blocks()))
    what = f"the values of {type(module).__name__}"
    return _statistics(what, blocks, draws.shape, are_chains)


def of_model(
    model: Callable,
    tree: xr.DataTree,
    inputs: tuple,
    kwargs: dict[str, Any],
    sites: Sequence[str] | None,
    params: Mapping[str, Any] | None,
    batch_size: int | None,
    are_chains: bool,
) -> Functions:
    """The deterministic sites of a model at probe inputs."""
    draws = Draws.of(tree)
    at = (draws.on_device(), keys_of_draws(jax.random.key(0), draws.number))
    kinds = ("deterministic",) if sites is None else ("sample", "deterministic")
    trained = {**draws.params, **(params or {})}
    one = sites_at(model, trained, inputs, kwargs, sites, kinds)
    shapes = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], at))
    if sites is None:
        latent = _latent(tree)
        shapes = {name: s for name, s in shapes.items() if name not in latent}
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
    return _statistics(f"the sites {list(shapes)}", blocks, draws.shape, are_chains)


def of_tree(tree: xr.DataTree, are_chains: bool) -> Functions | None:
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
    return _statistics(what, blocks, shape, are_chains)


def _deterministic(tree: xr.DataTree) -> list[str]:
    """Sites that are functions of the draws, and not parameters in another form."""
    posterior = _stats.group(tree, "posterior")
    latent = _latent(tree)
    names = {
        posterior[name].attrs.get("numpyro_name", name): name
        for name in _stats.names(posterior)
        if posterior[name].attrs.get("deterministic")
    }
    return [site for site in names if site not in latent]


def _latent(tree: xr.DataTree) -> set[str]:
    """The parameters of modules, and sites that a reparameterisation made."""
    posterior = _stats.group(tree, "posterior")
    of_variable = {
        posterior[name].attrs.get("numpyro_name", name): posterior[name].attrs
        for name in _stats.names(posterior)
    }
    return {
        site
        for site, attrs in of_variable.items()
        if "parameter" in attrs or any(site + s in of_variable for s in REPARAMETERISED)
    }


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
    what: str, blocks: Iterator[np.ndarray], shape: tuple[int, ...], are_chains: bool
) -> Functions:
    columns: list[list[np.ndarray]] = [[] for _ in range(len(_OF_CHAINS) + 2)]
    for values in blocks:
        by_chain = _real(values).reshape(*shape, -1)
        finite = np.isfinite(by_chain)
        known = finite.all((0, 1))
        # Of what does not move there are no statistics, and ArviZ divides by zero.
        of_known = by_chain[..., known]
        moving = known.copy()
        moving[known] = np.ptp(of_known, axis=(0, 1)) > 0
        std = np.full(known.size, np.nan)
        std[known] = np.where(moving[known], of_known.std((0, 1)), 0.0)
        of_moving = by_chain[..., moving]
        for column, statistic in zip(columns, _OF_CHAINS, strict=False):
            found = np.full(moving.size, np.nan)
            if moving.any() and are_chains and shape[-1] >= FEWEST_DRAWS:
                found[moving] = statistic(of_moving)
            column.append(found)
        columns[-2].append(std)
        columns[-1].append(1.0 - finite.mean((0, 1)))
    return Functions(what, *(np.concatenate(column) for column in columns))


def _real(values: np.ndarray) -> np.ndarray:
    """Two functions of one that is complex."""
    if np.iscomplexobj(values):
        values = np.stack([np.real(values), np.imag(values)], -1)
    return values.astype(np.float64)
