"""Airfoil self-noise by MCLMC from an ensemble, as bde's own benchmark has it.

The rows of scikit-learn's ``train_test_split(test_size=0.2, random_state=0)``, inputs
and target standardised by the training rows; a network with a mean and a scale as its
outputs; five seeds. The ensemble's members start the chains of MCLMC (MILE, Sommer et
al., 2025). The NLL is that of a Gaussian with the predictive mean and standard
deviation, in standardised units.

The data folder holds ``airfoil.csv``, the target in the last column: it comes with the
distribution ``sklearn-contrib-bde``. ``--bde PYTHON`` runs bde beside ours, on the same
machine and with as many steps, by a Python that has it. A seed is kept as soon as it is
measured, so a run that was killed continues when started again.
"""

import argparse
import functools
import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from kept import Kept
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta
from side_by_side import OUTPUT, report
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import pyrox_ppl as px
from pyrox_ppl.infer import (
    MCLMC,
    CompiledMCMC,
    init_params_from_members,
    run_ensemble,
)

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "silu": jax.nn.silu}
PRIORS = {
    "normal": px.priors.normal,
    "fan_in": px.priors.fan_in,
    "hierarchical": lambda std: px.priors.hierarchical(dist.HalfNormal(std)),
}


def read(file, validate):
    """Inputs and target of the rows to learn from, and of those to predict."""
    table = np.loadtxt(file, delimiter=",", skiprows=1)
    parts = train_test_split(
        table[:, :-1], table[:, -1:], test_size=0.2, random_state=0
    )
    if validate:  # rows of the training part take the place of the test rows
        parts = train_test_split(parts[0], parts[2], test_size=validate, random_state=0)
    x, x_test, y, y_test = parts
    scales = StandardScaler().fit(x), StandardScaler().fit(y)
    return [
        (
            jnp.asarray(scales[0].transform(a), jnp.float32),
            jnp.asarray(scales[1].transform(b)[:, 0], jnp.float32),
        )
        for a, b in ((x, y), (x_test, y_test))
    ]


def make_model(prior, std):
    def model(network, x, y=None):
        with px.bayesianize(prior=PRIORS[prior](std)):
            net = px.bind(network, "net")
        mean, raw = net(x.T)
        mean = numpyro.deterministic("mean", mean)
        with numpyro.plate("row", len(x)):
            scale = jax.nn.softplus(raw) + 1e-6
            numpyro.sample("y", dist.Normal(mean, scale), obs=y)

    return model


def score(mean, std, y):
    nll = 0.5 * np.log(2 * np.pi * std**2) + 0.5 * ((y - mean) / std) ** 2
    inside = np.abs(y - mean) < 1.6449 * std
    return {
        "rmse": float(np.sqrt(np.mean((y - mean) ** 2))),
        "nll": float(nll.mean()),
        "coverage": float(inside.mean()),
    }


def gaussian_score(tree, y):
    """The scores of the predictive mean and standard deviation."""
    mean = tree.posterior["mean"].mean(("chain", "draw")).values
    std = np.sqrt(tree.uncertainty["y_total"].values)
    return score(mean, std, np.asarray(y))


class Network(eqx.Module):
    """A multilayer perceptron on all rows at once: they are the last axis.

    A CPU's vectors run along the rows, of which there are more than units of a layer:
    a gradient takes two thirds of the time that ``vmap`` of ``eqx.nn.MLP`` takes.
    """

    layers: list[eqx.nn.Linear]
    activation: Callable = eqx.field(static=True)

    def __call__(self, x):
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer.weight @ x + layer.bias[:, None])
        return last.weight @ x + last.bias[:, None]


def make_network(inputs, width, depth, activation, key):
    """A network as its initialiser draws it: the outputs are a mean and a scale."""
    sizes = itertools.pairwise([inputs, *[width] * depth, 2])
    keys = jax.random.split(key, depth + 1)
    layers = [eqx.nn.Linear(*pair, key=k) for pair, k in zip(sizes, keys, strict=True)]
    return Network(layers, ACTIVATIONS[activation])


class Fitter:
    """The programs of all seeds, compiled once."""

    def __init__(self, args):
        self.args, self.model = args, make_model(args.prior, args.prior_std)
        self.guide = AutoDelta(self.model)
        rate = numpyro.optim.Adam(args.rate)
        self.svi = SVI(self.model, self.guide, rate, Trace_ELBO())
        self.chains = CompiledMCMC(
            MCLMC(self.model, energy_variance=args.energy_variance),
            num_warmup=args.warmup,
            num_samples=args.samples,
            thinning=max(args.samples // args.draws, 1),
            num_chains=args.members,
            chain_method=args.chain_method,
            progress_bar=False,
        )

    def measure(self, seed, train, test):
        """The scores of the ensemble and of the chains that start at its members."""
        begin, cpu = time.perf_counter(), time.process_time()
        args = self.args
        sizes = train[0].shape[1], args.width, args.depth
        make = functools.partial(make_network, *sizes, args.activation)
        key, network_key, chain_key = jax.random.split(jax.random.key(seed), 3)
        network = make(network_key)
        data = network, *train
        fit = run_ensemble(
            *(self.svi, key, args.members, args.steps, *data),
            make=make,
            progress_bar=False,
        )
        members = self.guide.median(fit.params)
        start = init_params_from_members(self.model, members, *data)
        self.chains.run(chain_key, *data, init_params=start)
        jax.block_until_ready(self.chains.get_samples())
        costs = {
            "seconds": time.perf_counter() - begin,
            "CPU seconds": time.process_time() - cpu,
        }
        ensemble = px.to_datatree(fit, network, *test, guide=self.guide)
        tree = px.to_datatree(self.chains, network, *test)
        gradients = tree.attrs["gradient_evaluations"] + fit.gradient_evaluations
        return gaussian_score(tree, test[1]) | {
            "ensemble": gaussian_score(ensemble, test[1]),
            "diverging": int(tree.sample_stats["diverging"].sum()),
            "gradients": gradients,
            **costs,
        }


def run_bde(python, args, seed):
    """The scores of bde at as many steps, or None where it is not installed."""
    peer = Path(__file__).with_name("airfoil_bde.py")
    named = ("members", "width", "depth", "steps", "warmup", "samples", "draws")
    settings = {name: getattr(args, name) for name in named} | {"seed": seed}
    done = subprocess.run(
        [python, peer, args.data / "airfoil.csv", json.dumps(settings)],
        # bde spreads its members over the devices: one for each core.
        env=os.environ
        | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={os.cpu_count()}"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    if "skipped" in found:
        print(f"bde: skipped: {found['skipped']}")
        return None
    mean, std, y = (np.array(found[name]) for name in ("mean", "std", "y"))
    costs = {name: found[name] for name in ("gradients", *TIMES)}
    return score(mean, std, y) | costs


def main(args):
    kept = Kept(args.kept)
    train, test = read(args.data / "airfoil.csv", args.validate)
    fitter = Fitter(args)
    settings = {n: v for n, v in sorted(vars(args).items()) if n not in NOT_SETTINGS}
    called = "_".join(f"{name}={value}" for name, value in settings.items())
    measures = {"ours": functools.partial(fitter.measure, train=train, test=test)}
    if args.bde:
        measures["bde"] = functools.partial(run_bde, args.bde, args)
    found = {library: [] for library in measures}
    for seed, (library, measure) in itertools.product(args.seeds, measures.items()):
        name = f"{library}_{called}_{seed}"
        row = kept.measure(name, functools.partial(measure, seed))
        if row is not None:
            found[library].append(row)
            print(library, seed, row, flush=True)
    report("airfoil", [summary(*pair) | settings for pair in found.items() if pair[1]])


def summary(library, rows):
    """The mean over seeds, with its standard deviation."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    row = {"library": library, "seeds": len(rows)}
    for name in ("rmse", "nll", "coverage", *TIMES):
        values = np.array(columns[name])
        row[name] = f"{values.mean():.4f} +- {values.std():.4f}"
    if "ensemble" in columns:
        for name in ("rmse", "nll"):
            values = [scores[name] for scores in columns["ensemble"]]
            row[f"ensemble's {name}"] = f"{np.mean(values):.4f}"
    return row | {"gradients": rows[0]["gradients"]}


TIMES = ("seconds", "CPU seconds")  # of the fit, imports and predictions left out
# What the scores do not depend on.
NOT_SETTINGS = ("data", "seeds", "kept", "bde")


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", nargs="?", type=Path, help="the data folder")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2000, help="the ensemble's")
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--warmup", type=int, default=12_000)
    parser.add_argument("--samples", type=int, default=24_500)
    parser.add_argument("--draws", type=int, default=100, help="kept for each member")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--activation", choices=list(ACTIVATIONS), default="silu")
    parser.add_argument("--prior", choices=list(PRIORS), default="normal")
    parser.add_argument("--prior-std", type=float, default=1.0)
    parser.add_argument("--energy-variance", nargs=2, type=float, default=[0.5, 0.1])
    parser.add_argument("--chain-method", default="auto")
    parser.add_argument(
        "--validate", type=float, default=0.0, help="a share of the training rows"
    )
    parser.add_argument("--kept", type=Path, default=OUTPUT / "airfoil")
    parser.add_argument("--bde", help="a Python that has bde, to run beside")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    arguments = parse()
    if arguments.data is None:
        print(f"skipped: give the data folder.\n\n{__doc__}")
    else:
        main(arguments)
