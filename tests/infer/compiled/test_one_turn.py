"""What no turn of a loop changes is computed once, and the loop then left out."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoDelta

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledSVI, init_to_stored
from pyrox_ppl.infer.compiled import _programs
from pyrox_ppl.infer.compiled._one_turn import run_jaxpr

KEY = jax.random.key(0)


def loop(x, start, stop):
    """A count, a sum over turns, what each turn sets anew, and what none touches."""

    def turn(carry):
        i, total, _, _, kept = carry
        return i + 1, total + jnp.sin(x) * i, jnp.cos(x), 7.0, kept

    carry = (start, jnp.zeros(3), jnp.ones(3), 5.0, x)
    return lax.while_loop(lambda carry: carry[0] < stop, turn, carry)


@pytest.mark.parametrize("turns", [0, 1, 4])
def test_a_loop_gives_what_it_gave(turns):
    x = jnp.arange(3.0)
    traced = jax.make_jaxpr(loop)(x, 0, turns)
    found = run_jaxpr(traced.jaxpr, traced.consts, x, 0, turns)
    for ours, theirs in zip(found, loop(x, 0, turns), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_loop_stays_where_a_turn_changes_what_is_needed():
    def needed(*places):
        traced = jax.make_jaxpr(lambda x: [loop(x, 0, 4)[i] for i in places])(x)
        run = jax.jit(partial(run_jaxpr, traced.jaxpr, traced.consts))
        return "stablehlo.while" in run.lower(x).as_text()

    x = jnp.arange(3.0)
    assert not needed(2, 3)
    assert needed(1)


def test_a_loop_that_does_something_else_is_left_alone():
    said = []

    def turn(carry):
        jax.debug.callback(lambda: said.append(1), ordered=True)
        return carry[0] + 1, jnp.ones(())

    def run():
        return lax.while_loop(lambda carry: carry[0] < 3, turn, (0, jnp.zeros(())))

    traced = jax.make_jaxpr(run)()
    jax.jit(partial(run_jaxpr, traced.jaxpr, traced.consts))()
    jax.effects_barrier()
    assert len(said) == 3


def starting(net, with_noise):
    """Its density has a cosine, so its gradient has a sine."""

    def model(x):
        with px.bayesianize():
            mean = jnp.cos(jax.vmap(px.bind(net, "net"))(x))
        noise = numpyro.sample("noise", dist.HalfNormal()) if with_noise else 1.0
        numpyro.sample("y", dist.Normal(mean, noise).to_event(2), obs=mean * 0 + 1)

    guide = AutoDelta(model, init_loc_fn=init_to_stored)
    return CompiledSVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO())


@pytest.mark.parametrize("with_noise", [False, True])
def test_no_gradient_is_compiled_to_start_at_stored_weights(with_noise, monkeypatch):
    """A site that starts at a draw still needs the search."""
    programs, x = [], jnp.ones((3, 2))

    def watched(jaxpr, constants, *inputs):
        programs.append((jaxpr, jax.tree.map(jax.typeof, [constants, *inputs])))
        return run_jaxpr(jaxpr, constants, *inputs)

    monkeypatch.setattr(_programs, "run_jaxpr", watched)
    net = eqx.nn.Linear(2, 1, key=KEY)
    svi = starting(net, with_noise)
    params = svi.get_params(svi.init(KEY, x))
    np.testing.assert_array_equal(params["net.weight_auto_loc"], net.weight)
    ((jaxpr, types),) = programs
    text = jax.jit(partial(run_jaxpr, jaxpr)).lower(*types).as_text()
    assert "stablehlo.cosine" in text
    assert ("stablehlo.sine" in text) == with_noise
