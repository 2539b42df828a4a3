"""pyrox_ppl: a NumPyro plugin that says what a module's parameters mean."""

from typing import TYPE_CHECKING, Any

from pyrox_ppl import nn as nn
from pyrox_ppl import priors as priors
from pyrox_ppl._bind import bind as bind
from pyrox_ppl._parameter import Parameter as Parameter
from pyrox_ppl._parameter import backbone as backbone
from pyrox_ppl._version import __version__ as __version__
from pyrox_ppl.explain import explain as explain
from pyrox_ppl.handlers import amortize as amortize
from pyrox_ppl.handlers import bayesianize as bayesianize
from pyrox_ppl.handlers import learn as learn
from pyrox_ppl.handlers import scope as scope
from pyrox_ppl.infer import AmortizedGuide as AmortizedGuide

if TYPE_CHECKING:
    from pyrox_ppl.posterior import to_datatree as to_datatree

__all__ = [
    "AmortizedGuide",
    "Parameter",
    "amortize",
    "backbone",
    "bayesianize",
    "bind",
    "explain",
    "learn",
    "nn",
    "priors",
    "scope",
    "to_datatree",
]


def __getattr__(name: str) -> Any:
    """Import what stands on ArviZ when asked for: ArviZ takes a second to load."""
    if name == "to_datatree":
        from pyrox_ppl.posterior import to_datatree

        return to_datatree
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
