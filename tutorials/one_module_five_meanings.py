# %% [markdown]
# # One module, five meanings
#
# A module is a function; what its parameters *mean* is said from outside. Here one small
# network draws the seasonal cycle of the sea temperature off Peru, and never changes. It
# is used as it is, trained, made Bayesian, generated from a context, and doubled:
#
# | around the model | a parameter is |
# | --- | --- |
# | nothing | the constant in the module |
# | `px.learn` | a `numpyro.param`, trained by SVI |
# | `px.bayesianize` | a `numpyro.sample` with a prior: MAP, SVI and NUTS |
# | `px.amortize` | a value generated from a context |
# | `px.scope` | the same, once per name |

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
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, init_to_value
from numpyro.infer.autoguide import AutoDelta, AutoMultivariateNormal

import pyrox_ppl as px
from pyrox_ppl.nn import HyperNetwork

mpl.use("agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
OUTPUT = HERE / "output"
OUTPUT.mkdir(exist_ok=True)
SMALL = "PYROX_PPL_SMALL" in os.environ  # the test suite's settings
STEPS, WARMUP, DRAWS = (1500, 200, 200) if SMALL else (3000, 500, 1000)
net_key, g_key, fit_key, nuts_key, draw_key = jax.random.split(jax.random.key(0), 5)
start = time.perf_counter()

# %% [markdown]
# ## The data and the network
#
# Monthly means in °C, 1950 to 2010 (NOAA, see `data/README.md`), in units of their
# standard deviation over the training years, 1950 to 1994. The network takes the phase
# of the month to a temperature: 33 parameters.

# %%
table = np.loadtxt(HERE / "data" / "elnino.csv", delimiter=",", skiprows=1)
year, celsius = table[:, 0].astype(int), table[:, 1:]
train, test = year < 1995, year >= 1995
center, unit = celsius[train].mean(), celsius[train].std()
y = jnp.asarray((celsius - center) / unit, jnp.float32)

phase = 2 * np.pi * np.arange(12) / 12
x = jnp.asarray(np.stack([np.cos(phase), np.sin(phase)], axis=-1), jnp.float32)
net = eqx.nn.MLP(2, 1, width_size=8, depth=1, activation=jnp.tanh, key=net_key)


def cycle(net):
    """The network's twelve months."""
    return jax.vmap(net)(x)[:, 0]


def in_celsius(values):
    return np.asarray(values) * unit + center


# %% [markdown]
# ## The model, and nothing around it
#
# `bind` is where the parameters are read: the one line that a network from elsewhere
# needs. Under nothing they are constants, and the only site besides the data is the
# noise.


# %%
def model(y=None, years=45):
    f = cycle(px.bind(net, "cycle"))
    numpyro.deterministic("f", f)
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("year", years, dim=-2), numpyro.plate("month", 12, dim=-1):
        numpyro.sample("y", dist.Normal(f[None], noise), obs=y)


prior = {"*.layers.0.*": dist.Normal(0.0, 1.5), "*": dist.Normal(0.0, 0.7)}
learned = px.learn(model)
bayesian = px.bayesianize(model, prior=prior)


def sites(model):
    """What each meaning makes of the parameters."""
    found = trace(seed(model, 0)).get_trace().values()
    return [
        (site["type"], site["name"])
        for site in found
        if site["type"] in ("param", "sample") and site["name"] != "y"
    ]


for name, meaning in {
    "nothing": model,
    "learn": learned,
    "bayesianize": bayesian,
}.items():
    print(f"\n{name}")
    for kind, site in sites(meaning):
        print(f"  {kind:<7} {site}")

# %% [markdown]
# ## `learn`: a point estimate
#
# The maximum of the likelihood. What SVI trained is put into a module by `substitute`,
# and that module is an ordinary Equinox network again.


# %%
def fit(model, guide, steps=STEPS):
    optimiser = optax.adam(optax.cosine_decay_schedule(0.02, steps))
    svi = SVI(model, guide, optimiser, Trace_ELBO())
    return svi.run(fit_key, steps, y[train], progress_bar=False).params


y_train = y[train]
params = fit(learned, AutoDelta(learned))
with substitute(data=params), px.learn():
    trained = px.bind(net, "cycle")

# %% [markdown]
# ## `bayesianize`: MAP, then SVI, then NUTS, with the same model
#
# A guide of point masses finds the mode; a Gaussian guide its surroundings; NUTS, started
# at the mode, the posterior. The months of a year are taken as independent, so the bands
# are those of this model; the next section gives a year its own curve.

# %%
delta, gaussian = AutoDelta(bayesian), AutoMultivariateNormal(bayesian)
map_params = fit(bayesian, delta)
mode = delta.median(map_params)
at_mode = Predictive(bayesian, {k: v[None] for k, v in mode.items()})
by_map = at_mode(draw_key)["f"][0]

gaussian = AutoMultivariateNormal(
    bayesian, init_loc_fn=init_to_value(values=mode), init_scale=0.01
)
svi_params = fit(bayesian, gaussian)
by_svi = Predictive(bayesian, guide=gaussian, params=svi_params, num_samples=1000)(
    draw_key
)["f"]

kernel = NUTS(bayesian, init_strategy=init_to_value(values=mode))
mcmc = MCMC(kernel, num_warmup=WARMUP, num_samples=DRAWS, progress_bar=False)
mcmc.run(nuts_key, y_train)
by_nuts = mcmc.get_samples()["f"]
divergences = int(mcmc.get_extra_fields()["diverging"].sum())

# %% [markdown]
# ## `amortize`: a cycle for every year
#
# What does a year look like whose first three months are known? The context `z` is their
# anomaly, and a generator bends the trained network by it: a head per parameter, around
# the trained value. The weights of the heads have a prior, and nothing else has: the
# network itself has no sites, however large it is.

# %%
mean = in_celsius(y_train).mean(0)
scale = celsius[train, :3].std(0)
z = jnp.asarray((celsius[:, :3] - mean[:3]) / scale, jnp.float32)
generator = HyperNetwork.init(trained, 3, key=g_key, init_scale=0.01)


def year_by_year(z, y=None):
    with px.bayesianize(prior_std=0.1, where="hyper_network.heads.*.weight"):
        g = px.bind(generator)

    def year_of(z):
        with px.amortize(generator=g, context=z):
            return cycle(px.bind(trained, "cycle"))

    f = jax.vmap(year_of)(z)[:, 3:]
    numpyro.deterministic("f", f)
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("year", len(z), dim=-2), numpyro.plate("month", 9, dim=-1):
        numpyro.sample("y", dist.Normal(f, noise), obs=y)


print("\namortize")
for kind, site in sites(lambda: year_by_year(z)):
    print(f"  {kind:<7} {site}")

guide = AutoMultivariateNormal(year_by_year, init_scale=0.01)
svi = SVI(
    year_by_year,
    guide,
    optax.adam(optax.cosine_decay_schedule(0.01, STEPS)),
    Trace_ELBO(),
)
result = svi.run(fit_key, STEPS, z[train], y_train[:, 3:], progress_bar=False)
predictive = Predictive(
    year_by_year, guide=guide, params=result.params, num_samples=1000
)
of_test = predictive(draw_key, z[test])

# %% [markdown]
# ## `scope`: before and after 1976
#
# In 1976/77 the whole Pacific warmed. The same network under two scopes is two
# independent sets of parameters, and their difference has a posterior.

# %%
before = year[train] < 1977


def two_eras(y=None):
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with px.bayesianize(prior=prior):
        for era, rows in (("before", before), ("after", ~before)):
            with px.scope(era):
                f = numpyro.deterministic("f", cycle(px.bind(net, "cycle")))
                y_era = None if y is None else y[rows]
                with (
                    numpyro.plate("year", rows.sum(), dim=-2),
                    numpyro.plate("month", 12, dim=-1),
                ):
                    numpyro.sample("y", dist.Normal(f[None], noise), obs=y_era)


print("\nscope")
for kind, site in sites(two_eras):
    print(f"  {kind:<7} {site}")

eras = {
    f"{era}.{name}": value
    for era in ("before", "after")
    for name, value in mode.items()
}
guide = AutoMultivariateNormal(
    two_eras, init_loc_fn=init_to_value(values=eras), init_scale=0.01
)
era_params = fit(two_eras, guide)
of_eras = Predictive(two_eras, guide=guide, params=era_params, num_samples=2000)(
    draw_key
)
warming = np.asarray(of_eras["after.f"] - of_eras["before.f"]) * unit

# %% [markdown]
# ## What came out
#
# The point estimate and the three Bayesian ones agree with the months' own means, the
# Gaussian guide has the width of NUTS, and a year whose first months are known is
# predicted better than by the mean.

# %%
observed = celsius[test, 3:]
draws = in_celsius(of_test["y"])
low, high = np.quantile(draws, [0.05, 0.95], axis=0)


def rmse(prediction, truth):
    return float(np.sqrt(((prediction - truth) ** 2).mean()))


errors = {
    "nothing": rmse(in_celsius(cycle(net)), mean),
    "learn": rmse(in_celsius(cycle(trained)), mean),
    "MAP": rmse(in_celsius(by_map), mean),
    "SVI": rmse(in_celsius(by_svi).mean(0), mean),
    "NUTS": rmse(in_celsius(by_nuts).mean(0), mean),
}
widths = {
    "SVI": float((np.asarray(by_svi).std(0) * unit).mean()),
    "NUTS": float((np.asarray(by_nuts).std(0) * unit).mean()),
}
amortized, climatology = (
    rmse(draws.mean(0), observed),
    rmse(np.broadcast_to(mean[3:], observed.shape), observed),
)
coverage = 100 * float(((low <= observed) & (observed <= high)).mean())
by_means = np.asarray(y_train[~before].mean(0) - y_train[before].mean(0)) * unit

print("\ndistance to the mean of each month, 1950-1994, in °C")
for name, error in errors.items():
    width = f", standard deviation {widths[name]:.3f}" if name in widths else ""
    print(f"  {name:<8}{error:.3f}{width}")
print(f"  (NUTS: {divergences} divergences)")
print("April to December, 1995-2010")
print(f"  amortize     RMSE {amortized:.3f} °C, 90 % interval covers {coverage:.0f} %")
print(f"  climatology  RMSE {climatology:.3f} °C")
print("after 1976 minus before, mean over the year")
print(f"  scope        {warming.mean():.2f} ± {warming.mean(1).std():.2f} °C")
print(f"  plain means  {by_means.mean():.2f} °C")

# %%
months = np.array(list("JFMAMJJASOND"))
ticks = np.arange(12)
figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")


def band(axis, at, values, color, label):
    edges = np.quantile(values, [0.05, 0.95], axis=0)
    axis.fill_between(at, *edges, alpha=0.25, color=color, lw=0)
    axis.plot(at, np.mean(values, axis=0), color=color, label=label)


axis = axes[0, 0]
axis.plot(ticks, in_celsius(cycle(net)), "--", color="0.5", label="nothing: as drawn")
axis.plot(ticks, in_celsius(cycle(trained)), color="C3", label="learn")
axis.plot(ticks, mean, "o", color="k", ms=4, label="mean of 1950-1994")
axis.set(title="nothing, learn", ylabel="sea temperature / °C")

axis = axes[0, 1]
for values, color, label in (
    (in_celsius(by_nuts) - mean, "C0", "NUTS, 90 %"),
    (in_celsius(by_svi) - mean, "C1", "SVI, 90 %"),
):
    band(axis, ticks, values, color, label)
axis.plot(ticks, in_celsius(by_map) - mean, "k:", label="MAP")
axis.axhline(0.0, color="0.7", lw=0.8)
axis.set(title="bayesianize", ylabel="cycle minus the month's mean / °C")

axis = axes[1, 0]
for shown, color in ((1997, "C3"), (2007, "C0")):
    i = list(year[test]).index(shown)
    band(axis, ticks[3:], draws[:, i] - mean[3:], color, f"{shown}, predicted")
    axis.plot(ticks, celsius[test][i] - mean, "o", color=color, ms=4)
axis.axhline(0.0, color="0.7", lw=0.8)
axis.axvspan(-0.5, 2.5, color="0.93", zorder=0)
axis.text(1.0, 0.02, "context", ha="center", transform=axis.get_xaxis_transform())
axis.set(title="amortize: a cycle from its first months", ylabel="anomaly / °C")

axis = axes[1, 1]
band(axis, ticks, warming, "C2", "difference of two networks")
axis.plot(ticks, by_means, "o", color="k", ms=4, label="difference of the means")
axis.axhline(0.0, color="0.7", lw=0.8)
axis.set(title="scope: after 1976 minus before", ylabel="warming / °C")

for axis in axes.flat:
    axis.set_xticks(ticks, months)
    axis.legend(fontsize=8, loc="best")
figure.savefig(OUTPUT / "one_module_five_meanings.png", dpi=150)
print(f"\nfigure: {OUTPUT / 'one_module_five_meanings.png'}")
print(f"time:   {time.perf_counter() - start:.0f} s")

# %% [markdown]
# What it claims, it shows:

# %%
assert sites(model) == [("sample", "noise")]
assert len(sites(learned)) == len(sites(bayesian)) == 5
assert errors["nothing"] > 1.0, "an untrained network is no climate"
assert max(errors[name] for name in ("learn", "MAP", "SVI", "NUTS")) < 0.2
assert 0.7 < widths["SVI"] / widths["NUTS"] < 1.4, "the guide has the width of NUTS"
assert divergences <= 0.01 * DRAWS
assert amortized < 0.97 * climatology, "the first months tell of the others"
assert 80 <= coverage <= 97
assert abs(warming.mean() - by_means.mean()) < 0.1, "two networks, two climates"
assert warming.mean() > 3 * warming.mean(1).std(), "the shift is no chance"
