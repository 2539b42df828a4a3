"""explain: what it says of a model is what the model does."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from models import OBSERVED, ROWS, H, Z, make_field, make_film, make_mlp, sites
from models import film_regression as model
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.autoguide import AutoDiagonalNormal
from numpyro.infer.reparam import LocScaleReparam
from numpyro.primitives import mutable

import pyrox_ppl as px
from pyrox_ppl.nn import SIREN

LINEAR = eqx.nn.Linear(2, 3, key=jax.random.key(0))


def by_name(rows):
    return {row.name: row for row in rows}


def test_the_sites_are_those_of_the_trace():
    explanation = px.explain(model, ROWS, OBSERVED)
    found = sites(model, ROWS, OBSERVED)
    rows = by_name((*explanation.parameter_sites, *explanation.sites))
    assert rows.keys() == found.keys()
    assert all(row.shape == found[name]["value"].shape for name, row in rows.items())
    assert by_name(explanation.sites)["y"].type == "observed"
    assert by_name(explanation.sites)["y"].plates == ("row",)


def test_the_latent_dimension_is_that_of_numpyro():
    def simplex():
        with px.bayesianize(prior=px.priors.hierarchical()):
            make_film()(H, Z)
        numpyro.sample("p", dist.Dirichlet(jnp.ones(4)))
        numpyro.sample("L", dist.LKJCholesky(3))
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=0.0)

    guide = AutoDiagonalNormal(simplex)
    with jax.numpy_rank_promotion("allow"):
        jax.eval_shape(handlers.seed(guide, 0))
    assert px.explain(simplex).latent_dim == guide.latent_dim


def test_a_subsampled_plate_counts_with_all_its_members():
    def minibatch():
        with px.bayesianize():
            make_film()(H, Z)
        with numpyro.plate("n", 100, subsample_size=10):
            numpyro.sample("u", dist.Normal(0.0, 1.0))

    assert px.explain(minibatch).latent_dim == 18 + 100


def test_the_memory_is_that_of_what_predictive_returns():
    draws = Predictive(model, num_samples=7)(jax.random.key(0), ROWS)
    assert px.explain(model, ROWS).memory(7) == sum(v.nbytes for v in draws.values())


def test_the_prior_scale_is_that_of_draws():
    explanation = px.explain(model, ROWS, OBSERVED)
    scale = explanation.prior_scale(jax.random.key(0), 50)
    draws = Predictive(model, num_samples=50)(jax.random.key(0), ROWS)["y"]
    assert scale.keys() == {"y"}
    assert scale["y"] == pytest.approx(float(np.sqrt((draws**2).mean())), rel=1e-5)


def test_every_prior_draw_has_the_state_at_its_start():
    state = {"calls": jnp.zeros(())}

    def counting():
        now = mutable("state", state)
        numpyro.deterministic("calls", now["calls"])
        now["calls"] = now["calls"] + 1.0

    explanation = px.explain(counting)
    for number in (1, 1, 3, 1):
        assert explanation.prior_scale(jax.random.key(0), number) == {"calls": 0.0}
    assert state == {"calls": 0.0}  # neither a tracer nor another number


def test_the_state_of_a_layer_stays_usable():
    layer = eqx.nn.SpectralNorm(LINEAR, "weight", key=jax.random.key(0))
    start = eqx.nn.State(layer)

    def spectral():
        with px.bayesianize():
            net = px.bind(layer, "net")
        now = mutable("state", {"now": start})
        out, now["now"] = net(jnp.ones(LINEAR.in_features), now["now"])
        numpyro.deterministic("out", out)

    for _ in range(2):  # equinox refuses a state that was used before
        explanation = px.explain(spectral)
        assert {row.becomes for row in explanation.parameters} == {"sample"}
    assert jax.tree.leaves(start)


def test_constants_scopes_plates_and_second_reads():
    field = make_field()

    def several():
        with px.bayesianize(), px.scope("left"):
            field(jnp.ones(2), Z)
            field(jnp.ones(2), Z)
        with px.bayesianize(where="*.weight"), numpyro.plate("group", 4):
            px.bind(LINEAR, "head", plate="group")
        px.bind(LINEAR, "alone")

    explanation = px.explain(several)
    rows = by_name(explanation.parameters)
    assert len(rows) == 14 + 2 + 2
    inner = [row for name, row in rows.items() if ".inner." in name]
    assert all(row.becomes == "constant" and row.handler is None for row in inner)
    assert all(name.startswith("left.") for name in rows if ".inner." in name)
    assert rows["head.weight"].shape == (4, 3, 2)
    assert rows["head.weight"].becomes == "sample"
    assert rows["head.weight"].handler == "bayesianize"
    assert rows["head.bias"].becomes == rows["alone.weight"].becomes == "constant"
    stored = sum(row.parameter.shape != () for row in inner)
    assert stored == len(inner)
    sizes = [np.prod(r.parameter.shape) for r in rows.values() if r.handler is None]
    assert explanation.constant == sum(sizes)


def test_what_numpyros_handlers_make_of_a_parameter():
    def plain():
        with px.bayesianize():
            px.bind(LINEAR, "net")

    conditioned = handlers.condition(plain, {"net.bias": jnp.zeros(3)})
    decentered = handlers.reparam(plain, config={"net.bias": LocScaleReparam(0)})
    rows = [by_name(px.explain(m).parameters) for m in (conditioned, decentered)]
    assert [row["net.bias"].becomes for row in rows] == ["observed", "deterministic"]
    assert [row["net.bias"].handler for row in rows] == ["bayesianize", "bayesianize"]

    def hidden():
        with px.bayesianize(where="*.weight"), handlers.block(hide=["net.bias"]):
            px.bind(LINEAR, "net")

    assert by_name(px.explain(hidden).parameters)["net.bias"].becomes == "constant"


def test_tied_arrays_and_priors_are_shown():
    def tied():
        with px.bayesianize(prior=px.priors.hierarchical()):
            px.bind({"a": LINEAR.weight, "b": [LINEAR.weight]}, "t")

    text = str(px.explain(tied))
    assert "is also at" in text
    assert "b.0" in text
    assert "Normal(0, float32[])" in text
    assert "HalfNormal(1)" in text


def test_it_shows_param_sites_and_counts_them():
    def with_param():
        numpyro.param("amplitude", jnp.ones(5))
        numpyro.deterministic("twice", jnp.ones(2))

    explanation = px.explain(with_param)
    assert explanation.learned == 5
    assert explanation.latent_dim == 0
    assert explanation.memory(3) == 3 * 2 * 4


def test_in_a_notebook_it_is_html_with_names_escaped():
    def model():
        numpyro.sample("a<b", dist.Normal(0.0, 1.0))

    page = px.explain(model)._repr_html_()
    assert "<td>a&lt;b</td>" in page
    assert page.count("<table>") == 1
    assert repr(px.explain(model)) == str(px.explain(model))


def test_nothing_is_computed_whatever_the_size():
    net = make_mlp()

    def huge():
        with px.bayesianize():
            bound = px.bind(net, "net")
        x = jnp.ones((10**9, 2))  # 8 GB
        f = jax.vmap(bound)(x)
        numpyro.sample("y", dist.Normal(f, 1.0).to_event(2))

    assert px.explain(huge).memory(1) > 4 * 10**9


def test_what_would_raise_raises_here():
    def misspelt():
        with px.bayesianize(where="*.wieght"):
            px.bind(LINEAR, "net")

    with pytest.raises(ValueError, match="matches no parameter"):
        px.explain(misspelt)
    sites(lambda: px.bayesianize(lambda: px.bind(LINEAR, "net"))())  # the next is clean


def test_a_read_outside_the_block_has_a_row_of_its_own_and_a_note():
    net = SIREN.init(1, 4, 1, depth=2, key=jax.random.key(0))

    def model(x):
        with px.bayesianize():
            slope = jax.vmap(jax.grad(lambda t: net(t[None])[0]))(x[:, 0])
        return slope + net(x)[:, 0] + net(x)[:, 0]

    explanation = px.explain(model, jnp.ones((3, 1)))
    rows = [(row.name, row.becomes) for row in explanation.parameters]
    names = [f"siren.layers.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")]
    assert sorted(rows) == sorted((n, b) for n in names for b in ("sample", "constant"))
    assert explanation.latent_dim == explanation.constant == 4 + 4 + 4 + 1
    assert sorted(explanation.constant_outside) == sorted(names)
    assert "also read outside their block" in str(explanation)


def test_two_blocks_that_share_a_learned_module_have_one_row():
    def model():
        for _ in range(2):
            with px.learn():
                px.bind(LINEAR, "net")

    explanation = px.explain(model)
    assert [row.becomes for row in explanation.parameters] == ["param", "param"]
    assert explanation.constant_outside == ()


def test_a_parameter_that_do_fixes_has_its_own_name():
    def model():
        with px.bayesianize(), handlers.do(data={"net.bias": jnp.ones(1)}):
            px.bind(eqx.nn.Linear(2, 1, key=jax.random.key(0)), "net")

    rows = {row.name: row.becomes for row in px.explain(model).parameters}
    assert rows == {"net.weight": "sample", "net.bias": "observed"}
