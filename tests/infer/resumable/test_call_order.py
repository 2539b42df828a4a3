"""What a user is shown: the right call after a wrong one, the line of a warning.

In processes of their own, where annotations are not checked, as a user runs them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


ELSEWHERE = """
import sys, warnings, jax, jax.numpy as jnp, numpyro
from numpyro.infer import MCMC, NUTS
from pyrox_ppl.infer import run_mcmc

def run(potential):
    mcmc = MCMC(NUTS(potential_fn=potential), num_warmup=1, num_samples=1)
    options = {"allow_other_environment": True, "init_params": jnp.ones(2)}
    run_mcmc(mcmc, jax.random.key(0), path=sys.argv[1], **options)

run(lambda z: jnp.sum(z**2))
numpyro.__version__ = "0.0.1"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    run(lambda z: 2.0 * jnp.sum(z**2))
print([(warning.filename, warning.lineno) for warning in caught])
"""


def run_python(*code):
    return subprocess.run(
        [sys.executable, "-c", *code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.slow
def test_a_warning_names_the_line_of_the_users(tmp_path):
    assert run_python(ELSEWHERE, str(tmp_path / "run")) == "[('<string>', 9)]\n"


def test_a_call_in_the_wrong_order_says_what_to_do():
    out = run_python(CALLS)
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
