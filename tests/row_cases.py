"""Layers, each with data, as densities of their weights; and how they are drawn."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from row_noise import KEY, normal_density

import pyrox_ppl as px

K = jr.split(KEY, 12)
ROWS = 6
X = jr.normal(K[0], (ROWS, 3))
Z = jr.normal(K[1], (ROWS, 2))
IMAGES = jr.normal(K[2], (ROWS, 1, 5, 5))
SEQUENCES = jr.normal(K[3], (ROWS, 3, 4))
WORDS = jr.randint(K[4], (ROWS, 3), 0, 4)
MLP = eqx.nn.MLP(3, 2, 4, 1, key=K[5])


class Chain(eqx.Module):
    """Layers with a function between them."""

    layers: tuple
    between: object = eqx.field(static=True, default=jnp.tanh)

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = self.between(layer(x))
        return self.layers[-1](x)


class Flat(eqx.Module):
    """Ravels what comes."""

    def __call__(self, x):
        return x.ravel()


def rows(x):
    """The density of a network that is called on each row."""
    return lambda net: normal_density(jax.vmap(net)(x))


def conv(dim, **options):
    first = eqx.nn.Conv(dim, 2, 4, 2, **options, key=K[0])
    last = eqx.nn.Conv(dim, 4, 1, 2, key=K[1])
    x = jr.normal(K[2], (ROWS, 2, *(4,) * dim))
    return Chain((first, last)), rows(x)


def embedding(places):
    class Words(eqx.Module):
        table: eqx.nn.Embedding
        out: eqx.nn.Linear

        def __call__(self, i):
            vectors = jax.vmap(self.table)(i) if places else self.table(i)
            return self.out(jnp.tanh(vectors).ravel())

    net = Words(
        eqx.nn.Embedding(4, 2, key=K[0]),
        eqx.nn.Linear(6 if places else 2, 2, key=K[1]),
    )
    return net, rows(WORDS if places else WORDS[:, 0])


def attention():
    net = eqx.nn.MultiheadAttention(
        2, 4, use_query_bias=True, use_output_bias=True, key=K[0]
    )
    return net, lambda net: normal_density(jax.vmap(lambda q: net(q, q, q))(SEQUENCES))


def gru():
    class Recurrent(eqx.Module):
        cell: eqx.nn.GRUCell
        out: eqx.nn.Linear

        def __call__(self, x):
            start = jnp.zeros(3)
            last, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), start, x)
            return self.out(last)

    cell = eqx.nn.GRUCell(4, 3, key=K[0])
    return Recurrent(cell, eqx.nn.Linear(3, 1, key=K[1])), rows(SEQUENCES)


def einsum():
    heads = {"a": jr.normal(K[0], (2, 3, 4)), "b": jr.normal(K[1], (4, 2))}

    def density(w):
        h = jnp.tanh(jnp.einsum("bd,hdk->bhk", X, w["a"]))
        return normal_density(jnp.einsum("bhk,kl->bhl", h, w["b"]).sum(1))

    return heads, density


def hyper(z):
    layer = px.nn.HyperLinear.init(3, 2, 2, key=K[0], init_scale=1.0)
    groups = 1 if z.ndim < 3 else len(z)
    x = X if groups == 1 else X.reshape(groups, -1, 3)
    return layer, lambda layer: normal_density(layer(x, z))


def conditioned():
    inner = px.nn.SIREN.init(
        2, 4, 1, depth=3, key=K[0], first_omega=1.0, hidden_omega=1.0
    )
    net = px.nn.ConditionedINR.init(
        inner, conditioner_cls=px.nn.FiLM, cond_dim=2, key=K[1]
    )
    return net, lambda net: normal_density(net(X[:, :2], Z))


def per_group(by_row):
    nets = eqx.filter_vmap(lambda key: eqx.nn.MLP(3, 2, 4, 1, key=key))(K[:2])

    def grouped(nets):
        x = jnp.stack([X, -X])
        f = eqx.filter_vmap(lambda net, x: jax.vmap(net)(x))(nets, x)
        return normal_density(f)

    def gathered(nets):
        group = jnp.array([0, 1, 1, 0, 1, 1])
        chosen = jax.tree.map(lambda w: w[group] if eqx.is_array(w) else w, nets)
        return normal_density(eqx.filter_vmap(lambda net, x: net(x))(chosen, X))

    return nets, gathered if by_row else grouped


def layer_norm():
    layers = eqx.nn.Linear(3, 4, key=K[0]), eqx.nn.LayerNorm(4)
    out = eqx.nn.Linear(4, 2, key=K[1])
    return Chain((*layers, out)), rows(X)


def looped(net):
    return normal_density(jax.lax.map(net, X))


def checkpointed(net):
    return normal_density(jax.vmap(jax.checkpoint(lambda x: net(x)))(X))


def multivariate_rows(net):
    factor = jnp.linalg.cholesky(jnp.eye(2) + 0.5)
    residuals = jnp.tanh(jax.vmap(net)(X)) - 1.0
    solve = jax.vmap(lambda r: jax.scipy.linalg.solve_triangular(factor, r, lower=True))
    return -0.5 * jnp.sum(solve(residuals) ** 2)


def categorical(net):
    log_p = jax.nn.log_softmax(jax.vmap(net)(X))
    return jnp.sum(jnp.take_along_axis(log_p, jnp.zeros((ROWS, 1), int), 1))


# Module, density, and how its arrays are drawn, in the order of the leaves.
LAYERS = {
    "mlp": lambda: (MLP, rows(X), ["rows"] * 4),
    "checkpoint": lambda: (MLP, checkpointed, ["rows"] * 4),
    "lax-map": lambda: (MLP, looped, ["rows"] * 4),
    "categorical": lambda: (MLP, categorical, ["rows"] * 4),
    "multivariate-event": lambda: (MLP, multivariate_rows, ["rows"] * 4),
    "conv1d": lambda: (*conv(1), ["signs"] * 2 + ["rows"] * 2),
    "conv2d": lambda: (*conv(2, groups=2), ["signs"] * 2 + ["rows"] * 2),
    "conv3d": lambda: (*conv(3, dilation=2), ["signs"] * 2 + ["rows"] * 2),
    "einsum": lambda: (*einsum(), ["rows", "signs"]),
    "embedding": lambda: (*embedding(False), ["rows"] * 3),
    "embedding-places": lambda: (*embedding(True), ["signs", "rows", "rows"]),
    "attention": lambda: (*attention(), ["rows"] * 2 + ["signs"] * 2 + ["rows"] * 2),
    "gru-scan": lambda: (*gru(), ["signs"] * 4 + ["rows"] * 2),
    "layer-norm": lambda: (*layer_norm(), ["rows"] * 6),
    "hyper-rows": lambda: (*hyper(Z), ["rows"] * 2),
    "hyper-groups": lambda: (*hyper(Z[:2, None]), ["rows"] * 2),
    "hyper-one": lambda: (*hyper(Z[0]), ["rows"] * 2),
    "conditioned": lambda: (*conditioned(), ["rows"] * 10),
    "per-group": lambda: (*per_group(False), ["rows"] * 4),
    "per-group-rows": lambda: (*per_group(True), ["rows"] * 4),
}
