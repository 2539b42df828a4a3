"""run_svi: NumPyro's losses and parameters, whatever fails on the way."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoNormal
from numpyro.primitives import mutable

from pyrox_ppl.infer import run_svi
from pyrox_ppl.infer.resumable import _loop, _store
from pyrox_ppl.infer.resumable._site_order import OrderedTraceELBO, order_sites

KEY = jax.random.key(5)
Y = np.array([0.3, 0.9, 1.4], np.float32)


class Died(BaseException):
    """What stands for the end of a process."""


def model(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def make(rate=0.1):
    schedule = optax.cosine_decay_schedule(rate, 30)
    return SVI(model, AutoNormal(model), optax.adam(schedule), Trace_ELBO())


@pytest.fixture(scope="module")
def expected():
    """NumPyro's own run."""
    return make().run(KEY, 30, Y, progress_bar=False)


def assert_same(result, expected):
    assert isinstance(result, type(expected))
    for one, other in (
        (result.params, expected.params),
        (result.losses, expected.losses),
        (result.state.optim_state, expected.state.optim_state),
    ):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert (result.state.rng_key == expected.state.rng_key).all()


def test_a_state_that_is_on_disk_gives_its_memory_to_the_next(tmp_path, monkeypatch):
    states, commit = [], _loop._OnDisk.commit

    def keep(self, state, *rest):
        states.append(commit(self, state, *rest))
        return states[-1]

    monkeypatch.setattr(_loop._OnDisk, "commit", keep)
    own = {"mean_auto_loc": jnp.array(0.25)}
    path, options = tmp_path / "run", {"progress_bar": False, "init_params": own}
    result = run_svi(make(), KEY, 30, Y, path=path, segment=10, **options)
    deleted = [jax.tree.leaves(s.optim_state)[1].is_deleted() for s in states]
    assert deleted == [True, True, False]
    assert own["mean_auto_loc"] == 0.25  # the caller's own arrays are not touched
    again = run_svi(make(), KEY, 30, Y, path=path, segment=10, **options)
    assert_same(again, result)


def test_it_is_numpyros_run_bit_for_bit_whatever_fails(tmp_path, monkeypatch, expected):
    path = tmp_path / "run"
    for place in ("draws", "manifest", "renamed"):
        passed = []

        def reached(point, place=place, passed=passed):
            passed.append(point)
            if point == place and passed.count(place) == 3:
                raise Died

        monkeypatch.setattr(_store, "reached", reached)
        with pytest.raises(Died):
            run_svi(make(), KEY, 30, Y, path=path, segment=4, progress_bar=False)
    monkeypatch.undo()
    result = run_svi(make(), KEY, 30, Y, path=path, segment=4, progress_bar=False)
    assert_same(result, expected)


def test_another_run_is_refused(tmp_path):
    path = tmp_path / "run"
    options = {"segment": 2, "progress_bar": False}
    run_svi(make(), KEY, 4, Y, path=path, **options)
    with pytest.raises(ValueError, match=r"num_steps was 4 and is 6"):
        run_svi(make(), KEY, 6, Y, path=path, **options)
    with pytest.raises(ValueError, match="computations of the model, or of the"):
        run_svi(make(rate=0.2), KEY, 4, Y, path=path, **options)
    with pytest.raises(ValueError, match="argument 0 was"):
        run_svi(make(), KEY, 4, 2 * Y, path=path, **options)
    for name, call in (
        ("num_steps", lambda: run_svi(make(), KEY, 0, Y, path=path)),
        ("segment", lambda: run_svi(make(), KEY, 4, Y, path=path, segment=0)),
    ):
        with pytest.raises(ValueError, match=f"{name} must be a positive"):
            call()


def named(prefix):
    """A model whose sites have names that sort alike, and hash otherwise."""

    def model(y):
        names = [f"{prefix}{i}" for i in range(8)]
        terms = [numpyro.sample(name, dist.Normal(0.0, 1.0)) for name in names]
        numpyro.sample("y", dist.Normal(sum(terms), 1.0).expand([3]).to_event(), obs=y)

    return model


def test_the_loss_has_one_order_of_sites_in_every_process(tmp_path):
    """Sets of other names are in another order, as sets are in another process."""
    programs, losses = set(), set()
    for prefix in "abc":
        svi = SVI(named(prefix), AutoDelta(named(prefix)), optax.sgd(0.1), Trace_ELBO())
        path = tmp_path / prefix
        result = run_svi(svi, KEY, 6, Y, path=path, progress_bar=False)
        losses.add(tuple(result.losses.tolist()))
        with _store.RunStore.open(path) as store:
            programs.add(store.fingerprint["program"])
    assert len(programs) == len(losses) == 1
    reference = svi.run(KEY, 6, Y, progress_bar=False)
    np.testing.assert_allclose(reference.losses, result.losses, rtol=1e-6)
    assert result.params.keys() == reference.params.keys()


def moving(y):
    """A model with a mutable site, and a site that only it has."""
    count = mutable("count", lambda: {"value": jnp.zeros(())})
    count["value"] = count["value"] + 1.0
    model(y)
    numpyro.factor("more", -count["value"])


def spread_guide(y):
    """A guide that proposes several samples."""
    loc = numpyro.param("loc", 0.5)
    numpyro.sample("mean", dist.Normal(loc, 2.0).expand([5]))


def one_sample(y):
    numpyro.sample("mean", dist.Normal(numpyro.param("loc", 0.5), 2.0))
    numpyro.factor("guide only", 0.25)


@pytest.mark.parametrize(
    ("guide", "settings"),
    [
        (one_sample, {}),
        (one_sample, {"num_particles": 3}),
        (one_sample, {"num_particles": 3, "vectorize_particles": False}),
        (spread_guide, {"multi_sample_guide": True}),
    ],
)
@pytest.mark.parametrize("model", [model, moving])
@pytest.mark.filterwarnings("ignore:mutable state is currently ignored")
@pytest.mark.filterwarnings("ignore:Found auxiliary vars")
def test_the_loss_and_its_gradient_are_numpyros(model, guide, settings):
    numpyros = Trace_ELBO(**settings)
    params = {"loc": jnp.array(0.5), "count": {"value": jnp.ones(())}}

    def both(loss):
        def total(loc):
            now = {**params, "loc": loc}
            result = loss.loss_with_mutable_state(KEY, now, model, guide, Y)
            return result["loss"], result["mutable_state"]

        return jax.value_and_grad(total, has_aux=True)(params["loc"])

    (loss, state), gradient = both(OrderedTraceELBO(numpyros))
    (expected, expected_state), expected_gradient = both(numpyros)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5)
    assert state == expected_state


def test_numpyros_checks_of_the_model_stay():
    def no_plate(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", len(y)):
            numpyro.sample(
                "y", dist.Normal(mean, jnp.ones((2, 1))), obs=jnp.stack(2 * [y])
            )

    def guide(y):
        numpyro.sample("mean", dist.Normal(numpyro.param("loc", 0.5), 2.0))

    svi = SVI(no_plate, guide, optax.sgd(0.1), Trace_ELBO())
    state = svi.init(KEY, Y)
    with pytest.warns(UserWarning, match="Missing a plate statement"):
        order_sites(svi, state, (Y,), {})


SEEDED = """
import sys, jax, optax
import test_resumable_svi as t
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
model = t.named("site")
svi = SVI(model, AutoNormal(model), optax.adam(0.1), Trace_ELBO(num_particles=2))
renamed = []
def reached(point):
    renamed.append(point == "renamed")
    if sys.argv[2] == "die" and sum(renamed) == 3:
        sys.exit(9)
t._store.reached = reached
result = t.run_svi(
    svi, t.KEY, 8, t.Y, path=sys.argv[1], segment=2, progress_bar=False
)
print(result.losses.tolist(), jax.tree.map(lambda x: x.tolist(), result.params))
"""


@pytest.mark.slow
def test_a_process_with_another_hash_seed_continues_bit_for_bit(tmp_path):
    place = os.pathsep.join([str(Path(__file__).parent), *sys.path])

    def run(seed, folder, how):
        return subprocess.run(
            [sys.executable, "-c", SEEDED, str(tmp_path / folder), how],
            env={**os.environ, "PYTHONPATH": place, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
        )

    whole = run("1", "whole", "live")
    assert whole.returncode == 0, whole.stderr
    assert run("2", "run", "die").returncode == 9
    rest = run("3", "run", "live")
    assert rest.stdout == whole.stdout != "", rest.stderr
