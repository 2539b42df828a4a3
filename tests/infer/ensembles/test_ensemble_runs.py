"""run_ensemble: a killed run continues, devices share members, bad input is refused."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from infer.ensembles.members import (
    LOADER,
    MODEL,
    NET,
    X,
    Y,
    make,
    run,
    svi_of,
)
from numpyro.infer.autoguide import AutoDelta, AutoNormal

from pyrox_ppl import infer
from pyrox_ppl.infer.resumable import _loop, _store

pytestmark = pytest.mark.rank_promotion
ROOT = Path(__file__).parents[3]


def job(path, kind="whole", svi=None):
    """A run that commits every third step."""
    svi = svi_of(AutoNormal(MODEL)) if svi is None else svi
    data = {"whole": (X,), "batches": (LOADER,)}[kind]
    more = {"whole": {"y": Y}, "batches": {"size": 12}}[kind]
    return run(svi, *data, make=make, path=path, segment=3, **more)


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one[:3]), jax.tree.leaves(other[:3]), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "kind", ["whole", pytest.param("batches", marks=pytest.mark.slow)]
)
def test_a_killed_run_continues_bit_for_bit(kind, tmp_path, monkeypatch):
    svi, commit = svi_of(AutoNormal(MODEL)), _loop._OnDisk.commit
    states, commits = [], []

    def keep(self, state, *rest):
        states.append(commit(self, state, *rest))
        return states[-1]

    with monkeypatch.context() as patch:
        patch.setattr(_loop._OnDisk, "commit", keep)
        reference = job(tmp_path / "whole", kind, svi)
    # A state gives its memory to the next.
    gone = [jax.tree.leaves(state.optim_state)[1].is_deleted() for state in states]
    assert gone == [True] * (len(gone) - 1) + [False]

    def reached(point):
        commits.append(point)
        if commits.count("manifest") == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(_store, "reached", reached)
        with pytest.raises(Killed):
            job(tmp_path / "run", kind, svi)
    continued = job(tmp_path / "run", kind)
    assert_same(continued, reference)
    assert_same(job(tmp_path / "run", kind, svi), reference)
    with pytest.raises(ValueError, match="num_members was 3 and is 4"):
        run(svi, make=make, path=tmp_path / "whole", segment=3, members=4)


@pytest.mark.slow
def test_another_process_continues_bit_for_bit(tmp_path):
    reference = job(tmp_path / "whole")
    code = (
        "from infer.ensembles.test_ensemble_runs import *\n"
        "from pyrox_ppl.infer.resumable import _store\n"
        "count = []\n"
        "def reached(point):\n"
        "    count.append(point)\n"
        "    if count.count('renamed') == 3: os._exit(7)\n"
        "_store.reached = reached\n"
        f"job({str(tmp_path / 'run')!r})\n"
    )
    place = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": place},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7, done.stderr
    assert_same(job(tmp_path / "run"), reference)


@pytest.mark.slow
def test_two_devices_take_members_each():
    code = (
        "import numpyro; numpyro.set_host_device_count(2)\n"
        "from infer.ensembles.test_ensemble_runs import *\n"
        "assert jax.device_count() == 2\n"
        "svi = svi_of(AutoNormal(MODEL))\n"
        "fit = run(svi, make=make, members=4)\n"
        "devices = fit.params['net.layers.0.weight_auto_loc'].sharding.device_set\n"
        "assert len(devices) == 2, devices\n"
        "few = run(svi, make=make, members=4, batch_size=1)\n"
        "np.testing.assert_allclose(few.losses, fit.losses, rtol=1e-4)\n"
        "print(fit.losses.tolist())\n"
    )
    place = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": place},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    losses = np.array(ast.literal_eval(done.stdout))
    here = run(svi_of(AutoNormal(MODEL)), make=make, members=4)
    np.testing.assert_allclose(losses, here.losses, rtol=1e-4)


def wider(key):
    return eqx.nn.MLP(1, 1, 5, 1, key=key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": 1}, "at least two members"),
        ({"steps": 0}, "num_steps must be a positive number"),
        ({"batch_size": 0}, "batch_size must be a positive number"),
        ({"make": wider}, r"shape \(4, 1\); the MLP that it returned has \(5, 1\)"),
        ({"make": lambda key: NET}, "start at the same point"),
        ({"make": lambda key: {"nett": make(key)}}, r"returned the modules \['nett'\]"),
        ({"make": lambda key: make(key).layers[0]}, "has none of that name"),
        ({"init_params": {"a": jnp.zeros(2)}}, "leading axis of the 3 members"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        run(svi_of(AutoDelta(MODEL)), **({"make": make} | change))


@pytest.mark.wrong_types
def test_more_bad_input():
    with pytest.raises(TypeError, match="rng_key must be a PRNG key"):
        infer.run_ensemble(svi_of(AutoDelta(MODEL)), 3, 3, 3, X, y=Y)

    def plain(x, y=None):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(w * x[:, 0], 1.0).to_event(1), obs=y)

    with pytest.raises(ValueError, match="reads no parameter that is a site"):
        run(svi_of(AutoDelta(plain), plain), make=make)

    def discrete(x, y=None):
        numpyro.sample("k", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(x[:, 0], 1.0).to_event(1), obs=y)

    error = pytest.raises(ValueError, match="cannot handle discrete sample site 'k'")
    with pytest.warns(FutureWarning, match="enumerate"), error:
        run(svi_of(AutoDelta(discrete), discrete))

    def impossible(x, y=None):
        numpyro.sample("w", dist.Normal(0.0, 1.0))
        numpyro.factor("never", -jnp.inf)

    with pytest.raises(RuntimeError, match=r"members \[0, 1, 2\] start where"):
        run(svi_of(AutoDelta(impossible), impossible))
