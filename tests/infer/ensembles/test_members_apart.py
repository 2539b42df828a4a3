"""Members of an ensemble share nothing: neither a start nor the state of layers."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from infer.ensembles.members import LOADER, MEMBERS, MODEL, run, svi_of
from numpyro.infer.autoguide import AutoDelta

import pyrox_ppl as px


def test_two_members_that_start_alike_are_refused():
    svi = svi_of(AutoDelta(MODEL))
    fit = run(svi, steps=1)
    starts = {name: np.array(value) for name, value in fit.params.items()}
    for value in starts.values():
        value[2] = value[1]
    with pytest.raises(ValueError, match="members 1 and 2 start at the same"):
        run(svi, init_params=starts)


def test_statistics_of_a_member_come_from_its_own_batches():
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(1, "rows", mode="batch")

    def model(x, y=None):
        with px.bayesianize():
            net = px.bind(norm, "norm")
        held = numpyro.primitives.mutable("state", {"now": state})
        rows = jax.vmap(net, (0, None), (0, None), axis_name="rows")
        mean, held["now"] = rows(x, held["now"])
        with numpyro.plate("row", LOADER.num_rows, subsample_size=len(x)):
            numpyro.sample("y", dist.Normal(mean[:, 0], 1.0), obs=y)

    fit = run(svi_of(AutoDelta(model), model), LOADER, steps=1)
    found = fit.state.mutable_state["state"]["now"]
    for member in range(MEMBERS):
        key = jax.random.fold_in(LOADER.rng_key, member)
        x, _ = next(dataclasses.replace(LOADER, rng_key=key).epoch(0))
        # The weights of the layer do not touch its statistics. It sees the first batch
        # twice: when SVI sets the guide up, and in the only step.
        held = state
        for _ in range(2):
            rows = jax.vmap(norm, (0, None), (0, None), axis_name="rows")
            held = rows(jnp.asarray(x), held)[1]
        own = jax.tree.map(lambda leaf, m=member: leaf[m], found)
        for value, expected in zip(
            jax.tree.leaves(own), jax.tree.leaves(held), strict=True
        ):
            np.testing.assert_allclose(value, expected, atol=1e-6)
