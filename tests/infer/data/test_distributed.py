"""Two processes on one machine: the same results as one, and clear refusals."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from infer.data import distributed_job as job

ROOT = Path(__file__).parents[3]
LIMIT = 300  # seconds


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(port, process, folder, seed):
    place = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, job.__file__, str(port), str(process), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": place, "PYTHONHASHSEED": str(seed)},
    )


def together(folder, seeds):
    """Run a process for each seed; what each was told."""
    port, processes = free_port(), []
    try:
        for number, seed in enumerate(seeds):
            processes.append(start(port, number, folder, seed))
        for process in processes:
            output, _ = process.communicate(timeout=LIMIT)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [json.loads((folder / f"{n}.json").read_text()) for n in range(len(seeds))]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes found, and what it was told."""
    folder = tmp_path_factory.mktemp("distributed")
    told = together(folder, (0, 0))
    return [(dict(np.load(folder / f"{n}.npz")), said) for n, said in enumerate(told)]


@pytest.mark.slow
def test_two_processes_infer_what_one_does(two):
    expected = job.infer(*job.data())
    for found, said in two:
        assert said["processes"] == 2
        assert not said["here"]
        assert said["rows"] == [job.ROWS // 2]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(
                found[name], value, rtol=1e-4, atol=1e-4, err_msg=name
            )
    for name, value in two[0][0].items():
        np.testing.assert_array_equal(two[1][0][name], value)
    assert np.all(np.diff(expected["svi losses"]) != 0)
    for group in ("mcmc", "compiled", "flat"):
        draws = expected[f"{group} net.layers.0.weight"]
        assert np.abs(np.diff(draws, axis=0)).max() > 1e-2
        assert expected[f"{group} mean"].shape[1:] == (job.ROWS, 1)


@pytest.mark.slow
def test_what_two_processes_cannot_do_is_reported(two):
    for _, said in two:
        for name in ("run_mcmc", "run_svi", "run_minibatches"):
            assert said[name].startswith(f"ValueError: {name}")
            assert "works in one process, and jax.process_count() is 2" in said[name]
        assert "pass such arrays as arguments" in said["MCMC"]
        assert "laid out over several devices" in said["parallel"]


@pytest.mark.slow
def test_processes_that_order_names_differently_are_refused(tmp_path):
    for said in together(tmp_path, (1, 2)):
        assert "PYTHONHASHSEED to the same number" in said["shard_data"]
