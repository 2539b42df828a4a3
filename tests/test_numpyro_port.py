"""The port to NumPyro: nothing else touches its private names, and each still holds."""

import ast
import copy
import functools
import importlib
import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import (
    HMC,
    MCMC,
    NUTS,
    SVI,
    Predictive,
    Trace_ELBO,
    autoguide,
    init_to_median,
    init_to_value,
)

import pyrox_ppl
from pyrox_ppl import _numpyro as port
from pyrox_ppl.infer import AutoFlatNormal, CompiledMCMC, FlatNUTS

pytestmark = pytest.mark.rank_promotion

PACKAGE = Path(pyrox_ppl.__file__).parent
SOURCES = [p for p in sorted(PACKAGE.rglob("*.py")) if p.name != "_numpyro.py"]
NUMPYRO = Path(numpyro.__file__).parent
PUBLIC = {"_asdict", "_fields", "_make", "_replace"}  # of every named tuple
KEY = jax.random.key(0)


def is_private(name):
    return re.fullmatch(r"_[a-zA-Z]\w*", name) is not None


def is_of_self(node):
    value = getattr(node, "value", None)
    return (
        isinstance(node, ast.Attribute)
        and isinstance(value, ast.Name)
        and value.id == "self"
    )


def attributes_in(tree):
    """The private attributes and methods of the classes in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and is_private(part.name):
                    yield part.name
        elif is_of_self(node) and is_private(node.attr):
            yield node.attr


@functools.cache
def private_names_of(file):
    return frozenset(attributes_in(ast.parse(file.read_text()))) - PUBLIC


def private_names(files):
    return {name for file in files for name in private_names_of(file)}


FILES = (NUMPYRO / name for name in ("primitives.py", "handlers.py", "optim.py"))
INFERENCE = private_names([*FILES, *(NUMPYRO / "infer").glob("*.py")])
PRIVATE = INFERENCE | private_names((NUMPYRO / "distributions").glob("*.py"))


def private_of_bases(cls):
    """The private names of the NumPyro classes that a class is made from."""
    bases = [base for base in cls.__mro__ if base.__module__.startswith("numpyro.")]
    return private_names({Path(inspect.getfile(base)) for base in bases})


def uses(path):
    """The private names of NumPyro that a file touches, each with its line."""
    tree = ast.parse(path.read_text())
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    module = importlib.import_module(name.removesuffix(".__init__"))
    own, strings = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and hasattr(module, node.name):
            theirs = private_of_bases(getattr(module, node.name))
            own.update({part: theirs for part in ast.walk(node)})
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            strings.add(node.value)  # a docstring
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("numpyro"):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            yield from ((name, node.lineno) for name in names if is_private(name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            if node.attr in (own.get(node, set()) if is_of_self(node) else PRIVATE):
                yield node.attr, node.lineno
        elif isinstance(node, ast.FunctionDef) and node.name in own.get(node, ()):
            yield node.name, node.lineno
        elif isinstance(node, ast.Constant) and node not in strings:
            yield from [(node.value, node.lineno)] * (node.value in INFERENCE)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_other_file_touches_a_private_name_of_numpyro(path):
    assert not list(uses(path)), "move it into pyrox_ppl/_numpyro.py"


def test_the_search_finds_what_it_looks_for():
    assert {"_states", "_init_strategy", "_mask", "_guides", "_batch_shape"} <= PRIVATE
    assert "_setup_prototype" in private_of_bases(AutoFlatNormal)
    assert len(list(uses(PACKAGE / "_numpyro.py"))) > 30


def model(x=2.0):
    a = numpyro.sample("a", dist.HalfNormal(1.0))
    b = numpyro.sample("b", dist.Normal(a, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(b.sum(), 1.0), obs=x)


def make(cls=MCMC, kernel=NUTS, **kwargs):
    settings = {"num_warmup": 4, "num_samples": 6, "progress_bar": False} | kwargs
    return cls(kernel(model), **settings)


def test_the_stack_is_that_of_numpyro():
    outer, inner = handlers.trace(), handlers.seed(rng_seed=0)
    assert port.handler_stack() == ()
    with outer, inner:
        assert port.handler_stack() == (outer, inner)
        with port.use_handlers([inner]):
            numpyro.sample("unseen", dist.Normal())
        numpyro.sample("seen", dist.Normal())
        with pytest.raises(KeyError), port.use_handlers([]):
            raise KeyError
        assert port.handler_stack() == (outer, inner)
    assert list(outer.trace) == ["seen"]


def test_the_collection_is_what_warmup_asks_for():
    class Recorded(MCMC):
        def run(self, *_, **__):
            self.taken = port.take_collection(self)

    mcmc = make(Recorded)
    mcmc.run(KEY)
    assert mcmc.taken == (4, 10, 6, None)
    mcmc.warmup(KEY)
    assert mcmc.taken == (4, 4, 6, "warmup")
    mcmc.warmup(KEY, collect_warmup=True)
    assert mcmc.taken == (0, 4, 4, "warmup")
    mcmc.run(KEY)
    assert mcmc.taken == (4, 10, 6, None)
    mcmc.post_warmup_state = "a state"
    mcmc.run(KEY)
    assert mcmc.taken == (0, 6, 6, "sample")


def test_a_recorded_run_is_read_as_numpyros(capsys):
    mcmc = make(num_chains=2, chain_method="vectorized")
    draws = np.linspace(0.0, 1.0, 12).reshape(2, 6)
    assert not port.has_collected(mcmc)
    state = make().sampler.init(KEY, 4, None, (), {})
    states = {"z": {"a": draws}, "diverging": draws > 2}
    port.record_run(mcmc, states, state, (2.0,), {})
    assert port.arguments_of_run(mcmc) == ((2.0,), {})
    assert port.has_collected(mcmc)
    assert mcmc.get_samples()["a"].shape == (12,)
    assert mcmc.get_extra_fields(group_by_chain=True)["diverging"].shape == (2, 6)
    assert mcmc.last_state is state
    mcmc.print_summary()
    assert "Number of divergences: 0" in capsys.readouterr().out


@pytest.mark.parametrize("traced", [True, False])
def test_whether_arguments_are_traced(traced):
    assert port.takes_traced_arguments(make(jit_model_args=traced)) is traced


def test_draws_are_flattened_by_the_subclass():
    mcmc = make(CompiledMCMC, num_chains=2, chain_method="vectorized")
    port.record_run(mcmc, {"z": {"a": jnp.arange(12).reshape(2, 6)}}, None, (), {})
    np.testing.assert_array_equal(mcmc.get_samples()["a"], np.arange(12))
    assert mcmc.get_samples() is mcmc.get_samples()


def test_a_kernel_shows_its_settings_and_is_copied():
    blocks = {("a", "b"): jnp.eye(3)}
    kernel = NUTS(
        model,
        init_strategy=init_to_median,
        dense_mass=[("a", "b")],
        inverse_mass_matrix=blocks,
        forward_mode_differentiation=True,
    )
    assert port.init_strategy(kernel) is init_to_median
    assert port.uses_forward_mode(kernel)
    assert port.max_tree_depths(kernel) == (10, 10)
    assert port.max_tree_depths(FlatNUTS(model, max_tree_depth=(3, 4))) == (3, 4)
    before = dict(blocks)
    port.copy_kernel(kernel).init(KEY, 4, None, (), {})
    assert blocks.keys() == before.keys()
    assert vars(kernel) == vars(copy.copy(kernel)), "the kernel was set up"


@pytest.mark.parametrize("cls", [HMC, NUTS, FlatNUTS])
def test_a_kernel_is_given_another_model_and_keeps_what_init_sets(cls):
    start = init_to_value(values={"a": 1.0, "b": jnp.zeros(2)})
    kernel = cls(model, init_strategy=start)
    other = port.replace_model(kernel, lambda x: model(x + 1.0))
    assert (type(other), kernel.model) == (cls, model)
    kernel.init(KEY, 4, None, (3.0,), {})
    other.init(KEY, 4, None, (2.0,), {})
    z = {"a": jnp.zeros(()), "b": jnp.ones(2)}
    z = jnp.array([0.0, 1.0, 1.0]) if cls is FlatNUTS else z
    energies = [k.get_potential_fn((x,), {})(z) for k, x in ((kernel, 3), (other, 2))]
    np.testing.assert_allclose(*energies)
    fresh = vars(cls(model, init_strategy=start))
    changed = {name for name, value in vars(kernel).items() if fresh[name] is not value}
    assert changed <= port.SET_BY_KERNELS | {"_kinetic_fn"}
    if cls is not FlatNUTS:
        assert changed >= port.SET_BY_KERNELS - {"_dynamic_support"}


def test_a_kernel_over_a_vector_goes_back_to_sites():
    kernel = FlatNUTS(model)
    with pytest.raises(RuntimeError, match="initialised"):
        kernel.get_constrain_fn()
    state = kernel.init(KEY, 4, None, (2.0,), {})
    assert state.z.shape == (3,)
    assert kernel.get_constrain_fn((2.0,))(state.z)["b"].shape == (2,)
    by_site = kernel.wrap_model(lambda model: model)
    assert sorted(by_site.init(KEY, 4, None, (2.0,), {}).z) == ["a", "b"]


def guides(start):
    for cls in (autoguide.AutoNormal, autoguide.AutoDelta, AutoFlatNormal):
        yield cls(model, init_loc_fn=start)
    yield autoguide.AutoDiagonalNormal(model, init_loc_fn=start)
    parts = autoguide.AutoGuideList(model)
    parts.append(autoguide.AutoNormal(model, init_loc_fn=start))
    yield parts


@pytest.mark.parametrize("place", range(5))
def test_a_guide_sets_what_is_listed_and_nothing_else(place):
    guide = list(guides(init_to_median))[place]
    before = port.attributes_of_guide(guide)
    SVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO()).init(KEY)
    after = port.attributes_of_guide(guide)
    changed = {name for name in after if before.get(name) is not after[name]}
    ours = {"_start_is_finite"}
    assert {"prototype_trace", "_potential_fn"} <= changed
    assert changed - ours <= port.SET_BY_GUIDES


def test_a_list_of_guides_is_given_other_parts():
    parts = list(guides(init_to_median))[-1]
    assert "_guides" not in port.attributes_of_guide(parts)
    port.replace_parts(parts, ["another"])
    assert list(parts) == ["another"]
    assert port.attributes_of_guide(model) == {}


def test_a_guide_over_a_vector_starts_and_draws_where_its_subclass_says():
    guide = AutoFlatNormal(model, init_loc_fn=init_to_value(values={"a": 1.0}))
    svi = SVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
    params = svi.get_params(svi.init(KEY))
    assert params["auto_loc"].shape == (3,)
    np.testing.assert_allclose(params["auto_loc"][0], 0.0, atol=1e-6)
    draws = guide.sample_posterior(KEY, params, sample_shape=(5,))
    assert draws["b"].shape == (5, 2)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_samples": 3}, (3,)),
        ({"num_samples": 3, "batch_ndims": 2}, (1, 3)),
        ({"posterior_samples": {"a": np.ones((2, 3))}, "batch_ndims": 2}, (2, 3)),
    ],
)
def test_the_leading_axes_of_predictions(settings, expected):
    assert port.batch_shape(Predictive(model, **settings)) == expected


def test_the_mask_of_a_distribution():
    mask = np.array([True, False])
    masked = dist.Normal(jnp.zeros(2)).mask(mask)
    np.testing.assert_array_equal(port.mask_of_distribution(masked), mask)
