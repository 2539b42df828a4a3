# %% [markdown]
# # Shapes from few readings: where is the edge, and how sure is that?
#
# The signed distance of a shape is a field: negative inside, positive outside, zero on
# the edge. Sixteen readings of it are too few to draw an edge, unless one knows what
# such shapes look like. A field `f(x; z)` learns that from many shapes, and a code `z`
# says which shape it is (*MetaSDF*, Sitzmann et al. 2020).
#
# A new shape needs its code. An encoder gives a posterior of the code in one pass;
# optimisation at test time starts afresh for each shape. We compare the two with each
# other and with methods that do not know the family, or know it as a linear one.

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
from numpyro.infer import SVI, Trace_ELBO
from scipy.spatial import KDTree
from scipy.stats import norm, qmc
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern
from sklearn.linear_model import LinearRegression

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledSVI, MinibatchLoader, run_minibatches
from pyrox_ppl.nn import SIREN, HyperSIREN

mpl.use("agg")
import matplotlib.pyplot as plt

OUTPUT = Path(__file__).parent / "output"
OUTPUT.mkdir(exist_ok=True)
SMALL = "PYROX_PPL_SMALL" in os.environ  # short fits, as the tests make them
SHAPES, EPOCHS, TESTS, OMEGAS = (
    (2000, 60, 20, [2.0]) if SMALL else (4000, 240, 100, [1.0, 2.0, 3.0])
)
READINGS, CODE, NOISE, DRAWS = 16, 12, 0.02, 100
keys = iter(jax.random.split(jax.random.key(0), 16))
rng = np.random.default_rng(0)

# %% [markdown]
# ## The data
#
# The shapes are starfish with five arms, of any size, depth, direction and place (five
# numbers a shape, which no method is told). The shapes to learn from are known at 14 x
# 14 places of the square [-1, 1]². A new shape is read at sixteen places, the same for
# all shapes, with an error of 0.02; the side of the square is 2.


# %%
def draw_shapes(number):
    """Size, depth and direction of the arms, and the middle: (number, 5)."""
    low = [0.4, 0.15, 0.0, -0.2, -0.2]
    return rng.uniform(low, [0.7, 0.45, 2 * np.pi, 0.2, 0.2], (number, 5))


def radius(shape, angle):
    size, depth, direction = shape[:3]
    return size * np.exp(depth * np.cos(5 * angle - direction))


def distances(shapes, x):
    """The signed distance of every place (n, 2) to every shape: (shapes, n)."""
    angle = np.linspace(0, 2 * np.pi, 1000, endpoint=False)
    around, signed = np.stack([np.cos(angle), np.sin(angle)], axis=1), []
    for shape in shapes:
        to = x - shape[3:]
        least, _ = KDTree(radius(shape, angle)[:, None] * around).query(to)
        inside = np.hypot(*to.T) < radius(shape, np.arctan2(to[:, 1], to[:, 0]))
        signed.append(np.where(inside, -least, least))
    return np.float32(signed)


def read(shapes):
    exact = distances(shapes, few)
    return exact + np.float32(NOISE * rng.normal(size=exact.shape))


def square(side):
    """Centres of the cells of a grid: (side * side, 2)."""
    line = (np.arange(side) + 0.5) / side * 2 - 1
    return np.float32(np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2))


dense, grid = square(14), square(40)
few = np.float32(2 * qmc.Halton(2, rng=1).random(READINGS) - 1)
shapes, new_shapes = draw_shapes(SHAPES), draw_shapes(TESTS)
y_dense, y_few = distances(shapes, dense), read(shapes)
truth, y_new = distances(new_shapes, grid), read(new_shapes)

# %% [markdown]
# ## The family
#
# A SIREN makes 64 features of a place, and the code generates the readout. The field is
# learned, each shape has a code with a normal prior, and the misfit stands for what the
# field cannot say. The guide's encoder takes the 196 distances of a shape, as principal
# components of unit variance: the direction of the arms changes the distances little,
# and an encoder of the distances themselves takes long to see it.


# %%
def observe(f, noise, x, y, number):
    with numpyro.plate("shape", number, subsample_size=len(y), dim=-2):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([CODE]).to_event(1))
        with numpyro.plate("place", len(x), dim=-1):
            numpyro.sample("y", dist.Normal(f(x[None], z)[..., 0], noise), obs=y)


def family(y):
    with px.learn(where="*"):
        f = px.bind(field, "field")
    misfit = numpyro.param("misfit", 0.05, constraint=dist.constraints.positive)
    observe(f, misfit, dense, y, SHAPES)


def fit_encoder(model, y, epochs):
    """Train an encoder of distances, and what the model learns."""
    centre, components = y.mean(0), min(y.shape[1], 32)
    _, singular, axes = np.linalg.svd(y - centre, full_matrices=False)
    whiten = axes[:components].T * np.sqrt(len(y)) / singular[:components]
    encoder = eqx.nn.MLP(components, WIDTH, 128, 2, jax.nn.gelu, key=next(keys))
    guide = px.AmortizedGuide(
        model, encoder, context=lambda y: (y - centre) @ whiten, **LOCAL
    )
    loader = MinibatchLoader((y,), 128, rng_key=next(keys))
    schedule = optax.cosine_decay_schedule(3e-3, epochs * loader.steps_per_epoch)
    svi = SVI(model, guide, optax.adam(schedule), Trace_ELBO())
    fit = run_minibatches(svi, next(keys), loader, epochs, progress_bar=False)
    return guide, fit.params


WIDTH = CODE + CODE * (CODE + 1) // 2  # means, and a Cholesky factor
LOCAL = {"plate": "shape", "family": "full"}
latent = eqx.nn.MLP(CODE, 64, 128, 2, jax.nn.gelu, key=next(keys))
field = HyperSIREN(
    2,
    64,
    1,
    depth=3,
    first_omega=3.0,
    hidden_omega=3.0,
    cond_dim=64,
    parameter_net=latent,
    parameterized="last",
    init_scale=5.0,
    key=next(keys),
)
_, params = fit_encoder(family, y_dense, EPOCHS)
trained = px.module_from_mean(field, {}, name="field", params=params)
misfit = float(params["misfit"])
print(f"trained after {time.process_time():.0f} s of CPU; misfit {misfit:.3f}")

# %% [markdown]
# ## A new shape, in two ways
#
# The field is known now. A second encoder learns, on sixteen readings of each training
# shape, what they say about a code; a new shape then takes one pass. Optimisation at
# test time fits the same kind of posterior without an encoder: the guide gets a table
# with a row for each new shape instead. The draws include the misfit, because the band
# is for the distance itself.


# %%
def known(y):
    observe(trained, np.hypot(misfit, NOISE), few, y, SHAPES)


def new(y):
    observe(trained, np.hypot(misfit, NOISE), few, y, len(y))


def fields(posterior):
    """Draws of the new shapes' distances: (draws, shapes, places)."""
    codes = posterior["z"].sample(next(keys), (DRAWS,))
    draws = np.asarray(jax.lax.map(lambda z: trained(grid[None], z)[..., 0], codes))
    return draws + misfit * rng.normal(size=draws.shape)


draws, seconds = {}, {}
begin = time.process_time()
guide, params = fit_encoder(known, y_few, EPOCHS // 2)
print(f"second encoder trained in {time.process_time() - begin:.0f} s of CPU")
begin = time.process_time()
draws["one pass"] = fields(guide.posterior(params, guide.context(y_new)))
seconds["one pass"] = time.process_time() - begin

begin = time.process_time()
table = eqx.nn.Embedding(weight=jnp.zeros((TESTS, WIDTH)))
rows = jnp.arange(TESTS)
by_shape = px.AmortizedGuide(new, table, context=lambda y: rows, **LOCAL)
optimiser = optax.adam(optax.cosine_decay_schedule(5e-2, 400))
svi = CompiledSVI(new, by_shape, optimiser, Trace_ELBO())
fit = svi.run(next(keys), 400, y_new, progress_bar=False)
draws["optimisation"] = fields(by_shape.posterior(fit.params, rows))
seconds["optimisation"] = time.process_time() - begin

# %% [markdown]
# ## What others make of the same readings
#
# A Gaussian process (Matérn 5/2) knows one shape alone; its variance and lengthscale
# maximise the likelihood of 500 training shapes. Five SIRENs a shape also know one
# shape alone; their frequency is chosen on fifty training shapes. A linear regression
# of all distances on the sixteen readings knows the family: it is the Gaussian process
# with the mean and covariance of the training shapes.

# %%
means, spreads = {}, {}
begin = time.process_time()
level, error = y_few.mean(), NOISE**2
kernel = ConstantKernel(0.1) * Matern(0.5, nu=2.5)
fitted = GaussianProcessRegressor(kernel, alpha=error).fit(few, y_few[:500].T - level)
process = GaussianProcessRegressor(fitted.kernel_, alpha=error, optimizer=None)
process.fit(few, y_new.T - level)
mean, spread = process.predict(grid, return_std=True)
means["Gaussian process"], spreads["Gaussian process"] = level + mean.T, spread.T
seconds["Gaussian process"] = time.process_time() - begin


def fit_alone(y, x, omega):
    """Distances at the places x by five networks for each shape: (5, shapes, x)."""
    omegas = {"first_omega": omega, "hidden_omega": omega}
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, 300))

    def one(key, y):
        net = SIREN.init(2, 32, 1, depth=3, **omegas, key=key)
        arrays, static = eqx.partition(net, eqx.is_inexact_array)

        def loss(arrays):
            return jnp.mean((eqx.combine(arrays, static)(few)[:, 0] - y) ** 2)

        def step(carry, _):
            updates, state = optimiser.update(jax.grad(loss)(carry[0]), carry[1])
            return (optax.apply_updates(carry[0], updates), state), None

        (arrays, _), _ = jax.lax.scan(
            step, (arrays, optimiser.init(arrays)), length=300
        )
        return eqx.combine(arrays, static)(x)[:, 0]

    of_shapes = jax.vmap(one, (None, 0))
    return jax.jit(jax.vmap(of_shapes, (0, None)))(jax.random.split(next(keys), 5), y)


def rmse(predicted, true):
    return float(np.sqrt(np.mean((predicted - true) ** 2)))


tried = {
    omega: rmse(fit_alone(y_few[:50], dense, omega).mean(0), y_dense[:50])
    for omega in OMEGAS
}
begin = time.process_time()
alone = np.asarray(fit_alone(y_new, grid, min(tried, key=tried.get)))
means["five SIRENs"], spreads["five SIRENs"] = alone.mean(0), alone.std(0, ddof=1)
seconds["five SIRENs"] = time.process_time() - begin

begin = time.process_time()
some = distances(shapes[:1000], grid)
line = LinearRegression().fit(y_few[:1000], some)
means["linear family"] = line.predict(y_new)
spread = (some - line.predict(y_few[:1000])).std(0, ddof=READINGS + 1)
spreads["linear family"] = np.broadcast_to(spread, truth.shape)
seconds["linear family"] = time.process_time() - begin

# %% [markdown]
# ## What they know of the edge
#
# A place is inside with the share of the draws that are negative there. The
# intersection over union (IoU) compares the places that are more likely inside than not
# with those that are; the expected calibration error (ECE) compares those probabilities
# with how often places are inside. The band is the central 90 % of the distance.


# %%
def judge(mean, low, high, inside):
    both = ((inside > 0.5) & (truth < 0)).sum(1)
    either = ((inside > 0.5) | (truth < 0)).sum(1)
    calibration = px.scores.expected_calibration_error(
        (truth < 0).ravel().astype(int), inside.ravel()
    )
    return {
        "RMSE": rmse(mean, truth),
        "IoU": (both / either).mean(),
        "covered": ((low <= truth) & (truth <= high)).mean(),
        "width": (high - low).mean(),
        "ECE": calibration.value,
    }


scores, inside = {}, {}
for name, values in draws.items():
    inside[name] = (values < 0).mean(0)
    band = np.quantile(values, [0.05, 0.95], axis=0)
    scores[name] = judge(values.mean(0), *band, inside[name])
for name, mean in means.items():
    half = norm.ppf(0.95) * spreads[name]
    inside[name] = norm.cdf(-mean / spreads[name])
    scores[name] = judge(mean, mean - half, mean + half, inside[name])

title = f"{TESTS} new shapes"
print(f"\n{title:<17}{'RMSE':>7}{'IoU':>7}{'covered':>9}{'width':>7}{'ECE':>7}{'CPU':>9}")
for name, row in scores.items():
    print(
        f"{name:<17}{row['RMSE']:>7.3f}{row['IoU']:>7.3f}{100 * row['covered']:>7.0f} %"
        f"{row['width']:>7.3f}{row['ECE']:>7.3f}{seconds[name]:>7.1f} s"
    )

# %%
axis = grid[:40, 0]
labels = {
    "one pass": "field,\none pass",
    "optimisation": "field,\noptimised",
    "Gaussian process": "Gaussian\nprocess",
}
figure, panels = plt.subplots(
    3, 4, figsize=(7.2, 5.6), sharex=True, sharey=True, layout="constrained"
)
for row, name in zip(panels, labels, strict=True):
    for panel, share, exact in zip(row, inside[name], truth, strict=False):
        share, exact = share.reshape(40, 40), exact.reshape(40, 40)
        shade = panel.pcolormesh(axis, axis, share, cmap="Blues", vmin=0, vmax=1)
        panel.contour(axis, axis, share, [0.05, 0.95], colors="C1", linewidths=1)
        panel.contour(axis, axis, exact, [0], colors="k", linewidths=1)
        panel.plot(*few.T, "C3.", markersize=4)
        panel.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1], aspect=1)
    row[0].set_ylabel(f"{labels[name]}\n\n$x_2$")
for panel in panels[-1]:
    panel.set_xlabel("$x_1$")
figure.colorbar(shade, ax=panels, label="probability of being inside", shrink=0.7)
line = mpl.lines.Line2D
handles = {
    "true edge": line([], [], color="k"),
    "5 % and 95 % inside": line([], [], color="C1"),
    "where the distance was read": line([], [], color="C3", marker=".", linestyle=""),
}
figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3)
figure.savefig(OUTPUT / "shapes.png", dpi=150)
print(f"figure: {OUTPUT / 'shapes.png'}")
print(f"time:   {time.process_time():.0f} s of CPU")

# %% [markdown]
# TEXT
#
# The script asserts what it claims:

# %%
print(tried, fitted.kernel_)
