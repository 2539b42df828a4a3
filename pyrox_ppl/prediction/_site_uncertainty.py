"""The uncertainty of a model's sites, split over all draws."""

from collections.abc import Mapping
from typing import Any

import jax

from pyrox_ppl._dependence import abstract_trace, find_dependence
from pyrox_ppl._full_data import redraw
from pyrox_ppl.prediction._model_call import ModelCall
from pyrox_ppl.prediction._uncertainty import LawMeans, Uncertainty


def split_uncertainty(
    call: ModelCall, draws: Mapping[str, Any], means: LawMeans
) -> dict[str, Uncertainty | None]:
    """The uncertainty of each site, None where it cannot be split.

    Args:
        call: The model.
        draws: The draws.
        means: What the distributions of the sites say at all of them.
    """
    mixed = _sites_on_undrawn(call, draws)
    return {
        name: None if name in mixed else means.uncertainty(name) for name in means.names
    }


def _sites_on_undrawn(call: ModelCall, draws: Mapping[str, Any]) -> set[str]:
    """The sites whose distributions depend on other sample sites without draws.

    These are drawn anew for every draw. What they add is neither noise of the site nor
    disagreement of the draws, and would count as the latter.
    """
    hidden: set[str] = set()
    names: set[str] = set()

    def undrawn_and_distributions() -> tuple[dict[str, Any], dict[str, Any]]:
        trace = abstract_trace(redraw(call.run))
        samples = {n: s for n, s in trace.items() if s["type"] == "sample"}
        # A parameter that was drawn without its noise stays as drawn.
        undrawn = {
            n: s
            for n, s in samples.items()
            if n not in draws and n.removesuffix("_decentered") not in draws
        }
        names.update(samples)
        hidden.update(n for n, s in undrawn.items() if s.get("_control_flow_done"))
        causes = {name: site["value"] for name, site in undrawn.items()}
        return causes, {n: jax.tree.leaves(s["fn"]) for n, s in samples.items()}

    causes = find_dependence(undrawn_and_distributions)
    if hidden:  # the jaxpr does not show what depends on a site inside a scan or cond
        return names
    # A drawn site passes nothing on: the trace has its own value in its place.
    return {name for name, of in causes.items() if of - {name}}
