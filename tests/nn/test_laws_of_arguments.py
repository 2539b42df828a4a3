"""What every module takes and refuses, over the table in tests/cases.py."""

import re

import equinox as eqx
import jax
import numpy as np
import pytest
from cases import CASES, Case
from hypothesis import given, settings
from hypothesis import strategies as st


def over(cases):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


every_case = over(CASES)
conditional = over([case for case in CASES if case.conditional])
alone = over([case for case in CASES if not case.conditional])
few = settings(max_examples=12)

sides = st.integers(0, 3)
batches = st.lists(sides, max_size=3).map(tuple)
# Pairs of batch shapes with as many axes, each of one size or of size 1.
aligned = st.lists(
    st.tuples(sides, st.sampled_from("=<>")).map(
        lambda pair: {"=": pair[:1] * 2, "<": (1, pair[0]), ">": (pair[0], 1)}[pair[1]]
    ),
    min_size=1,
    max_size=3,
).map(lambda pairs: tuple(zip(*pairs, strict=True)))
pairs = aligned | st.tuples(batches, st.just(())) | st.tuples(st.just(()), batches)


def broadcasts(one, other):
    """The contract: a single one, or as many axes, each of one size or of size 1."""
    if not one or not other:
        return True
    return len(one) == len(other) and all(
        a == b or 1 in (a, b) for a, b in zip(one, other, strict=True)
    )


def zeros(case, *batches):
    """One array an argument, of these batch shapes."""
    return [
        np.zeros((*batch, argument.width), np.float32)
        for batch, argument in zip(batches, case.arguments, strict=True)
    ]


@conditional
@few
@given(pair=pairs)
def test_batch_axes_that_fit_broadcast(case: Case, pair):
    result = jax.eval_shape(case.build(), *zeros(case, *pair))
    assert result.shape == (*np.broadcast_shapes(*pair), case.out)


@conditional
@few
@given(pair=st.tuples(batches, batches).filter(lambda pair: not broadcasts(*pair)))
def test_batch_axes_that_do_not_fit_are_named(case: Case, pair):
    with pytest.raises(ValueError, match="batch axes") as error:
        jax.eval_shape(case.build(), *zeros(case, *pair))
    assert str(pair[0]) in str(error.value)
    assert str(pair[1]) in str(error.value)


@alone
@few
@given(batch=batches)
def test_any_number_of_batch_axes_is_kept(case: Case, batch):
    result = jax.eval_shape(case.build(), *zeros(case, batch))
    assert result.shape == (*batch, case.out)


@every_case
@few
@given(data=st.data(), batch=batches)
def test_a_wrong_width_is_named_with_what_came_and_what_was_expected(
    case: Case, data, batch
):
    arguments = zeros(case, *[batch] * len(case.arguments))
    place = data.draw(st.integers(0, len(arguments) - 1))
    argument = case.arguments[place]
    width = data.draw(st.integers(0, 7).filter(lambda width: width != argument.width))
    arguments[place] = np.zeros((*batch, width), np.float32)
    with pytest.raises(ValueError, match=rf"^{argument.name} has shape") as error:
        case.build()(*arguments)
    assert str((*batch, width)) in str(error.value)
    assert f"{argument.named}={argument.width}" in str(error.value)
    # The features inside take the arguments of their readout.
    inside = {"ConditionedRFFNet": "HyperFourierFeatures"}
    name = case.name.split("-")[0]
    assert f" {inside.get(name, name)}" in str(error.value)


@every_case
def test_no_rows_and_no_contexts_give_none_and_gradients_of_zero(case: Case):
    arrays, static = eqx.partition(case.build(), eqx.is_inexact_array)
    calls = [case.inputs((0,)), case.inputs((3, 0))]
    if case.conditional:
        (x, z), (no_x, no_z) = case.inputs(()), case.inputs((0,))
        calls += [(no_x, z), (x, no_z)]

    def total(arrays, calls):
        results = [eqx.combine(arrays, static)(*arguments) for arguments in calls]
        assert [y.shape for y in results[:2]] == [(0, case.out), (3, 0, case.out)]
        assert all(y.shape == (0, case.out) for y in results[2:])
        return sum(y.sum() for y in results)

    with jax.debug_nans(True):
        slopes = jax.jit(jax.grad(total, argnums=(0, 1)))(arrays, calls)
    for slope, array in zip(
        jax.tree.leaves(slopes), jax.tree.leaves((arrays, calls)), strict=True
    ):
        assert slope.shape == array.shape
        assert not np.any(slope)


@pytest.mark.wrong_types
@every_case
def test_what_is_no_array_is_named(case: Case):
    for place, argument in enumerate(case.arguments):
        arguments = zeros(case, *[()] * len(case.arguments))
        for bad in (None, "x", [[1.0], [1.0, 2.0]]):
            arguments[place] = bad
            with pytest.raises(
                TypeError, match=f"^{argument.name} of .* an array, got"
            ):
                case.build()(*arguments)


@every_case
def test_a_scalar_is_named(case: Case):
    for place, argument in enumerate(case.arguments):
        arguments = zeros(case, *[()] * len(case.arguments))
        arguments[place] = 1.0
        with pytest.raises(ValueError, match=f"{argument.named}={argument.width}"):
            case.build()(*arguments)


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("case", "size"),
    [(case, size) for case in CASES for size in case.sizes],
    ids=[f"{case.name}-{size}" for case in CASES for size in case.sizes],
)
def test_a_size_that_is_no_positive_integer_is_named(case: Case, size):
    for bad in (0, -3, 2.0, 2.5, True, "3", None, (3,)):
        message = f"{size} must be a positive integer, got {bad!r}"
        with pytest.raises(ValueError, match=re.escape(message)):
            case.make(key=jax.random.key(0), **{size: bad})
