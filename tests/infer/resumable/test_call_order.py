"""Arguments in the wrong order: an error that shows the right call.

In a process of its own, where annotations are not checked, as a user runs it.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
CALLS = """
import jax, numpy as np
from pyrox_ppl.infer import MinibatchLoader, run_mcmc, run_minibatches, run_svi

key, x = jax.random.key(0), np.ones(3)
loader = MinibatchLoader((x,), 2, rng_key=key)
for call in (
    lambda: run_mcmc(None, "run", key),
    lambda: run_mcmc(None, "run", key, path="run"),
    lambda: run_svi(None, 100, key, x, path="run"),
    lambda: run_minibatches(None, loader, key, 3),
    lambda: MinibatchLoader((x,), 2, rng_key=2),
    lambda: MinibatchLoader((x,), key, rng_key=key),
):
    try:
        call()
    except (TypeError, ValueError) as error:
        print(type(error).__name__, *str(error).split())
"""


def test_a_call_in_the_wrong_order_says_what_to_do():
    out = subprocess.run(
        [sys.executable, "-c", CALLS],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    path, mcmc, svi, minibatches, loader, size = out.splitlines()
    assert path.endswith("missing 1 required keyword-only argument: 'path'")
    assert mcmc.endswith(
        "such as jax.random.key(0), and is 'run' (str): call "
        "run_mcmc(mcmc, rng_key, *args, path=...)."
    )
    assert svi.endswith("call run_svi(svi, rng_key, num_steps, *args, path=...).")
    assert "call run_minibatches(svi, rng_key, loader, num_epochs" in minibatches
    assert loader.endswith("call MinibatchLoader(arrays, batch_size, rng_key=...).")
    assert size.startswith("ValueError batch_size must be a positive integer")
    for line in (path, mcmc, svi, minibatches, loader):
        assert line.startswith("TypeError")
