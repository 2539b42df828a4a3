"""Scores of 10,000 rows, 2,000 draws and 10 classes, and what users would take instead.

Users would take scoringrules where it has the score, else NumPy and SciPy on whole
arrays. All run in one process and take turns, in single precision as JAX's draws are.
Memory is the most that NumPy allocates beside the arguments.
"""

import argparse
import tracemalloc

import jax
import numpy as np
import scipy.special
import scipy.stats
import scoringrules as sr
from side_by_side import ratio, report, take_turns

from pyrox_ppl import scores

ROWS, DRAWS, CLASSES = 10_000, 2000, 10
KEY = jax.random.key(0)


def problems():
    """Name -> our score and the other one, as functions of nothing."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=ROWS)
    draws = rng.standard_normal((DRAWS, ROWS), dtype=np.float32)
    p = rng.standard_gamma(0.5, (DRAWS, ROWS, CLASSES), dtype=np.float32) + 1e-6
    for block in p:
        block /= block.sum(-1, keepdims=True)
    mean, labels = p.mean(0), rng.integers(0, CLASSES, ROWS)
    vectors = rng.standard_normal((500, 20, CLASSES), dtype=np.float32)
    center = np.zeros((20, CLASSES))

    def entropies():
        total = scipy.stats.entropy(p.mean(0), axis=-1)
        return total - scipy.special.entr(p).sum(-1).mean(0)

    return {
        "crps": (
            lambda: scores.crps(y, draws),
            lambda: sr.crps_ensemble(y, draws, m_axis=0, estimator="pwm"),
        ),
        "log_score": (
            lambda: scores.log_score(draws),
            lambda: scipy.special.logsumexp(draws, axis=0) - np.log(DRAWS),
        ),
        "central_interval": (
            lambda: scores.central_interval(draws)[0],
            lambda: np.quantile(draws, [0.05, 0.95], axis=0)[0],
        ),
        "pit": (
            lambda: scores.pit(y, draws, rng_key=KEY),
            lambda: (draws < y).mean(0),
        ),
        "variance_split": (
            lambda: scores.variance_split(draws, draws**2).epistemic,
            lambda: draws.var(0),
        ),
        "mutual_information": (
            lambda: scores.mutual_information(p),
            entropies,
        ),
        "ranked_probability_score": (
            lambda: scores.ranked_probability_score(labels, mean),
            lambda: sr.rps_score(labels + 1, mean),
        ),
        "energy_score, 500 draws of 20 rows": (
            lambda: scores.energy_score(center, vectors),
            lambda: sr.es_ensemble(center, vectors, 0, -1, estimator="fair"),
        ),
    }


def mebibytes(function):
    """The most that NumPy holds at once during a call."""
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def compare(name, ours, other, rounds):
    """A row: seconds, ratio, memory, difference."""
    seconds = take_turns({"ours": ours, "other": other}, rounds=rounds, warmup=1)
    return {
        "score": name,
        "ours / s": f"{np.median(seconds['ours']):.3g}",
        "ours / other": ratio(seconds, "ours", "other"),
        "ours / MiB": round(mebibytes(ours), 1),
        "other / MiB": round(mebibytes(other), 1),
        "largest difference": f"{np.abs(ours() - other()).max():.1e}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4)
    rounds = parser.parse_args().rounds
    report("scores", [compare(n, *pair, rounds) for n, pair in problems().items()])
