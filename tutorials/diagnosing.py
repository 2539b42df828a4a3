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
# It prints (the last digits differ from machine to machine)
#
# ```text
# NUTS: 4 chains of 1000 draws
# fine      R-hat: at most 1.002 of the values of MLP at 23 probes (should be at most
#           1.01)
# fine      ESS: bulk at least 1633, tail at least 2722 draws of the values of MLP at
#           23 probes (should be at least 400)
# fine      MCSE: at most 2.5 % of the standard deviation of the values of MLP at 23
#           probes (should be at most 10 %)
# fine      divergences: 0 of 4000 draws
# note      tree depth: 5.53 % of the trajectories stopped at the largest, 1,023 steps
#           try: standardised data, FlatNUTS(model, adaptation="low_rank") for
#                correlated parameters, or a larger max_tree_depth: a trajectory that
#                is cut short moves less far than its steps cost.
# fine      E-BFMI: at least 0.79 (should be at least 0.3)
# fine      LOO of y: ELPD -54.9 ± 5.4 nats, p 6.0; Pareto k above 0.70 for 0 of 96
#           observations
#
#                      size     of    mean     sd  ess_bulk  ess_tail  r_hat
# net.layers.0.bias       3    rms  0.9870  0.400    1142.0    2160.0  1.007
# net.layers.0.weight     3    rms  1.7340  0.230    2194.0    2889.0  1.002
# net.layers.1.bias       1    rms  0.5990  0.423    1554.0    1771.0  1.002
# net.layers.1.weight     3    rms  1.7120  0.373    1975.0    2322.0  1.001
# noise                   1  value  0.4185  0.034    1987.0    2044.0  1.001
#
# Verdict: all 5 checks of the draws that could be made are fine; trajectories at the
#           largest depth make the draws slow, not wrong.
# ```
#
# A line is *fine*, *NOT FINE* or a *note*, which is no fault; the verdict says what
# failed. The R-hat of the first line is that of the function. The table has the root
# mean square of each array of weights, which does not know their order or signs: its
# R-hat is close to 1 too.

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
# ```text
# NUTS: 4 chains of 50 draws
# NOT FINE  R-hat: at most 4.608 of the values of MLP at 23 probes (should be at most
#           1.01)
#           try: the chains disagree on the function, not just on the weights: a longer
#                warmup, more draws, chains from one good start (`init_to_value`), or a
#                prior that leaves fewer modes.
# NOT FINE  ESS: bulk at least 5, tail at least 5 draws of the values of MLP at 23
#           probes (should be at least 400)
#           try: more draws, or a longer warmup for a better step size and mass matrix.
# NOT FINE  MCSE: at most 46.8 % of the standard deviation of the values of MLP at 23
#           probes (should be at most 10 %)
#           try: more draws.
# NOT FINE  divergences: 157 of 200 draws
#           try: a higher target_accept_prob (0.95, then 0.99), a smaller prior_std, or
#                a reparameterisation of scales
#                (`numpyro.infer.reparam.LocScaleReparam`): the sampler missed a
#                region of strong curvature.
# fine      tree depth: 0 % of the trajectories stopped at the largest, 1,023 steps
# NOT FINE  E-BFMI: at least 0.21 (should be at least 0.3)
#           try: a reparameterisation, or lighter tails of the prior: the energy moves
#                too little from draw to draw.
# NOT FINE  LOO of y: ArviZ cannot compute it: All tail values are the same
#           try: draws that move.
#
#                      size     of   mean     sd  ess_bulk  ess_tail  r_hat
# net.layers.0.bias       3    rms  1.276  0.297       5.0       5.0  4.718
# net.layers.0.weight     3    rms  1.059  0.227       5.0       8.0  3.920
# net.layers.1.bias       1    rms  1.096  0.715       5.0       8.0  5.689
# net.layers.1.weight     3    rms  1.067  0.173       5.0       5.0  3.978
# noise                   1  value  0.607  0.215       6.0       5.0  2.406
#
# Verdict: not to be trusted as it stands; 5 of 6 checks of the draws failed (R-hat,
#           ESS, MCSE, divergences, E-BFMI); do not rely on LOO of y.
# ```
#
# Each failure comes with its mend. Take the mends from the top: here a longer warmup,
# and the other failures go with it.

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
# ```text
# 1995-2002, with the El Niño of 1997:
# y (continuous): 96 observations
#   50 % interval covers 42.7 %
#   80 % interval covers 67.7 %
#   90 % interval covers 80.2 %
#   95 % interval covers 84.4 %
#   mean CRPS 0.3939
#   ELPD -136.9 ± 23.9 nats
# ```
#
# The draws are those of the posterior, and the intervals are too narrow all the same:
# the El Niño of 1997 is outside of what eight other years teach. `diagnose` judges the
# draws, `calibration` the model.

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
