"""What `bayesianize` makes of the conditioners: which sites, which prior, which use."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from numpyro import handlers

import pyrox_ppl as px
from pyrox_ppl.nn import SIREN, AffineModulation, ConditionedINR

CONDITIONAL = [case for case in CASES if case.conditional]
CONDITIONERS = [c for c in CONDITIONAL if all("generator." in n for n in c.parameters)]
FIELDS = [case for case in CONDITIONAL if case.backbone]


def over(cases):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def trace_of(module, *inputs, **kwargs):
    """The trace of a call inside a block, and the result."""
    with handlers.seed(rng_seed=0), handlers.trace() as trace, px.bayesianize(**kwargs):
        return trace, module(*inputs)


def abstract_trace_of(module, *inputs, **kwargs):
    """The same, with nothing compiled: its values have a shape alone."""
    traces = []

    def run():
        trace, result = trace_of(module, *inputs, **kwargs)
        traces.append(trace)
        return result

    jax.eval_shape(run)
    return traces[0]


@over(CONDITIONERS)
@pytest.mark.parametrize("prior_std", [0.3, 2.0])
def test_a_conditioner_has_two_sites_of_independent_normals(case, prior_std):
    module, inputs = case.build(), case.inputs((3,))
    trace, _ = trace_of(module, *inputs, prior_std=prior_std)
    assert set(trace) == {f"{case.root}.generator.{x}" for x in ("weight", "bias")}
    for name, site in trace.items():
        shape, _ = case.parameters[name]
        assert site["type"] == "sample"
        assert not site["is_observed"]
        assert site["value"].shape == site["fn"].event_shape == shape
        assert site["fn"].batch_shape == ()
        at = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        # The sum over every entry of log Normal(w; 0, s).
        expected = np.sum(
            -0.5 * (at / prior_std) ** 2 - np.log(prior_std) - 0.5 * np.log(2 * np.pi)
        )
        np.testing.assert_allclose(site["fn"].log_prob(at), expected, rtol=1e-5)
        one = at.copy()
        one.flat[0] += 1.0
        difference = -0.5 * (2 * at.flat[0] + 1) / prior_std**2
        np.testing.assert_allclose(
            site["fn"].log_prob(one) - site["fn"].log_prob(at), difference, rtol=1e-3
        )


@over(CONDITIONERS)
def test_the_call_is_the_module_with_the_sampled_weights_in_place(case):
    module, inputs = case.build(), case.inputs((3,))
    trace, result = trace_of(module, *inputs)
    sampled = eqx.tree_at(
        lambda module: (module.generator.weight, module.generator.bias),
        module,
        tuple(trace[f"{case.root}.generator.{x}"]["value"] for x in ("weight", "bias")),
    )
    np.testing.assert_allclose(result, sampled(*inputs), rtol=1e-6)
    assert not np.allclose(result, module(*inputs))


def test_a_field_of_depth_4_has_the_six_sites_of_its_three_conditioners():
    inner = SIREN.init(2, 5, 1, depth=4, key=jax.random.key(0))
    field = ConditionedINR.init(
        inner, conditioner_cls=AffineModulation, cond_dim=3, key=jax.random.key(1)
    )
    trace = abstract_trace_of(field, jnp.ones((6, 2)), jnp.ones(3))
    assert {name: site["value"].shape for name, site in trace.items()} == {
        f"conditioned_inr.conditioners.{i}.generator.{name}": shape
        for i in range(3)
        for name, shape in (("weight", (10, 3)), ("bias", (10,)))
    }
    assert {site["type"] for site in trace.values()} == {"sample"}


@over(CONDITIONAL)
def test_a_field_has_the_sites_of_its_generators_and_none_of_its_backbone(case):
    trace = abstract_trace_of(case.build(), *case.inputs((3,)))
    assert set(trace) == {f"{case.root}.{name}" for name in case.generators}


@over(FIELDS)
def test_the_backbone_of_a_field_has_sites_where_they_are_asked_for(case):
    trace = abstract_trace_of(case.build(), *case.inputs((3,)), where=px.is_backbone)
    assert set(trace) == {f"{case.root}.{name}" for name in case.backbone}


def test_log_det_and_the_call_share_the_weights_of_a_block():
    film = AffineModulation.init(4, 2, key=jax.random.key(0), gamma_activation="exp")
    z = jnp.array([0.7, -1.3])

    def model():
        with px.bayesianize():
            shift, moved = film(jnp.zeros(4), z), film(jnp.ones(4), z)
            return moved - shift, film.log_det(z)

    with handlers.seed(rng_seed=0), handlers.trace() as trace:
        gamma, log_det = model()
    assert len(trace) == 2
    assert not np.allclose(gamma, 1.0)
    np.testing.assert_allclose(np.log(gamma).sum(), log_det, rtol=1e-4)


def test_log_det_alone_reads_the_weights_too():
    film = AffineModulation.init(4, 2, key=jax.random.key(0), gamma_activation="exp")
    with handlers.seed(rng_seed=0), handlers.trace() as trace, px.bayesianize():
        film.log_det(jnp.ones(2))
    assert len(trace) == 2
    with pytest.raises(ValueError, match="cond_dim=2"):
        film.log_det(jnp.ones(3))
