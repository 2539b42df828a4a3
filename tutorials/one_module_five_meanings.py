# %% [markdown]
# # One module, five meanings
#
# A module is a function. Handlers say from outside what its parameters *mean*. Here one
# small network, which never changes, models the seasonal cycle of the sea temperature
# off Peru. We use it as it is (no handler), train it (`learn`), make it Bayesian
# (`bayesianize`), generate it from a context (`amortize`) and double it (`scope`).

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
from numpyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal

import pyrox_ppl as px
from pyrox_ppl.nn import HyperNetwork

mpl.use("agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
OUTPUT = HERE / "output"
OUTPUT.mkdir(exist_ok=True)
SMALL = "PYROX_PPL_SMALL" in os.environ  # the test suite's settings
STEPS, WARMUP, DRAWS = (500, 150, 150) if SMALL else (3000, 500, 1000)
net_key, g_key, fit_key, nuts_key, draw_key = jax.random.split(jax.random.key(0), 5)
start = time.perf_counter()

# %% [markdown]
# ## The data and the network
#
# Monthly means in °C, 1950 to 2010 (NOAA, see `data/README.md`), standardised over the
# training years, 1950 to 1994. The network maps the phase of the month to a temperature
# and has 33 parameters.

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
    return jax.vmap(net)(x)[:, 0]


def in_celsius(values):
    return np.asarray(values) * unit + center


# %% [markdown]
# ## The model without a handler
#
# `bind` reads the parameters; it is the only line that another library's network needs.
# Without a handler the parameters are constants, and the noise is the only latent site.


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


def show(meaning, model):
    """Print what the parameters become, from shapes alone, without computing."""
    sites = {}
    jax.eval_shape(lambda: sites.update(trace(seed(model, 0)).get_trace()))
    types = [(s["type"], n) for n, s in sites.items() if not n.endswith("y")]
    kinds = [site for site in types if site[0] in ("param", "sample")]
    print(meaning, *(f"  {kind:<7}{name}" for kind, name in kinds), sep="\n")
    return kinds


assert show("nothing", model) == [("sample", "noise")]
assert [kind for kind, _ in show("learn", learned)] == ["param"] * 4 + ["sample"]
assert [kind for kind, _ in show("bayesianize", bayesian)] == ["sample"] * 5

# %% [markdown]
# ## `learn`: a point estimate
#
# SVI finds the maximum of the likelihood. `substitute` puts the trained values into the
# module, which is again an ordinary Equinox network.


# %%
y_train = y[train]


def fit(model, guide, *args):
    optimiser = optax.adam(optax.cosine_decay_schedule(0.02, STEPS))
    svi = SVI(model, guide, optimiser, Trace_ELBO())
    return svi.run(fit_key, STEPS, *args, progress_bar=False).params


params = fit(learned, AutoDelta(learned), y_train)
with substitute(data=params), px.learn():
    trained = px.bind(net, "cycle")

# %% [markdown]
# ## `bayesianize`: MAP, then SVI, then NUTS, with the same model
#
# A guide of point masses finds the mode, a Gaussian guide approximates the posterior
# around it, and NUTS, started at the mode, samples the posterior. The model treats the
# months of a year as independent. They are not, so its bands are too narrow. The next
# section gives each year its own curve.

# %%
delta = AutoDelta(bayesian)
mode = delta.median(fit(bayesian, delta, y_train))
with substitute(data=mode), px.learn():
    by_map = cycle(px.bind(net, "cycle"))


def gaussian_draws(model, mode):
    start = init_to_value(values=mode)
    guide = AutoMultivariateNormal(model, init_loc_fn=start, init_scale=0.01)
    params = fit(model, guide, y_train)
    return Predictive(model, guide=guide, params=params, num_samples=1000)(draw_key)


by_svi = gaussian_draws(bayesian, mode)["f"]
kernel = NUTS(bayesian, init_strategy=init_to_value(values=mode))
mcmc = MCMC(kernel, num_warmup=WARMUP, num_samples=DRAWS, progress_bar=False)
mcmc.run(nuts_key, y_train)
by_nuts = mcmc.get_samples()["f"]

# %% [markdown]
# ## `amortize`: a cycle for every year
#
# If the first three months of a year are known, what will the others be? The context
# `z` is the anomaly of these months. From it a generator makes the parameters of the
# network, with one head per parameter, centred on the trained value. Only the weights
# of the heads have a prior: the network itself has no sites, however large it is.

# %%
mean = in_celsius(y_train).mean(0)
scale = celsius[train, :3].std(0)
z = jnp.asarray((celsius[:, :3] - mean[:3]) / scale, jnp.float32)
generator = HyperNetwork.init(trained, 3, key=g_key, init_scale=0.01)


def year_by_year(z, y=None):
    with px.bayesianize(prior_std=0.05, where="hyper_network.heads.*.weight"):
        g = px.bind(generator)

    def predict_year(z):
        with px.amortize(generator=g, context=z):
            return cycle(px.bind(trained, "cycle"))

    f = jax.vmap(predict_year)(z)[:, 3:]
    numpyro.deterministic("f", f)
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("year", len(z), dim=-2), numpyro.plate("month", 9, dim=-1):
        numpyro.sample("y", dist.Normal(f, noise), obs=y)


show("amortize", lambda: year_by_year(z))
guide = AutoNormal(year_by_year, init_scale=0.01)
year_params = fit(year_by_year, guide, z[train], y_train[:, 3:])
predictive = Predictive(year_by_year, guide=guide, params=year_params, num_samples=1000)
test_draws = predictive(draw_key, z[test])

# %% [markdown]
# ## `scope`: before and after 1976
#
# In 1976/77 the whole Pacific warmed. Under two scopes the same network has two
# independent sets of parameters, so their difference has a posterior.

# %%
before = year[train] < 1977


def two_eras(y=None):
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with px.bayesianize(prior=prior):
        for era, rows in (("before", before), ("after", ~before)):
            with px.scope(era):
                f = numpyro.deterministic("f", cycle(px.bind(net, "cycle")))
                y_era = None if y is None else y[rows]
                with numpyro.plate("year", rows.sum()):
                    law = dist.Normal(f, noise).to_event(1)
                    numpyro.sample("y", law, obs=y_era)


show("scope", two_eras)
eras = {f"{era}.{name}": mode[name] for era in ("before", "after") for name in mode}
era_draws = gaussian_draws(two_eras, eras)
warming = np.asarray(era_draws["after.f"] - era_draws["before.f"]) * unit

# %% [markdown]
# ## Results
#
# The point estimate and the three Bayesian estimates agree with the means of the
# months. The band of the Gaussian guide is a third wider than the band of NUTS, because
# the posterior of a network's weights is not Gaussian. The first months of a year
# predict the others better than the mean does.

# %%
observed = celsius[test, 3:]
draws = in_celsius(test_draws["y"])
low, high = np.quantile(draws, [0.05, 0.95], axis=0)
coverage = 100 * float(((low <= observed) & (observed <= high)).mean())


def rmse(prediction, truth):
    return float(np.sqrt(((prediction - truth) ** 2).mean()))


curves = {"nothing": cycle(net), "learn": cycle(trained), "MAP": by_map}
curves |= {"SVI": by_svi.mean(0), "NUTS": by_nuts.mean(0)}
errors = {name: rmse(in_celsius(f), mean) for name, f in curves.items()}
width = {"SVI": by_svi.std(0).mean() * unit, "NUTS": by_nuts.std(0).mean() * unit}
by_year, by_mean = rmse(draws.mean(0), observed), rmse(mean[3:], observed)
by_means = np.asarray(y_train[~before].mean(0) - y_train[before].mean(0)) * unit
shift, doubt = warming.mean(), warming.mean(1).std()

print("\ndistance to the mean of each month, 1950-1994, in °C")
print(*(f"  {name:<8}{error:.3f}" for name, error in errors.items()), sep="\n")
print(f"standard deviation: SVI {width['SVI']:.3f}, NUTS {width['NUTS']:.3f} °C")
print(f"1995-2010: RMSE {by_year:.3f} °C, 90 % interval covers {coverage:.0f} %;")
print(f"by the months' means {by_mean:.3f} °C")
print(f"after 1976 minus before: {shift:.2f} ± {doubt:.2f} °C")

# %%
months, ticks = list("JFMAMJJASOND"), np.arange(12)
figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
learn, bayes, amortize, scope = axes.flat


def band(axis, at, values, color, label):
    edges = np.quantile(values, [0.05, 0.95], axis=0)
    axis.fill_between(at, *edges, alpha=0.25, color=color, lw=0)
    axis.plot(at, np.mean(values, axis=0), color=color, label=label)


learn.plot(ticks, in_celsius(cycle(net)), "--", color="0.5", label="nothing: as drawn")
learn.plot(ticks, in_celsius(cycle(trained)), color="C3", label="learn")
learn.plot(ticks, mean, "ok", ms=4, label="mean of 1950-1994")
learn.set(title="nothing, learn", ylabel="sea temperature / °C")

band(bayes, ticks, in_celsius(by_nuts) - mean, "C0", "NUTS, 90 %")
band(bayes, ticks, in_celsius(by_svi) - mean, "C1", "SVI, 90 %")
bayes.plot(ticks, in_celsius(by_map) - mean, "k:", label="MAP")
bayes.set(title="bayesianize", ylabel="cycle minus the month's mean / °C")

for shown, color in ((1997, "C3"), (2003, "C0")):
    i = list(year[test]).index(shown)
    band(amortize, ticks[3:], draws[:, i] - mean[3:], color, f"{shown}, predicted")
    anomaly = celsius[test][i] - mean
    amortize.plot(ticks, anomaly, "o", color=color, ms=4, label=f"{shown}, observed")
amortize.axvspan(-0.5, 2.5, color="0.93", zorder=0, label="context")
amortize.set(title="amortize: a cycle from its first months", ylabel="anomaly / °C")

band(scope, ticks, warming, "C2", "difference of two networks")
scope.plot(ticks, by_means, "ok", ms=4, label="difference of the means")
scope.set(title="scope: after 1976 minus before", ylabel="warming / °C")

for axis in axes.flat:
    axis.set_xticks(ticks, months)
    axis.legend(fontsize=8, loc="best")
    if axis is not learn:
        axis.axhline(0.0, color="0.7", lw=0.8, zorder=0)
figure.savefig(OUTPUT / "one_module_five_meanings.png", dpi=150)
print(f"figure: {OUTPUT / 'one_module_five_meanings.png'}")
print(f"time:   {time.perf_counter() - start:.0f} s")

# %%
assert errors["nothing"] > 1.0, "an untrained network does not fit"
assert max(errors[name] for name in ("learn", "MAP", "SVI", "NUTS")) < 0.2
assert 0.7 < width["SVI"] / width["NUTS"] < 1.7, "about the width of NUTS"
assert mcmc.get_extra_fields()["diverging"].mean() < 0.01
assert by_year < 0.97 * by_mean, "the first months predict the others"
assert 75 <= coverage <= 99, "intervals cover most years, but not one like 1997"
assert abs(shift - by_means.mean()) < 0.15, "the networks agree with the means"
assert shift > 2 * doubt, "the shift is unlikely to be chance"
