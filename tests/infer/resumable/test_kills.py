"""A process killed at any moment: the draws are those of one never killed."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from infer.resumable import job

ROOT = Path(__file__).parents[3]


def start(path, count, moment):
    """Run the job; whether it was killed."""
    place = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, job.__file__, str(path), str(count), moment],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": place},
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def expected(count):
    """The run of NumPyro itself, and nothing of ours."""
    mcmc = job.make(count)
    start = {"x": jax.numpy.ones(3), "v": jax.numpy.zeros(())}
    mcmc.run(jax.random.key(7), extra_fields=("num_steps",), init_params=start)
    return mcmc


def assert_same(mcmc, reference):
    for name, draws in reference.get_samples(group_by_chain=True).items():
        np.testing.assert_array_equal(mcmc.get_samples(True)[name], draws)
    for name, values in reference.get_extra_fields(group_by_chain=True).items():
        np.testing.assert_array_equal(mcmc.get_extra_fields(True)[name], values)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.tree.map(as_data, mcmc.last_state),
        jax.tree.map(as_data, reference.last_state),
    )


def as_data(leaf):
    is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def test_a_process_killed_between_two_writes_of_a_commit_loses_nothing(tmp_path):
    path = tmp_path / "run"
    assert start(path, 20, "65")
    assert_same(job.run(path, 20), expected(20))


@pytest.mark.slow
def test_20_kills_at_random_moments_leave_the_draws_bit_for_bit(tmp_path):
    path, rng = tmp_path / "run", random.Random(0)
    moments = [str(rng.randint(1, 150)) for _ in range(10)]
    moments += [f"{rng.uniform(0.0, 0.8):.3f}" for _ in range(10)]
    rng.shuffle(moments)
    killed = [start(path, 600, moment) for moment in moments]
    assert all(killed)
    assert not start(path, 600, "never")
    assert_same(job.run(path, 600), expected(600))
