"""A curvature belongs to one mode of a model that repeats, and to finite data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from compilations import compilations
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoNormal

from pyrox_ppl.infer import AutoLaplace, AutoSWAG

KEY = jax.random.key(0)
X = jnp.linspace(-1.0, 1.0, 8)[:, None]
Y = X[:, 0] ** 2


def model(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    level = numpyro.sample("level", dist.Normal(1.0, 1.0))
    mean = slope[0] * x[:, 0] + slope[1] * x[:, 0] ** 2 + level
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def seen(model, *args, **options):
    """A guide that has seen the model, and its start as the parameters of a fit."""
    guide = AutoLaplace(model, **options)
    svi = SVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
    return guide, svi.get_params(svi.init(KEY, *args))


def add(guide, params, *args, **kwargs):
    return guide.add_curvature(params, *args, max_decrement=jnp.inf, **kwargs)


def test_a_curvature_of_another_mode_is_refused():
    guide, params = seen(model, X, Y, structure="full")
    params["slope_auto_loc"] = jnp.array([1.0, 2.0])
    fit = add(guide, params, X, Y)
    guide.sample_posterior(KEY, fit)
    name = "slope_auto_loc"
    for moved in (fit[name] + 0.01, fit[name][::-1]):
        mixed = fit | {name: moved}
        for ask in (
            lambda mixed=mixed: guide.sample_posterior(KEY, mixed),
            lambda mixed=mixed: guide.log_evidence(mixed),
        ):
            with pytest.raises(ValueError, match=r"sites \['slope'\] have moved"):
                ask()
    # Rounding on the way through a file does not matter, nor does `jit`.
    guide.log_evidence(fit | {name: fit[name] * (1 + 1e-6)})
    jax.eval_shape(guide.sample_posterior, KEY, fit)


def test_a_curvature_of_other_sites_is_refused():
    guide, params = seen(model, X, Y, structure="diag")
    fit = add(guide, params, X, Y)
    last, _ = seen(model, X, Y, structure="diag", where="level")
    with pytest.raises(ValueError, match=r"`where` of this guide selects \['level'\]"):
        last.sample_posterior(KEY, fit)


@pytest.mark.parametrize("structure", ["full", "kron"])
def test_the_members_of_an_ensemble_share_their_programs(structure):
    guide, one = seen(model, X, Y, structure=structure)
    three = {n: jnp.stack([v, v + 0.1, v - 0.2]) for n, v in one.items()}
    counts = []
    for params in (one, three, one, three):
        with compilations() as names:
            add(guide, params, X, Y)
        counts.append(len(names))
    assert 0 < counts[3] == counts[2], counts


def test_the_location_of_a_normal_guide_is_no_mode():
    normal = AutoNormal(model)
    svi = SVI(model, normal, numpyro.optim.Adam(0.1), Trace_ELBO())
    params = svi.get_params(svi.init(KEY, X, Y))
    guide, _ = seen(model, X, Y, structure="full")
    with pytest.raises(ValueError, match="have a scale for the sites"):
        add(guide, params, X, Y)
    point = SVI(model, AutoDelta(model), numpyro.optim.Adam(0.1), Trace_ELBO())
    add(guide, point.get_params(point.init(KEY, X, Y)), X, Y)


@pytest.mark.parametrize("structure", ["kron", "full"])
def test_data_that_are_not_finite_are_named(structure):
    guide, params = seen(model, X, Y, structure=structure)
    message = r"of the observed site 'y' at the mode is not finite for 1 of 8 values, "
    with pytest.raises(ValueError, match=message + r"the first at \[3\]"):
        add(guide, params, X.at[3].set(jnp.nan), Y)
    with pytest.raises(ValueError, match=message + r"the first at \[5\]"):
        add(guide, params, X, Y.at[5].set(jnp.inf))


def test_a_derivative_that_is_not_finite_is_named():
    def rooted(x, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(jnp.sqrt(slope**2) * x, 1.0), obs=y)

    guide, _ = seen(rooted, X[:, 0], Y, structure="diag")
    with pytest.raises(ValueError, match=r"but its gradient by the sites .*'slope'"):
        add(guide, {"slope_auto_loc": jnp.zeros(())}, X[:, 0], Y)


def test_a_model_with_noise_of_its_own_is_refused():
    dropout = eqx.nn.Dropout(0.5)

    def noisy(x, y, rate=0.5):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        keys = jax.random.split(numpyro.prng_key(), len(x))
        layer = eqx.tree_at(lambda d: d.p, dropout, rate)
        mean = jax.vmap(lambda row, key: slope * layer(row[0], key=key))(x, keys)
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    guide, params = seen(noisy, X, Y, structure="full")
    with pytest.raises(ValueError, match=r"likelihood of \['y'\] changes with the ran"):
        add(guide, params, X, Y)
    # A key that decides nothing is no noise.
    add(guide, params, X, Y, rate=0.0)


@pytest.mark.parametrize("guide", [AutoLaplace, AutoSWAG])
def test_a_support_that_moves_is_refused(guide):
    def moving(scale):
        def model(y):
            high = numpyro.sample("high", dist.LogNormal(0.0, 1.0))
            top = high if scale is None else scale
            numpyro.sample("low", dist.Uniform(0.0, top))
            numpyro.sample("y", dist.Normal(high, 1.0), obs=y)

        return model

    svi = SVI(moving(None), guide(moving(None)), numpyro.optim.Adam(0.1), Trace_ELBO())
    with pytest.raises(ValueError, match=r"'low' depends on \['high'\]"):
        svi.init(KEY, 1.0)
    fixed = moving(jnp.array(2.0))
    SVI(fixed, guide(fixed), numpyro.optim.Adam(0.1), Trace_ELBO()).init(KEY, 1.0)
