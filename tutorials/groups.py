# %% [markdown]
# # A network with a head per group
#
# How much does a firm invest, given its market value and the capital it owns? Eleven
# firms, from General Motors to Diamond Match, behave similarly but not equally. Three
# models share the same two modules, a trunk and a head, to different degrees:
#
# - **pooled**: one trunk and one head for all firms;
# - **separate**: a trunk and a head per firm, with nothing in common;
# - **groups**: one trunk and one head for all, plus a head per firm with a learned
#   scale: partial pooling.
#
# The models see six of each firm's 20 years; the other 14 are held out.

# %%
import os
import time
from pathlib import Path

import numpyro

CHAINS = 2
numpyro.set_host_device_count(CHAINS)  # a device per chain; before JAX starts

import arviz_stats as azs  # noqa: E402 - JAX reads the device count when it is imported
import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import matplotlib as mpl  # noqa: E402
import numpy as np  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from arviz_base import dict_to_dataset  # noqa: E402
from numpyro.infer import MCMC, NUTS, Predictive  # noqa: E402

import pyrox_ppl as px  # noqa: E402

mpl.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
OUTPUT = HERE / "output"
OUTPUT.mkdir(exist_ok=True)
SMALL = "PYROX_PPL_SMALL" in os.environ  # few draws, for a quick check that it runs
WARMUP, DRAWS, DEPTH = (30, 30, 5) if SMALL else (250, 250, 8)
SEEN = 6  # years per firm
start = time.perf_counter()

# %% [markdown]
# ## The data
#
# Logarithms of millions of 1947 dollars (see `data/README.md`), standardised over the
# seen years. The seen years are drawn at random for each firm.

# %%
path = HERE / "data" / "grunfeld.csv"
numbers = np.loadtxt(path, delimiter=",", skiprows=1, usecols=(0, 1, 2, 4))
firm_of_row = np.loadtxt(path, delimiter=",", skiprows=1, usecols=3, dtype=str)
firms = sorted(set(firm_of_row))
by_firm = np.stack([numbers[firm_of_row == firm] for firm in firms])  # (firm, year, 4)
years, logs = by_firm[0, :, 3].astype(int), np.log(by_firm[..., :3])

order = np.random.default_rng(0).permuted(
    np.tile(np.arange(len(years)), (len(firms), 1)), axis=1
)
seen, held_out = order[:, :SEEN, None], order[:, SEEN:, None]
mean = np.take_along_axis(logs, seen, 1).mean((0, 1))
std = np.take_along_axis(logs, seen, 1).std((0, 1))
scaled = (logs - mean) / std


x, y = jnp.float32(scaled[..., 1:]), jnp.float32(scaled[..., 0])
x_seen = jnp.take_along_axis(x, seen, 1)
y_seen, y_new = (jnp.take_along_axis(y, i[..., 0], 1) for i in (seen, held_out))

# %% [markdown]
# ## Two modules, three models
#
# The modules are plain Equinox. `bind` decides what firms share: with `plate="firm"`
# inside that plate, every firm has its own parameters, and the returned module is ready
# for `eqx.filter_vmap`.

# %%
trunk_key, head_key, *run_keys = jax.random.split(jax.random.key(0), 5)
trunk = eqx.nn.Sequential([eqx.nn.Linear(2, 6, key=trunk_key), eqx.nn.Lambda(jnp.tanh)])
head = eqx.nn.Linear(6, 1, key=head_key)
PRIOR = {"*.bias": px.priors.normal(1.0), "*": px.priors.fan_in(2.0)}


def apply(trunk, head, x):
    """Apply the network to the years of one firm."""
    return jax.vmap(lambda row: head(trunk(row))[0])(x)


def pooled(x):
    with px.bayesianize(prior=PRIOR):
        shared, common = px.bind(trunk, "trunk"), px.bind(head, "common")
    return jax.vmap(lambda rows: apply(shared, common, rows))(x)


def separate(x):
    with px.bayesianize(prior=PRIOR), numpyro.plate("firm", len(firms), dim=-2):
        trunks = px.bind(trunk, "trunk", plate="firm")
        heads = px.bind(head, "head", plate="firm")
    return eqx.filter_vmap(apply)(trunks, heads, x)


def groups(x):
    with px.bayesianize(prior={"head.*": px.priors.hierarchical(), **PRIOR}):
        shared, common = px.bind(trunk, "trunk"), px.bind(head, "common")
        with numpyro.plate("firm", len(firms), dim=-2):
            heads = px.bind(head, "head", plate="firm")

    def apply_both(own, rows):
        return apply(shared, common, rows) + apply(shared, own, rows)

    return eqx.filter_vmap(apply_both)(heads, x)


PLATES = ("firm", -2), ("year", -1)


def with_noise(network):
    def model(x, y=None):
        f = numpyro.deterministic("f", network(x))
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        with (
            numpyro.plate("firm", f.shape[0], dim=-2),
            numpyro.plate("year", f.shape[1]),
        ):
            numpyro.sample("y", dist.Normal(f, noise), obs=y)

    return model


# %% [markdown]
# `explain` says what the third model will do, before it runs:

# %%
print(px.explain(with_noise(groups), x_seen, y=y_seen))

# %% [markdown]
# ## NUTS, and the held-out years
#
# Errors are in logarithms of dollars (0.3 is a factor of 1.35). The log density is the
# mean over held-out values, under the mixture of all draws. R-hat is computed for the
# predictions, because the weights of a network have symmetries and its values do not.

# %%
scores, curves = {}, {}
for network, key in zip([pooled, separate, groups], run_keys, strict=True):
    name, model = network.__name__, with_noise(network)
    kernel = NUTS(model, target_accept_prob=0.9, max_tree_depth=DEPTH)
    mcmc = MCMC(kernel, num_warmup=WARMUP, num_samples=DRAWS, num_chains=CHAINS)
    mcmc.run(key, x_seen, y=y_seen)
    draws = mcmc.get_samples()
    curves[name] = f = np.asarray(Predictive(model, draws)(key, x)["f"])
    f_new = np.take_along_axis(f, held_out[None, ..., 0], 2)
    noise = draws["noise"][:, None, None]
    density = jax.nn.logsumexp(dist.Normal(f_new, noise).log_prob(y_new), axis=0)
    predictions = dist.Normal(f_new, noise).sample(key)
    low, high = np.quantile(predictions, [0.05, 0.95], axis=0)
    by_chain = f_new.reshape(CHAINS, DRAWS, *f_new.shape[1:])
    scores[name] = {
        "RMSE": np.sqrt(((f_new.mean(0) - y_new) ** 2).mean()) * std[0],
        "log density": float(density.mean()) - np.log(len(f) * std[0]),
        "covered": ((low <= y_new) & (y_new <= high)).mean(),
        "R-hat": float(azs.rhat(dict_to_dataset({"f": by_chain}))["f"].max()),
        "divergences": int(mcmc.get_extra_fields()["diverging"].sum()),
    }

print(f"\n{'held-out years':<16}{''.join(f'{key:>13}' for key in scores['pooled'])}")
for name, row in scores.items():
    print(f"{name:<16}{''.join(f'{value:>13.3f}' for value in row.values())}")

# %% [markdown]
# ## The figure
#
# Bands are 90 % intervals of the mean. The pooled network misses every firm that is not
# average, with narrow bands. A separate network is wide where its firm has no data, as
# Chrysler before 1938. The network with a head per firm follows the firm where it has
# data, and the other firms elsewhere. No model predicts what no seen year shows: the
# war years of Diamond Match.

# %%
shown = ["General Motors", "IBM", "Chrysler", "Goodyear", "Diamond Match", "US Steel"]
figure, axes = plt.subplots(2, 3, figsize=(11, 6), sharex=True, layout="constrained")
for axis, firm in zip(axes.flat, shown, strict=True):
    i = firms.index(firm)
    for color, name in zip(("0.5", "C1", "C0"), curves, strict=True):
        f = np.exp(curves[name][:, i] * std[0] + mean[0])
        low, high = np.quantile(f, [0.05, 0.95], axis=0)
        axis.fill_between(years, low, high, color=color, alpha=0.2, lw=0)
        axis.plot(years, np.median(f, axis=0), color=color, label=name)
    dollars = np.exp(logs[i, :, 0])
    for index, fill, label in ((seen, "k", "seen"), (held_out, "w", "held out")):
        index = index[i, :, 0]
        axis.plot(
            years[index], dollars[index], "o", color="k", mfc=fill, ms=4, label=label
        )
    axis.set(title=firm, yscale="log")
for axis in axes[:, 0]:
    axis.set_ylabel("investment / million $ of 1947")
figure.legend(
    *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5
)
figure.savefig(OUTPUT / "groups.png", dpi=150)
print(f"figure: {OUTPUT / 'groups.png'}")
print(f"time:   {time.perf_counter() - start:.0f} s")

# %% [markdown]
# The script asserts what it claims. (With few draws the chains do not agree yet.)

# %%
assert scores["groups"]["RMSE"] < scores["pooled"]["RMSE"]
if not SMALL:
    assert scores["groups"]["RMSE"] < 0.95 * scores["separate"]["RMSE"]
    assert scores["groups"]["log density"] > scores["separate"]["log density"]
    assert scores["groups"]["log density"] > scores["pooled"]["log density"]
    assert 0.83 <= scores["groups"]["covered"] <= 0.97
    assert all(row["R-hat"] < 1.05 for row in scores.values())
