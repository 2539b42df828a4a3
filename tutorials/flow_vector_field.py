# %% [markdown]
# # A conditional density: two moons that turn
#
# A continuous normalising flow moves draws of a normal distribution along a vector
# field until they are draws of the data. Where the field also takes a context, the flow
# is a density given the context. The field here is a SIREN with a `ConcatConditioner`
# before each sine; the context is the time of the flow, and the angle by which two
# moons have been turned.
#
# No training row shows an angle between 60° and 120°. An ensemble of flows says how far
# it can be trusted there.

# %%
import os
import time
from pathlib import Path

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import Trace_ELBO
from scipy.special import logsumexp
from sklearn.mixture import GaussianMixture

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledSVI, MinibatchLoader, run_ensemble
from pyrox_ppl.nn import SIREN, ConcatConditioner, ConditionedINR

mpl.use("agg")
import matplotlib.pyplot as plt

OUTPUT = Path(__file__).parent / "output"
OUTPUT.mkdir(exist_ok=True)
SMALL = "PYROX_PPL_SMALL" in os.environ  # short fits, as the tests make them
MEMBERS, STEPS, TESTS = (2, 600, 200) if SMALL else (3, 3000, 1000)
keys = iter(jax.random.split(jax.random.key(0), 4))
rng = np.random.default_rng(0)

# %% [markdown]
# ## The data
#
# Each row is a place and the angle by which its moons were turned; no angle comes
# twice. The truth is a formula: narrow normals along two half circles. One moon has
# twice the rows of the other, so that half a turn makes a difference.

# %%
GAP, NOISE = np.radians([60.0, 120.0]), 0.1
u = np.pi * (np.arange(200) + 0.5) / 200
upper = np.stack([np.cos(u) - 0.5, np.sin(u) - 0.25], axis=-1)
moons = np.concatenate([upper, upper, -upper])


def turn(y, angle):
    c, s = np.cos(angle), np.sin(angle)
    turned = [c * y[..., 0] - s * y[..., 1], s * y[..., 0] + c * y[..., 1]]
    return np.stack(turned, axis=-1)


def draw_rows(number, low, high):
    """Places (number, 2), and the angles by which they were turned."""
    angle = rng.uniform(low, high, number)
    middle = moons[rng.integers(len(moons), size=number)]
    return turn(middle + NOISE * rng.normal(size=middle.shape), angle), angle


def log_normal(y, centres, scale):
    """Log densities of places under round normals: (places, centres)."""
    squared = (y**2).sum(-1)[:, None] - 2 * y @ centres.T + (centres**2).sum(-1)
    return -0.5 * squared / scale**2 - np.log(2 * np.pi * scale**2)


def log_truth(y, angle):
    each = log_normal(turn(y, -angle), moons, NOISE)
    return logsumexp(each, axis=1) - np.log(len(moons))


def context(angle):
    return np.float32(np.stack([np.cos(angle), np.sin(angle)], axis=-1))


beyond_gap = GAP[1], GAP[0] + 2 * np.pi
y, angle = draw_rows(5000, *beyond_gap)
test = {"seen angles": draw_rows(TESTS, *beyond_gap), "gap": draw_rows(TESTS, *GAP)}

# %% [markdown]
# ## The model
#
# Flow matching (Lipman et al. 2023) makes the fit a regression. A straight line joins a
# normal draw to a row, and the field learns the velocity of the lines through a place
# at a time. The mean of these velocities is the field that moves the normal
# distribution onto the data. Each step draws its lines anew, with NumPyro's key.


# %%
def make(key):
    inner_key, key = jax.random.split(key)
    omegas = {"first_omega": 3.0, "hidden_omega": 3.0}
    inner = SIREN.init(2, 64, 2, depth=3, **omegas, key=inner_key)
    concat = {"conditioner_cls": ConcatConditioner, "cond_dim": 3}  # angle and time
    return ConditionedINR.init(inner, **concat, mode="preactivation", key=key)


field = make(next(keys))
loader = MinibatchLoader((np.float32(y), context(angle)), 500, rng_key=next(keys))


def model(y, c):
    with px.learn(where="*"):
        v = px.bind(field, "v")
    noise_key, time_key = jax.random.split(numpyro.prng_key())
    noise = jax.random.normal(noise_key, y.shape)
    t = jax.random.uniform(time_key, (len(y), 1))
    velocity = v((1 - t) * noise + t * y, jnp.concatenate([c, t], axis=-1))
    law = dist.Normal(velocity, 1.0).to_event(1)
    with numpyro.plate("row", loader.num_rows, subsample_size=len(y)):
        numpyro.sample("velocity", law, obs=y - noise)


def guide(y, c):
    """Nothing: every parameter is learned, none has a posterior."""


schedule = optax.cosine_decay_schedule(1e-2, STEPS)
svi = CompiledSVI(model, guide, optax.adam(schedule), Trace_ELBO())
ensemble = run_ensemble(
    svi, next(keys), MEMBERS, STEPS, loader, make=make, progress_bar=False
)
# Each array of the module has the members on its first axis.
fields = px.modules_from_draws(field, ensemble.params, name="v")
print(f"trained after {time.process_time():.0f} s of CPU")

# %% [markdown]
# ## The density
#
# A row travels back to time 0, where its density is normal; on the way the logarithm
# changes by the divergence of the field. Diffrax integrates both.


# %%
@eqx.filter_jit
def travel(v, y, c, begin, end):
    """Move places along the field; also integrate its divergence."""

    def derivative(t, state, _):
        def move(y):
            return v(y, jnp.concatenate([c, jnp.full((len(y), 1), t)], axis=-1))

        velocity, push = jax.linearize(move, state[0])
        first, second = (push(jnp.broadcast_to(e, velocity.shape)) for e in jnp.eye(2))
        return velocity, first[:, 0] + second[:, 1]

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(derivative),
        diffrax.Tsit5(),
        t0=begin,
        t1=end,
        dt0=0.05 * (end - begin),
        y0=(y, jnp.zeros(len(y))),
        stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-4),
    )
    return [one[0] for one in solution.ys]


def log_members(y, angle):
    """The log density of every row under every member: (members, rows)."""
    y, c = jnp.float32(y), context(angle)

    def log_density(v):
        origin, change = travel(v, y, c, 1.0, 0.0)
        return dist.Normal(jnp.zeros(2), 1.0).to_event(1).log_prob(origin) + change

    return np.asarray(eqx.filter_vmap(log_density)(fields))


def log_mean(members):
    """The log density of the ensemble: the mean of its members' densities."""
    return logsumexp(members, axis=0) - np.log(len(members))


# %% [markdown]
# ## Two baselines
#
# A conditional kernel density weighs the training rows by how near their angle is. A
# Gaussian mixture of place and angle together is conditioned on the angle. The widths
# and the number of components are chosen on the last thousand training rows.


# %%
def log_kernel(y, angle, rows, angles, width, turned):
    near = (np.cos(angle[:, None] - angles) - 1) / turned**2
    near -= logsumexp(near, axis=1)[:, None]
    return logsumexp(near + log_normal(y, rows, width), axis=1)


def log_mixture(mixture, y, angle):
    c = context(angle)
    joint = mixture.score_samples(np.concatenate([y, c], axis=1))
    law = dist.MultivariateNormal(
        mixture.means_[:, 2:], mixture.covariances_[:, 2:, 2:]
    )
    each = np.log(mixture.weights_) + law.log_prob(c[:, None])
    return joint - logsumexp(each, axis=1)


fitted, chosen_by = slice(0, 4000), (y[4000:], angle[4000:])
kernels = [(w, a) for w in (0.07, 0.1, 0.14) for a in (0.1, 0.15, 0.2, 0.3)]
kernel = max(
    kernels,
    key=lambda k: log_kernel(*chosen_by, y[fitted], angle[fitted], *k).mean(),
)
table = np.concatenate([y, context(angle)], axis=1)
mixtures = [
    GaussianMixture(k, reg_covar=1e-4, random_state=0).fit(table[fitted])
    for k in ((20,) if SMALL else (20, 40, 60))
]
mixture = max(mixtures, key=lambda m: log_mixture(m, *chosen_by).mean())

# %%
scores, apart = {}, {}
for where, rows in test.items():
    members = log_members(*rows)
    scores[where] = {
        "truth": log_truth(*rows).mean(),
        "ensemble of flows": log_mean(members).mean(),
        "a single flow": members.mean(),
        "kernel density": log_kernel(*rows, y, angle, *kernel).mean(),
        "Gaussian mixture": log_mixture(mixture, *rows).mean(),
    }
    apart[where] = np.median(members.std(axis=0))
print(f"\n{'log density of held-out rows, nats':<36}{'seen angles':>12}{'gap':>8}")
for name in scores["gap"]:
    print(f"{name:<36}{scores['seen angles'][name]:>12.3f}{scores['gap'][name]:>8.3f}")
line = "members differ by (median)"
print(f"{line:<36}{apart['seen angles']:>12.3f}{apart['gap']:>8.3f}")

# %% [markdown]
# ## The figure
#
# The density at four angles, the third of them in the middle of the gap, and below it
# how far the members differ.

# %%
SIDE = 24 if SMALL else 40
line = (np.arange(SIDE) + 0.5) / SIDE * 5 - 2.5
places = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
degrees = [0, 45, 90, 200]
figure, axes = plt.subplots(3, 4, figsize=(7.2, 5.6), layout="constrained")
totals = {}
for column, degree in zip(axes.T, degrees, strict=True):
    at = np.full(len(places), np.radians(degree))
    members = log_members(places, at)
    density = np.exp(log_mean(members))
    totals[degree] = density.sum() * (5 / SIDE) ** 2
    spread = np.exp(members).std(axis=0)
    pictures = np.exp(log_truth(places, at)), density, spread
    for panel, picture in zip(column, pictures, strict=True):
        extent = (-2.5, 2.5, -2.5, 2.5)
        image = panel.imshow(
            picture.reshape(SIDE, SIDE), origin="lower", extent=extent, vmin=0, vmax=0.5
        )
        panel.set(xticks=[-2, 0, 2], yticks=[-2, 0, 2])
        panel.label_outer()
    column[0].set_title(f"{degree}°" + (" (not seen)" if degree == 90 else ""))
    column[2].set_xlabel("first coordinate", fontsize="small")
for panel, name in zip(
    axes[:, 0], ("truth", "ensemble", "std. of members"), strict=True
):
    panel.set_ylabel(f"{name}\nsecond coordinate", fontsize="small")
figure.colorbar(image, ax=axes, label="density / unit area", shrink=0.6)
figure.savefig(OUTPUT / "flow_vector_field.png", dpi=150)
print(f"\nthe density sums to {', '.join(f'{t:.3f}' for t in totals.values())}")
print(f"figure: {OUTPUT / 'flow_vector_field.png'}")
print(f"time:   {time.process_time():.0f} s of CPU")

# %% [markdown]
# At seen angles the kernel density is as good as the ensemble (-1.12 and -1.14 nats):
# 5,000 rows fill two dimensions well. The Gaussian mixture has -1.34. In the gap the
# kernel must borrow from 30° away and falls to -2.67; the flows have learned to turn
# and have -1.53. They do not reach the truth there (-0.96), and say so only in part:
# the members differ by a third more than at seen angles.
#
# The script asserts what it claims:

# %%
seen, gap = scores["seen angles"], scores["gap"]
assert all(abs(total - 1) < 0.03 for total in totals.values()), "a density sums to 1"
assert seen["ensemble of flows"] >= seen["a single flow"]
assert gap["ensemble of flows"] > gap["kernel density"]
if not SMALL:
    assert seen["ensemble of flows"] > seen["kernel density"] - 0.05
    assert seen["ensemble of flows"] > seen["Gaussian mixture"] + 0.1
    assert gap["ensemble of flows"] > gap["kernel density"] + 0.5
    assert apart["gap"] > 1.15 * apart["seen angles"], "the members know of the gap"
