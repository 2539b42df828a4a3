# %% [markdown]
# # Diagnosing: is the posterior of a network any good?
#
# The hidden units of a network can be put in another order, and their signs turned,
# without changing its function. So chains that agree on the function may disagree on
# every weight. Here are two posteriors of the same small network: one that R-hat of the
# weights condemns and the function clears, and one that is really broken. `diagnose`
# tells them apart, and the good one is saved and used in a second process.

# %%
import os
import subprocess
import sys
from pathlib import Path

import arviz_stats as azs
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

import pyrox_ppl as px

mpl.use("agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
OUTPUT = HERE / "output"
OUTPUT.mkdir(exist_ok=True)
SMALL = "PYROX_PPL_SMALL" in os.environ  # under test: fewer draws
WARMUP, DRAWS = (300, 300) if SMALL else (1000, 1000)
net_key, run_key = jax.random.split(jax.random.key(0))

# %% [markdown]
# ## The data and the model
#
# The yearly cycle of the sea's temperature off Peru (see `data/README.md`): monthly
# means of eight years, in °C, standardised. The network has three hidden units, and
# every parameter a standard normal prior.

# %%
table = np.loadtxt(HERE / "data" / "elnino.csv", delimiter=",", skiprows=1)
celsius = table[table[:, 0] >= 2003, 1:]
months = np.broadcast_to(np.arange(12.0), celsius.shape)
y = jnp.float32((celsius - celsius.mean()) / celsius.std()).ravel()
x = jnp.float32(months.ravel() / 5.5 - 1.0)[:, None]
network = eqx.nn.MLP(1, 1, 3, 1, activation=jnp.tanh, key=net_key)


def model(x, y=None):
    with px.bayesianize(prior_std=1.0):
        net = px.bind(network, "net")
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("month", x.shape[0]):
        numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], noise), obs=y)


def run(num_warmup, num_samples):
    mcmc = MCMC(
        NUTS(model, target_accept_prob=0.97),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(run_key, x, y=y, extra_fields=("energy", "potential_energy"))
    return px.to_datatree(mcmc, x, y=y)


# %% [markdown]
# ## Condemned by its weights, cleared by its function
#
# The weights' R-hat is far from 1: every chain has its hidden units in an order of its
# own. The function's is not.

# %%
good = run(WARMUP, DRAWS)
probes = jnp.linspace(-1.0, 1.0, 23)[:, None]
weights = azs.rhat(good, var_names=["net"], filter_vars="like")
of_weights = max(float(values.max()) for values in weights.data_vars.values())
diagnosis = px.diagnose(good, network, probes, name="net")
print(f"\nR-hat of the weights: {of_weights:.2f}\n\n{diagnosis}")
px.plot_diagnostics(diagnosis).savefig(OUTPUT / "diagnosing_good.png", dpi=150)

# %% [markdown]
# ## Really broken
#
# The same model, stopped after three steps of warmup: the chains are still on their
# way, and they do not agree on the function.

# %%
broken = run(3, 50)
bad = px.diagnose(broken, network, probes, name="net")
print(f"\n{bad}")
px.plot_diagnostics(bad).savefig(OUTPUT / "diagnosing_broken.png", dpi=150)

# %% [markdown]
# ## Is it as sure as it should be?
#
# Years that the model has not seen, scored by the same draws.

# %%
held_out = table[(table[:, 0] >= 1995) & (table[:, 0] < 2003), 1:]
y_test = jnp.float32((held_out - celsius.mean()) / celsius.std()).ravel()
scores = px.calibration(px.to_datatree(good, x[: y_test.size], y=y_test, model=model))
print(f"\n1995-2002, with the El Niño of 1997:\n{scores}")

# %% [markdown]
# ## Saved, loaded in a second process, predicted with
#
# The file holds the draws, the module, the key and the versions. The second process
# needs nothing but it.

# %%
path = OUTPUT / "diagnosing.nc"
px.save(path, good, network, name="net")
code = """
import sys, jax.numpy as jnp, numpy as np, pyrox_ppl as px
saved = px.load(sys.argv[1])
x = jnp.linspace(-1.0, 1.0, 100)[:, None]
fit = px.predict(saved.module, saved.posterior, x, name=saved.name)
np.save(sys.argv[2], fit.mean)
"""
there = OUTPUT / "diagnosing_mean.npy"
subprocess.run([sys.executable, "-c", code, path, there], check=True)

grid = jnp.linspace(-1.0, 1.0, 100)[:, None]
fit = px.predict(network, good, grid, name="net")
axes = px.plot_fit(fit, grid, x_observed=x, y_observed=y)
axes.set(xlabel="month, from January (-1) to December (1)", ylabel="temperature / sd")
axes.figure.savefig(OUTPUT / "diagnosing_fit.png", dpi=150)
plt.close("all")
print(f"\nfigures: {OUTPUT}/diagnosing_*.png\nposterior: {path}")

# %% [markdown]
# What it claims, it shows:

# %%
assert of_weights > 1.2, "the weights condemn it"
assert diagnosis.functions.rhat.max() < (1.05 if SMALL else 1.01), "the function clears"
assert SMALL or diagnosis.ok
assert not bad.ok
assert "R-hat" in bad.failed
assert bad.functions.rhat.max() > 1.05
assert np.array_equal(np.load(there), fit.mean), "bit by bit the same"
