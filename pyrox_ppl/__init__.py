"""pyrox_ppl: a NumPyro plugin that says what a module's parameters mean."""

import importlib
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

if TYPE_CHECKING:
    from pyrox_ppl import infer as infer
    from pyrox_ppl import posterior as posterior
    from pyrox_ppl._show_versions import show_versions as show_versions
    from pyrox_ppl.infer import AmortizedGuide as AmortizedGuide
    from pyrox_ppl.infer import draw_module as draw_module
    from pyrox_ppl.infer import mean_module as mean_module
    from pyrox_ppl.infer import posterior_modules as posterior_modules
    from pyrox_ppl.infer import predict as predict
    from pyrox_ppl.posterior import calibration as calibration
    from pyrox_ppl.posterior import diagnose as diagnose
    from pyrox_ppl.posterior import load as load
    from pyrox_ppl.posterior import plot_calibration as plot_calibration
    from pyrox_ppl.posterior import plot_diagnostics as plot_diagnostics
    from pyrox_ppl.posterior import plot_fit as plot_fit
    from pyrox_ppl.posterior import save as save
    from pyrox_ppl.posterior import summary as summary
    from pyrox_ppl.posterior import to_datatree as to_datatree

# Imported when asked for: NumPyro's inference and above all ArviZ take time to load.
_LAZY = {
    "AmortizedGuide": "infer",
    "draw_module": "infer",
    "mean_module": "infer",
    "posterior_modules": "infer",
    "predict": "infer",
    "calibration": "posterior",
    "diagnose": "posterior",
    "load": "posterior",
    "plot_calibration": "posterior",
    "plot_diagnostics": "posterior",
    "plot_fit": "posterior",
    "save": "posterior",
    "summary": "posterior",
    "to_datatree": "posterior",
    "show_versions": "_show_versions",
}

__all__ = [
    "AmortizedGuide",
    "Parameter",
    "amortize",
    "backbone",
    "bayesianize",
    "bind",
    "calibration",
    "diagnose",
    "draw_module",
    "explain",
    "learn",
    "load",
    "mean_module",
    "nn",
    "plot_calibration",
    "plot_diagnostics",
    "plot_fit",
    "posterior_modules",
    "predict",
    "priors",
    "save",
    "scope",
    "show_versions",
    "summary",
    "to_datatree",
]


if not TYPE_CHECKING:  # to a type checker, `px.wrong` would be there

    def __getattr__(name: str) -> Any:
        """Import the part that has the name, or that is named."""
        if name in _LAZY.values():
            return importlib.import_module(f"pyrox_ppl.{name}")
        if name in _LAZY:
            return getattr(importlib.import_module(f"pyrox_ppl.{_LAZY[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, also those of parts that are not imported yet."""
    return sorted({*__all__, "__version__", "infer", "posterior"})
