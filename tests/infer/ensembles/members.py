"""An ensemble of small networks, and the keys of its members as documented."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import Adam

import pyrox_ppl as px
from pyrox_ppl import infer

KEY, MEMBERS, STEPS = jax.random.key(1), 3, 12
X = jnp.linspace(-1.0, 1.0, 12)[:, None]
Y = X[:, 0] ** 2


def make(key):
    return eqx.nn.MLP(1, 1, 4, 1, jnp.tanh, key=key)


NET = make(jax.random.key(0))


def model_of(net, **block):
    def model(x, y=None, size=None):
        with px.bayesianize(**block):
            bound = px.bind(net, "net")
        with numpyro.plate("row", size or len(x), subsample_size=len(x)):
            numpyro.sample("y", dist.Normal(jax.vmap(bound)(x)[:, 0], 0.1), obs=y)

    return model


MODEL = model_of(NET)


def svi_of(guide, model=MODEL, loss=None, make_svi=SVI):
    return make_svi(model, guide, Adam(0.01), loss or Trace_ELBO())


def run(svi, *args, members=MEMBERS, steps=STEPS, **kwargs):
    given = args or (X,)
    kwargs = ({} if args else {"y": Y}) | {"progress_bar": False} | kwargs
    return infer.run_ensemble(svi, KEY, members, steps, *given, **kwargs)


def keys_of(member):
    """The keys of a member, as the documentation has them."""
    make_key, run_key = jax.random.split(jax.random.split(KEY, MEMBERS)[member])
    return make_key, run_key


def assert_member(fit, member, alone, **close):
    close = {"rtol": 2e-4, "atol": 1e-5} | close
    np.testing.assert_allclose(fit.losses[member], alone.losses, **close)
    for name, value in alone.params.items():
        np.testing.assert_allclose(fit.params[name][member], value, **close)


LOADER = infer.MinibatchLoader(
    (np.asarray(X), np.asarray(Y)), 4, rng_key=jax.random.key(5)
)
