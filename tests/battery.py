"""Small models of every kind, each with its log likelihood computed by hand."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from models import make_field, make_mlp
from numpyro import handlers
from scipy import stats

import pyrox_ppl as px

N, GROUPS = 6, 3
X = jnp.linspace(-1.0, 1.0, 2 * N).reshape(N, 2)
Y = jnp.tanh(X[:, 0]) + 0.1
NESTED = jnp.linspace(-1.0, 1.0, GROUPS * N).reshape(GROUPS, N)
COUNTS = jnp.array([0, 1, 1, 3, 2, 0])
MASK = np.array([True, False, True, True, False, True])
MLP, FIELD = make_mlp(), make_field(depth=2)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model, its arguments, and what is expected of its tree.

    Attributes:
        model: The NumPyro model.
        kwargs: Its arguments.
        by_hand: The draw of every site -> the log likelihood of every observation.
        dims: Of the log likelihoods, after chain and draw.
        latent: The names of the latent variables in the tree.
        subsampled: Whether a plate takes minibatches, so that NUTS cannot run it.
        guide: A guide written by hand, if there is one.
    """

    model: Callable
    kwargs: dict[str, Any]
    by_hand: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
    dims: dict[str, tuple[str, ...]]
    latent: set[str]
    subsampled: bool = False
    guide: Callable | None = None


def nested(x, y=None):
    with numpyro.plate("group", GROUPS, dim=-2):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", N, dim=-1):
            numpyro.sample("y", dist.Normal(level + x[:, 0][None], 0.5), obs=y)


def nested_by_hand(draw):
    mean = draw["level"] + np.asarray(X)[None, :, 0]
    return {"y": stats.norm.logpdf(NESTED, mean, 0.5)}


def subsampled(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", N, subsample_size=2) as rows:
        seen = None if y is None else y[rows]
        numpyro.sample("y", dist.Normal(slope * x[rows, 0], 0.5), obs=seen)


def subsampled_by_hand(draw):
    return {"y": stats.norm.logpdf(Y, draw["slope"] * np.asarray(X)[:, 0], 0.5)}


def several(x, y=None, counts=None):
    rate = numpyro.sample("rate", dist.LogNormal(0.0, 0.5))
    numpyro.deterministic("double", 2 * rate)
    numpyro.factor("regulariser", -0.1 * rate)
    with numpyro.plate("row", N):
        numpyro.sample("y", dist.Normal(rate * x[:, 0], 0.5), obs=y)
        numpyro.sample("counts", dist.Poisson(rate), obs=counts)


def several_by_hand(draw):
    return {
        "y": stats.norm.logpdf(Y, draw["rate"] * np.asarray(X)[:, 0], 0.5),
        "counts": stats.poisson.logpmf(COUNTS, draw["rate"]),
    }


def masked(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", N), handlers.mask(mask=jnp.asarray(MASK)):
        numpyro.sample("y", dist.Normal(slope * x[:, 0], 0.5), obs=y)


def masked_by_hand(draw):
    seen = np.asarray(Y)[MASK]
    return {"y": stats.norm.logpdf(seen, draw["slope"] * np.asarray(X)[MASK, 0], 0.5)}


def with_param(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    offset = numpyro.param("offset", jnp.array(5.0))
    with numpyro.plate("row", N):
        numpyro.sample("y", dist.Normal(slope * x[:, 0] + offset, 0.5), obs=y)


def with_param_by_hand(draw):
    mean = draw["slope"] * np.asarray(X)[:, 0] + draw.get("offset", 5.0)
    return {"y": stats.norm.logpdf(Y, mean, 0.5)}


def with_param_guide(x, y=None):
    loc = numpyro.param("loc", jnp.array(0.1))
    scale = numpyro.param("scale", jnp.array(0.3), constraint=dist.constraints.positive)
    numpyro.sample("slope", dist.Normal(loc, scale))


def scoped(x, y=None):
    with handlers.scope(prefix="left", divider="/"), px.bayesianize(prior_std=0.5):
        net = px.bind(MLP, "net")
    with numpyro.plate("row", N):
        numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], 0.5), obs=y)


def scoped_by_hand(draw):
    hidden = np.asarray(X)
    for i in range(2):
        weight, bias = (draw[f"left/net.layers.{i}.{k}"] for k in ("weight", "bias"))
        hidden = hidden @ weight.T + bias
        hidden = np.maximum(hidden, 0.0) if i == 0 else hidden
    return {"y": stats.norm.logpdf(Y, hidden[:, 0], 0.5)}


def conditioned(x, y=None):
    with px.bayesianize(prior_std=0.5):
        mean = FIELD(x, jnp.array([0.5, 1.0]))
    numpyro.sample("y", dist.Normal(mean[:, 0], 0.5).to_event(1), obs=y)


def conditioned_by_hand(draw):
    first, last = FIELD.inner.layers
    name = "conditioned_inr.conditioners.0.generator"
    raw = draw[f"{name}.weight"] @ np.array([0.5, 1.0]) + draw[f"{name}.bias"]
    h = np.sin(30.0 * (np.asarray(X) @ np.asarray(first.weight).T + first.bias))
    h = (1 + np.tanh(raw[4:])) * h + raw[:4]
    mean = h @ np.asarray(last.weight).T + np.asarray(last.bias)
    return {"y": stats.norm.logpdf(Y, mean[:, 0], 0.5).sum()}


def amortised(x, y=None):
    with numpyro.plate("row", N):
        local = numpyro.sample("local", dist.Normal(0.0, 1.0).expand((2,)).to_event(1))
        mean = jax.vmap(MLP)(local)[:, 0] + x[:, 0]
        numpyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def amortised_by_hand(draw):
    mean = jax.vmap(MLP)(jnp.asarray(draw["local"]))[:, 0] + X[:, 0]
    return {"y": stats.norm.logpdf(Y, mean, 0.5)}


def amortised_guide(x, y=None):
    encoder = eqx.nn.Linear(1, 2, key=jax.random.key(0))
    weight = numpyro.param("encoder", encoder.weight)
    with numpyro.plate("row", N):
        loc = y[:, None] * weight[:, 0][None]
        numpyro.sample("local", dist.Normal(loc, 0.3).to_event(1))


ROW = {"y": ("row",)}
FIELD_NAME = "conditioned_inr.conditioners.0.generator"
BATTERY = {
    "nested": Model(
        nested,
        {"x": X, "y": NESTED},
        nested_by_hand,
        {"y": ("group", "row")},
        {"level"},
    ),
    "subsampled": Model(
        subsampled,
        {"x": X, "y": Y},
        subsampled_by_hand,
        ROW,
        {"slope"},
        subsampled=True,
    ),
    "several": Model(
        several,
        {"x": X, "y": Y, "counts": COUNTS},
        several_by_hand,
        {"y": ("row",), "counts": ("row",)},
        {"rate"},
    ),
    "masked": Model(
        masked, {"x": X, "y": Y}, masked_by_hand, {"y": ("y_entry",)}, {"slope"}
    ),
    "param": Model(
        with_param,
        {"x": X, "y": Y},
        with_param_by_hand,
        ROW,
        {"slope"},
        guide=with_param_guide,
    ),
    "scoped": Model(
        scoped,
        {"x": X, "y": Y},
        scoped_by_hand,
        ROW,
        {f"left.net.layers.{i}.{k}" for i in range(2) for k in ("weight", "bias")},
    ),
    "conditioned": Model(
        conditioned,
        {"x": X, "y": Y},
        conditioned_by_hand,
        {"y": ()},
        {f"{FIELD_NAME}.weight", f"{FIELD_NAME}.bias"},
    ),
    "amortised": Model(
        amortised,
        {"x": X, "y": Y},
        amortised_by_hand,
        ROW,
        {"local"},
        guide=amortised_guide,
    ),
}
