"""Laws that every module of pyrox_ppl.nn obeys, over the table in tests/cases.py."""

import functools
import inspect
import io
import math
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, Case
from jax.flatten_util import ravel_pytree
from numpyro.primitives import Messenger

import pyrox_ppl as px


def over(cases):
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(
                case, id=case.name, marks=pytest.mark.slow if case.rare else ()
            )
            for case in cases
        ],
    )


every_case = over(CASES)
conditional = over([case for case in CASES if case.conditional])


class Recorder(Messenger):
    """Keeps the parameters that are read inside, each as often as it is."""

    def __init__(self):
        super().__init__()
        self.parameters = []

    def __enter__(self):
        super().__enter__()
        return self

    def process_message(self, msg):
        if msg["type"] == "parameter":
            self.parameters.append(msg["parameter"])


def close(actual, desired, message=""):
    np.testing.assert_allclose(actual, desired, rtol=3e-5, atol=3e-5, err_msg=message)


# One function, so that tests of the same module and shapes share its compilation.
call = eqx.filter_jit(lambda module, *arguments: module(*arguments))


@eqx.filter_jit
def call_each(module, calls):
    """The results of several calls, compiled as one program."""
    mapped = jax.vmap(lambda *row: module(*row))
    return {
        name: mapped(*arguments) if name == "vmap" else module(*arguments)
        for name, arguments in calls.items()
    }


@eqx.filter_jit
def call_members(ensemble, arguments):
    """Each member of an ensemble on the same arguments."""
    return eqx.filter_vmap(lambda module: module(*arguments))(ensemble)


# Called with a context alone, it returns arrays by name: its laws are in files of
# their own, tests/nn/test_hypernetwork*.py.
NOT_IN_THE_TABLE = {px.nn.HyperNetwork}


def test_the_table_covers_every_public_name():
    public = {
        name: value
        for name, value in vars(px.nn).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    covered = {type(case.build()) for case in CASES} | NOT_IN_THE_TABLE
    missing = [
        name
        for name, value in public.items()
        if value not in covered and not inspect.isabstract(value)
    ]
    assert not missing, f"add a case to tests/cases.py for {missing}"
    assert len(public) >= 8


@every_case
def test_a_batched_call_is_vmap_and_the_loop_over_rows(case: Case):
    module, inputs = case.build(), case.inputs((6,))
    rows = np.stack([call(module, *(array[i] for array in inputs)) for i in range(6)])
    batches = [(0,), (6,), (6, 1), (2, 3), (1, 2, 1, 3)]
    calls = {
        str(batch): [a[: math.prod(batch)].reshape(*batch, a.shape[-1]) for a in inputs]
        for batch in batches
    }
    results = call_each(module, calls | {"vmap": inputs})
    close(results["vmap"], rows, "vmap")
    for batch in batches:
        expected = rows[: math.prod(batch)].reshape(*batch, case.out)
        close(results[str(batch)], expected, f"batch {batch}")


LAYOUTS = {
    # Which features and which contexts meet, as indices that broadcast.
    "single z": (np.arange(6).reshape(2, 3), 0),
    "z per row": (np.arange(6), np.arange(6)[::-1]),
    "z per group": (np.arange(6).reshape(2, 3), np.array([[0], [1]])),
    "outer product": (np.array([[0], [1]]), np.array([[0, 1, 2]])),
    "single h": (0, np.arange(6).reshape(2, 3)),
    "two groups": (np.arange(6).reshape(2, 1, 3), np.arange(2).reshape(1, 2, 1)),
}


@conditional
def test_contexts_broadcast_as_the_loop_over_rows_has_it(case: Case):
    module, (features, contexts) = case.build(), case.inputs((6,))
    calls = {name: (features[i], contexts[j]) for name, (i, j) in LAYOUTS.items()}
    row = functools.cache(lambda i, j: call(module, features[i], contexts[j]))
    for name, result in call_each(module, calls).items():
        i, j = np.broadcast_arrays(*LAYOUTS[name])
        rows = [row(*pair) for pair in zip(i.flat, j.flat, strict=True)]
        close(result, np.stack(rows).reshape(*i.shape, case.out), name)


@every_case
def test_the_parameters_are_those_of_the_formula(case: Case):
    module = case.make(key=jax.random.key(0))
    with Recorder() as recorder:
        px.bind(module)
    read = {p.name: (p.shape, p.role) for p in recorder.parameters}
    assert read == case.parameters
    arrays = jax.tree.leaves(eqx.filter(module, eqx.is_array))
    assert sum(array.size for array in arrays) == case.count


@every_case
def test_flattening_and_back_changes_nothing(case: Case):
    module, inputs = case.build(), case.inputs((3,))
    leaves, treedef = jax.tree.flatten(module)
    again = jax.tree.unflatten(treedef, leaves)
    assert jax.tree.structure(again) == treedef
    np.testing.assert_array_equal(again(*inputs), module(*inputs))
    doubled = jax.tree.map(lambda x: 2 * x if eqx.is_array(x) else x, module)
    assert jax.tree.structure(doubled) == treedef
    assert not np.array_equal(doubled(*inputs), module(*inputs))


@every_case
def test_jit_changes_nothing(case: Case):
    module, inputs = case.build(), case.inputs((3,))
    close(call(module, *inputs), module(*inputs))


@every_case
def test_serialisation_round_trips(case: Case):
    module, inputs = case.build(seed=0), case.inputs((3,))
    like = case.build(seed=7)
    assert not np.array_equal(like(*inputs), module(*inputs))
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, module)
    file.seek(0)
    again = eqx.tree_deserialise_leaves(file, like)
    assert eqx.tree_equal(again, module)
    np.testing.assert_array_equal(again(*inputs), module(*inputs))


@every_case
def test_construction_under_vmap_is_construction_key_by_key(case: Case):
    keys, inputs = jax.random.split(jax.random.key(0), 2), case.inputs((3,))
    # Not jitted: XLA compiles a random draw slowly, and op by op the cases share it.
    ensemble = eqx.filter_vmap(lambda key: case.make(key=key))(keys)
    results = call_members(ensemble, inputs)
    for i, key in enumerate(keys):
        member = case.make(key=key)
        of_ensemble = jax.tree.leaves(eqx.filter(ensemble, eqx.is_array))
        of_member = jax.tree.leaves(eqx.filter(member, eqx.is_array))
        for got, expected in zip(of_ensemble, of_member, strict=True):
            close(got[i], expected)
        close(results[i], call(member, *inputs))


@every_case
def test_no_two_parameters_of_a_new_module_are_one_array_or_one_draw(case: Case):
    arrays = jax.tree.leaves(eqx.filter(case.make(key=jax.random.key(0)), eqx.is_array))
    assert len({id(array) for array in arrays}) == len(arrays)
    drawn = [np.ravel(array) for array in arrays if np.unique(array).size > 2]
    # Uniforms of different widths from the same bits have the same order.
    orders = {
        tuple(np.argsort(array[:9]).tolist()) for array in drawn if array.size > 8
    }
    assert len(orders) == sum(array.size > 8 for array in drawn)


@every_case
def test_construction_is_a_function_of_the_key(case: Case):
    one, again = case.make(key=jax.random.key(0)), case.make(key=jax.random.key(0))
    assert eqx.tree_equal(one, again)


@every_case
def test_gradients_reach_every_weight_and_agree_with_finite_differences(case: Case):
    # By hand, and so as one program: jax.test_util.check_grads compiles five.
    with jax.enable_x64(True):
        arrays, static = eqx.partition(case.build(), eqx.is_inexact_array)
        inputs = case.inputs((2, 3))
        if case.conditional:
            inputs[1] = inputs[1][:, :1]  # a context per group
        flat, unravel = ravel_pytree((arrays, inputs))
        rng = np.random.default_rng(0)
        weights = rng.normal(size=(2, 3, case.out))
        directions = rng.normal(size=(4, flat.size))

        def loss(flat):
            arrays, inputs = unravel(flat)
            return jnp.sum(weights * eqx.combine(arrays, static)(*inputs))

        compiled = jax.jit(jax.value_and_grad(loss))
        gradient = compiled(flat)[1]
        assert gradient.dtype == jnp.float64
        # A weight that is not used is dead state in every optimiser.
        assert np.all(gradient != 0.0)
        for direction in directions:
            step = 1e-5 * direction
            slope = (compiled(flat + step)[0] - compiled(flat - step)[0]) / 2e-5
            np.testing.assert_allclose(gradient @ direction, slope, 1e-5, 1e-5)


@every_case
def test_a_call_sends_messages_only_where_a_handler_is(case: Case, monkeypatch):
    module, inputs, sent = case.make(key=jax.random.key(0)), case.inputs(()), []
    read = px._bind.read_value
    monkeypatch.setattr(px._bind, "read_value", lambda *a: sent.append(a) or read(*a))
    module(*inputs)
    assert sent == []
    with Recorder() as recorder:
        module(*inputs)
    assert len(sent) == len(recorder.parameters) == len(case.parameters)


@every_case
def test_the_module_is_plain_equinox(case: Case):
    module, inputs = case.make(key=jax.random.key(0)), case.inputs((3,))
    for cls in type(module).__mro__:
        package = cls.__module__.split(".")[0]
        assert package in ("pyrox_ppl", "equinox", "collections", "builtins")
        assert "bayes" not in cls.__name__.lower()
    np.testing.assert_array_equal(module(*inputs), module(*inputs))
