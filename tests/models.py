"""Small modules and helpers that the tests of the handlers share."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

import pyrox_ppl as px
from pyrox_ppl.nn import SIREN, ConditionedINR, FiLM

KEY = jax.random.key(0)
H, Z = jnp.linspace(-1.0, 1.0, 3), jnp.linspace(0.5, 1.0, 2)
ROWS = jnp.linspace(-1.0, 1.0, 15).reshape(5, 3)
OBSERVED = jnp.tanh(ROWS)
WEIGHT = "affine_modulation.generator.weight"
BIAS = "affine_modulation.generator.bias"


def make_film(seed=0):
    """A conditioner of 3 features on a context of 2, not at its identity."""
    film = FiLM.init(3, 2, key=jax.random.key(seed))
    noise = 0.3 * jax.random.normal(jax.random.key(seed + 100), (6, 2))
    return eqx.tree_at(lambda f: f.generator.weight, film, noise)


def make_field(depth=4):
    """A conditioned SIREN of 2 coordinates and a context of 2."""
    inner = SIREN.init(2, 4, 1, depth=depth, key=KEY)
    return ConditionedINR.init(inner, conditioner_cls=FiLM, cond_dim=2, key=KEY)


def make_mlp(seed=0):
    """A plain Equinox network, which knows nothing of handlers."""
    return eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(seed))


def film_values(z):
    """A generator of the conditioner above, as a user writes one."""
    return {
        "generator.weight": jnp.full((6, 2), z.sum()),
        "generator.bias": jnp.arange(6.0) / 6,
    }


def film_laws(z):
    """A generator of distributions for the conditioner above."""
    laws = {name: dist.Normal(mean, 0.1) for name, mean in film_values(z).items()}
    return {name: law.to_event() for name, law in laws.items()}


HANDLERS = {
    "bayesianize": px.bayesianize,
    "learn": px.learn,
    "amortize": partial(px.amortize, generator=film_values, context=Z),
    "amortize-laws": partial(px.amortize, generator=film_laws, context=Z),
}
# What becomes of the conditioner's parameters; a generated array is no site.
SITE_TYPES = {"bayesianize": "sample", "learn": "param", "amortize-laws": "sample"}


def sites(model, *args, seed=0, types=("sample",)):
    """Run a model under a seed; return its sites of these types."""
    trace = handlers.trace(handlers.seed(model, seed)).get_trace(*args)
    return {name: site for name, site in trace.items() if site["type"] in types}


def run(model, *args, seed=0):
    """Run a model under a seed; return what it returns."""
    return handlers.seed(model, seed)(*args)


def film_regression(h, y=None):
    """Rows of 3 features through a Bayesian conditioner, with known noise."""
    with px.bayesianize(prior_std=0.5):
        mean = make_film()(h, Z)
    with numpyro.plate("row", h.shape[0]):
        numpyro.sample("y", dist.Normal(mean, 0.3).to_event(1), obs=y)
