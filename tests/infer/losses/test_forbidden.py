"""Uses of weights that need one draw: each is biased where its rule is switched off."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from row_cases import KEY, ROWS, X
from row_noise import Program, kinds, normal_density

from pyrox_ppl.infer.losses import _plan
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
            _plan,
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
