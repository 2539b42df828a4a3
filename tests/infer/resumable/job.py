"""A long run in a process of its own, which kills itself at a given moment.

``python job.py PATH COUNT MOMENT`` makes COUNT draws, a commit for each. It dies at the
MOMENT-th place of its commits (a whole number), or MOMENT seconds after the first one
(a number with a point); ``never`` runs to the end.
"""

import os
import signal
import sys
import threading

import jax
import jax.numpy as jnp
from numpyro.infer import MCMC, NUTS

from pyrox_ppl.infer import run_mcmc
from pyrox_ppl.infer.resumable import _store


def potential(z):
    funnel = 0.5 * jnp.sum(z["x"] ** 2) * jnp.exp(-z["v"]) + 1.5 * z["v"]
    return funnel + z["v"] ** 2 / 18


def make(count):
    kernel = NUTS(potential_fn=potential)
    return MCMC(kernel, num_warmup=50, num_samples=count, progress_bar=False)


def run(path, count):
    start = {"x": jnp.ones(3), "v": jnp.zeros(())}
    return run_mcmc(
        make(count),
        jax.random.key(7),
        path=path,
        segment=1,
        extra_fields=("num_steps",),
        init_params=start,
    )


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment):
    """Replace the place that does nothing by one that counts and kills."""
    count = 0

    def reached(point):
        nonlocal count
        count += 1
        if "." in moment and count == 1:
            threading.Timer(float(moment), kill).start()
        elif moment == str(count):
            kill()

    _store.reached = reached


if __name__ == "__main__":
    _, path, count, moment = sys.argv
    if moment != "never":
        arm(moment)
    run(path, int(count))
