"""Every crossing explained before it runs: against what its draws turn out to be."""

import numpy as np
import pytest
from crossing_runs import KEY, NUMBER, over, own
from crossings import NON_CENTRED

import pyrox_ppl as px

__all__ = ["own"]
pytestmark = pytest.mark.rank_promotion


@over(
    often=(
        *("mlp-NonCentered", "plate-hierarchical", "learned-hierarchical"),
        *("state-normal", "walk-normal"),
    )
)
def test_what_becomes_of_every_parameter(own):
    crossing = own.crossing
    explanation = px.explain(crossing.model, crossing.x, y=crossing.y)
    learned = {f"net.{path}" for path in crossing.kind.learned}
    random = {f"net.{path}" for path in crossing.kind.fan_in} - learned
    becomes = "deterministic" if crossing.prior in NON_CENTRED else "sample"
    found = {
        row.name: row.becomes
        for row in explanation.parameters
        if row.becomes != "constant"
    }
    assert found == dict.fromkeys(random, becomes) | dict.fromkeys(learned, "param")
    # By hand: how many numbers a draw of the latent sites has.
    sizes = {name: value[0].size for name, value in own.draws.items()}
    assert explanation.latent_dim == sum(sizes[name] for name in crossing.latent())
    assert explanation.learned == sum(own.params[name].size for name in learned)
    of_draw = sum(value[0].nbytes for value in own.draws.values()) + crossing.y.nbytes
    assert explanation.memory(100) == 100 * of_draw
    shapes = {s.name: s.shape for s in explanation.sites}
    assert shapes["f"] == own.draws["f"].shape[1:]
    assert {s.name for s in explanation.sites if s.type == "observed"} == {"y"}


@over(often=("mlp-fan_in", "plate-hierarchical", "learned-hierarchical", "walk-normal"))
def test_the_scale_under_the_prior(own):
    crossing = own.crossing
    explanation = px.explain(crossing.model, crossing.x, y=crossing.y)
    found = explanation.prior_scale(KEY, NUMBER)
    # Nothing is trained before a model runs: neither what it learns nor its state.
    start = {"params": {}, "state": crossing.kind.state}
    hands = own.hands(crossing.x, own.draws, **start)
    f = np.stack([hand.f for hand in hands])
    expected = np.sqrt(np.mean(f**2))
    assert found["f"] == pytest.approx(expected, rel=1e-2)
    assert found["y"] == pytest.approx(expected, rel=0.05)
