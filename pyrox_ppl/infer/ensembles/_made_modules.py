"""Modules made anew for a member: their arrays, by the names of the model's sites."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer.autoguide import AutoGuide
from numpyro.primitives import Messenger

from pyrox_ppl._parameter import Parameter, parameters_of, path_name
from pyrox_ppl._same_function import check_same_function

# What a parameter that was read has become, if inference decides its value.
_SITES = ("sample", "deterministic", "param")


class ParameterRead(NamedTuple):
    """A parameter that a model or a guide reads.

    Attributes:
        parameter: The parameter.
        root: The root of its name, with the prefixes of every scope.
        kind: The type of the site that it has become; "parameter" for a constant.
        shape: The shape of its value, with the axis of a plate.
        module: The module that it belongs to.
    """

    parameter: Parameter
    root: str
    kind: str
    shape: tuple[int, ...]
    module: Any


def find_reads(
    functions: list[Callable], args: tuple, kwargs: dict[str, Any]
) -> dict[str, ParameterRead]:
    """The parameters that models and guides read, by the names of their sites.

    An autoguide reads none of its own.
    """
    recorder = _Recorder()

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
    sites = {n: read for n, read in reads.items() if read.kind in _SITES}
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
            elif read.kind in _SITES:
                sampled[name] = value
        which = f"the module {root!r} that make(key) returned"
        read = next(iter(own.values()))
        check_same_function(module, read.module, which=which, root=root)
    return sampled, learned


class _Recorder(Messenger):
    """Records every parameter that is read inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: dict[str, ParameterRead] = {}

    def record_read(
        self, parameter: Parameter, message: dict[str, Any], module: Any
    ) -> None:
        """Record a read, under the name of its site."""
        name = message["name"]
        path = path_name(parameter.path)
        root = name.removesuffix(f".{path}") if parameter.path else name
        shape = np.shape(message["value"])
        self.reads[name] = ParameterRead(
            parameter, root, message["type"], shape, module
        )
