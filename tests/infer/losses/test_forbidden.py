"""Uses of weights that need one draw: each is biased where its rule is switched off."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from row_cases import KEY, ROWS, X, rows
from row_noise import Program, kinds, normal_density

from pyrox_ppl.infer.losses import _analysis
from pyrox_ppl.infer.losses._book import Book

LINEAR = eqx.nn.Linear(3, 3, key=jr.key(3))
NARROW = eqx.nn.Linear(3, 1, key=jr.key(3))
COVARIANCE = jnp.eye(ROWS) + 2.0
# Rows that are alike have predictions that agree, if one draw serves all of them.
ALIKE = 1.0 + 0.1 * X


def predictions(net):
    return jax.vmap(net)(ALIKE)


def twice(net):
    return normal_density(jax.vmap(lambda x: net(jnp.tanh(net(x))))(X))


def transposed(net):
    return normal_density(jnp.tanh(X @ net.weight.T) @ net.weight)


def derivative(net):
    def both(x):
        value, slope = jax.jvp(lambda x: jnp.tanh(net(x)), (x,), (jnp.ones(3),))
        return value + slope

    return normal_density(jax.vmap(both)(X))


def multivariate_over_rows(net):
    residuals = jnp.tanh(predictions(net))[:, 0] - 1.0
    return -0.5 * residuals @ jnp.linalg.solve(COVARIANCE, residuals)


def batch_norm(net):
    h = predictions(net)
    return normal_density((h - h.mean(0)[None]) / jnp.sqrt(h.var(0) + 0.1)[None])


def neighbours(net):
    f = predictions(net)
    return normal_density(f[1:] * f[:-1])


def pairs(net):
    f = predictions(net)[:, 0]
    return normal_density(f[:, None] * f[None, :])


def looked_up(net):
    f = predictions(net)
    return normal_density(f[jnp.array([1, 2, 0, 4, 3, 5])] - f)


def smoothed_in_a_loop(net):
    f = predictions(net)

    def body(before, i):
        here = jax.lax.dynamic_index_in_dim(f, i, keepdims=False)
        return here, jnp.tanh(before * here)

    return normal_density(jax.lax.scan(body, f[0], jnp.arange(ROWS))[1])


def looked_up_in_a_loop(net):
    f = predictions(net).reshape(2, 3, 1)

    def column(i):
        return jax.lax.map(lambda j: f[i, j], jnp.arange(3))

    return normal_density(jax.lax.map(column, jnp.arange(2)).mean((0, 1)))


def windows(net):
    f = predictions(net)[:, 0]
    window = jax.vmap(lambda i: jax.lax.dynamic_slice(f, (i,), (3,)))
    return normal_density(window(jnp.arange(ROWS - 2)).mean(1))


def ranked(net):
    f = predictions(net).T[0][:, None]
    first, _ = jax.lax.top_k(f, ROWS, axis=0)
    return normal_density(first * jnp.arange(ROWS)[:, None] / 3)


def stacked(net):
    f = predictions(net)
    return normal_density(jnp.stack([f, f[::-1]]).prod(0))


def chosen_by_the_mean(net):
    f = predictions(net)
    branches = (normal_density, lambda f: 9.0 * normal_density(f))
    usual = predictions(NARROW).mean()
    return jax.lax.cond(f.mean() > usual, *branches, f)


def places_of_an_image(conv):
    images = jnp.ones((ROWS, 1, 3, 3))
    return normal_density(jax.vmap(conv)(images).mean((2, 3)))


def words_of_a_text(table):
    words = jnp.zeros((ROWS, 5), int)
    return normal_density(jax.vmap(jax.vmap(table))(words).mean(1))


def recurrence(net):
    def body(h, x):
        return h + net(x) / 5, None

    def run(x):
        return jax.lax.scan(body, jnp.zeros(1), jnp.stack([x] * 5))[0]

    return normal_density(jax.vmap(run)(ALIKE))


# Two uses of a weight, or one whose rows meet later.
SECOND_USES = {
    "twice": (LINEAR, twice),
    "transposed": (LINEAR, transposed),
    "derivative": (LINEAR, derivative),
}
COUPLED_ROWS = {
    "multivariate": (NARROW, multivariate_over_rows),
    "batch-norm": (NARROW, batch_norm),
    "neighbours": (NARROW, neighbours),
    "pairs": (NARROW, pairs),
    "looked-up": (NARROW, looked_up),
    "loop": (NARROW, smoothed_in_a_loop),
    "loop-lookup": (NARROW, looked_up_in_a_loop),
    "windows": (NARROW, windows),
    "ranked": (NARROW, ranked),
    "stacked": (NARROW, stacked),
    "chosen": (NARROW, chosen_by_the_mean),
    "places": (eqx.nn.Conv2d(1, 2, 1, key=KEY), places_of_an_image),
    "words": (eqx.nn.Embedding(4, 2, key=KEY), words_of_a_text),
    "recurrence": (NARROW, recurrence),
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
    program = Program(NARROW, multivariate_over_rows)
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
    # Only forward derivatives pass through a loop of unknown length.
    stopped = jax.lax.stop_gradient(net.weight)
    _, h = jax.lax.while_loop(
        lambda state: state[0] < 2,
        lambda state: (state[0] + 1, jnp.tanh(state[1] @ stopped.T)),
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
    "filled": lambda net: normal_density(
        X * jnp.take(net.weight, jnp.array([0, 1, 7, 2, 9, 1]), 0, fill_value=1.5)
        + net.bias[None]
    ),
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
    half = jax.tree.map(lambda a: a.astype(jnp.float16), eqx.filter(LINEAR, eqx.is_array))
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
