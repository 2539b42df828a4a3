"""What may have noise for each row, and which operations on weights need one draw."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from row_cases import KEY, ROWS, X, rows
from row_noise import Program, kinds, normal_density

LINEAR = eqx.nn.Linear(3, 3, key=jr.key(3))
NARROW = eqx.nn.Linear(3, 1, key=jr.key(3))
# Rows that are alike have predictions that agree, if one draw serves all of them.
ALIKE = 1.0 + 0.1 * X


def predictions(net):
    return jax.vmap(net)(ALIKE)


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
    # Only forward derivatives pass through a loop of unknown length.
    stopped = jax.lax.stop_gradient(net.weight)
    _, h = jax.lax.while_loop(
        lambda state: state[0] < 2,
        lambda state: (state[0] + 1, jnp.tanh(state[1] @ stopped.T)),
        (0, X),
    )
    return normal_density(h + net.bias[None])


def printed(weight, density):
    jax.debug.callback(lambda weight: None, weight)
    return density


WITHOUT_RULE = {
    "exp": lambda net: normal_density(X @ jnp.exp(net.weight) + net.bias[None]),
    "norm": lambda net: normal_density(
        X @ (net.weight / jnp.linalg.norm(net.weight)) + net.bias[None]
    ),
    "own-gradient": lambda net: normal_density(
        jax.vmap(lambda x: own_gradient(net.weight, x) + net.bias)(X)
    ),
    "sort": lambda net: normal_density(X @ jnp.sort(net.weight) + net.bias[None]),
    "filled": lambda net: normal_density(
        X * jnp.take(net.weight, jnp.array([0, 1, 7, 2, 9, 1]), 0, fill_value=1.5)
        + net.bias[None]
    ),
    "complex": lambda net: normal_density(
        (X.astype(jnp.complex64) @ net.weight * (1 + 2j)).imag + net.bias[None]
    ),
    "printed": lambda net: printed(net.weight, normal_density(jax.vmap(net)(X))),
    "half": lambda net: normal_density(
        X + net.weight[:, :1].T.astype(jnp.float16) + net.bias[None]
    ),
    "tiled": lambda net: normal_density(
        jnp.tile(X, (1, 2)) @ jnp.tile(net.weight, (2, 1)) + net.bias[None]
    ),
    "one-row": lambda net: (
        normal_density(net.weight @ X[0]) + normal_density(X + net.bias[None])
    ),
}


@pytest.mark.parametrize("name", WITHOUT_RULE)
def test_an_operation_without_a_rule_draws_once(name):
    program = Program(LINEAR, WITHOUT_RULE[name])
    assert kinds(program) == ["once", "rows"]
    assert jnp.abs(program.z_scores(local=True)).max() < 5.0


def test_the_square_of_a_scale_must_not_vanish():
    half = jax.tree.map(
        lambda a: a.astype(jnp.float16), eqx.filter(LINEAR, eqx.is_array)
    )
    module = eqx.combine(half, LINEAR)
    program = Program(module, lambda net: normal_density(jax.vmap(net)(X)))
    assert kinds(program) == ["once", "once"]


def test_a_number_is_repeated_for_every_row():
    numbers = {"a": jnp.array(1.2), "b": jnp.array(0.3), "c": jnp.array(0.5)}

    def density(w):
        return normal_density((w["a"] - w["b"]) * X + w["c"])

    def over_rows(w):
        return normal_density((w["a"] * ALIKE).mean(1) + w["b"] + w["c"])

    program = Program(numbers, density)
    assert kinds(program) == ["rows"] * 3
    assert jnp.abs(program.z_scores(local=True)).max() < 5.0
    program = Program(numbers, over_rows)
    assert kinds(program) == ["signs", "rows", "rows"]
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


def test_a_place_that_depends_on_noise_needs_one_draw():
    def density(net):
        f = predictions(net)
        start = jnp.argmax(f[:, 0])
        return normal_density(jax.lax.dynamic_index_in_dim(ALIKE, start))

    assert kinds(Program(NARROW, density)) == ["once", "once"]


def test_loops_in_loops_are_followed():
    def density(net):
        def outer(total, x):
            _, inner = jax.lax.scan(lambda c, v: (c, net(v)), 0.0, x)
            return total + normal_density(inner), None

        return jax.lax.scan(outer, 0.0, X.reshape(2, 3, 3))[0]

    program = Program(LINEAR, density)
    assert kinds(program) == ["rows", "rows"]
    assert jnp.abs(program.z_scores(local=True)).max() < 5.0


def test_rows_of_zeros_have_a_finite_gradient():
    zeros = jnp.zeros((ROWS, 3))
    program = Program(LINEAR, rows(zeros))
    gradients = program.gradients(
        lambda params, key: program.estimate(params, key, program.plan, True), 10
    )
    assert jnp.isfinite(gradients).all()
