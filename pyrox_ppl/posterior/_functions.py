"""Convergence of functions: R-hat, ESS and MCSE of predictions, block by block."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr

import pyrox_ppl.posterior._stats as _stats
from pyrox_ppl.posterior._axes import variable_name
from pyrox_ppl.prediction._draws import Draws
from pyrox_ppl.prediction._matching import REPARAMETERISED
from pyrox_ppl.prediction._model_call import ModelCall
from pyrox_ppl.prediction._module_call import ModuleCall
from pyrox_ppl.prediction._module_values import ModuleValues
from pyrox_ppl.prediction._site_values import SiteValues

_OF_CHAINS = (_stats.rhat, _stats.ess_bulk, _stats.ess_tail, _stats.mcse)
# ArviZ splits a chain twice, and needs this many draws for it.
FEWEST_DRAWS = 8


@dataclasses.dataclass(frozen=True)
class FunctionStatistics:
    """Statistics of functions of the draws, one for every probe.

    The weights of a network are known only up to its symmetries: chains that agree on
    the function may sit at permuted weights, whose R-hat then says nothing. The value
    of the function at an input has no such symmetry.

    A statistic is NaN where the function is constant or not finite at some draw, where
    the draws are not Markov chains, and where there are too few.

    Attributes:
        what: What the functions are.
        rhat: Rank-normalised split R-hat.
        ess_bulk: Effective sample size of the bulk, in draws.
        ess_tail: Effective sample size of the 5 % and 95 % tails, in draws.
        mcse: Monte Carlo standard error of the mean, in units of the function.
        std: Standard deviation over the draws.
        not_finite: The share of draws at which the function is NaN or infinite.
        distances: For an ensemble, how far the mean functions of any two members are
            apart: the root mean square over the probes, ``(member, member)``.
        spread_of_members: The standard deviation of these means over the members, root
            mean square over the probes.
    """

    what: str
    rhat: np.ndarray
    ess_bulk: np.ndarray
    ess_tail: np.ndarray
    mcse: np.ndarray
    std: np.ndarray
    not_finite: np.ndarray
    _: dataclasses.KW_ONLY
    distances: np.ndarray | None = None
    spread_of_members: float | None = None


def function_statistics(
    tree: xr.DataTree,
    call: ModuleCall | ModelCall | None,
    sites: Sequence[str] | None,
    batch_size: int | None,
    are_chains: bool,
    are_members: bool = False,
) -> FunctionStatistics | None:
    """Statistics of a module or model at probe inputs, or of what a tree holds."""
    if call is None:
        values = _values_in_tree(tree)
    elif isinstance(call, ModuleCall):
        values = _values_of_module(tree, call, batch_size)
    else:
        values = _values_of_model(tree, call, sites, batch_size)
    return None if values is None else _summarise(values, are_chains, are_members)


@dataclasses.dataclass(frozen=True)
class _Values:
    """Values of functions at all draws.

    Attributes:
        what: What the functions are.
        shape: The sample axes.
        blocks: Arrays whose first axis is that of all draws, one after the other.
    """

    what: str
    shape: tuple[int, ...]
    blocks: Iterator[np.ndarray]


def _values_of_module(
    tree: xr.DataTree, call: ModuleCall, batch_size: int | None
) -> _Values:
    draws = Draws.read(tree)
    blocks = _without_repeats(ModuleValues(call, draws, batch_size).blocks())
    what = f"the values of {type(call.module).__name__}"
    return _Values(what, draws.shape, blocks)


def _values_of_model(
    tree: xr.DataTree,
    call: ModelCall,
    sites: Sequence[str] | None,
    batch_size: int | None,
) -> _Values:
    draws = Draws.read(tree)
    call = dataclasses.replace(
        call.with_trained(draws.params, draws.by_chain),
        linearized_at=draws.latents_linearized_at,
    )
    # The sample sites of a model are its functions blurred by noise.
    kinds = ("deterministic",) if sites is None else ("sample", "deterministic")
    values = SiteValues(call, draws, jax.random.key(0), sites, kinds)
    parameters = _parameters(tree) if sites is None else set()
    names = [name for name in values.shapes if name not in parameters]
    if not names:
        raise ValueError(
            "the model has no deterministic site to look at, and its sample sites are "
            "blurred by noise: write `numpyro.deterministic('f', f)` in it, pass "
            "`sites`, or diagnose with the module itself."
        )
    blocks = (
        block
        for name in names
        for block in _without_repeats(values.blocks(name, batch_size))
    )
    return _Values(f"the values of {', '.join(names)}", draws.shape, blocks)


def _values_in_tree(tree: xr.DataTree) -> _Values | None:
    """The deterministic sites of a tree, else its log likelihoods."""
    sites = _deterministic(tree)
    dataset = _stats.group(tree, "posterior" if sites else "log_likelihood")
    keys = [variable_name(site) for site in sites] or _stats.names(dataset)
    arrays = [_stats.by_draw(dataset, key) for key in keys]
    if not arrays:
        return None
    shape = arrays[0].shape[:2]
    what = f"the values of {', '.join(sites)}" if sites else "the log likelihoods"
    blocks = (a.reshape(shape[0] * shape[1], -1) for a in arrays)
    return _Values(what, shape, blocks)


def _deterministic(tree: xr.DataTree) -> list[str]:
    """Sites that are functions of the draws, not parameters in another form."""
    posterior = _stats.group(tree, "posterior")
    parameters = _parameters(tree)
    names = {
        posterior[name].attrs.get("numpyro_name", name): name
        for name in _stats.names(posterior)
        if posterior[name].attrs.get("deterministic")
    }
    return [site for site in names if site not in parameters]


def _parameters(tree: xr.DataTree) -> set[str]:
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


def _without_repeats(
    blocks: Iterator[tuple[Any, np.ndarray]],
) -> Iterator[np.ndarray]:
    """The values of blocks; the last block overlaps the one before, to be as long."""
    done = 0
    for where, values in blocks:
        if isinstance(where, slice):
            yield values[:, max(0, done - where.start) :]
            done = where.stop
        else:
            yield values


def _summarise(
    values: _Values, are_chains: bool, are_members: bool
) -> FunctionStatistics:
    columns: list[list[np.ndarray]] = [[] for _ in range(len(_OF_CHAINS) + 2)]
    means = []
    for block in values.blocks:
        by_chain = _real(block).reshape(*values.shape, -1)
        finite = np.isfinite(by_chain)
        known = finite.all((0, 1))
        # A constant function has no R-hat or ESS: ArviZ would divide by its variance.
        of_known = by_chain[..., known]
        moving = known.copy()
        moving[known] = np.ptp(of_known, axis=(0, 1)) > 0
        std = np.full(known.size, np.nan)
        std[known] = np.where(moving[known], of_known.std((0, 1)), 0.0)
        for column, statistic in zip(columns, _OF_CHAINS, strict=False):
            figures = np.full(moving.size, np.nan)
            if moving.any() and are_chains and values.shape[-1] >= FEWEST_DRAWS:
                figures[moving] = statistic(by_chain[..., moving])
            column.append(figures)
        columns[-2].append(std)
        columns[-1].append(1.0 - finite.mean((0, 1)))
        if are_members:
            means.append(of_known.mean(1))
    statistics = FunctionStatistics(values.what, *map(np.concatenate, columns))
    if not are_members:
        return statistics
    of_members = np.concatenate(means, axis=1)
    apart = of_members[:, None] - of_members[None]
    # The mean over no probe at all is of no interest: such values fail by themselves.
    probes = max(1, of_members.shape[1])
    distances = np.sqrt(np.square(apart).sum(-1) / probes)
    spread = math.sqrt(of_members.var(0).sum() / probes)
    return dataclasses.replace(
        statistics, distances=distances, spread_of_members=spread
    )


def _real(values: np.ndarray) -> np.ndarray:
    """Real and imaginary parts of a complex function, as two functions."""
    if np.iscomplexobj(values):
        values = np.stack([np.real(values), np.imag(values)], -1)
    return values.astype(np.float64)
