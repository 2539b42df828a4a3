"""A program is found again only where all that it was made of is as it was."""

import dataclasses
import enum
import functools
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from compilations import compilations
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, init_to_value
from numpyro.infer.autoguide import AutoNormal

from pyrox_ppl.infer import CompiledMCMC, CompiledPredictive, CompiledSVI
from pyrox_ppl.infer._content_key import content_key

pytestmark = pytest.mark.rank_promotion

KEY = jax.random.key(0)
FACTOR = 1.0


def model(f):
    numpyro.sample("a", dist.Normal(f(1.0), 1e-4))


class Scaled:
    factor = 1.0

    def __call__(self, x):
        return x * self.factor

    def method(self, x):
        return x * self.factor

    def change(self):
        self.factor = 10.0


def an_object():
    scaled = Scaled()
    return scaled, scaled.change


def a_bound_method():
    scaled = Scaled()
    return scaled.method, scaled.change


def an_attribute_of_a_class():
    kind = types.new_class("Kind", (Scaled,))
    return kind(), lambda: setattr(kind, "factor", 10.0)


def a_partial_over_a_dictionary():
    options = {"factor": 1.0}
    f = functools.partial(lambda x, options: x * options["factor"], options=options)
    return f, lambda: options.update(factor=10.0)


def a_closure():
    factor = 1.0

    def change():
        nonlocal factor
        factor = 10.0

    return lambda x: x * factor, change


def a_closure_over_an_array():
    factor = np.ones(1)
    return lambda x: x * factor[0], lambda: factor.fill(10.0)


def a_default():
    def f(x, factors=[1.0]):  # noqa: B006 - the default that is changed
        return x * factors[0]

    return f, lambda: f.__defaults__[0].__setitem__(0, 10.0)


def a_global():
    def change():
        global FACTOR
        FACTOR = 10.0

    def f(x):
        return x * FACTOR

    return f, change


def a_function_that_a_function_calls():
    scaled = Scaled()

    def inner(x):
        return scaled(x)

    return lambda x: inner(x), scaled.change


def a_data_class_with_an_eq():
    @dataclasses.dataclass
    class Equal:
        factor: float = dataclasses.field(default=1.0, compare=False)

        __hash__ = object.__hash__

        def __call__(self, x):
            return x * self.factor

    equal = Equal()
    return equal, lambda: setattr(equal, "factor", 10.0)


def a_bound_builtin():
    factors = [1.0]
    get = factors.__getitem__
    return lambda x: x * get(0), lambda: factors.__setitem__(0, 10.0)


class Net(eqx.Module):
    weight: jax.Array
    options: dict = eqx.field(static=True)

    def __call__(self, x):
        return self.weight * x * self.options["factor"]


def a_static_field():
    net = Net(jnp.ones(()), {"factor": 1.0})
    return net, lambda: net.options.update(factor=10.0)


CASES = [value for name, value in list(globals().items()) if name.startswith("a")]
CASES = [case for case in CASES if isinstance(case, types.FunctionType)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_an_argument_that_was_changed_is_seen(case):
    f, change = case()
    predictive = CompiledPredictive(model, num_samples=1)
    jax.block_until_ready(KEY)
    np.testing.assert_allclose(predictive(KEY, f)["a"], 1.0, atol=1e-3)
    with compilations() as names:
        predictive(KEY, f)
    assert not names
    change()
    np.testing.assert_allclose(predictive(KEY, f)["a"], 10.0, atol=1e-2)


class Table(eqx.Module):
    weight: jax.Array
    table: np.ndarray = eqx.field(static=True)

    def __call__(self, x):
        return self.weight * x * self.table.sum()


@pytest.mark.filterwarnings("ignore:A JAX array is being set as static")
def test_modules_with_different_static_arrays_have_programs_of_their_own():
    one, other = (Table(jnp.ones(()), np.full(2, value)) for value in (0.5, 2.0))
    predictive = CompiledPredictive(model, num_samples=1)
    for table, value in ((one, 1.0), (other, 4.0), (one, 1.0)):
        np.testing.assert_allclose(predictive(KEY, table)["a"], value, atol=1e-3)
    one.table[0] = 9.5
    np.testing.assert_allclose(predictive(KEY, one)["a"], 10.0, atol=1e-2)


def test_what_cannot_be_looked_into_is_read_each_time():
    generator = np.random.default_rng(0)
    predictive = CompiledPredictive(model, num_samples=1)
    values = []
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"\['Generator'\].*compiled anew"):
            values.append(predictive(KEY, lambda _: generator.normal())["a"])
    assert abs(values[0] - values[1]) > 1e-2


class Model:
    loc = 0.0

    def __call__(self):
        numpyro.sample("a", dist.Normal(self.loc, 1e-2))


def test_a_model_that_is_an_object_is_read_as_it_is_now():
    changing = Model()
    start = init_to_value(values={"a": 3.0})
    mcmc = CompiledMCMC(
        NUTS(changing, init_strategy=start),
        num_warmup=50,
        num_samples=5,
        progress_bar=False,
    )
    predictive = CompiledPredictive(changing, num_samples=1)
    for changing.loc in (0.0, 5.0):
        mcmc.run(KEY)
        np.testing.assert_allclose(mcmc.get_samples()["a"], changing.loc, atol=0.1)
        np.testing.assert_allclose(predictive(KEY)["a"], changing.loc, atol=0.1)


def test_a_kernel_that_was_changed_is_seen():
    def simple(y):
        numpyro.sample("a", dist.Normal(y, 1.0))

    kernel = NUTS(simple, step_size=0.1, adapt_step_size=False)
    mcmc = CompiledMCMC(kernel, num_warmup=1, num_samples=1, progress_bar=False)
    MCMC(kernel, num_warmup=1, num_samples=1, progress_bar=False).run(KEY, 0.0)
    for size in (0.1, 0.2):
        kernel._step_size = size
        mcmc.run(KEY, jnp.zeros(()))
        np.testing.assert_allclose(mcmc.last_state.adapt_state.step_size, size)
    jax.block_until_ready(KEY)
    with compilations() as names:
        mcmc.run(KEY, jnp.zeros(()))
    assert not names


def simple(y):
    numpyro.sample("a", dist.Normal(Scaled.factor, 1.0))
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def make(cls, loss, scale, rate):
    guide = AutoNormal(simple, init_scale=scale)
    return cls(simple, guide, optax.sgd(rate), loss)


def test_a_loss_guide_and_class_that_were_changed_are_seen():
    loss, rate = Trace_ELBO(), 0.01
    svi = make(CompiledSVI, loss, 0.1, rate)
    settings = [(1, 0.1, 1.0), (4, 0.1, 1.0), (4, 2.0, 1.0), (4, 2.0, 3.0)]
    for particles, scale, factor in settings:
        loss.num_particles, svi.guide._init_scale = particles, scale
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Scaled, "factor", factor)
            fresh = make(SVI, Trace_ELBO(num_particles=particles), scale, rate)
            fits = [s.run(KEY, 3, 0.5, progress_bar=False) for s in (svi, fresh)]
        np.testing.assert_allclose(fits[0].losses, fits[1].losses, rtol=1e-5)


def test_values_that_only_look_alike_have_keys_of_their_own():
    class Colour(enum.Enum):
        RED = 1
        BLUE = 2

    class Pair(tuple):
        pass

    different = [1, 1.0, True, np.float32(1), "1", b"1", 0.0, -0.0, Colour.RED]
    different += [Colour.BLUE, (1,), [1], {1}, {1: 1}, Pair((1,)), np.ones(1)]
    different += [np.ones(1, np.float32), np.ones((1, 1)), None, dist.Normal(1.0, 1.0)]
    keys = [content_key(value)[0] for value in different]
    assert len(set(keys)) == len(keys)
    assert keys == [content_key(value)[0] for value in different]
    assert content_key(float("nan")) == content_key(float("nan"))


def test_a_structure_that_holds_itself_ends():
    one, other = [1.0], [1.0]
    one.append(one)
    other.append(other)
    assert content_key(one) == content_key(other)
    other[0] = 2.0
    assert content_key(one) != content_key(other)


@pytest.mark.parametrize(
    ("name", "value", "dtype"),
    [
        ("jax_enable_x64", True, np.float64),
        ("jax_default_matmul_precision", "highest", np.float32),
    ],
)
def test_a_setting_of_jax_that_was_changed_is_heeded(name, value, dtype):
    def product(x):
        numpyro.deterministic("y", x @ x)

    ours, x = CompiledPredictive(product, num_samples=1), np.eye(3)
    assert ours(KEY, x)["y"].dtype == np.float32
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        with compilations() as names:
            found = ours(KEY, x)["y"]
    finally:
        jax.config.update(name, before)
    assert names
    assert found.dtype == dtype
