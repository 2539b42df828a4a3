"""Uses of weights that need one draw: each is biased where its rule is switched off."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from row_cases import KEY, LAYERS, MLP, ROWS, X, rows
from row_noise import Program, kinds, normal_density

from pyrox_ppl.infer.losses import _analysis
from pyrox_ppl.infer.losses._book import Book

LINEAR = eqx.nn.Linear(3, 3, key=jr.key(3))
COVARIANCE = jnp.eye(ROWS) + 0.5


def predictions(net):
    return jax.vmap(net)(X)


def twice(net):
    return normal_density(jax.vmap(lambda x: net(jnp.tanh(net(x))))(X))


def transposed(net):
    return normal_density(jnp.tanh(X @ net.weight.T) @ net.weight)


def derivative(net):
    def both(x):
        return net(x) + jax.jacfwd(net)(x).sum(1)

    return normal_density(jax.vmap(both)(X))


def multivariate_over_rows(net):
    residuals = jnp.tanh(predictions(net))[:, 0] - 1.0
    return -0.5 * residuals @ jnp.linalg.solve(COVARIANCE, residuals)


def batch_norm(net):
    h = jax.vmap(net.layers[0])(X)
    h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 0.1)
    return normal_density(jax.vmap(net.layers[1])(jnp.tanh(h)))


def neighbours(net):
    f = predictions(net)
    return normal_density(f[1:] * f[:-1])


def pairs(net):
    f = predictions(net)[:, 0]
    return normal_density(f[:, None] * f[None, :])


def looked_up(net):
    f = predictions(net)
    return normal_density(f[jnp.array([1, 2, 0, 4, 3, 5])] + f)


def smoothed_in_a_loop(net):
    f = predictions(net)

    def body(before, i):
        here = jax.lax.dynamic_index_in_dim(f, i, keepdims=False)
        after = jnp.tanh(2.0 * before * here)
        return after, after

    return normal_density(jax.lax.scan(body, f[0], jnp.arange(ROWS))[1])


def chosen_by_the_mean(net):
    f = predictions(net)
    return jax.lax.cond(
        f.mean() > 0, lambda f: normal_density(f), lambda f: 3 * normal_density(f), f
    )


# Two uses of a weight, or one whose rows meet later.
SECOND_USES = {
    "twice": (LINEAR, twice),
    "transposed": (LINEAR, transposed),
    "derivative": (eqx.nn.MLP(3, 2, 4, 1, jnp.tanh, key=KEY), derivative),
}
COUPLED_ROWS = {
    "multivariate": (MLP, multivariate_over_rows),
    "batch-norm": (MLP, batch_norm),
    "neighbours": (MLP, neighbours),
    "pairs": (MLP, pairs),
    "looked-up": (MLP, looked_up),
    "loop": (MLP, smoothed_in_a_loop),
    "chosen": (MLP, chosen_by_the_mean),
    "places-of-an-image": LAYERS["conv2d"]()[:2],
    "words": LAYERS["embedding-places"]()[:2],
    "recurrence": LAYERS["gru-scan"]()[:2],
}


def check(program, monkeypatch, *names):
    """Unbiased as it is; biased without the rules of these names."""
    plan = program.plan
    assert set(kinds(program)) - {"rows"}
    if plan.uses:
        assert jnp.abs(program.z_scores(local=True, plan=plan)).max() < 5.0
    if "meet" in names:
        monkeypatch.setattr(Book, "meet", lambda *_: None)
    if "kept" in names:
        monkeypatch.setattr(
            _analysis,
            "_kept_rows",
            lambda book, _: ({p: use.rows for p, use in book.uses.items()}, {}),
        )
    careless = program.plan
    assert not careless.dropped
    assert jnp.abs(program.z_scores(local=True, plan=careless)).max() > 8.0
    return careless


@pytest.mark.parametrize("name", SECOND_USES)
def test_two_uses_by_one_row_share_a_draw(name, monkeypatch):
    module, density = SECOND_USES[name]
    check(Program(module, density), monkeypatch, "meet")


@pytest.mark.parametrize("name", COUPLED_ROWS)
def test_rows_that_meet_share_their_noise(name, monkeypatch):
    module, density = COUPLED_ROWS[name]
    check(Program(module, density), monkeypatch, "kept")


def test_signs_do_not_allow_for_coupled_rows_either(monkeypatch):
    program = Program(MLP, multivariate_over_rows)
    assert not program.plan.uses
    plan = check(program, monkeypatch, "kept")
    assert jnp.abs(program.z_scores(local=False, plan=plan)).max() > 8.0


@jax.custom_vjp
def own_gradient(weight, x):
    return weight @ x


own_gradient.defvjp(
    lambda weight, x: (weight @ x, (weight, x)),
    lambda kept, g: (jnp.outer(g, kept[1]), kept[0].T @ g),
)


def repeated(net):
    h = jax.lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h @ net.weight.T), X)
    return normal_density(h + net.bias[None])


def whiled(net):
    _, h = jax.lax.while_loop(
        lambda state: state[0] < 1,
        lambda state: (state[0] + 1, jnp.tanh(state[1] @ net.weight.T)),
        (0, X),
    )
    return normal_density(h + net.bias[None])


WITHOUT_RULE = {
    "exp": lambda net: normal_density(X @ jnp.exp(net.weight) + net.bias[None]),
    "norm": lambda net: normal_density(
        X @ (net.weight / jnp.linalg.norm(net.weight)) + net.bias[None]
    ),
    "own-gradient": lambda net: normal_density(
        jax.vmap(lambda x: own_gradient(net.weight, x) + net.bias)(X)
    ),
    "sort": lambda net: normal_density(X @ jnp.sort(net.weight) + net.bias[None]),
    "tiled": lambda net: normal_density(
        jnp.tile(X, (1, 2)) @ jnp.tile(net.weight, (2, 1)) + net.bias[None]
    ),
    "one-row": lambda net: normal_density(net.weight @ X[0]) + normal_density(
        X + net.bias[None]
    ),
}


@pytest.mark.parametrize("name", WITHOUT_RULE)
def test_an_operation_without_a_rule_draws_once(name):
    program = Program(LINEAR, WITHOUT_RULE[name])
    assert kinds(program) == ["once", "rows"]
    assert jnp.abs(program.z_scores(local=True)).max() < 5.0


def test_terms_that_are_added_may_use_a_weight_each():
    def density(net):
        return normal_density(predictions(net)) + normal_density(jax.vmap(net)(-X))

    program = Program(LINEAR, density)
    assert kinds(program) == ["rows", "rows"]
    assert jnp.abs(program.z_scores(local=True)).max() < 5.0


def test_parts_of_a_weight_are_weights_of_their_own():
    def density(weight):
        h = jnp.tanh(X @ weight[:3])
        return normal_density(h @ weight[3:])

    def overlapping(weight):
        h = jnp.tanh(X @ weight[:3])
        return normal_density(h @ weight[2:])

    apart = Program(jr.normal(KEY, (6, 3)), density)
    assert kinds(apart) == ["rows"]
    assert jnp.abs(apart.z_scores(local=True)).max() < 5.0
    assert kinds(Program(jr.normal(KEY, (5, 3)), overlapping)) == ["once"]


@pytest.mark.parametrize("loop", [repeated, whiled])
def test_a_loop_that_feeds_itself_shares_its_draw(loop):
    program = Program(LINEAR, loop)
    assert kinds(program)[0] in ("signs", "once")
    assert jnp.abs(program.z_scores(local=True)).max() < 5.0


def test_rows_are_followed_through_reshapes_and_lookups():
    def density(net):
        f = predictions(net).reshape(2, 3, 2).transpose(1, 0, 2)
        f = f.transpose(1, 0, 2).reshape(ROWS, 2)
        g = jnp.concatenate([f, f * f])[: ROWS + 2]
        order = jnp.array([5, 1, 1, 0])
        return normal_density(f * predictions(net)) + normal_density(g[order])

    net = eqx.nn.Linear(3, 2, key=KEY)
    only = Program(net, lambda net: normal_density(predictions(net).reshape(-1)))
    assert kinds(only) == ["rows", "rows"]
    assert kinds(Program(net, density)) == ["once", "once"]


def test_a_network_of_rows_is_unbiased_under_a_gradient_of_zero_variance():
    zeros = jnp.zeros((ROWS, 3))
    program = Program(LINEAR, rows(zeros))
    gradients = program.gradients(
        lambda params, key: program.estimate(params, key, program.plan, True), 10
    )
    assert jnp.isfinite(gradients).all()
