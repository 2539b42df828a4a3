# %% [markdown]
# # A station that is read once a season
#
# Someone reads the temperature of the sea off Peru in February, May, August and
# November. What was it in the other eight months, and how far can the answer be
# trusted? Every few years an El Niño warms this sea by several degrees; a field learns
# from 45 years what four readings say about all twelve months.
#
# The field `f(x; z)` takes the month as its coordinate `x` and the four readings as its
# context `z`. It is a plain, deterministic Equinox module: a SIREN whose last layer is
# generated from the context. One line in the NumPyro model makes it Bayesian; NUTS and
# SVI run on the same model.

# %%
import os
import time
from pathlib import Path

import numpyro

CHAINS = 2
numpyro.set_host_device_count(CHAINS)  # a device per chain; before JAX starts

import jax  # noqa: E402 - JAX reads the device count when it is imported
import jax.numpy as jnp  # noqa: E402
import matplotlib as mpl  # noqa: E402
import numpy as np  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
import optax  # noqa: E402
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO  # noqa: E402
from numpyro.infer.autoguide import AutoNormal  # noqa: E402
from sklearn.linear_model import RidgeCV  # noqa: E402

import pyrox_ppl as px  # noqa: E402
from pyrox_ppl.nn import HyperSIREN  # noqa: E402

mpl.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
OUTPUT = HERE / "output"
OUTPUT.mkdir(exist_ok=True)
SMALL = "PYROX_PPL_SMALL" in os.environ  # a short run, as the tests make it
WARMUP, DRAWS, SVI_STEPS = (200, 150, 500) if SMALL else (500, 1000, 3000)
field_key, nuts_key, svi_key, predict_key = jax.random.split(jax.random.key(0), 4)
start = time.perf_counter()

# %% [markdown]
# ## The data
#
# Monthly means in °C, 1950 to 2010 (NOAA, see `data/README.md`). The field models the
# anomaly: the temperature minus the month's mean over the training years.
#
# An example is twelve months in a row, which begin in January, April, July or October:
# the station is read in the second, fifth, eighth and eleventh of them. So the 45
# training years make 177 examples.

# %%
table = np.loadtxt(HERE / "data" / "elnino.csv", delimiter=",", skiprows=1)
year, celsius = table[:, 0].astype(int), table[:, 1:]
train, test = year < 1995, year >= 1995
mean = celsius[train].mean(0)
anomaly = celsius - mean

READ = [1, 4, 7, 10]  # of twelve months: February, May, August, November of a year
HIDDEN = [0, 2, 3, 5, 6, 8, 9, 11]
begin = np.arange(0, 12 * train.sum() - 11, 3)
examples = anomaly[train].ravel()[begin[:, None] + np.arange(12)]

x = jnp.linspace(-1.0, 1.0, 12)[None, :, None]  # (1, months, 1): shared by all examples
y = jnp.float32(examples)  # (examples, months)
z = y[:, None, READ]  # (examples, 1, 4): one context for twelve months
z_test = jnp.float32(anomaly[test][:, None, READ])

# %% [markdown]
# ## The field, and the model
#
# The first layer of the SIREN keeps its random initial weights: it is a basis of waves.
# The context generates the last layer, so the field is `f(x; z) = φ₀(x) + z₁ φ₁(x) + …
# + z₄ φ₄(x)`: each curve says how far a reading reaches. The weights of the curves have
# a normal prior that learns its own scale: ridge regression that infers its penalty.
#
# Each of the twelve months has its own noise, of at least 0.2 °C; without that floor,
# it would tend to zero where the field passes through the readings. The examples
# overlap: a month is in four of them, so it counts for a quarter in each.

# %%
field = HyperSIREN(
    1,
    32,
    1,
    depth=2,
    first_omega=8.0,
    cond_dim=4,
    parameter_net=lambda z: z,  # the readings generate the last layer as they are
    parameterized="last",
    key=field_key,
)


def model(x, z, y=None):
    with px.bayesianize(prior=px.priors.hierarchical()):
        f = field(x, z)[..., 0]
    examples = numpyro.plate("example", f.shape[0], dim=-2)
    months = numpyro.plate("month", 12, dim=-1)
    with months:
        noise = 0.2 + numpyro.sample("noise", dist.HalfNormal(1.0))
    with examples, months, numpyro.handlers.scale(scale=0.25):
        numpyro.sample("y", dist.Normal(f, noise), obs=y)


# %% [markdown]
# ## NUTS, then SVI
#
# Both are NumPyro's own. Only the inference method changes.

# %%
mcmc = MCMC(NUTS(model), num_warmup=WARMUP, num_samples=DRAWS, num_chains=CHAINS)
mcmc.run(nuts_key, x, z, y=y, extra_fields=("diverging", "energy"))
collect = {"log_likelihood": False}  # no LOO: the examples overlap
posterior = px.to_datatree(mcmc, x, z, y=y, **collect)
seconds = {"NUTS": time.perf_counter() - start}

start_at = px.infer.init_to_stored  # the weights that the field holds
guide = AutoNormal(model, init_loc_fn=start_at, init_scale=0.01)
schedule = optax.cosine_decay_schedule(0.01, SVI_STEPS)
svi = SVI(model, guide, optax.adam(schedule), Trace_ELBO())
fit = svi.run(svi_key, SVI_STEPS, x, z, y=y)
by_guide = px.to_datatree(
    fit, x, z, y=y, guide=guide, num_samples=2000, rng_key=predict_key, **collect
)
seconds["SVI"] = time.perf_counter() - start - seconds["NUTS"]

# %% [markdown]
# ## Can the draws be trusted?
#
# `diagnose` says it in words. It looks at the values of the field, because the weights
# of a network have symmetries and its values do not.

# %%
diagnosis = px.diagnose(posterior, field, x, z_test)
print(f"\n{diagnosis}")

# %% [markdown]
# ## Predictions for the test years
#
# Every draw of the weights is a field; with noise added it is a prediction. `predict`
# keeps the mean and the quantiles of the predictions.


# %%
def curves(draws):
    """Predict the mean and the 90 % interval of every test year, in °C."""
    prediction = px.predict(
        model, draws, x, z_test, rng_key=predict_key, quantiles=(0.05, 0.95)
    )["y"]
    return [v + mean for v in (prediction.mean, *prediction.quantiles.values())]


by_nuts, by_svi = curves(posterior), curves(by_guide)

# %% [markdown]
# ## Three baselines
#
# Climatology predicts the mean of the month. Lines join the anomalies that were read.
# Ridge regression predicts each hidden month from the four readings, with a penalty
# chosen by leave-one-out; it learns from the 45 years, or from the same 177 examples as
# the field. All get Gaussian intervals, from their errors on the training data.


# %%
def gaussian(center, errors):
    """Return a prediction and its 90 % interval, in °C."""
    half = 1.645 * np.sqrt((errors**2).mean(0))
    return [v + mean[HIDDEN] for v in (center, center - half, center + half)]


def ridge(rows):
    """Learn the hidden months of these rows, and predict those of the test years."""
    penalties, scale = [0.1, 0.3, 1.0, 3.0, 10.0], rows[:, READ].std(0)
    line = RidgeCV(penalties, store_cv_results=True)
    line.fit(rows[:, READ] / scale, rows[:, HIDDEN])
    squared = line.cv_results_[..., penalties.index(line.alpha_)]
    return gaussian(line.predict(anomaly[test][:, READ] / scale), np.sqrt(squared))


joined = np.stack([np.interp(HIDDEN, READ, row) for row in anomaly[:, READ]])
missed = anomaly[:, HIDDEN] - joined
observed = celsius[test][:, HIDDEN]


def score(center, low, high):
    """Return the RMSE in °C and the coverage of the interval in percent."""
    rmse = np.sqrt(((center - observed) ** 2).mean())
    return rmse, 100 * ((low <= observed) & (observed <= high)).mean()


scores = {
    "NUTS": score(*(v[:, HIDDEN] for v in by_nuts)),
    "SVI": score(*(v[:, HIDDEN] for v in by_svi)),
    "ridge, 177": score(*ridge(examples)),
    "ridge, 45": score(*ridge(anomaly[train])),
    "lines": score(*gaussian(joined[test], missed[train])),
    "climatology": score(*gaussian(np.zeros_like(observed), anomaly[train][:, HIDDEN])),
}
print(f"\n{'1995-2010':<14}{'RMSE / °C':>10}{'90 % interval covers':>23}{'time':>8}")
for name, (rmse, coverage) in scores.items():
    took = f"{seconds[name]:6.0f} s" if name in seconds else ""
    print(f"{name:<14}{rmse:>10.3f}{coverage:>21.0f} %{took}")

# %% [markdown]
# ## The figure and the file
#
# The El Niño of 1997 and 1998, with a year before and after.

# %%
shown = [1996, 1997, 1998, 1999]
rows = [list(year[test]).index(one) for one in shown]
date = (np.array(shown)[:, None] + (np.arange(12) + 0.5) / 12).ravel()
truth, usual = celsius[test][rows].ravel(), np.tile(mean, len(shown))
is_read = np.tile(np.isin(np.arange(12), READ), len(shown))
center, low, high = (  # what was read is known
    np.where(is_read, truth, v[rows].ravel()) for v in by_nuts
)

figure, axis = plt.subplots(figsize=(8, 4.4), layout="constrained")
axis.plot(date[is_read], truth[is_read], "ok", zorder=3, label="seen: 4 months a year")
axis.plot(date, center, color="C0", label="predicted: the mean")
axis.fill_between(date, low, high, alpha=0.25, lw=0, label="doubted: 90 % interval")
hidden = {"mfc": "w", "mec": "C3", "ms": 5, "label": "hidden: the other 8"}
axis.plot(date[~is_read], truth[~is_read], "o", **hidden)
axis.plot(date, usual, "--", color="0.6", label="usual: mean of 1950-1994")
axis.set(xlabel="year", ylabel="sea surface temperature / °C", xlim=(1996, 2000))
axis.set_xticks([*shown, 2000])
figure.legend(loc="outside lower center", ncols=3)
figure.savefig(OUTPUT / "quickstart.png", dpi=150)
posterior.to_netcdf(OUTPUT / "quickstart.nc", engine="h5netcdf")
print(f"\nfigure:    {OUTPUT / 'quickstart.png'}")
print(f"posterior: {OUTPUT / 'quickstart.nc'}")
print(f"time:      {time.perf_counter() - start:.0f} s")

# %% [markdown]
# The script asserts what it claims:

# %%
rmse, coverage = scores["NUTS"]
assert rmse <= 0.39 < scores["ridge, 45"][0] < scores["climatology"][0] / 2
assert rmse <= min(scores["ridge, 177"][0], scores["lines"][0]) + 0.01
assert 86 <= coverage <= 94, "its intervals cover what they should"
assert SMALL or diagnosis.ok
assert diagnosis.functions.rhat.max() <= (1.05 if SMALL else 1.01)
assert posterior.sample_stats["diverging"].sum() == 0
