"""The posteriors of benchmarks/uci.py: a split's rows, the model, and the methods."""

import functools
import time
import warnings
from pathlib import Path

import arviz_stats
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import xarray as xr
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta

import pyrox_ppl as px
from pyrox_ppl.infer import (
    MCLMC,
    CompiledMCMC,
    FlatNUTS,
    init_params_from_members,
    run_ensemble,
)

SETS = {
    "yacht": "yacht",
    "energy": "energy",
    "boston": "bostonHousing",
    "concrete": "concrete",
    "wine": "wine-quality-red",
}
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}
PRIORS = {
    "fan_in": px.priors.fan_in(),
    "hierarchical": px.priors.hierarchical(dist.HalfNormal(3.0)),
}
# The tails of "finite_student" are lighter, so that its variance is finite: without a
# bound, a network that knows a row by heart can have a spike there and miss the others.
LIKELIHOODS = ("normal", "student", "finite_student", "input_dependent")
METHODS = ("nuts", "mclmc", "ensemble")
WIDTH, MEMBERS, STEPS = 50, 10, 1000
COSTS = ("seconds", "gradient_evaluations")
# ArviZ counts draws in the first of them.
LOO_GROUPS = ("posterior", "log_likelihood")


class Split:
    """The rows of a split, inputs and target standardised by the training rows."""

    def __init__(self, folder, name, number, validate=0.0):
        home = folder_of(folder, name)
        everything = folder_of(folder, name.removesuffix("-gap"))
        table = np.loadtxt(everything / "data.txt")
        columns, target = (
            np.loadtxt(everything / f"index_{part}.txt", dtype=int, ndmin=1)
            for part in ("features", "target")
        )
        parts = [
            np.loadtxt(home / f"index_{part}_{number}.txt", dtype=int)
            for part in ("train", "test")
        ]
        if validate:  # rows of the training part take the place of the test rows
            order = np.random.default_rng(number).permutation(parts[0])
            parts = np.split(order, [round((1 - validate) * len(order))])
        x, y = table[:, columns], table[:, target[0]]
        seen = parts[0]
        spread = x[seen].std(0)
        x = (x - x[seen].mean(0)) / np.where(spread > 0, spread, 1.0)
        self.unit = float(y[seen].std())
        y = (y - y[seen].mean()) / self.unit
        self.rows = [
            (jnp.asarray(x[part], jnp.float32), jnp.asarray(y[part], jnp.float32))
            for part in parts
        ]
        self.train, self.test = self.rows


def folder_of(folder, name):
    """Where the indices of a set are, or those of its gap splits."""
    place = "uci-gap" if name.endswith("-gap") else "uci"
    name = name.removesuffix("-gap")
    return Path(folder) / place / SETS.get(name, name)


def count_splits(folder, name):
    return len(list(folder_of(folder, name).glob("index_train_*.txt")))


def make_model(prior, likelihood):
    """The model; the network is an argument, so that new starts compile nothing."""

    def model(network, x, y=None):
        with px.bayesianize(prior=PRIORS[prior]):
            net = px.bind(network, "net")
        out = jax.vmap(net)(x)
        mean = numpyro.deterministic("mean", out[:, 0])
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        if likelihood == "input_dependent":
            scale = scale * jnp.exp(out[:, 1])
        law = dist.Normal(mean, scale)
        if likelihood in ("student", "finite_student"):
            df = numpyro.sample("df", dist.Gamma(2.0, 0.1))
            df = df + 2.0 if likelihood == "finite_student" else df
            law = dist.StudentT(df, mean, scale)
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", law, obs=y)

    return model


def make_network(inputs, outputs, width, activation, key):
    """A network as its initialiser draws it."""
    how = {"activation": ACTIVATIONS[activation], "key": key}
    return eqx.nn.MLP(inputs, outputs, width, 1, **how)


class Fitter:
    """The methods on one model; a program is compiled once per shape of the data."""

    def __init__(self, prior, likelihood, *, warmup, draws, depth):
        self.outputs = 2 if likelihood == "input_dependent" else 1
        self.model = make_model(prior, likelihood)
        run = functools.partial(CompiledMCMC, progress_bar=False)
        nuts = FlatNUTS(self.model, max_tree_depth=depth)
        self.chain = run(nuts, num_warmup=warmup, num_samples=draws)
        self.chains = run(
            MCLMC(self.model),
            num_warmup=20 * warmup,
            num_samples=20 * draws,
            thinning=max(20 * draws // 100, 1),
            num_chains=MEMBERS,
            chain_method="vectorized",
        )
        self.guide = AutoDelta(self.model)
        rate = numpyro.optim.Adam(0.01)
        self.svi = SVI(self.model, self.guide, rate, Trace_ELBO())

    def fit(self, method, activation, key, split):
        """A tree of the posterior, evaluated at the training and the test rows."""
        x, y = split.train
        everywhere = [jnp.concatenate(pair) for pair in zip(*split.rows, strict=True)]

        make = functools.partial(
            make_network, x.shape[1], self.outputs, WIDTH, activation
        )
        network_key, key, chain_key = jax.random.split(key, 3)
        network = make(network_key)
        data = network, x, y
        if method == "nuts":
            self.chain.run(chain_key, *data)
            return px.to_datatree(self.chain, network, *everywhere)
        fit = run_ensemble(
            self.svi, key, MEMBERS, STEPS, *data, make=make, progress_bar=False
        )
        members = self.guide.median(fit.params)
        spent = np.array([fit.seconds, fit.gradient_evaluations])
        if method == "ensemble":
            # Each member predicts many times, for the quantiles of its noise.
            draws = {n: np.repeat(v, 100, axis=0) for n, v in members.items()}
            tree = px.to_datatree(draws, network, *everywhere, model=self.model)
        else:
            start = init_params_from_members(self.model, members, *data)
            self.chains.run(chain_key, *data, init_params=start)
            tree = px.to_datatree(self.chains, network, *everywhere)
            spent += [tree.attrs[name] for name in COSTS]
        tree.attrs |= dict(zip(COSTS, spent.tolist(), strict=True))
        return tree


def leave_one_out(log_likelihood):
    """The log score of each row by the other rows, and the share of doubtful ones."""
    groups = {name: xr.Dataset({"y": log_likelihood}) for name in LOO_GROUPS}
    with warnings.catch_warnings():
        # The share of rows that it warns of is part of the result.
        warnings.filterwarnings("ignore", "Estimated shape parameter")
        loo = arviz_stats.loo(xr.DataTree.from_dict(groups), pointwise=True)
    share = float((loo.pareto_k > 0.7).mean())
    return np.asarray(loo.elpd_i), share


def measure(fitter, method, activation, key, split):
    """What is kept of a posterior: its scores of each row."""
    start = time.process_time()
    tree = fitter.fit(method, activation, key, split)
    seen = len(split.train[1])
    likelihood = tree.log_likelihood["y"]
    train, test = likelihood[..., :seen], likelihood[..., seen:]
    kept = {}
    if method != "ensemble":
        kept["loo"], doubtful = leave_one_out(train)
        kept |= {"share of k > 0.7": doubtful}
    predicted = np.concatenate(tree.posterior_predictive["y"].values)[:, seen:]
    y = np.asarray(split.test[1])
    kept |= {
        "log_score": px.scores.log_score(np.concatenate(test.values)),
        "error": tree.posterior["mean"].mean(("chain", "draw")).values[seen:] - y,
        "pit": px.scores.pit(y, predicted, rng_key=key),
    }
    kept = {
        name: np.round(value, 5).tolist() if isinstance(value, np.ndarray) else value
        for name, value in kept.items()
    }
    cost = {name: tree.attrs[name] for name in COSTS}
    stats = tree.sample_stats if "sample_stats" in tree else {}
    if "diverging" in stats:
        cost["diverging"] = int(stats["diverging"].sum())
    cost["CPU seconds"] = time.process_time() - start
    return kept | cost | {"unit": split.unit}
