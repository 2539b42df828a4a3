"""Ten million rows on disk, read in minibatches: the process's peak memory."""

import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from side_by_side import report

import pyrox_ppl as px
from pyrox_ppl.infer import MinibatchLoader, run_minibatches

ROWS, COLUMNS = 10_000_000, 64  # 2.4 GiB in float32
SHAPES = {"x": (ROWS, COLUMNS), "y": (ROWS,)}
BATCH = 20_000


def write(folder: Path) -> None:
    """Rows of standard normal features, and a response that is linear in the first."""
    files = {
        name: np.memmap(folder / name, np.float32, "w+", shape=shape)
        for name, shape in SHAPES.items()
    }
    rng = np.random.default_rng(0)
    for start in range(0, ROWS, 250_000):
        part = slice(start, start + 250_000)
        block = rng.standard_normal((250_000, COLUMNS), np.float32)
        files["x"][part], files["y"][part] = block, block[:, 0]
        for file in files.values():
            file.flush()


def peak_gibibytes() -> float:
    """The largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main() -> None:
    net = eqx.nn.MLP(COLUMNS, "scalar", 16, 1, key=jax.random.key(0))
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        # Another process writes, so that the peak is that of the fit.
        x, y = _written(Path(folder))
        loader = MinibatchLoader(
            (x, y),
            BATCH,
            rng_key=jax.random.key(1),
            block_size=1000,
            blocks_at_once=100,
        )

        def model(x, y):
            with px.bayesianize():
                mean = jax.vmap(px.bind(net, "net"))(x)
            with numpyro.plate("row", ROWS, subsample_size=len(x)):
                numpyro.sample("y", dist.Normal(mean, 0.5), obs=y)

        optimiser = numpyro.optim.Adam(1e-2)
        svi = SVI(model, AutoNormal(model, init_scale=0.01), optimiser, Trace_ELBO())
        before, start = peak_gibibytes(), time.perf_counter()
        fit = run_minibatches(svi, jax.random.key(2), loader, 1, progress_bar=False)
        row = {
            "rows": ROWS,
            "GiB on disk": round((x.nbytes + y.nbytes) / 2**30, 2),
            "GiB peak before the fit": round(before, 2),
            "GiB peak": round(peak_gibibytes(), 2),
            "steps": len(fit.losses),
            "first and last loss per row": [
                round(float(fit.losses[i]) / ROWS, 3) for i in (0, -1)
            ],
            "seconds": round(time.perf_counter() - start),
        }
    report("minibatch_memory", [row])
    if row["GiB peak"] >= 2:
        raise SystemExit("the peak is not under 2 GiB")


def _written(folder: Path) -> tuple[np.memmap, np.memmap]:
    process = multiprocessing.get_context("spawn").Process(target=write, args=(folder,))
    process.start()
    process.join()
    x, y = (np.memmap(folder / n, np.float32, "r", shape=s) for n, s in SHAPES.items())
    return x, y


if __name__ == "__main__":
    main()
