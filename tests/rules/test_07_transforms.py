"""Rule 7: a read inside a staging transform raises; vmap and grad work."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from models import HANDLERS, H, Z, make_field, make_film, run, sites
from numpyro.contrib.control_flow import scan as numpyro_scan

import pyrox_ppl as px
from pyrox_ppl.nn import HyperNetwork

X = jnp.linspace(-1.0, 1.0, 6).reshape(3, 2)

STAGED = {
    "jit": lambda f, x: jax.jit(f)(x),
    "filter_jit": lambda f, x: eqx.filter_jit(f)(x),
    "scan": lambda f, x: jax.lax.scan(lambda c, row: (c, f(row)), 0.0, x),
    "map": lambda f, x: jax.lax.map(f, x),
    "while_loop": lambda f, x: jax.lax.while_loop(
        lambda c: c[1] < 1, lambda c: (c[0] + f(x[0]).sum(), c[1] + 1), (0.0, 0)
    ),
    "fori_loop": lambda f, x: jax.lax.fori_loop(
        0, 2, lambda i, c: c + f(x[0]).sum(), 0.0
    ),
    "cond": lambda f, x: jax.lax.cond(True, f, lambda row: row[:1], x[0]),
    "checkpoint": lambda f, x: jax.checkpoint(f)(x),
    "eval_shape": lambda f, x: jax.eval_shape(f, x),
    "grad of jit": lambda f, x: jax.grad(lambda row: jax.jit(f)(row).sum())(x),
    "jit of vmap": lambda f, x: jax.jit(jax.vmap(f))(x),
    "numpyro scan": lambda f, x: numpyro_scan(lambda c, row: (c, f(row)), 0.0, x),
}
WHERE_IT_STANDS = {
    "vmap": lambda f, x: jax.vmap(f)(x),
    "filter_vmap": lambda f, x: eqx.filter_vmap(f)(x),
    "grad": lambda f, x: jax.grad(lambda rows: f(rows).sum())(x),
    "jvp": lambda f, x: jax.jvp(f, (x,), (x,)),
    "hessian": lambda f, x: jax.hessian(lambda row: f(row).sum())(x[0]),
    "vmap of grad": lambda f, x: jax.vmap(jax.grad(lambda row: f(row).sum()))(x),
}


def field_model(transform, before=False):
    field = make_field()

    def model(x):
        with px.bayesianize():
            net = px.bind(field) if before else field
            return transform(lambda rows: net(rows, Z), x)

    return model


@pytest.mark.parametrize("name", STAGED)
def test_a_first_read_inside_raises_and_names_bind(name):
    with pytest.raises(ValueError, match=r"ConditionedINR.*net = bind\(net\)"):
        sites(field_model(STAGED[name]), X)
    assert numpyro.primitives._PYRO_STACK == []


@pytest.mark.parametrize("name", STAGED)
def test_a_module_bound_before_goes_through(name):
    assert len(sites(field_model(STAGED[name], before=True), X)) == 6


@pytest.mark.parametrize("name", WHERE_IT_STANDS)
@pytest.mark.parametrize("outer_jit", [False, True])
def test_vmap_and_grad_inside_the_block_read_where_they_stand(name, outer_jit):
    model = field_model(WHERE_IT_STANDS[name])
    assert len(sites(model, X)) == 6
    bound = field_model(WHERE_IT_STANDS[name], before=True)
    call = jax.jit(lambda x: run(model, x)) if outer_jit else lambda x: run(model, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
        call(X),
        run(bound, X),
    )


@pytest.mark.parametrize("transform", [jax.jit, eqx.filter_jit, jax.checkpoint])
def test_a_call_compiled_before_the_block_raises(transform):
    field = make_field()
    compiled = transform(lambda x: field(x, Z))
    compiled(X)

    def model():
        with px.bayesianize():
            return compiled(X)

    for _ in range(2):
        with pytest.raises(ValueError, match="bind"):
            run(model)


def test_a_call_compiled_before_raises_also_where_the_block_reads_something_else():
    field, film = make_field(), make_film()
    compiled = jax.jit(lambda x: field(x, Z))
    compiled(X)

    def model():
        with px.bayesianize():
            return film(H, Z), compiled(X)

    with pytest.raises(ValueError, match="bind"):
        run(model)


def test_a_scan_body_traced_before_the_block_raises():
    field = make_field()

    def body(carry, x):
        return carry, field(x, Z)

    jax.lax.scan(body, 0.0, X)

    def model():
        with px.bayesianize():
            return jax.lax.scan(body, 0.0, X)

    with pytest.raises(ValueError, match="bind"):
        run(model)


def test_a_second_read_inside_jit_raises_too_for_it_would_be_stale_in_the_next_block():
    film = make_film()
    compiled = jax.jit(lambda h: film(h, Z))

    def model():
        with px.bayesianize():
            film(H, Z)
            return compiled(H)

    for seed in range(2):
        with pytest.raises(ValueError, match="bind"):
            run(model, seed=seed)


def test_a_call_compiled_before_is_compiled_again_and_works_when_bound():
    count = []

    @eqx.filter_jit
    def compiled(net, h):
        count.append(1)
        return net(h, Z)

    film = make_film()
    compiled(film, H)

    def model():
        with px.bayesianize():
            net = px.bind(film)
            return compiled(net, H) - net(H, Z)

    for seed in range(3):
        np.testing.assert_allclose(run(model, seed=seed), jnp.zeros(3), atol=1e-6)
    assert len(count) == 2


def test_a_vmap_over_the_module_itself_raises():
    members = eqx.filter_vmap(lambda key: make_film_at(key))(
        jax.random.split(jax.random.key(0), 4)
    )

    def model(bind_first):
        with px.bayesianize():
            net = px.bind(members) if bind_first else members
            return eqx.filter_vmap(lambda m: m(H, Z))(net)

    with pytest.raises(ValueError, match="all members would share"):
        run(model, False)
    out = run(model, True)
    assert len(np.unique(np.asarray(out))) == out.size


def make_film_at(key):
    return px.nn.FiLM.init(3, 2, key=key)


def test_a_gradient_with_respect_to_the_module_itself_raises():
    def model():
        with px.bayesianize():
            return eqx.filter_grad(lambda m: m(H, Z).sum())(make_film())

    with pytest.raises(ValueError, match="gradient would be zero"):
        run(model)


def test_a_whole_model_runs_inside_jit_vmap_scan_and_grad():
    model = field_model(lambda f, x: f(x).sum())

    def of_seed(seed):
        return numpyro.handlers.seed(model, jax.random.key(seed))(X)

    eager = jnp.stack([of_seed(0), of_seed(1)])
    seeds = jnp.arange(2)
    np.testing.assert_allclose(jax.vmap(of_seed)(seeds), eager, rtol=1e-4)
    np.testing.assert_allclose(jax.lax.map(of_seed, seeds), eager, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(of_seed)(1), eager[1], rtol=1e-4)


def test_a_block_inside_numpyros_scan_gives_a_value_per_step():
    film = make_film()

    def body(carry, h):
        with px.bayesianize():
            y = film(h, Z)
        return carry + y, y

    def model():
        return numpyro_scan(body, jnp.zeros(3), jnp.ones((5, 3)))[1]

    found = sites(model)
    assert found["affine_modulation.generator.bias"]["value"].shape == (5, 6)
    assert len(np.unique(np.asarray(run(model))[:, 0])) == 5


def test_no_tracer_leaks():
    field = make_field()

    def model(x):
        with px.bayesianize():
            y = jax.vmap(lambda row: field(row, Z))(x)
        numpyro.sample("y", dist.Normal(y, 1.0))

    with jax.checking_leaks():
        jax.jit(lambda x: numpyro.handlers.seed(model, 0)(x))(X)


ROWS = jnp.linspace(-1.0, 1.0, 9).reshape(3, 3)


@pytest.mark.parametrize("name", ["learn", "amortize", "amortize-laws"])
def test_every_handler_refuses_a_first_read_inside_jit_and_allows_vmap(name):
    film = make_film()

    def model(transform):
        with HANDLERS[name]():
            return transform(lambda h: film(h, Z))(ROWS)

    with pytest.raises(ValueError, match=r"net = bind\(net\)"):
        run(model, jax.jit)
    np.testing.assert_allclose(run(model, jax.vmap), run(model, lambda f: f), rtol=1e-5)


def contexts(transform, bound):
    """A generated conditioner per row, under a transform around the block."""
    film = make_film()
    generator = HyperNetwork.init(film, 2, key=jax.random.key(0))

    def model():
        with px.bayesianize():
            g = px.bind(generator) if bound else generator
            if not bound:
                return transform(lambda row: generated(g, row), (ROWS, X))
        return transform(lambda row: generated(g, row), (ROWS, X))

    def generated(g, row):
        with px.amortize(generator=g, context=row[1]):
            return film(row[0], Z)

    return model


def test_a_context_per_row_under_vmap_and_map_is_the_loop_over_rows():
    def loop(one, rows):
        return jnp.stack([one((h, z)) for h, z in zip(*rows, strict=True)])

    expected = run(contexts(loop, bound=True))
    assert len(np.unique(np.asarray(expected))) == 9
    vmap = contexts(lambda one, rows: jax.vmap(one)(rows), bound=True)
    assert len(sites(vmap)) == 4
    np.testing.assert_allclose(run(vmap), expected, rtol=1e-5, atol=1e-6)
    mapped = contexts(lambda one, rows: jax.lax.map(one, rows), bound=True)
    np.testing.assert_allclose(run(mapped), expected, rtol=1e-5, atol=1e-6)
    unbound = contexts(lambda one, rows: jax.vmap(one)(rows), bound=False)
    np.testing.assert_allclose(run(unbound), expected, rtol=1e-5, atol=1e-6)


def test_a_generator_that_is_read_first_inside_map_raises():
    model = contexts(lambda one, rows: jax.lax.map(one, rows), bound=False)
    with pytest.raises(ValueError, match=r"HyperNetwork.*net = bind\(net\)"):
        run(model)
