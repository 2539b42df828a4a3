"""The arrays of trained modules, checked against the parameters that a model reads."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from numpyro import handlers

from pyrox_ppl._parameter import Read, parameters_of
from pyrox_ppl._reads import ParameterRead, RecordReads
from pyrox_ppl._same_function import check_same_function


def list_members(modules: Any) -> list[Any]:
    """The modules of all members; those of a stacked module one by one."""
    if isinstance(modules, Sequence):
        return list(modules)
    arrays, rest = eqx.partition(modules, eqx.is_array)
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(arrays)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"one {type(modules).__name__} stands for all members if each of its "
            "arrays has a leading axis of members; the leading axes here are of size "
            f"{sorted(sizes)}: pass a list of modules."
        )
    (number,) = sizes.pop()
    return [
        eqx.combine(jax.tree.map(lambda leaf, i=i: leaf[i], arrays), rest)
        for i in range(number)
    ]


def match_members(
    named: Mapping[str, list[Any]], reads: Mapping[str, ParameterRead]
) -> dict[str, np.ndarray]:
    """The arrays of all members by parameter, checked against those of the model."""
    roots = {read.root for read in reads.values()}
    unknown = [root for root in named if root not in roots]
    if unknown:
        raise ValueError(
            f"the model reads the modules {sorted(roots)}, and none named "
            f"{unknown}: pass name=, or a dictionary of modules by these names."
        )
    arrays = {}
    for root, modules in named.items():
        each = [_read_members(module, root) for module in modules]
        wanted = {n: read for n, read in reads.items() if read.root == root}
        for number, (module, found) in enumerate(zip(modules, each, strict=True)):
            _check_member(number, module, found, wanted)
        for site, read in wanted.items():
            stacked = np.stack([np.asarray(found[site].stored) for found in each])
            if read.is_site:
                arrays[site] = stacked
    return arrays


def _read_members(module: Any, root: str) -> dict[str, Read]:
    """The parameters of a module, by the name at each place that holds the array."""
    reads = parameters_of(module, root)
    return {name: read for read in reads for name in read.parameter.names}


def _check_member(
    number: int,
    module: Any,
    found: Mapping[str, Read],
    wanted: Mapping[str, ParameterRead],
) -> None:
    tied = {site: read.tied_names() for site, read in wanted.items()}
    known = {*wanted, *(name for names in tied.values() for name in names)}
    wrong = sorted((wanted.keys() - found.keys()) | (found.keys() - known))
    if wrong:
        raise ValueError(
            f"module {number} is a {type(module).__name__} with the parameters "
            f"{list(found)}, and the model reads {list(wanted)}; they differ in "
            f"{wrong}: pass modules of the class and sizes that the model reads."
        )
    for site, read in wanted.items():
        value = np.asarray(found[site].stored)
        own = read.parameter.shape
        if value.shape not in (own, read.members + own):
            raise ValueError(
                f"{site!r} of module {number} has shape {value.shape}, and the model "
                f"reads it with shape {read.members + own}."
            )
        for name in tied[site]:
            if name in found and not np.array_equal(found[name].stored, value):
                raise ValueError(
                    f"{site!r} and {name!r} are one tied array in the model, and "
                    f"differ in module {number}."
                )
        stored = read.parameter.stored
        if read.kind == "constant" and not np.array_equal(value, stored):
            raise ValueError(
                f"{site!r} is a constant in the model, and module {number} has other "
                "values: sample or learn it, or give the model this array."
            )
    own = next(iter(wanted.values()))
    check_same_function(module, own.module, which=f"module {number}", root=own.root)


def find_reads(model: Callable, args: tuple, kwargs: Any) -> dict[str, ParameterRead]:
    """The parameters that a model reads, by the names of their sites."""
    recorder = RecordReads()
    with recorder, handlers.seed(rng_seed=0):
        model(*args, **kwargs)
    return recorder.reads
