"""One untouched network under every handler and every pair: sites, in SVI and NUTS."""

import contextlib
import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from models import sites
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledMCMC
from pyrox_ppl.nn import HyperNetwork

KEY = jax.random.key(0)
NET = eqx.nn.MLP(2, 1, 4, 1, key=KEY)
CONTEXT = jnp.array([0.3, -0.7])
X = jnp.linspace(-1.0, 1.0, 12).reshape(6, 2)
Y = jnp.sin(3 * X[:, 0])

FIRST = {"net.layers.0.weight": (4, 2), "net.layers.0.bias": (4,)}
SECOND = {"net.layers.1.weight": (1, 4), "net.layers.1.bias": (1,)}
HEADS = {
    "hyper_network.heads.layers.1.weight.weight": (4, 2),
    "hyper_network.heads.layers.1.weight.bias": (1, 4),
    "hyper_network.heads.layers.1.bias.weight": (1, 2),
    "hyper_network.heads.layers.1.bias.bias": (1,),
}
WHOLE = HyperNetwork.init(NET, 2, key=KEY)
READOUT = HyperNetwork.init(NET, 2, key=KEY, where="*.layers.1.*")

ON_FIRST, ON_SECOND = {"where": "net.layers.0.*"}, {"where": "net.layers.1.*"}


def amortize(generator):
    return lambda: px.amortize(generator=generator, context=CONTEXT)


@dataclasses.dataclass(frozen=True)
class Case:
    """Handlers from the outside in, and the sites that they make, with their shapes."""

    name: str
    handlers: tuple
    samples: dict = dataclasses.field(default_factory=dict)
    params: dict = dataclasses.field(default_factory=dict)


CASES = [
    Case("nothing", ()),
    Case("learn", (px.learn,), params=FIRST | SECOND),
    Case("bayesianize", (px.bayesianize,), samples=FIRST | SECOND),
    Case("amortize", (amortize(WHOLE),)),
    Case(
        "learn and bayesianize",
        (lambda: px.learn(**ON_FIRST), lambda: px.bayesianize(**ON_SECOND)),
        params=FIRST,
        samples=SECOND,
    ),
    Case(
        "learn and amortize",
        (lambda: px.learn(**ON_FIRST), amortize(READOUT)),
        params=FIRST,
    ),
    Case(
        "bayesianize and amortize",
        (lambda: px.bayesianize(**ON_FIRST), amortize(READOUT)),
        samples=FIRST,
    ),
    Case(
        "learn the rest and the generator",
        (px.learn, amortize(READOUT)),
        params=FIRST | HEADS,
    ),
    Case(
        "learn the rest, a Bayesian generator",
        (
            lambda: px.bayesianize(where="hyper_network.*"),
            lambda: px.learn(**ON_FIRST),
            amortize(READOUT),
        ),
        params=FIRST,
        samples=HEADS,
    ),
]
every_case = pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])


def model_of(case, turned=False):
    """A regression whose model differs from case to case in its handlers alone."""
    handlers = case.handlers[::-1] if turned else case.handlers

    def model(x, y=None):
        with contextlib.ExitStack() as stack:
            for handler in handlers:
                stack.enter_context(handler())
            net = px.bind(NET, "net")
        numpyro.deterministic("f", jax.vmap(net)(x)[:, 0])
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        with numpyro.plate("row", x.shape[0]):
            numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], noise), obs=y)

    return model


def shapes(found, site_type):
    return {n: s["value"].shape for n, s in found.items() if s["type"] == site_type}


@every_case
def test_the_sites_are_those_of_the_handlers(case):
    found = sites(model_of(case), X, types=("sample", "param"))
    expected = {"noise": (), "y": (6,)} | case.samples
    assert shapes(found, "sample") == expected
    assert shapes(found, "param") == case.params
    pairs_on_different_parameters = case.name.count(" and ") == 1 and "rest" not in (
        case.name
    )
    if pairs_on_different_parameters:
        turned = sites(model_of(case, turned=True), X, types=("sample", "param"))
        assert shapes(turned, "sample") == expected
        assert shapes(turned, "param") == case.params


@every_case
def test_at_the_stored_values_every_meaning_is_the_same_function(case):
    stored = {
        "net.layers.0.weight": NET.layers[0].weight,
        "net.layers.0.bias": NET.layers[0].bias,
        "net.layers.1.weight": NET.layers[1].weight,
        "net.layers.1.bias": NET.layers[1].bias,
    }
    for path, head in READOUT.heads.items():
        for leaf in ("weight", "bias"):
            stored[f"hyper_network.heads.{path}.{leaf}"] = getattr(head, leaf)
    model = numpyro.handlers.substitute(model_of(case), stored)
    net = NET
    for name, generator in (("amortize", WHOLE), (" amortize", READOUT)):
        if case.name.endswith(name):
            net = generator.generate(NET, CONTEXT)
    if "generator" in case.name:
        net = READOUT.generate(NET, CONTEXT)
    found = sites(model, X, types=("deterministic",))
    np.testing.assert_allclose(
        found["f"]["value"], jax.vmap(net)(X)[:, 0], rtol=1e-5, atol=1e-6
    )


@every_case
def test_svi_holds_what_is_learned_or_guided_and_nothing_dead(case):
    model = model_of(case)
    guide = AutoNormal(model)
    svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())

    @jax.jit
    def one_step(key):
        state = svi.init(key, X, Y)
        after, loss = svi.update(state, X, Y)
        held = (svi.get_params(state), svi.get_params(after), state.optim_state)
        return *held, loss

    before, params, optim_state, loss = one_step(KEY)
    assert np.isfinite(loss)
    guided = case.samples | {"noise": ()}
    expected = case.params | {
        f"{name}_auto_{half}": shape
        for name, shape in guided.items()
        for half in ("loc", "scale")
    }
    assert {name: value.shape for name, value in params.items()} == expected
    # Adam: a value and two moments each, and the step number.
    assert len(jax.tree.leaves(optim_state)) == 3 * len(expected) + 1
    for name in case.params:
        assert not np.array_equal(before[name], params[name]), name


OFTEN = ("learn", "bayesianize", "bayesianize and amortize", CASES[-1].name)


# NumPyro's own run compiles a hundred small programs, ours one.
@pytest.mark.parametrize(
    ("case", "make"),
    [
        pytest.param(
            case,
            MCMC if case.name == "bayesianize" else CompiledMCMC,
            id=case.name,
            marks=() if case.name in OFTEN else pytest.mark.slow,
        )
        for case in CASES
    ],
)
def test_nuts_draws_the_sample_sites_and_holds_the_params(case, make):
    kernel = NUTS(model_of(case), step_size=0.01, max_tree_depth=2)
    mcmc = make(kernel, num_warmup=0, num_samples=2, progress_bar=False)
    mcmc.run(KEY, X, Y)
    draws = mcmc.get_samples()
    expected = case.samples | {"noise": (), "f": (6,)}
    assert {name: d.shape for name, d in draws.items()} == {
        name: (2, *shape) for name, shape in expected.items()
    }
    moves = not np.array_equal(draws["f"][0], draws["f"][1])
    assert moves == bool(case.samples)
