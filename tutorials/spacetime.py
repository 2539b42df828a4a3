# %% [markdown]
# # Chickenpox in space and time: a Bayesian neural field of counts
#
# Twenty counties of Hungary report their cases of chickenpox every week. A Bayesian
# neural field (Saad et al. 2024) is a network of place and season whose weights have
# priors. Here it is an `eqx.nn.MLP`; the likelihood counts, counties and years have
# levels of their own, and the whole is one NumPyro model. An ensemble of its modes and
# NUTS forecast a year that neither has seen.

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
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta

import pyrox_ppl as px
from pyrox_ppl.infer import (
    CompiledMCMC,
    FlatNUTS,
    init_params_from_members,
    init_to_stored,
    run_ensemble,
)

mpl.use("agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
OUTPUT = HERE / "output"
OUTPUT.mkdir(exist_ok=True)
SMALL = "PYROX_PPL_SMALL" in os.environ  # a short run, as the tests make it
MEMBERS, STEPS = (3, 300) if SMALL else (10, 2000)
WARMUP, DRAWS, DEPTH = (20, 20, 4) if SMALL else (300, 300, 6)
FIRST = 2012 if SMALL else 2008
keys = iter(jax.random.split(jax.random.key(0), 8))
start = time.perf_counter()

# %% [markdown]
# ## The data
#
# Weekly cases of each county with the middle of the county (see `data/README.md`). The
# model learns the six years before 2014 and forecasts 2014. The features of a row are
# three harmonics of the season, and the place.

# %%
text = (HERE / "data" / "chickenpox.csv").read_text()
lines = [line.split(",") for line in text.split()]
county = [name.strip().title() for name in lines[0][1:]]
place = np.array([lines[1][1:], lines[2][1:]], float).T  # longitude, latitude
date = np.array([line[0] for line in lines[3:]], "datetime64[D]")
cases = np.array([line[1:] for line in lines[3:]], int)  # (weeks, counties)
year = 2005 + (date - np.datetime64("2005-01-01")) / np.timedelta64(1, "D") / 365.2425
train, test = (year >= FIRST) & (year < 2014), year >= 2014
COUNTIES = len(county)


def rows(weeks):
    """Features, county, year and cases: a row for each week and county."""
    t, number = np.meshgrid(year[weeks], np.arange(COUNTIES), indexing="ij")
    angle = 2 * np.pi * t
    waves = [f(k * angle) for k in (1, 2, 3) for f in (np.cos, np.sin)]
    where = np.moveaxis(((place - place.mean(0)) / place.std(0))[number], -1, 0)
    x = np.float32(np.stack([*waves, *where], axis=-1)).reshape(-1, 8)
    since = np.int32(t.ravel()) - FIRST
    return (x, number.ravel(), since), cases[weeks].ravel()


inputs, y = rows(train)
new, y_new = rows(test)

# %% [markdown]
# ## The model
#
# The logarithm of the expected cases is a level for each county, the years, and the
# field. A year is not a coordinate along which a network could be continued, so the
# years are a line with scatter around it: the scatter of 2014 comes from its prior,
# whose width the other years tell. Counts scatter more than a Poisson's, in some
# counties more than in others, so the likelihood is negative binomial.


# %%
def make(key):
    return eqx.nn.MLP(8, 1, 12, 1, activation=jnp.tanh, use_final_bias=False, key=key)


network = make(next(keys))


def model(x, number, since, y=None):
    with px.bayesianize(prior=px.priors.fan_in()):
        field = px.bind(network, "field")
    with numpyro.plate("county", COUNTIES):
        level = numpyro.sample("level", dist.Normal(3.0, 1.0))
        concentration = numpyro.sample("concentration", dist.LogNormal(1.0, 0.5))
    slope = numpyro.sample("slope", dist.Normal(0.0, 0.1))  # a year
    spread = numpyro.sample("spread", dist.LogNormal(-2.0, 0.5))
    with numpyro.plate("year", 2015 - FIRST):
        scatter = numpyro.sample("scatter", dist.Normal(0.0, 1.0))
    field_of_rows = jax.vmap(field)(x)[:, 0]
    years = slope * (since - 3) + spread * scatter[since]
    log_mean = level[number] + years + field_of_rows
    log_mean = numpyro.deterministic("f", log_mean)
    with numpyro.plate("row", len(number)):
        likelihood = dist.NegativeBinomial2(jnp.exp(log_mean), concentration[number])
        numpyro.sample("cases", likelihood, obs=y)


# %% [markdown]
# ## An ensemble, and NUTS from its members
#
# The members start at networks that are initialised anew and are trained in one
# program. NUTS starts a chain at each of two members. The county's levels and the
# field's coordinates explain the same differences between places, and 63 steps are too
# few to cross such a posterior: `diagnose` says that the chains have not. The held-out
# year below judges the forecast all the same; before a claim about the function itself,
# let the trees grow (`max_tree_depth=10`, NumPyro's default) and draw for longer.

# %%
trees = {}
guide = AutoDelta(model, init_loc_fn=init_to_stored)
svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
ensemble = run_ensemble(
    svi, next(keys), MEMBERS, STEPS, *inputs, y, make=make, progress_bar=False
)
trees["ensemble"] = px.to_datatree(ensemble, *inputs, y=y, guide=guide)

mcmc = CompiledMCMC(
    FlatNUTS(model, adaptation="low_rank", max_tree_depth=DEPTH),
    num_warmup=WARMUP,
    num_samples=DRAWS,
    num_chains=2,
    chain_method="vectorized",
    progress_bar=False,
)
members = init_params_from_members(model, guide.median(ensemble.params), *inputs, y)
pair = {name: values[:2] for name, values in members.items()}
mcmc.run(next(keys), *inputs, y, init_params=pair)
trees["NUTS"] = px.to_datatree(mcmc, *inputs, y=y)
diagnosis = px.diagnose(trees["NUTS"])
print(diagnosis)

# %% [markdown]
# ## A year ahead
#
# The baseline is climatology: what the county reported in the same week, and the weeks
# beside it, of the years before.

# %%
ahead = {
    name: px.to_datatree(tree, *new, y=y_new, model=model)
    for name, tree in trees.items()
}
comparison = px.compare(ahead)
print(f"\n{comparison}")

past = []
for week in np.flatnonzero(test):
    apart = np.abs((year - year[week] + 0.5) % 1 - 0.5)
    past.append(cases[train & (apart < 1.6 / 52)])
least = min(len(some) for some in past)
climatology = np.stack([some[:least] for some in past], 1).reshape(least, -1)
score = float(px.scores.crps(y_new.astype(float), climatology.astype(float)).mean())
print(f"climatology: CRPS {score:.2f} cases")

# %%
figure, panels = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
drawn = ahead["NUTS"].posterior_predictive["cases"].values
drawn = drawn.reshape(-1, test.sum(), COUNTIES)
low, middle, high = np.quantile(drawn, [0.05, 0.5, 0.95], axis=0)
for panel, name in zip(panels.flat, ("Budapest", "Hajdu", "Zala"), strict=False):
    i = county.index(name)
    days = date[test]
    panel.fill_between(
        days,
        low[:, i],
        high[:, i],
        color="tab:blue",
        alpha=0.25,
        linewidth=0,
        label="90 % predictive interval",
    )
    panel.plot(days, middle[:, i], color="tab:blue", label="median")
    panel.plot(days, cases[test][:, i], ".", color="black", label="reported")
    panel.set(title=name, ylabel="cases / week", ylim=(0, None))
    panel.xaxis.set_major_formatter(mpl.dates.DateFormatter("%b"))
    panel.xaxis.set_major_locator(mpl.dates.MonthLocator((1, 4, 7, 10)))
    panel.set_xlabel("2014")
panels[0, 0].legend(fontsize="small", frameon=False)

# The share of the year's cases in spring: the field, where the season is early.
spring = (year[test] % 1 > 0.2) & (year[test] % 1 < 0.45)
share = drawn[:, spring].sum(1) / np.maximum(drawn.sum(1), 1)
dots = panels[1, 1].scatter(
    *place.T, c=100 * share.mean(0), s=40 + 4000 * share.std(0), cmap="viridis"
)
for i, name in enumerate(county):
    panels[1, 1].annotate(
        name, place[i], (0, 9), textcoords="offset points", fontsize=6, ha="center"
    )
panels[1, 1].set(
    xlabel="longitude / °E",
    ylabel="latitude / °N",
    title="mid-March to mid-June (larger: less sure)",
    aspect=1.47,  # a degree of longitude is that much shorter at 47 °N
)
panels[1, 1].margins(0.12)
figure.colorbar(dots, ax=panels[1, 1], label="share of the year's cases / %")
figure.savefig(OUTPUT / "spacetime.png", dpi=150)
print(f"{time.perf_counter() - start:.0f} s")

# %%
crps = comparison.scores["crps"].value
if not SMALL:
    assert crps["NUTS"] < score, "the field beats climatology"
    assert crps["NUTS"] <= crps["ensemble"] * 1.02, "NUTS is not worse than its modes"
    assert 0.8 <= comparison.scores["coverage"].value["NUTS"] <= 0.97
