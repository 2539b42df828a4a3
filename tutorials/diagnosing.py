# %% [markdown]
# # Diagnosing: is the posterior of a network any good?
#
# Reordering the hidden units of a network, or flipping their signs, does not change its
# function. So chains that agree on the function may disagree on every weight. Here are
# two posteriors of the same small network: one that the R-hat of its weights condemns
# and the R-hat of its function clears, and one that is really broken. `diagnose` tells
# them apart. A second process then loads and uses the good one.

# %%
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
net_key, run_key = jax.random.split(jax.random.key(0))

# %% [markdown]
# ## The data and the model
#
# The yearly cycle of the sea temperature off Peru (see `data/README.md`): standardised
# monthly means of eight years. The network has three hidden units, and every parameter
# has a standard normal prior.

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
    fields = ("energy", "potential_energy", "num_steps")  # for the diagnosis
    mcmc.run(run_key, x, y=y, extra_fields=fields)
    return px.to_datatree(mcmc, x, y=y)


# %% [markdown]
# ## Condemned by its weights, cleared by its function
#
# The R-hat of the weights is far from 1, because every chain has its own order of the
# hidden units. The R-hat of the function is close to 1.

# %%
good = run(1000, 1000)
probes = jnp.linspace(-1.0, 1.0, 23)[:, None]
weights = azs.rhat(good, var_names=["net"], filter_vars="like")
weight_rhat = max(float(values.max()) for values in weights.data_vars.values())
diagnosis = px.diagnose(good, network, probes, name="net")
print(f"\nR-hat of the weights: {weight_rhat:.2f}\n\n{diagnosis}")
px.plot_diagnostics(diagnosis).savefig(OUTPUT / "diagnosing_good.png", dpi=150)

# %% [markdown]
# ## Really broken
#
# The same model with only three steps of warmup: the chains have not converged, and
# they do not agree on the function.

# %%
broken = run(3, 50)
bad = px.diagnose(broken, network, probes, name="net")
print(f"\n{bad}")
px.plot_diagnostics(bad).savefig(OUTPUT / "diagnosing_broken.png", dpi=150)

# %% [markdown]
# ## Is its uncertainty right?
#
# The same draws score years that the model has not seen.

# %%
held_out = table[(table[:, 0] >= 1995) & (table[:, 0] < 2003), 1:]
y_test = jnp.float32((held_out - celsius.mean()) / celsius.std()).ravel()
scores = px.calibration(px.to_datatree(good, x[: y_test.size], y=y_test, model=model))
print(f"\n1995-2002, with the El Niño of 1997:\n{scores}")

# %% [markdown]
# ## Predict in a second process
#
# The file contains the draws, the module, the key and the versions. The second process
# needs nothing else.

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
figure = px.plot_fit(
    fit,
    grid,
    x_observed=x,
    y_observed=y,
    xlabel="month, from January (-1) to December (1)",
    ylabel="temperature / sd",
)
figure.savefig(OUTPUT / "diagnosing_fit.png", dpi=150)
plt.close("all")
print(f"\nfigures: {OUTPUT}/diagnosing_*.png\nposterior: {path}")

# %% [markdown]
# The script asserts what it claims:

# %%
assert weight_rhat > 1.2, "the weights condemn it"
assert diagnosis.functions.rhat.max() < 1.01, "the function clears"
assert diagnosis.ok
assert not bad.ok
assert "R-hat" in bad.failed
assert bad.functions.rhat.max() > 1.05
assert np.array_equal(np.load(there), fit.mean), "both processes agree bit for bit"
