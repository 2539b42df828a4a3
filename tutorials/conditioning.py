# %% [markdown]
# # Conditional neural fields: three patterns side by side
#
# A field `f(x; z)` is a network of coordinates `x` that a context `z` changes: one
# network for a whole family of functions. What may the context change? There are three
# answers, and `pyrox_ppl.nn` has a module for each:
#
# 1. **the features** (FiLM-SIREN): the context scales and shifts the layers of a fixed
#    network;
# 2. **the basis** (Hyper-RFF): the context generates the frequencies, phases and
#    lengthscale of Fourier features, and all contexts share one linear readout;
# 3. **the weights** (HyperSIREN, *Neural Implicit Flow*): the context generates every
#    weight of the network.
#
# Here all three learn the same family, `u(x; a) = sin(a x)`, with the same training
# loop. The context is one number, the frequency `a`. What does each pattern cost, how
# well does it fit, and how many contexts must it see to predict new ones?

# %%
import os
import time
import timeit
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from numpyro import handlers

import pyrox_ppl as px
from pyrox_ppl import nn

mpl.use("agg")
import matplotlib.pyplot as plt

OUTPUT = Path(__file__).parent / "output"
OUTPUT.mkdir(exist_ok=True)
SMALL = "PYROX_PPL_SMALL" in os.environ  # a short run, as the tests make it
STEPS, SEEDS = (500, [0]) if SMALL else (1000, [0, 1, 2])
COUNTS = [6, 24] if SMALL else [4, 6, 8, 12, 24]  # of contexts; 24 is a multiple of all
start = time.perf_counter()

# %% [markdown]
# ## The three fields
#
# All have the same call, `field(x, z)`, and know nothing of priors or training.

# %%
WIDTH, FREQUENCIES, LATENT = 32, 32, 4
OMEGAS = {"first_omega": 4.0, "hidden_omega": 4.0}  # rad per unit of x, as `a`


def film_siren(key):
    inner_key, key = jax.random.split(key)
    inner = nn.SIREN.init(1, WIDTH, 1, depth=3, key=inner_key, **OMEGAS)
    return nn.ConditionedINR.init(inner, conditioner_cls=nn.FiLM, cond_dim=1, key=key)


def parameter_net(out, key):
    return eqx.nn.MLP(1, out, 32, depth=2, activation=jnp.tanh, key=key)


def hyper_rff(key):
    net_key, key = jax.random.split(key)
    net = parameter_net(2 * FREQUENCIES + 1, net_key)  # W, b, and a log-lengthscale
    sizes = {"in_features": 1, "n_features": FREQUENCIES, "cond_dim": 1}
    feat = nn.HyperFourierFeatures.init(parameter_net=net, **sizes)
    return nn.ConditionedRFFNet.init(feat=feat, out_features=1, key=key)


def hyper_siren(key):
    net_key, key = jax.random.split(key)
    net = parameter_net(LATENT, net_key)
    sizes = {"depth": 3, "cond_dim": LATENT, "parameter_net": net}
    return nn.HyperSIREN.init(1, WIDTH, 1, **sizes, key=key, **OMEGAS)


FIELDS = {"FiLM-SIREN": film_siren, "Hyper-RFF": hyper_rff, "HyperSIREN": hyper_siren}

# %% [markdown]
# ## The family
#
# Each training set has `n` frequencies, evenly spaced from 1 to 4, each seen at 64
# points. `x` has shape `(1, points, 1)` and `z` has `(contexts, 1, 1)`. They broadcast,
# and each field generates its parameters **once per context**, not once per point.
# (Fewer than 24 contexts are repeated. This does not change the loss, and one compiled
# program serves every `n`.)


# %%
def curves(a, x):
    """Make coordinates, contexts in about [-1, 1], and values."""
    a, x = jnp.float32(a)[:, None, None], jnp.float32(x)[None, :, None]
    return x, (a - 2.5) / 1.5, jnp.sin(a * x)


def training_set(n):
    return curves(np.tile(np.linspace(1, 4, n), 24 // n), np.linspace(-3, 3, 64))


# Frequencies halfway between the 24 of the training set, at other points.
unseen = np.linspace(1, 4, 24)[:-1] + 1.5 / 23
test_set = curves(unseen, np.linspace(-3, 3, 101))

# %% [markdown]
# ## One training loop
#
# Adam on all curves at once with a cosine learning rate. The whole loop is one compiled
# `scan`.


# %%
@eqx.filter_jit
def error(field, x, z, u):
    return jnp.mean((field(x, z) - u) ** 2)


@eqx.filter_jit
def train(field, x, z, u):
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))
    arrays, static = eqx.partition(field, eqx.is_inexact_array)

    def loss(arrays):
        return error(eqx.combine(arrays, static), x, z, u)

    def step(carry, _):
        arrays, state = carry
        value, slope = jax.value_and_grad(loss)(arrays)
        updates, state = optimiser.update(slope, state)
        return (optax.apply_updates(arrays, updates), state), value

    carry = (arrays, optimiser.init(arrays))
    (arrays, _), losses = jax.lax.scan(step, carry, length=STEPS)
    return eqx.combine(arrays, static), losses


mse = {name: np.zeros((len(SEEDS), len(COUNTS))) for name in FIELDS}
fitted, losses, seconds = {}, {}, dict.fromkeys(FIELDS, np.inf)
for name, make in FIELDS.items():
    for i, seed in enumerate(SEEDS):
        field = make(jax.random.key(seed))
        for j, n in enumerate(COUNTS):
            begin = time.perf_counter()
            fit, loss = jax.block_until_ready(train(field, *training_set(n)))
            seconds[name] = min(seconds[name], time.perf_counter() - begin)  # compiled
            mse[name][i, j] = error(fit, *test_set)
            if seed == 0:
                fitted[name], losses[name] = fit, np.asarray(loss)  # of all 24

# %% [markdown]
# ## What each costs
#
# Let there be C features, a context of K numbers, and m weights and biases in the
# network that the context changes. FiLM adds `2 C K + 2 C` parameters per layer. A
# HyperSIREN has `m L + m` for a latent of length L, plus its parameter net. A Hyper-RFF
# has its parameter net, with `in * n + n + 1` outputs, and a readout of `2 n + 1`.


# %%
def sizes(field):
    """Count all parameters, and those that handlers select by default."""
    arrays = jax.tree.leaves(eqx.filter(field, eqx.is_inexact_array))
    with handlers.seed(rng_seed=0), handlers.trace() as trace, px.bayesianize():
        field(jnp.zeros(1), jnp.zeros(1))
    sites = [site["value"] for site in trace.values()]
    return tuple(sum(array.size for array in group) for group in (arrays, sites))


middle = {name: np.median(values, axis=0) for name, values in mse.items()}
table = {name: sizes(field) for name, field in fitted.items()}
print(
    f"{'':<12}{'parameters':>11}{'generators':>12}{'ms a step':>11}"
    f"{'MSE, 24 contexts':>19}{f'{COUNTS[-2]} contexts':>13}"
)
for name, (total, generators) in table.items():
    print(
        f"{name:<12}{total:>11}{generators:>12}{1e3 * seconds[name] / STEPS:>11.2f}"
        f"{middle[name][-1]:>19.1e}{middle[name][-2]:>13.1e}"
    )

# %% [markdown]
# *Generators* are the parameters that make the conditioning; `px.bayesianize()` turns
# them into sites with a prior. FiLM has 256, a number that suits NUTS; the other two
# have thousands. The SIREN inside FiLM, the readout of Hyper-RFF and the encoder of
# HyperSIREN are backbone: they stay constant unless `where` selects them.

# %%
m = WIDTH + WIDTH + WIDTH * WIDTH + WIDTH + WIDTH + 1  # one input, one output
encoder = (32 + 32) + (32 * 32 + 32)  # a parameter net up to its last layer
film = 2 * (2 * WIDTH + 2 * WIDTH)  # two layers, K = 1
rff = encoder + 33 * (2 * FREQUENCIES + 1)
flow = m * LATENT + m
assert table["FiLM-SIREN"] == (m + film, film)
assert table["Hyper-RFF"] == (rff + 2 * FREQUENCIES + 1, rff)
assert table["HyperSIREN"] == (flow + encoder + 33 * LATENT, flow)

# %% [markdown]
# ## How each fits
#
# The test frequencies are new to all fields. All three interpolate well between the
# training contexts; do not trust any of them beyond.

# %%
x, wide, beyond = np.linspace(-3, 3, 301), np.linspace(0.5, 4.5, 81), {}
figure, axes = plt.subplots(2, 2, figsize=(10, 6), layout="constrained")
for axis, (name, field) in zip(axes.flat, fitted.items(), strict=False):
    for i, a in enumerate(unseen[[2, 11, 20]]):
        (points, z, u), shift = curves([a], x), 2.6 * i
        axis.plot(x, u[0, :, 0] + shift, color="0.75", lw=5)
        axis.plot(x, field(points, z)[0, :, 0] + shift, "k", lw=1)
        axis.text(3.15, shift, f"a = {a:.2f}", va="center")
    axis.set(title=f"{name}, test MSE {error(field, *test_set):.1e}", xlabel="x")
    axis.set(yticks=[], xticks=range(-3, 4), xlim=(-3, 4.3))
for name, field in fitted.items():
    points, z, u = curves(wide, x)
    by_a = np.asarray(((field(points, z) - u) ** 2).mean((1, 2)))
    beyond[name] = by_a[wide > 4.2].mean()
    axes[1, 1].semilogy(wide, by_a, label=name)
axes[1, 1].axvspan(1, 4, color="0.92", zorder=0, label="trained on")
axes[1, 1].set(xlabel="a", ylabel="mean squared error over x", title="by context")
axes[1, 1].legend(fontsize="small")
figure.suptitle("sin(a x) at frequencies not seen in training (truth in grey)")
figure.savefig(OUTPUT / "conditioning_fits.png", dpi=150)

# %% [markdown]
# ## How many contexts each needs
#
# The pattern that changes most gains most from many contexts, but also needs them.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for color, name in enumerate(FIELDS):
    left.loglog(COUNTS, middle[name], "o-", color=f"C{color}", label=name)
    spread = mse[name].min(0), mse[name].max(0)
    left.fill_between(COUNTS, *spread, color=f"C{color}", alpha=0.15)
    elapsed = np.arange(1, STEPS + 1) * seconds[name] / STEPS
    right.loglog(elapsed, losses[name], color=f"C{color}", lw=1)
left.set_xticks(COUNTS, [str(n) for n in COUNTS])
left.minorticks_off()
left.axhline(1e-3, color="0.6", ls=":", zorder=0)
left.set(xlabel="contexts in training", ylabel="test MSE at unseen frequencies")
left.set(title=f"median and range of {len(SEEDS)} initialisations")
left.legend()
right.set(xlabel="training time / s", ylabel="loss", title="training on 24 contexts")
figure.savefig(OUTPUT / "conditioning_contexts.png", dpi=150)

# %% [markdown]
# ## Do not repeat a context
#
# Contexts can have an axis of size 1 for the points, or be repeated for every row. The
# result is the same, but then every row generates its own parameters.

# %%
points, z, _ = curves(unseen, np.linspace(-3, 3, 256))
every_point, every_z = jnp.broadcast_arrays(points, z)
call = eqx.filter_jit(lambda field, x, z: field(x, z))


def milliseconds(*arguments):
    def run():
        jax.block_until_ready(call(*arguments))

    return 1e3 * np.median(timeit.repeat(run, number=1, repeat=15))


print(f"\n{'forward, ms':<12}{'per context':>13}{'per row':>10}")
for name, field in fitted.items():
    once, again = call(field, points, z), call(field, every_point, every_z)
    assert jnp.abs(once - again).max() < 1e-3, "the two ways are one function"
    print(
        f"{name:<12}{milliseconds(field, points, z):>13.2f}"
        f"{milliseconds(field, every_point, every_z):>10.2f}"
    )
print(f"\nfigures in {OUTPUT}, {time.perf_counter() - start:.0f} s")

# %% [markdown]
# ## When to pick which
#
# - **FiLM-SIREN** if contexts are few, or if the weights need a posterior: it has by
#   far the fewest generators and starts as the plain network. The context can only
#   scale and shift what the network already computes.
# - **Hyper-RFF** if the context moves frequencies or lengthscales: it has the cheapest
#   step and is linear in its readout. With very few contexts some runs get stuck.
# - **HyperSIREN** if contexts are many and differ in more than a scale: it fits
#   closest. It has m (L + 1) generators, and needs enough contexts to learn them.
#
# The script asserts what it claims:

# %%
for name in FIELDS:
    assert middle[name][-1] < 1e-3, f"{name} holds at contexts that it has not seen"
    assert beyond[name] > 30 * middle[name][-1], f"{name} does not extrapolate"
six = COUNTS.index(6)
assert middle["FiLM-SIREN"][six] < 1e-3, "six contexts are enough for FiLM"
assert middle["Hyper-RFF"][six] < 1e-3, "and for Hyper-RFF"
assert middle["HyperSIREN"][six] > 5 * middle["FiLM-SIREN"][six], "not for HyperSIREN"
assert min(middle, key=lambda n: middle[n][-1]) == "HyperSIREN", "then fits closest"
