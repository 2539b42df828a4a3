# %% [markdown]
# # Shapes from few readings: where is the edge, and how sure is that?
#
# The signed distance of a shape is a field: negative inside, positive outside, zero on
# the edge. Sixteen readings of it are too few to draw an edge, unless one knows what
# such shapes look like. A field `f(x; z)` learns that from many shapes, and a code `z`
# says which shape it is (*MetaSDF*, Sitzmann et al. 2020).
#
# A new shape needs its code. An encoder gives a posterior of the code in one pass;
# optimisation at test time starts afresh for each shape. Beside these two stand methods
# that see each shape alone, and one that knows the family as a linear one.

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
from scipy.spatial import KDTree
from scipy.stats import norm
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
SHAPES, EPOCHS, TESTS = (2000, 120, 20) if SMALL else (4000, 240, 100)
CODE, NOISE, DRAWS = 12, 0.02, 100
keys = iter(jax.random.split(jax.random.key(0), 16))
rng = np.random.default_rng(0)

# %% [markdown]
# ## The data
#
# The shapes are starfish with five arms. Their size, place, and the depth and direction
# of their arms vary: five numbers a shape, which no method knows. The shapes to learn
# from are given by their distances at 14 x 14 places of the square [-1, 1]². A new
# shape is read at 4 x 4 places, with a standard error of 0.02.


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


few, dense, grid = square(4), square(14), square(40)
shapes, new_shapes = draw_shapes(SHAPES), draw_shapes(TESTS)
y_dense, y_few = distances(shapes, dense), read(shapes)
truth, y_new = distances(new_shapes, grid), read(new_shapes)

# %% [markdown]
# ## The family
#
# A SIREN makes 64 features of a place, and the code generates the readout. The field is
# learned, each shape has a code with a normal prior, and the misfit stands for what the
# field cannot say. The guide's encoder gets the 196 distances of a shape as principal
# components, scaled to unit variance. An encoder of the raw distances learns slowly,
# because five components have 95 % of their variance.


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


LOCAL = {"plate": "shape", "family": "full"}
WIDTH = CODE + CODE * (CODE + 1) // 2  # means, and a Cholesky factor


def fit_encoder(model, y, epochs):
    """Train an encoder of distances, and the field if the model learns it."""
    centre, components = y.mean(0), min(y.shape[1], 32)
    _, singular, axes = np.linalg.svd(y - centre, full_matrices=False)
    whiten = axes[:components].T * np.sqrt(len(y)) / singular[:components]
    encoder = eqx.nn.MLP(components, WIDTH, 128, 2, jax.nn.gelu, key=next(keys))
    guide = px.AmortizedGuide(
        model, encoder, context=lambda y: (y - centre) @ whiten, **LOCAL
    )
    loader = MinibatchLoader((y,), 128, rng_key=next(keys))
    schedule = optax.cosine_decay_schedule(3e-3, epochs * loader.steps_per_epoch)
    svi = CompiledSVI(model, guide, optax.adam(schedule), Trace_ELBO())
    fit = run_minibatches(svi, next(keys), loader, epochs, progress_bar=False)
    return guide, fit.params


omegas = {"first_omega": 3.0, "hidden_omega": 3.0}
net = eqx.nn.MLP(CODE, 64, 128, 2, jax.nn.gelu, key=next(keys))
latent = {"cond_dim": 64, "parameter_net": net, "init_scale": 5.0}
shape = {"depth": 3, "parameterized": "last", **omegas, **latent}
field = HyperSIREN(2, 64, 1, **shape, key=next(keys))
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
# with a row for each new shape instead.


# %%
def known(y, number=SHAPES):
    observe(trained, np.hypot(misfit, NOISE), few, y, number)


def draw_distances(posterior):
    """Draws of the distances of the new shapes, misfit included: (draws, *truth)."""
    z = posterior.sample(next(keys), (DRAWS,))
    fields = jax.lax.map(lambda z: trained(grid[None], z)[..., 0], z)
    return np.asarray(fields) + misfit * rng.normal(size=fields.shape)


guide, params = fit_encoder(known, y_few, EPOCHS // 2)
begin = time.process_time()
posterior = guide.posterior(params, guide.context(y_new))
draws = {"field, one pass": draw_distances(posterior["z"])}
print(f"one pass: {time.process_time() - begin:.1f} s of CPU, compiling included")

begin = time.process_time()
table = eqx.nn.Embedding(weight=jnp.zeros((TESTS, WIDTH)))
by_shape = px.AmortizedGuide(known, table, context=lambda y, n: jnp.arange(n), **LOCAL)
optimiser = optax.adam(optax.cosine_decay_schedule(5e-2, 400))
svi = CompiledSVI(known, by_shape, optimiser, Trace_ELBO())
fit = svi.run(next(keys), 400, y_new, TESTS, progress_bar=False)
posterior = by_shape.posterior(fit.params, jnp.arange(TESTS))
draws["field, optimised"] = draw_distances(posterior["z"])
print(f"optimisation: {time.process_time() - begin:.1f} s of CPU, compiling included")

# %% [markdown]
# ## What others make of the same readings
#
# Two methods see each shape alone: a Gaussian process (Matérn 5/2), whose variance and
# lengthscale maximise the likelihood of 500 training shapes, and five SIRENs a shape,
# with the best of the frequencies 0.5, 1 and 2 for training shapes. A linear regression
# of all distances on the sixteen readings knows the family: it is kriging with the
# means and covariances of the training shapes.

# %%
normal = norm.ppf((np.arange(DRAWS) + 0.5) / DRAWS)[:, None, None]  # even draws
level = y_few.mean()
kernel = ConstantKernel(0.1) * Matern(0.5, nu=2.5)
process = GaussianProcessRegressor(kernel, alpha=NOISE**2)
process.fit(few, y_few[:500].T - level)
process.set_params(kernel=process.kernel_, optimizer=None).fit(few, y_new.T - level)
mean, spread = process.predict(grid, return_std=True)
draws["Gaussian process"] = level + mean.T + spread.T * normal

omegas = {"first_omega": 1.0, "hidden_omega": 1.0}
make = eqx.filter_vmap(lambda key: SIREN.init(2, 32, 1, depth=3, **omegas, key=key))
nets = make(jax.random.split(next(keys), 5 * TESTS))
evaluate = eqx.filter_vmap(lambda net, x: net(x)[:, 0], in_axes=(0, None))


def each_alone(y):
    with px.learn(where="*"):
        learned = px.bind(nets, "nets")
    numpyro.sample("y", dist.Normal(evaluate(learned, few), NOISE), obs=y)


optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, 300))
svi = CompiledSVI(each_alone, lambda y: None, optimiser, Trace_ELBO())
fit = svi.run(next(keys), 300, np.tile(y_new, (5, 1)), progress_bar=False)
learned = px.module_from_mean(nets, {}, name="nets", params=fit.params)
alone = np.asarray(evaluate(learned, grid)).reshape(5, *truth.shape)
draws["five SIRENs"] = alone.mean(0) + alone.std(0, ddof=1) * normal

some = distances(shapes[:1000], grid)
line = LinearRegression().fit(y_few[:1000], some)
spread = (some - line.predict(y_few[:1000])).std(0, ddof=len(few) + 1)
draws["linear family"] = line.predict(y_new) + spread * normal

# %% [markdown]
# ## What they know of the edge
#
# The probability that a place is inside is the share of the draws that are negative
# there. The intersection over union (IoU) compares the places where it is above a half
# with the shape. The expected calibration error (ECE) compares the probability with how
# often places are inside. The band is the central 90 % of the distance.

# %%
scores, inside, is_inside = {}, {}, truth < 0
for name, values in draws.items():
    inside[name] = (values < 0).mean(0)
    likely = inside[name] > 0.5
    low, high = np.quantile(values, [0.05, 0.95], axis=0)
    calibration = px.scores.expected_calibration_error(
        is_inside.ravel().astype(int), inside[name].ravel()
    )
    scores[name] = {
        "RMSE": np.sqrt(((values.mean(0) - truth) ** 2).mean()),
        "IoU": ((likely & is_inside).sum(1) / (likely | is_inside).sum(1)).mean(),
        "covered": ((low <= truth) & (truth <= high)).mean(),
        "width": (high - low).mean(),
        "ECE": calibration.value,
    }
print(f"\n{TESTS} new shapes    " + "".join(f"{k:>9}" for k in scores[name]))
for name, row in scores.items():
    print(f"{name:<18}" + "".join(f"{value:>9.3f}" for value in row.values()))

# %%
axis = grid[:40, 0]
figure, panels = plt.subplots(
    3, 4, figsize=(7.2, 5.2), sharex=True, sharey=True, layout="constrained"
)
for row, name in zip(panels, list(draws)[:3], strict=True):
    for panel, share, exact in zip(row, inside[name], truth, strict=False):
        share, exact = share.reshape(40, 40), exact.reshape(40, 40)
        shade = panel.pcolormesh(axis, axis, share, cmap="Blues", vmin=0, vmax=1)
        panel.contour(axis, axis, share, [0.05, 0.95], colors="C1", linewidths=1)
        panel.contour(axis, axis, exact, [0], colors="k", linewidths=1)
        (dots,) = panel.plot(*few.T, "C3.", markersize=4)
        panel.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1], aspect=1)
    row[0].set_ylabel(f"{name}\n\n$x_2$")
for panel in panels[-1]:
    panel.set_xlabel("$x_1$")
figure.colorbar(shade, ax=panels, label="probability of being inside", shrink=0.7)
(edge,), (band,) = panel.plot([], [], "k"), panel.plot([], [], "C1")
handles = {"true edge": edge, "5 % and 95 % inside": band, "place of a reading": dots}
figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3)
figure.savefig(OUTPUT / "shapes.png", dpi=150)
print(f"figure: {OUTPUT / 'shapes.png'}")
print(f"time:   {time.process_time():.0f} s of CPU")

# %% [markdown]
# The field has 60 % of the linear family's error and a quarter of the error of the
# methods that see each shape alone. Its IoU is 0.92 or 0.93, and theirs is 0.67. Its
# bands are about a quarter as wide as the Gaussian process's and cover 89 and 92 %.
# Optimisation is slightly better than one pass, but needs a fit for every shape.
#
# The script asserts what it claims:

# %%
for name in ("field, one pass", "field, optimised"):
    found, linear = scores[name], scores["linear family"]
    for alone in (scores["Gaussian process"], scores["five SIRENs"]):
        assert found["RMSE"] < (0.9 if SMALL else 0.4) * alone["RMSE"]
        assert found["IoU"] > alone["IoU"] + (0.0 if SMALL else 0.2)
    assert SMALL or found["RMSE"] < 0.7 * linear["RMSE"]
    assert SMALL or found["IoU"] > linear["IoU"] + 0.05
    assert SMALL or 0.85 <= found["covered"] <= 0.95
