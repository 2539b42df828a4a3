"""Networks for the tests of curvature, and explicit Jacobians of each datum."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import pyrox_ppl as px
from pyrox_ppl.infer.curvature import ModelAtMode, make_curvature, prior_precision

KEY, NOISE = jax.random.key(0), 0.3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3)).astype(np.float32)


class Recurrent(eqx.Module):
    """A GRU in a scan, and a readout."""

    cell: eqx.nn.GRUCell
    out: eqx.nn.Linear

    def __call__(self, xs):
        def step(h, x):
            return self.cell(x, h), None

        return self.out(jax.lax.scan(step, jnp.zeros(2), xs)[0])


class Convolutional(eqx.Module):
    """A strided and a grouped convolution, and a readout."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    out: eqx.nn.Linear

    def __call__(self, x):
        h = jnp.tanh(self.second(jnp.tanh(self.first(x))))
        return self.out(h.reshape(-1))


class Lookup(eqx.Module):
    """An embedding whose rows a datum looks up repeatedly, and a normalisation."""

    table: eqx.nn.Embedding
    norm: eqx.nn.LayerNorm
    out: eqx.nn.Linear

    def __call__(self, ids):
        return self.out(self.norm(jax.vmap(self.table)(ids)).sum(0))


class Tied(eqx.Module):
    """One weight, used in two layers."""

    layer: eqx.nn.Linear

    def __call__(self, x):
        return self.layer(jnp.tanh(self.layer(x)))


NETWORKS = {
    "mlp": (eqx.nn.MLP(3, 2, 4, 1, activation=jnp.tanh, key=KEY), X),
    "recurrent": (
        Recurrent(eqx.nn.GRUCell(2, 2, key=KEY), eqx.nn.Linear(2, 1, key=KEY)),
        RNG.normal(size=(4, 3, 2)).astype(np.float32),
    ),
    "convolutional": (
        Convolutional(
            eqx.nn.Conv2d(2, 2, 3, stride=2, padding=1, key=KEY),
            eqx.nn.Conv2d(2, 4, 2, groups=2, key=KEY),
            eqx.nn.Linear(4, 1, key=KEY),
        ),
        RNG.normal(size=(3, 2, 4, 4)).astype(np.float32),
    ),
    "lookup": (
        Lookup(
            eqx.nn.Embedding(5, 2, key=KEY),
            eqx.nn.LayerNorm((3, 2)),
            eqx.nn.Linear(2, 1, key=KEY),
        ),
        RNG.integers(0, 5, size=(4, 3)),
    ),
    "tied": (Tied(eqx.nn.Linear(3, 3, key=KEY)), X),
}


def model_of(net, call=None, prior_std=1.0, noise=NOISE):
    """A regression on a network, whose outputs may be sites' events."""

    def model(x, mask=None):
        with px.bayesianize(prior_std=prior_std):
            bound = px.bind(net, "net")
        f = jax.vmap(bound)(x) if call is None else call(bound, x)
        y = jnp.zeros(f.shape)
        with numpyro.plate("row", len(x)):
            law = dist.Normal(f, noise).to_event(f.ndim - 1)
            numpyro.sample("y", law if mask is None else law.mask(mask), obs=y)

    return model


def names_of(net):
    """The sites of a network, in the order of its leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(net, eqx.is_array))
    paths = (jax.tree_util.keystr(path) for path, _ in leaves)
    return ["net" + path.replace("[", ".").replace("]", "") for path in paths]


def values_of(net):
    """The parameters by site, a little away from the initial ones."""
    leaves = jax.tree.leaves(eqx.filter(net, eqx.is_array))
    return {
        name: leaf + 0.3 * RNG.normal(size=leaf.shape).astype(np.float32)
        for name, leaf in zip(names_of(net), leaves, strict=True)
    }


def with_values(net, values):
    """The network with these parameters, by site."""
    arrays, static = eqx.partition(net, eqx.is_array)
    tree = jax.tree.structure(arrays)
    leaves = [values[name] for name in names_of(net)]
    return eqx.combine(jax.tree.unflatten(tree, leaves), static)


def jacobians(net, values, x):
    """One datum's outputs over the noise, by each parameter: (row, output, entry)."""

    def outputs(values):
        return jax.vmap(with_values(net, values))(x) / NOISE

    found = jax.jit(jax.jacrev(outputs))(values)
    return {n: np.asarray(j).reshape(len(x), j.shape[1], -1) for n, j in found.items()}


def fit(structure, model, values, *batches, sites=None, key=None):
    at_mode = ModelAtMode(model, values, sites=sites)
    curvature = make_curvature(structure, at_mode, batches[0], {}, key=key)
    for batch in batches:
        curvature = curvature.accumulate(at_mode, batch, {}, key=key)
    return curvature, prior_precision(structure, at_mode, batches[0], {})


def over_keys(structure, at_mode, batch, keys):
    """The arrays of a batch's curvature, with an axis of keys."""
    start = make_curvature(structure, at_mode, batch, {}, key=KEY)

    @jax.jit
    def arrays(keys):
        def add(key):
            return start.add_batch(at_mode, batch, {}, jnp.ones(()), key).arrays

        return jax.lax.map(add, keys, batch_size=50)

    return jax.device_get(arrays(keys))


def check_expectation(samples, exact, differ=True):
    """Means are the exact value within their error, and samples `differ` or agree."""
    found = False
    for name, value in exact.items():
        drawn = np.asarray(samples[name], np.float64)
        error = drawn.std(0, ddof=1) / np.sqrt(len(drawn))
        size = np.abs(value).max(initial=0.0)
        found |= error.max(initial=0.0) > 1e-4 * size
        assert (np.abs(drawn.mean(0) - value) <= 5 * error + 1e-4 * size).all(), name
    assert found == differ
