"""pyrox_ppl: a NumPyro plugin that says what a module's parameters mean."""

import importlib
from typing import TYPE_CHECKING, Any

from pyrox_ppl import nn as nn
from pyrox_ppl import priors as priors
from pyrox_ppl._bind import bind as bind
from pyrox_ppl._parameter import Parameter as Parameter
from pyrox_ppl._parameter import is_backbone as is_backbone
from pyrox_ppl._parameter import is_generator as is_generator
from pyrox_ppl._version import __version__ as __version__
from pyrox_ppl.explanation import Explanation as Explanation
from pyrox_ppl.explanation import explain as explain
from pyrox_ppl.handlers import amortize as amortize
from pyrox_ppl.handlers import bayesianize as bayesianize
from pyrox_ppl.handlers import learn as learn
from pyrox_ppl.handlers import linearize as linearize
from pyrox_ppl.handlers import scope as scope

if TYPE_CHECKING:
    from pyrox_ppl import infer as infer
    from pyrox_ppl import posterior as posterior
    from pyrox_ppl import scores as scores
    from pyrox_ppl._show_versions import show_versions as show_versions
    from pyrox_ppl.infer import AmortizedGuide as AmortizedGuide
    from pyrox_ppl.posterior import Calibration as Calibration
    from pyrox_ppl.posterior import ClassCalibration as ClassCalibration
    from pyrox_ppl.posterior import Comparison as Comparison
    from pyrox_ppl.posterior import Diagnosis as Diagnosis
    from pyrox_ppl.posterior import Recalibration as Recalibration
    from pyrox_ppl.posterior import Saved as Saved
    from pyrox_ppl.posterior import accuracy_rejection_curve as accuracy_rejection_curve
    from pyrox_ppl.posterior import calibration as calibration
    from pyrox_ppl.posterior import compare as compare
    from pyrox_ppl.posterior import diagnose as diagnose
    from pyrox_ppl.posterior import draws_from_modules as draws_from_modules
    from pyrox_ppl.posterior import load as load
    from pyrox_ppl.posterior import most_uncertain as most_uncertain
    from pyrox_ppl.posterior import plot_calibration as plot_calibration
    from pyrox_ppl.posterior import plot_comparison as plot_comparison
    from pyrox_ppl.posterior import plot_diagnostics as plot_diagnostics
    from pyrox_ppl.posterior import plot_fit as plot_fit
    from pyrox_ppl.posterior import recalibrate as recalibrate
    from pyrox_ppl.posterior import save as save
    from pyrox_ppl.posterior import summary as summary
    from pyrox_ppl.posterior import to_datatree as to_datatree
    from pyrox_ppl.prediction import Prediction as Prediction
    from pyrox_ppl.prediction import module_from_draw as module_from_draw
    from pyrox_ppl.prediction import module_from_mean as module_from_mean
    from pyrox_ppl.prediction import modules_from_draws as modules_from_draws
    from pyrox_ppl.prediction import predict as predict

# Imported on first use: NumPyro's inference and especially ArviZ take time to load.
_LAZY = {
    "AmortizedGuide": "infer",
    "module_from_draw": "prediction",
    "module_from_mean": "prediction",
    "modules_from_draws": "prediction",
    "predict": "prediction",
    "Prediction": "prediction",
    "Calibration": "posterior",
    "ClassCalibration": "posterior",
    "Comparison": "posterior",
    "Diagnosis": "posterior",
    "Recalibration": "posterior",
    "Saved": "posterior",
    "accuracy_rejection_curve": "posterior",
    "calibration": "posterior",
    "compare": "posterior",
    "diagnose": "posterior",
    "draws_from_modules": "posterior",
    "load": "posterior",
    "most_uncertain": "posterior",
    "plot_calibration": "posterior",
    "plot_comparison": "posterior",
    "plot_diagnostics": "posterior",
    "plot_fit": "posterior",
    "recalibrate": "posterior",
    "save": "posterior",
    "summary": "posterior",
    "to_datatree": "posterior",
    "show_versions": "_show_versions",
}

__all__ = [
    "AmortizedGuide",
    "Calibration",
    "ClassCalibration",
    "Comparison",
    "Diagnosis",
    "Explanation",
    "Parameter",
    "Prediction",
    "Recalibration",
    "Saved",
    "accuracy_rejection_curve",
    "amortize",
    "bayesianize",
    "bind",
    "calibration",
    "compare",
    "diagnose",
    "draws_from_modules",
    "explain",
    "is_backbone",
    "is_generator",
    "learn",
    "linearize",
    "load",
    "module_from_draw",
    "module_from_mean",
    "modules_from_draws",
    "most_uncertain",
    "nn",
    "plot_calibration",
    "plot_comparison",
    "plot_diagnostics",
    "plot_fit",
    "predict",
    "priors",
    "recalibrate",
    "save",
    "scope",
    "show_versions",
    "summary",
    "to_datatree",
]


if not TYPE_CHECKING:  # a type checker would accept `px.wrong` if it saw this

    def __getattr__(name: str) -> Any:
        """Import a public name, or a part of the package, on first use."""
        if name in (*_LAZY.values(), "scores"):
            return importlib.import_module(f"pyrox_ppl.{name}")
        if name in _LAZY:
            return getattr(importlib.import_module(f"pyrox_ppl.{_LAZY[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, including those that are not imported yet."""
    return sorted({*__all__, "__version__", "infer", "posterior", "scores"})
