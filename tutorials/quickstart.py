# %% [markdown]
# # Quickstart: a Bayesian field of real sea temperatures
#
# The sea off Peru (the Niño 1+2 region) warms and cools with the seasons. Every few
# years it warms far more: an El Niño. From the temperatures of January to March we
# predict the curve from April to December, and how far to trust it.
#
# The field `f(x; z)` takes the phase of the month as its coordinate `x` and the first
# three months as its context `z`. It is a plain, deterministic Equinox module: a SIREN
# whose layers are modulated by FiLM conditioners. One line in the NumPyro model makes
# it Bayesian; NUTS and SVI run on the same model.

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

import pyrox_ppl as px  # noqa: E402
from pyrox_ppl.nn import SIREN, ConditionedINR, FiLM  # noqa: E402

mpl.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
OUTPUT = HERE / "output"
OUTPUT.mkdir(exist_ok=True)
SMALL = "PYROX_PPL_SMALL" in os.environ  # a short run, as the tests make it
WARMUP, DRAWS, SVI_STEPS = (250, 250, 1500) if SMALL else (500, 1000, 3000)
inner_key, field_key, nuts_key, svi_key, predict_key = jax.random.split(
    jax.random.key(0), 5
)
start = time.perf_counter()

# %% [markdown]
# ## The data
#
# Monthly means in °C, 1950 to 2010 (NOAA, see `data/README.md`). The context is
# standardised over the training years. The target is the anomaly: the temperature minus
# the month's mean over the training years, divided by its standard deviation.

# %%
table = np.loadtxt(HERE / "data" / "elnino.csv", delimiter=",", skiprows=1)
year, celsius = table[:, 0].astype(int), table[:, 1:]
train, test = year < 1995, year >= 1995

mean, std = celsius[train].mean(0), celsius[train].std(0)
z = ((celsius - mean) / std)[:, :3]
anomaly = (celsius - mean)[:, 3:]
unit = anomaly[train].std()  # °C
y = anomaly / unit

phase = 2 * np.pi * np.arange(3, 12) / 12
x = np.stack([np.cos(phase), np.sin(phase)], axis=-1)[None]  # (1, months, 2)
z = z[:, None]  # (years, 1, 3): one context for the months of a year

# %% [markdown]
# ## The field, and the model
#
# The inner SIREN keeps its random initial weights: it is a fixed basis of waves. The
# weights of the conditioners decide how the context changes it, and these have a prior.

# %%
inner = SIREN.init(2, 64, 1, depth=3, first_omega=2.0, hidden_omega=3.0, key=inner_key)
field = ConditionedINR.init(inner, conditioner_cls=FiLM, cond_dim=3, key=field_key)


def model(x, z, y=None):
    with px.bayesianize(prior_std=0.05):
        f = field(x, z)[..., 0]
    numpyro.deterministic("f", f)
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("year", f.shape[0], dim=-2), numpyro.plate("month", 9, dim=-1):
        numpyro.sample("y", dist.Normal(f, noise), obs=y)


# %% [markdown]
# ## NUTS, then SVI
#
# Both are NumPyro's own. Only the inference method changes.

# %%
x_all, z_train, z_test = map(jnp.float32, (x, z[train], z[test]))
y_train = jnp.float32(y[train])

mcmc = MCMC(NUTS(model), num_warmup=WARMUP, num_samples=DRAWS, num_chains=CHAINS)
mcmc.run(nuts_key, x_all, z_train, y=y_train)
posterior = px.to_datatree(mcmc, x_all, z_train, y=y_train)

start_at = px.infer.init_to_stored  # the weights that the field holds
guide = AutoNormal(model, init_loc_fn=start_at, init_scale=0.01)
schedule = optax.cosine_decay_schedule(0.01, SVI_STEPS)
svi = SVI(model, guide, optax.adam(schedule), Trace_ELBO())
fit = svi.run(svi_key, SVI_STEPS, x_all, z_train, y=y_train)
by_guide = px.to_datatree(
    fit, x_all, z_train, y=y_train, guide=guide, num_samples=2000, rng_key=predict_key
)

# %% [markdown]
# ## Predictions for the test years
#
# Every draw of the weights is a field; with noise added it is a prediction. `predict`
# keeps the mean and the quantiles of the predictions. We compute R-hat and the
# effective sample size for the field's values, because the weights of a network have
# symmetries and its values do not.

# %%
predictions = {
    name: px.predict(
        model, tree, x_all, z_test, rng_key=predict_key, quantiles=(0.05, 0.95)
    )["y"]
    for name, tree in {"NUTS": posterior, "SVI": by_guide}.items()
}
diagnosis = px.diagnose(posterior, model, x_all, z_test, loo=False)
rhat, ess = diagnosis.functions.rhat.max(), diagnosis.functions.ess_bulk.min()
divergences = int(posterior.sample_stats["diverging"].sum())

# %% [markdown]
# ## Two baselines
#
# Climatology predicts the mean of the month. Ridge regression predicts every month from
# the same three numbers, with a penalty chosen by leave-one-out over the training
# years. Both get Gaussian intervals from their errors on the training years.


# %%
def ridge(penalty, z, target, z_new):
    """Predict each month from z, without a penalty on the intercept."""
    design = np.c_[z, np.ones(len(z))]
    shrink = penalty * np.diag([1.0, 1.0, 1.0, 0.0])
    weights = np.linalg.solve(design.T @ design + shrink, design.T @ target)
    return np.c_[z_new, np.ones(len(z_new))] @ weights


def leave_one_out_errors(penalty):
    """Predict each training year from the others, and return the errors."""
    z_in, target = z[train][:, 0], anomaly[train]
    others = [np.arange(len(z_in)) != i for i in range(len(z_in))]
    return np.stack(
        [
            target[~o][0] - ridge(penalty, z_in[o], target[o], z_in[~o])[0]
            for o in others
        ]
    )


penalties = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
penalty = min(penalties, key=lambda p: (leave_one_out_errors(p) ** 2).mean())
by_ridge = ridge(penalty, z[train][:, 0], anomaly[train], z[test][:, 0])
observed = celsius[test, 3:]


def score(center, low, high):
    """Return the test RMSE in °C and the coverage of the interval in percent."""
    rmse = np.sqrt(((center - observed) ** 2).mean())
    return rmse, 100 * ((low <= observed) & (observed <= high)).mean()


def gaussian(center, errors):
    half = 1.645 * errors.std(0)
    return score(center, center - half, center + half)


def sampled(prediction):
    """Return mean and 90 % interval of every test year and month, in °C."""
    edges = [prediction.quantiles[q] for q in (0.05, 0.95)]
    return [values * unit + mean[3:] for values in (prediction.mean, *edges)]


curves = {name: sampled(prediction) for name, prediction in predictions.items()}
scores = {
    "NUTS": score(*curves["NUTS"]),
    "SVI": score(*curves["SVI"]),
    "ridge": gaussian(mean[3:] + by_ridge, leave_one_out_errors(penalty)),
    "climatology": gaussian(np.broadcast_to(mean[3:], observed.shape), anomaly[train]),
}
print(f"\n{'1995-2010':<14}{'RMSE / °C':>10}{'90 % interval covers':>23}")
for name, (rmse, coverage) in scores.items():
    print(f"{name:<14}{rmse:>10.3f}{coverage:>21.0f} %")
print(
    f"\npredictions of NUTS: R-hat at most {rhat:.3f}, ESS at least {ess:.0f} of "
    f"{CHAINS * DRAWS}, {divergences} divergences"
)

# %% [markdown]
# ## The figure and the file
#
# January to March of 1997 showed no sign of the El Niño that followed. It exceeds
# everything in the training years, so it lies outside the intervals.

# %%
months = ["Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
for axis, (shown, title) in zip(
    axes, {2003: "2003, a calm year", 1997: "1997, El Niño"}.items(), strict=True
):
    i = list(year[test]).index(shown)
    center, low, high = (values[i] for values in curves["NUTS"])
    axis.fill_between(months, low, high, alpha=0.2, label="NUTS, 90 % interval")
    axis.plot(months, center, color="C0", label="NUTS, mean")
    for values, label in zip(curves["SVI"], ("SVI, the same", None, None), strict=True):
        axis.plot(months, values[i], ":", color="C1", label=label)
    axis.plot(months, mean[3:], "--", color="0.5", label="mean of 1950-1994")
    axis.plot(months, observed[i], "o", color="k", label="observed")
    axis.set(title=title, xlabel="month")
axes[0].set_ylabel("sea surface temperature / °C")
labels = axes[0].get_legend_handles_labels()
figure.legend(*labels, loc="outside lower center", ncols=5)
figure.savefig(OUTPUT / "quickstart.png", dpi=150)
posterior.to_netcdf(OUTPUT / "quickstart.nc", engine="h5netcdf")
print(f"figure:    {OUTPUT / 'quickstart.png'}")
print(f"posterior: {OUTPUT / 'quickstart.nc'}")
print(f"time:      {time.perf_counter() - start:.0f} s")

# %% [markdown]
# The script asserts what it claims:

# %%
rmse, coverage = scores["NUTS"]
assert rmse <= 1.20, "the field is level with ridge regression"
assert 82 <= coverage <= 95, "its intervals cover what they should"
assert rhat <= (1.05 if SMALL else 1.02), "its chains agree on the predictions"
assert divergences == 0
assert rmse < scores["climatology"][0]
