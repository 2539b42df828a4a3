"""The crossing of kinds of modules and priors: models, and their densities by hand."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import numpyro
import numpyro.distributions as dist
from crossing_kinds import KINDS, Kind
from crossing_layers import LAYERS, moved
from scipy import stats

import pyrox_ppl as px

NOISE = 0.02


def over_own(densities, stored):
    """Sum over all axes but the plate's, which is the first if there are others."""
    more = densities.ndim > stored.ndim
    return densities.sum(tuple(range(int(more), densities.ndim)))


def centred(density):
    """A prior on the parameter itself: `density` of it, its fan-in, what is stored.

    The last argument of `density` is one for the scale of a normalisation layer, and
    zero for any other parameter.
    """

    def by_hand(draw, name, stored, fan_in, centre):
        theta = draw[name]
        return theta, {name: over_own(density(theta, fan_in, stored, centre), stored)}

    return by_hand


def normal(scale):
    """A prior of the package's that scales by the fan-in."""
    return centred(lambda t, n, s, centre: stats.norm.logpdf(t, centre, scale(n, s)))


def decentred(draw, name, stored, theta, others):
    """A prior on the standard form, and on what scales it."""
    noise = draw[f"{name}_decentered"]
    density = over_own(stats.norm.logpdf(noise), stored)
    return theta * noise, {f"{name}_decentered": density, **others}


def hierarchical(draw, name, stored, fan_in, centre):
    scale = draw[f"{name}.scale"]
    others = {f"{name}.scale": stats.halfnorm.logpdf(scale)}
    slope = scale / np.sqrt(fan_in)
    theta, densities = decentred(draw, name, stored, slope, others)
    return centre + theta, densities


def horseshoe(draw, name, stored, fan_in, centre):
    tau, local = draw[f"{name}.scale"], draw[f"{name}.local_scale"]
    slope = tau * local / np.sqrt(fan_in + (tau * local / 2.0) ** 2)
    others = {
        f"{name}.scale": stats.halfcauchy.logpdf(tau, scale=0.1),
        f"{name}.local_scale": stats.halfcauchy.logpdf(local).sum(),
    }
    return decentred(draw, name, stored, slope, others)


def shifted(draw, name, stored, fan_in, centre):
    theta, densities = decentred(draw, name, stored, 0.5, {})
    return theta + 0.3, densities


def non_centred_fan_in(draw, name, stored, fan_in, centre):
    theta, densities = decentred(draw, name, stored, 0.5 / np.sqrt(fan_in), {})
    return centre + theta, densities


def fan_out(stored):
    return stored.shape[0] * int(np.prod(stored.shape[2:]))


NON_CENTERED = px.priors.NonCentered(dist.Normal(0.3, 0.5))
# The rule, and by hand: the parameter that a draw holds, the log prior of its sites.
PRIORS = {
    "normal": (
        px.priors.normal(0.5),
        centred(lambda t, n, s, c: stats.norm.logpdf(t, 0.0, 0.5)),
    ),
    "fan_in": (px.priors.fan_in(1.5), normal(lambda n, stored: 1.5 / np.sqrt(n))),
    "glorot": (
        px.priors.glorot(0.7),
        normal(lambda n, stored: 0.7 * np.sqrt(2 / (n + fan_out(stored)))),
    ),
    "kaiming": (
        px.priors.kaiming(0.5),
        normal(lambda n, stored: np.sqrt(2 / 1.25 / n)),
    ),
    "laplace": (
        px.priors.laplace(0.5),
        centred(lambda t, n, s, c: stats.laplace.logpdf(t, c, 0.5 / np.sqrt(n))),
    ),
    "student_t": (
        px.priors.student_t(4.0, 0.4),
        centred(lambda t, n, s, c: stats.t.logpdf(t, 4.0, c, 0.4 / np.sqrt(n))),
    ),
    "around": (
        px.priors.around_stored(0.3),
        centred(lambda t, n, stored, c: stats.norm.logpdf(t, stored, 0.3)),
    ),
    "hierarchical": (px.priors.hierarchical(), hierarchical),
    "horseshoe": (px.priors.horseshoe(0.1), horseshoe),
    "NonCentered": (lambda parameter: NON_CENTERED, shifted),
    "non-centred-fan_in": (
        lambda parameter: px.priors.NonCentered(px.priors.fan_in(0.5)(parameter)),
        non_centred_fan_in,
    ),
}
NON_CENTRED = ("hierarchical", "horseshoe", "NonCentered", "non-centred-fan_in")


@dataclasses.dataclass(frozen=True)
class ByHand:
    """What a draw means, in NumPy.

    Attributes:
        theta: The parameters by path.
        f: The function's values.
        log_likelihood: Of every row.
        log_prior: Of every site, with the axes of its plates.
        jacobian: The log determinant of the map from unconstrained values.
    """

    theta: dict[str, np.ndarray]
    f: np.ndarray
    log_likelihood: np.ndarray
    log_prior: dict[str, np.ndarray]
    jacobian: float

    @property
    def log_joint(self) -> float:
        """Of the observations and the draw."""
        return self.log_likelihood.sum() + sum(map(np.sum, self.log_prior.values()))


@dataclasses.dataclass(frozen=True, eq=False)
class Crossing:
    """A kind of module under a prior.

    Attributes:
        kind: The module and how it is called.
        prior: The name of the prior.
        model: ``model(x, y=None, size=None)``; `size` is that of all data.
        training: The same, as SVI is to see it.
    """

    kind: Kind
    prior: str
    model: Callable
    training: Callable

    @property
    def x(self) -> np.ndarray:
        return self.kind.x

    @property
    def new_x(self) -> np.ndarray:
        return self.kind.new_x

    def y_at(self, x) -> np.ndarray:
        """Observations there."""
        groups = (self.kind.groups,) if self.kind.groups else ()
        width = 2 if "dec" in self.kind.fan_in else 1
        shape = (*groups, len(x), width)
        return np.float32(np.cos(np.arange(np.prod(shape))).reshape(shape))

    @property
    def y(self) -> np.ndarray:
        return self.y_at(self.x)

    def stored(self) -> dict[str, np.ndarray]:
        """The arrays that the module holds, by path."""
        leaves = jtu.tree_flatten_with_path(self.kind.module)[0]
        named = {jtu.keystr(p, simple=True, separator="."): v for p, v in leaves}
        return {path: np.asarray(named[path], np.float64) for path in self.kind.fan_in}

    def trained(self) -> dict[str, np.ndarray]:
        """Values of learned parameters and state that are not those of the start."""
        stored = self.stored()
        learned = {f"net.{p}": np.float32(stored[p] + 0.25) for p in self.kind.learned}
        state = self.kind.state
        if state is not None and "mean" in state:
            state = {"mean": 0.8 * jnp.asarray(self.x.mean(0))}
        elif state is not None:
            state = {"now": moved(state["now"])}
        return learned | ({} if state is None else {"state": state})

    def latent(self) -> set[str]:
        """The names of the latent sites."""
        names = {"z"} if self.kind.log_prior else set()
        for path in self.kind.fan_in.keys() - set(self.kind.learned):
            own = f"net.{path}"
            names.add(f"{own}_decentered" if self.prior in NON_CENTRED else own)
            if self.prior in ("hierarchical", "horseshoe"):
                names.add(f"{own}.scale")
            if self.prior == "horseshoe":
                names.add(f"{own}.local_scale")
        return names

    def deterministic(self) -> set[str]:
        """The names of the deterministic sites."""
        random = self.kind.fan_in.keys() - set(self.kind.learned)
        of_weights = random if self.prior in NON_CENTRED else ()
        return {"f", *(f"net.{path}" for path in of_weights)}

    def by_hand(self, draw, x, y=None, params=None, state=None) -> ByHand:
        """All of one draw, at inputs and observations, in float64."""
        draw = {name: np.asarray(value, np.float64) for name, value in draw.items()}
        params = {} if params is None else params
        x = np.asarray(x, np.float64)
        theta, log_prior = {}, {}
        for path, stored in self.stored().items():
            name = f"net.{path}"
            if path in self.kind.learned:
                theta[path] = np.asarray(params.get(name, stored), np.float64)
                continue
            hand = PRIORS[self.prior][1]
            fan_in = self.kind.fan_in[path]
            centre = 1.0 if path in self.kind.around_one else 0.0
            theta[path], densities = hand(draw, name, stored, fan_in, centre)
            log_prior |= densities
        if self.kind.log_prior is not None:
            log_prior |= self.kind.log_prior(draw, theta, x)
        state = self.kind.state if state is None else state
        places = {"z": draw["z"]} if self.kind.log_prior is not None else {}
        f = self.kind.forward({**theta, **places}, x, state)
        y = np.zeros_like(f) if y is None else np.asarray(y, np.float64)
        positive = [v for n, v in draw.items() if n.endswith(("scale",))]
        return ByHand(
            theta,
            f,
            stats.norm.logpdf(y, f, NOISE).sum(-1),
            log_prior,
            float(sum(np.log(value).sum() for value in positive)),
        )


def make_model(kind: Kind, module: Any, rule: Any) -> Callable:
    def model(x, y=None, size=None):
        group, plate = contextlib.nullcontext(), None
        if kind.groups:
            group, plate = numpyro.plate("group", kind.groups, dim=-2), "group"
        nothing = contextlib.nullcontext()
        learn = px.learn(where=px.is_backbone) if kind.learned else nothing
        with px.bayesianize(prior=rule), learn, group:
            net = px.bind(module, "net", plate=plate)
        f = numpyro.deterministic("f", kind.call(net, x))
        rows = numpyro.plate("row", size or len(x), subsample_size=len(x), dim=-1)
        with group, rows:
            numpyro.sample("y", dist.Normal(f, NOISE).to_event(1), obs=y)

    return model


ALL = KINDS | LAYERS


def cross(kind_name: str, prior: str) -> Crossing:
    kind, rule = ALL[kind_name], PRIORS[prior][0]
    training = kind.module if kind.training is None else kind.training
    return Crossing(
        kind,
        prior,
        make_model(kind, kind.module, rule),
        make_model(kind, training, rule),
    )


# Every prior with a network, every kind with a normal and with a hierarchical prior,
# normalisation layers with the priors that know of them.
PAIRS = [("mlp", prior) for prior in PRIORS]
PAIRS += [(k, p) for k in ALL if k != "mlp" for p in ("normal", "hierarchical")]
PAIRS += [
    (k, p) for k in ("noisy", "attention") for p in ("fan_in", "non-centred-fan_in")
]
CROSSINGS = {f"{kind}-{prior}": cross(kind, prior) for kind, prior in PAIRS}
