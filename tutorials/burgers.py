# %% [markdown]
# # Burgers' equation: one field for a family of solutions
#
# A wave steepens to a front and decays; how steep and how fast depends on its viscosity
# and its amplitude. A field `u(x, t; ν, A)` learns the whole family from runs that were
# each recorded by sixteen sensors at places of their own, and then knows runs that were
# never made, at any place. It is a *Neural Implicit Flow* (Pan, Brunton and Kutz 2023),
# `HyperSIREN` here: the parameters of a run generate the weights of a SIREN.
#
# The generator has priors. An ensemble of its modes says where in the plane of the
# parameters the field may be trusted, and where not.

# %%
import os
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoDelta
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.stats import qmc

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledSVI, run_ensemble
from pyrox_ppl.nn import HyperSIREN

mpl.use("agg")
import matplotlib.pyplot as plt

OUTPUT = Path(__file__).parent / "output"
OUTPUT.mkdir(exist_ok=True)
SMALL = "PYROX_PPL_SMALL" in os.environ  # short fits, as the tests make them
MEMBERS, STEPS = (2, 600) if SMALL else (5, 6000)
RANKS, RANK_STEPS = ([2], 600) if SMALL else ([2, 4, 8], 4000)
keys = iter(jax.random.split(jax.random.key(0), 8))
rng = np.random.default_rng(0)

# %% [markdown]
# ## The runs
#
# `u_t + u u_x = ν u_xx` from `u = -A sin(πx)`, periodic in x. A pseudo-spectral scheme
# solves all runs at once: diffusion exactly, advection by Runge and Kutta's fourth
# order. A run is a table of Fourier coefficients, so it can be read at any place.

# %%
MODES, FINE = np.pi * np.arange(257), 512  # radians per unit; places of the solver
TIMES = np.arange(51) / 50
NORMAL = np.polynomial.hermite.hermgauss(200)


def solve(nu, amplitude, substeps=10):
    """Fourier coefficients: (runs, times, modes)."""
    dt = TIMES[1] / substeps
    half = np.exp(-nu[:, None] * MODES**2 * dt / 2)
    advect = -0.5j * MODES * (np.arange(257) < FINE / 3)  # without aliases

    def push(v):
        return advect * np.fft.rfft(np.fft.irfft(v, FINE) ** 2)

    v = np.fft.rfft(-amplitude[:, None] * np.sin(MODES[1] * grid(FINE)))
    saved = [v]
    for _ in TIMES[1:]:
        for _ in range(substeps):
            a = push(v)
            b = push(half * (v + dt / 2 * a))
            c = push(half * v + dt / 2 * b)
            d = push(half**2 * v + dt * half * c)
            v = half**2 * (v + dt / 6 * a) + dt / 6 * (2 * half * (b + c) + d)
        saved.append(v)
    return np.stack(saved, axis=1)


def grid(number):
    return 2 * np.arange(number) / number - 1


def read(run, x):
    """The solution of a run at any places: (times, places)."""
    twice = np.where(np.isin(np.arange(257), [0, 256]), 1, 2)
    return np.real((run * twice / FINE) @ np.exp(1j * np.outer(MODES, x + 1)))


def exact(x, t, nu, amplitude):
    """The solution of Cole and Hopf, an integral over normal weights."""
    node, weight = NORMAL
    y = np.pi * (x[:, None] - np.sqrt(4 * nu * t) * node)
    log = -amplitude * np.cos(y) / (2 * np.pi * nu)
    weight = weight * np.exp(log - log.max(-1, keepdims=True))
    return -amplitude * (np.sin(y) * weight).sum(-1) / weight.sum(-1)


# %% [markdown]
# The context of a run is the logarithm of both parameters, scaled so that the training
# runs fill the square [-1, 1]²: ν from 0.02 to 0.1, A from 0.5 to 1.5. Validation and
# test runs are others in the same square; *outside* runs lie around it, up to 1.6.

# %%
LOW, HIGH = np.log([0.02, 0.5]), np.log([0.1, 1.5])
around = rng.uniform(-1.6, 1.6, (200, 2))
context = {
    name: 2 * qmc.Sobol(2, rng=seed).random(32) - 1
    for seed, name in enumerate(["training", "validation", "test"])
}
context["outside"] = around[np.abs(around).max(1) > 1.15][:32]


def parameters(z):
    """Viscosity and amplitude."""
    return np.exp((LOW + HIGH) / 2 + z * (HIGH - LOW) / 2).T


runs = {name: solve(*parameters(z)) for name, z in context.items()}
error = max(
    np.abs(read(run[step], grid(40)) - exact(grid(40), TIMES[step], *pair)).max()
    for name, z in context.items()
    for run, *pair in zip(runs[name], *parameters(z), strict=True)
    for step in (10, 30, 50)
)
print(f"largest error of the solver: {error:.0e}")

# %% [markdown]
# A training run is read at sixteen random places of its own and eleven times. Every
# other reading is on one mesh: 201 places, 26 times.


# %%
def points(x, t):
    """Coordinates scaled to [-1, 1]: (runs, times * places, 2)."""
    pair = np.broadcast_arrays(x[:, None], 2 * t[:, None] - 1)
    return np.float32(np.stack(pair, axis=-1)).reshape(len(x), -1, 2)


def as_context(z):
    return jnp.float32(z)[:, None]  # one for all points of a run


sensors = np.sort(rng.uniform(-1, 1, (32, 16)))
seen = np.stack([read(*each) for each in zip(runs["training"][:, ::5], sensors)])
x, z = points(sensors, TIMES[::5]), as_context(context["training"])
u = np.float32(seen).reshape(32, -1)
places, shown = np.linspace(-1, 1, 201), TIMES[::2]
mesh = points(places[None], shown)
truth = {
    name: np.stack([read(run[::2], places) for run in each]).reshape(32, -1)
    for name, each in runs.items()
}


def relative(fitted, true):
    """The relative L2 error of each run."""
    return np.linalg.norm(fitted - true, axis=-1) / np.linalg.norm(true, axis=-1)


# %% [markdown]
# ## The field, with priors on its generator
#
# The latent is the context itself, so each weight is linear in it. All parameters are
# the generator's, and `bayesianize` gives each a normal prior. Readings have no noise;
# the scale of the likelihood, 0.005, says how much the field may miss. Members of the
# ensemble start at fields that are initialised anew, and each ends at a mode.


# %%
def make(key):
    sizes = {"depth": 4, "first_omega": 4.0, "hidden_omega": 4.0}
    latent = {"cond_dim": 2, "parameter_net": lambda z: z, "init_scale": 0.1}
    return HyperSIREN(2, 20, 1, **sizes, **latent, key=key)


field = make(next(keys))


def model(x, z, u):
    with px.bayesianize(prior_std=1.0):
        f = px.bind(field, "field")
    with numpyro.plate("run", len(u), dim=-2), numpyro.plate("point", u.shape[1]):
        numpyro.sample("u", dist.Normal(f(x, z)[..., 0], 0.005), obs=u)


guide = AutoDelta(model)
optimiser = optax.adam(optax.cosine_decay_schedule(5e-3, STEPS))
svi = CompiledSVI(model, guide, optimiser, Trace_ELBO())
fit = run_ensemble(
    svi, next(keys), MEMBERS, STEPS, x, z, u, make=make, progress_bar=False
)
members = guide.median(fit.params)
print(f"ensemble trained after {time.process_time():.0f} s of CPU")


def predict(x, z):
    """Mean and standard deviation of the members."""
    options = {"name": "field", "quantiles": (), "progress_bar": False}
    prediction = px.predict(field, members, x, z, **options)
    return [np.float64(a[..., 0]) for a in (prediction.mean, prediction.std)]


at_sensors = relative(predict(x, z)[0], u)
predicted = {name: predict(mesh, as_context(z)) for name, z in context.items()}

# %% [markdown]
# ## Bands
#
# Modes of one posterior agree where the data decide, and differ where they do not. How
# many of their standard deviations make a band that covers 90 %, the validation runs
# say (split-conformal); no other runs have a part in it.

# %%
scaled = {
    name: (truth[name] - mean) / std for name, (mean, std) in predicted.items()
}
zero = np.zeros(truth["validation"].size)
band = px.scores.ConformalInterval.fit(
    scaled["validation"].ravel(), zero, zero, level=0.9
)
errors = {name: relative(mean, truth[name]) for name, (mean, _) in predicted.items()}
coverage = {name: np.mean(np.abs(s) <= band.margin) for name, s in scaled.items()}
width = {name: 2 * band.margin * std.mean() for name, (_, std) in predicted.items()}
print(f"training runs at their sensors: error {100 * at_sensors.mean():.2f} %")
print(f"on the mesh, with bands of ±{band.margin:.2f} standard deviations:")
print(f"{'runs':<12}{'error / %':>10}{'largest':>9}{'covered / %':>13}{'width':>8}")
for name, e in errors.items():
    print(
        f"{name:<12}{100 * e.mean():>10.2f}{100 * e.max():>9.2f}"
        f"{100 * coverage[name]:>13.1f}{width[name]:>8.4f}"
    )

# %% [markdown]
# ## A linear subspace beside POD
#
# `parameterized="last"` generates the readout alone: the field is a mean and K
# functions of (x, t), times K numbers that a small network makes of the parameters.
# Proper orthogonal decomposition (POD) computes such functions from runs on one mesh,
# so the sensors' readings are interpolated to the mesh first. Each subspace is then
# judged by the best that it can do on the test runs, their least-squares projection.
# POD may choose at each rank, in hindsight, how the readings were interpolated.


# %%
def interpolate(spline):
    """The training runs on the mesh, from their sensors: in x, then in t."""
    fields = []
    for at, values in zip(sensors, seen, strict=True):
        wide = np.concatenate([at[-3:] - 2, at, at[:3] + 2])  # u is periodic in x
        values = np.concatenate([values[:, -3:], values, values[:, :3]], axis=1)
        on_places = spline(wide, values, axis=1)(places)
        fields.append(spline(TIMES[::5], on_places)(shown).ravel())
    return np.stack(fields)


def project(centre, functions):
    """Mean relative error of the test runs' projections on a subspace."""
    shifted = truth["test"] - centre
    numbers = np.linalg.lstsq(functions.T, shifted.T)[0]
    return relative(centre + numbers.T @ functions, truth["test"]).mean()


def pod(fields, rank):
    centre = fields.mean(0)
    basis = np.linalg.svd(fields - centre, full_matrices=False)[2]
    return project(centre, basis[:rank])


@eqx.filter_jit
def train(field):
    optimiser = optax.adam(optax.cosine_decay_schedule(5e-3, RANK_STEPS))
    arrays, static = eqx.partition(field, eqx.is_inexact_array)

    def loss(arrays):
        return jnp.mean((eqx.combine(arrays, static)(x, z)[..., 0] - u) ** 2)

    def step(carry, _):
        arrays, state = carry
        updates, state = optimiser.update(jax.grad(loss)(arrays), state)
        return (optax.apply_updates(arrays, updates), state), None

    carry = (arrays, optimiser.init(arrays))
    (arrays, _), _ = jax.lax.scan(step, carry, length=RANK_STEPS)
    return eqx.combine(arrays, static)


def generated(rank):
    net_key, key = jax.random.split(jax.random.key(rank))
    encode = eqx.nn.MLP(2, rank, 16, 2, activation=jax.nn.gelu, key=net_key)
    latent = {"cond_dim": rank, "parameter_net": encode, "init_scale": 1.0}
    sizes = {"depth": 4, "first_omega": 4.0, "hidden_omega": 4.0}
    field = HyperSIREN(
        2, 32, 1, **sizes, **latent, parameterized="last", key=key
    )
    field = train(field)
    # The latent itself as context: zero gives the mean, one-hot adds a function.
    field = eqx.tree_at(lambda f: f.parameter_net, field, lambda z: z)
    one_hot = jnp.concatenate([jnp.zeros((1, rank)), jnp.eye(rank)])[:, None]
    values = np.float64(field(mesh, one_hot)[..., 0])
    return project(values[0], values[1:] - values[0])


interpolated = [interpolate(s) for s in (CubicSpline, PchipInterpolator)]
ranks = range(1, 13)
subspace = {
    "POD, interpolated sensors": {
        k: min(pod(fields, k) for fields in interpolated) for k in ranks
    },
    "POD, all of the mesh": {k: pod(truth["training"], k) for k in ranks},
    "generated readout": {k: generated(k) for k in RANKS},
}
print("\nbest in a subspace, mean error of the test runs / %:")
for name, by_rank in subspace.items():
    each = "".join(f"{k:>5}: {100 * by_rank[k]:5.2f}" for k in RANKS)
    print(f"{name:<26}{each}")
print(f"time: {time.process_time():.0f} s of CPU")
