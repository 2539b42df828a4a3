"""What a model reads by name, wherever from, is read as it is at each run."""

import collections
import functools
import importlib
import io
import operator
import os
import random
import subprocess
import sys
import types
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from compilations import compilations
from numpyro.infer import NUTS, Predictive

from pyrox_ppl.infer import CompiledMCMC, CompiledPredictive
from pyrox_ppl.infer._content_key import content_key
from pyrox_ppl.infer._names_read import is_installed

pytestmark = pytest.mark.rank_promotion

KEY = jax.random.key(0)
FACTOR = 1.0
settings = types.ModuleType("settings_of_a_test")
package = types.ModuleType("package_of_a_test")
inner = types.ModuleType("package_of_a_test.inner")
vars(package)["inner"], vars(inner)["package"] = inner, package


@pytest.fixture(autouse=True)
def own_modules(monkeypatch):
    for module in (settings, package, inner):
        monkeypatch.setattr(module, "__file__", f"/home/me/{module.__name__}.py", False)
        monkeypatch.setattr(module, "factor", 1.0, raising=False)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(globals(), "FACTOR", 1.0)
    monkeypatch.setenv("FACTOR_OF_A_TEST", "1.0")


def imported():
    import settings_of_a_test  # pyright: ignore[reportMissingImports] - made by the test

    return settings_of_a_test.factor


def imported_from_a_package():
    from package_of_a_test import (  # pyright: ignore[reportMissingImports] - made by the test
        inner as found,
    )

    return found.factor


READERS = {
    "import": (imported, settings),
    "from import": (imported_from_a_package, inner),
    "importlib": (
        lambda: importlib.import_module("settings_of_a_test").factor,
        settings,
    ),
    "sys.modules": (lambda: sys.modules["settings_of_a_test"].factor, settings),
    "a module in a package": (lambda: package.inner.factor, inner),
    "getattr": (lambda: getattr(settings, "factor"), settings),  # noqa: B009 - by a string
    "getattr of a made name": (lambda: getattr(settings, "fac" + "tor"[:3]), settings),
    "vars": (lambda: vars(settings)["factor"], settings),
    "attrgetter": (lambda: operator.attrgetter("factor")(settings), settings),
}


@pytest.mark.parametrize("name", READERS)
def test_a_setting_in_a_module_of_the_users_counts(name):
    read, module = READERS[name]
    before = content_key(read)
    assert content_key(read) == before
    vars(module)["factor"] = 2.0
    assert content_key(read) != before


def test_a_setting_that_was_changed_reaches_a_compiled_run():
    def model():
        numpyro.sample("a", dist.Normal())
        numpyro.deterministic("value", jnp.asarray(imported()))

    predictive = CompiledPredictive(model, num_samples=1)
    assert predictive(KEY)["value"] == 1.0
    vars(settings)["factor"] = 2.0
    assert predictive(KEY)["value"] == 2.0


@pytest.mark.parametrize(
    "read", [lambda: globals()["FACTOR"], lambda: eval("FACTOR")], ids=["[]", "eval"]
)
def test_a_global_read_by_a_string_counts(read):
    before = content_key(read)
    globals()["FACTOR"] = 2.0
    assert content_key(read) != before


@pytest.mark.parametrize(
    "read",
    [
        lambda: float(os.environ["FACTOR_OF_A_TEST"]),
        lambda: float(os.getenv("FACTOR_OF_A_TEST", "0")),
    ],
    ids=["environ", "getenv"],
)
def test_the_environment_counts(read, monkeypatch):
    before = content_key(read)
    monkeypatch.setenv("FACTOR_OF_A_TEST", "2.0")
    assert content_key(read) != before


@pytest.mark.parametrize(
    "read",
    [
        lambda: random.random(),
        lambda: random.gauss(0, 1),
        lambda: np.random.normal(),  # noqa: NPY002 - the hidden one
    ],
    ids=["random", "gauss", "numpy"],
)
def test_a_hidden_generator_cannot_be_looked_into(read):
    key, unseen = content_key(read)
    assert unseen
    assert key != content_key(read)[0]


def test_the_keys_of_jax_are_no_hidden_generator():
    def model():
        noise = jax.random.normal(numpyro.prng_key()) + np.sum([1.0])
        numpyro.sample("a", dist.Normal(noise))

    predictive = CompiledPredictive(model, num_samples=1)
    predictive(KEY)
    with compilations() as compiled:
        predictive(KEY)
    assert not compiled


def test_a_name_of_a_site_is_no_global():
    """A notebook that has its data under the names of sites compiles once."""
    space = {"numpyro": numpyro, "dist": dist, "a": jnp.zeros(3)}
    exec("def model():\n    numpyro.sample('a', dist.Normal())", space)
    first = content_key(space["model"])
    space["a"] = jnp.ones(3)
    assert content_key(space["model"]) == first


class Celsius(float):
    """A number that prints as something else, and that may hold more."""

    place = "Oslo"

    def __repr__(self):
        return "a temperature"


def test_numbers_and_arrays_of_the_users_classes_count_by_all_that_they_hold():
    assert content_key(Celsius(1.0)) != content_key(Celsius(2.0))
    held, other = Celsius(1.0), Celsius(1.0)
    assert content_key(held) == content_key(other)
    other.place = "Rome"
    assert content_key(held) != content_key(other)
    array = np.ma.array([1.0, 5.0], mask=[False, True])
    before = content_key(array)
    array.mask = [True, False]
    assert content_key(array) != before


@pytest.mark.parametrize("hidden", [random.Random(0), io.StringIO("1")])
def test_state_in_c_cannot_be_looked_into(hidden):
    key, unseen = content_key(hidden)
    assert unseen == (type(hidden).__name__,)
    assert key != content_key(hidden)[0]


def test_a_chain_of_objects_may_be_longer_than_pythons_stack():
    def chain(last):
        for _ in range(3 * sys.getrecursionlimit()):
            last = [last]
        return last

    one, same, other = (content_key(chain(last))[0] for last in (1.0, 1.0, 2.0))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other


def by_group(groups):
    for place, (name, rows) in enumerate(groups.items()):
        numpyro.deterministic(f"place_{name}", jnp.asarray(place))
        mean = numpyro.sample(f"mean_{name}", dist.Normal())
        numpyro.sample(f"y_{name}", dist.Normal(mean, 1.0).expand(rows.shape))


@pytest.mark.parametrize(
    "kind",
    [dict, functools.partial(collections.defaultdict, list)],
    ids=["", "with a default"],
)
def test_a_model_that_loops_over_a_dictionary_meets_its_order(kind):
    groups = kind({"south": jnp.ones(2), "north": jnp.ones(3)})
    drawn = CompiledPredictive(by_group, num_samples=2)(KEY, groups)
    expected = Predictive(by_group, num_samples=2)(KEY, groups)
    for name in expected:
        np.testing.assert_allclose(drawn[name], expected[name], rtol=1e-5)
    mcmc = CompiledMCMC(NUTS(by_group), num_warmup=2, num_samples=2, progress_bar=False)
    mcmc.run(KEY, groups)
    places = {name: int(mcmc.get_samples()[f"place_{name}"][0]) for name in groups}
    assert places == {"south": 0, "north": 1}


def test_what_a_package_manager_recorded_is_a_library(tmp_path, monkeypatch):
    (tmp_path / "installed-1.0.dist-info").mkdir()
    record = tmp_path / "installed-1.0.dist-info" / "RECORD"
    record.write_text(
        "installed/__init__.py,sha256=x,1\ninstalled/part.py,sha256=y,1\n"
    )
    (tmp_path / "dist-packages").mkdir()
    monkeypatch.setattr(
        sys, "path", ["", str(tmp_path), str(tmp_path / "dist-packages")]
    )
    assert is_installed(str(tmp_path / "installed" / "part.py"))
    assert is_installed(str(tmp_path / "dist-packages" / "another.py"))
    # The user's own code may lie beside it.
    assert not is_installed(str(tmp_path / "mine.py"))
    assert not is_installed(str(tmp_path / "installed" / "part.pyx"))
    beside = str(Path(numpyro.__file__).parents[1] / "numpyro") + "_mine"
    assert is_installed(beside + "/model.py") == (sys.prefix in beside)


def test_a_key_may_import_a_module_on_the_way():
    # NumPy, JAX and others import some of their parts when they are asked for.
    class Lazy(types.ModuleType):
        def __getattr__(self, name):
            values[name] = 1.0
            raise AttributeError(name)

    def made():
        return None

    values = {"first": made, "second": 2.0}
    made.__module__, made.__qualname__ = "lazy_of_a_test", "absent"
    lazy = Lazy("lazy_of_a_test")
    lazy.__file__ = os.__file__
    sys.modules["lazy_of_a_test"] = lazy
    try:
        _, unseen = content_key(values)
    finally:
        del sys.modules["lazy_of_a_test"]
    assert unseen == ()


FROM_A_CHECKOUT = """
import warnings
warnings.simplefilter("error", UserWarning)
import equinox as eqx, jax, numpyro, numpyro.distributions as dist
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
import pyrox_ppl as px
from pyrox_ppl.infer import CompiledSVI
assert numpyro.__file__.startswith({folder!r}), numpyro.__file__
net = eqx.nn.MLP(1, 1, 4, 1, key=jax.random.key(0))
def model(x):
    with px.bayesianize(prior=px.priors.hierarchical()):
        f = jax.vmap(px.bind(net, "net"))(x)
    numpyro.sample("y", dist.Normal(f, 1.0), obs=x)
svi = CompiledSVI(model, AutoNormal(model), numpyro.optim.Adam(1e-2), Trace_ELBO())
print(svi.run(jax.random.key(0), 2, jax.numpy.ones((3, 1)), progress_bar=False).losses)
"""


@pytest.mark.slow  # imports all once more
def test_libraries_may_lie_in_a_developers_checkout(tmp_path):
    for package in (numpyro, eqx, jax):
        source = Path(package.__file__).parent
        (tmp_path / source.name).symlink_to(source, target_is_directory=True)
    root = Path(__file__).parents[3]
    program = FROM_A_CHECKOUT.format(folder=str(tmp_path))
    paths = os.pathsep.join([str(tmp_path), str(root)])
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
