"""Modules made anew for a member: their arrays, by the names of the model's sites."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer.autoguide import AutoGuide

from pyrox_ppl._parameter import parameters_of
from pyrox_ppl._reads import ParameterRead, RecordReads
from pyrox_ppl._same_function import check_same_function


def find_reads(
    functions: list[Callable], args: tuple, kwargs: dict[str, Any]
) -> dict[str, ParameterRead]:
    """The parameters that models and guides read, by the names of their sites.

    An autoguide reads none of its own.
    """
    recorder = RecordReads()

    def run() -> None:
        for function in functions:
            if not isinstance(function, AutoGuide):
                with recorder, handlers.seed(rng_seed=0):
                    function(*args, **kwargs)

    jax.eval_shape(run)
    return recorder.reads


def match_made(
    made: Any, reads: Mapping[str, ParameterRead]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of the modules that `make` returned, by the names of the sites.

    Returns:
        Those of parameters that are sampled, and those that are learned.

    Raises:
        ValueError: If they are not the arrays that the model reads, or none of them is
            a site.
    """
    roots = {read.root: None for read in reads.values()}
    sites = {name: read for name, read in reads.items() if read.is_site}
    if not sites:
        raise ValueError(
            "make= draws modules anew, but the model reads no parameter that is a "
            f"site (it reads {list(reads) or 'none'}): read the module inside "
            "`with px.bayesianize():` or `px.learn()`, or leave `make` out."
        )
    own = list(dict.fromkeys(read.root for read in sites.values()))
    if isinstance(made, dict):
        modules = made
    elif len(own) == 1:
        modules = {own[0]: made}
    else:
        raise ValueError(
            f"the model reads the modules {own}, and make(key) returned one "
            f"{type(made).__name__}: return a dictionary of modules by these names."
        )
    unknown = [root for root in modules if root not in roots]
    if unknown or not modules:
        raise ValueError(
            f"make(key) returned the modules {list(modules)}, and the model reads "
            f"{list(roots)}: use the names given to `bind`, with the prefix of a scope."
        )
    sampled, learned = {}, {}
    for root, module in modules.items():
        arrays = {r.parameter.name: r.stored for r in parameters_of(module, root)}
        own = {name: read for name, read in reads.items() if read.root == root}
        for name, read in own.items():
            value = arrays.get(name)
            if value is None or np.shape(value) != read.parameter.shape:
                came = "none of that name" if value is None else np.shape(value)
                raise ValueError(
                    f"make(key) must return the module {root!r} as the model reads it, "
                    f"with {name!r} of shape {read.parameter.shape}; the "
                    f"{type(module).__name__} that it returned has {came}."
                )
            if read.kind == "param":
                value = jnp.asarray(value, read.parameter.dtype)
                learned[name] = jnp.broadcast_to(value, read.shape)
            elif read.is_site:
                sampled[name] = value
        which = f"the module {root!r} that make(key) returned"
        read = next(iter(own.values()))
        check_same_function(module, read.module, which=which, root=root)
    return sampled, learned
