"""Data on several devices: the same results, and each shard computed where it lies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from pyrox_ppl.infer import shard_data

HERE = Path(__file__).parent


@pytest.mark.parametrize("devices", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_sharded_inference_is_the_same_and_is_sharded(devices):
    place = os.pathsep.join(
        [str(HERE.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    more = f"--xla_force_host_platform_device_count={devices}"
    out = subprocess.run(
        [sys.executable, str(HERE / "sharded_job.py")],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": place,
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {more}",
        },
    )
    assert out.returncode == 0, out.stderr
    found = json.loads(out.stdout)
    assert found["devices"] == devices
    for program in ("svi", "potential", "nuts", "compiled_nuts"):
        # No array has the rows of all data, the network's product those of a shard.
        assert found[program]["whole"] == 0
        assert found[program]["dot_shard"] >= 1
        assert found[program]["all_reduce"] >= 1
    assert found["svi_difference"] < 1e-4
    assert found["loss_difference"] < 1e-5
    assert found["potential_difference"] < 1e-5
    assert found["svi"]["dot_shard"] == found["potential"]["dot_shard"] == 1
    assert found["nuts_difference"] < 1e-4 < found["nuts_moved"]
    assert found["compiled_nuts_difference"] < 1e-4
    assert found["svi_losses_difference"] < 1e-5


def mesh(kind=jax.sharding.AxisType.Auto):
    return jax.make_mesh((1,), ("data",), axis_types=(kind,))


def test_the_rows_keep_their_values_and_none_stays_none():
    x = np.arange(6.0, dtype=np.float32).reshape(3, 2)
    placed, nothing = shard_data(mesh(), x, None)
    np.testing.assert_array_equal(placed, x)
    assert nothing is None
    assert placed.sharding.spec == jax.sharding.PartitionSpec("data")


def test_what_cannot_be_sharded_is_reported():
    with pytest.raises(ValueError, match="none is named 'rows'"):
        shard_data(mesh(), np.ones(3), axis="rows")
    with pytest.raises(ValueError, match=r"shape \(\) cannot be spread over 1 devices"):
        shard_data(mesh(), np.ones(()))
    with pytest.raises(ValueError, match="axis_types"):
        shard_data(mesh(jax.sharding.AxisType.Explicit), np.ones(3))
