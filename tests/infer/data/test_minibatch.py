"""MinibatchLoader: each row once, an order that the key decides, files as arrays."""

import jax
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from pyrox_ppl.infer import MinibatchLoader

KEY = jax.random.key(1)


def batches(loader, epoch=0, start=0):
    return [batch[0] for batch in loader.epoch(epoch, start)]


@given(
    n=st.integers(1, 60),
    data=st.data(),
    block_size=st.integers(1, 9),
    blocks_at_once=st.integers(1, 5),
    shuffle=st.booleans(),
)
def test_each_row_comes_at_most_once_and_any_step_can_be_the_first(
    n, data, block_size, blocks_at_once, shuffle
):
    size = data.draw(st.integers(1, n))
    x = np.arange(n)
    loader = MinibatchLoader(
        (x, 2 * x),
        size,
        rng_key=KEY,
        block_size=block_size,
        blocks_at_once=blocks_at_once,
        shuffle=shuffle,
    )
    whole = list(loader.epoch(3))
    assert len(whole) == loader.steps_per_epoch == n // size
    assert all(len(a) == size and (b == 2 * a).all() for a, b in whole)
    seen = np.concatenate([a for a, _ in whole])
    assert len(set(seen)) == len(seen) == n // size * size
    if not shuffle:
        assert (seen == np.arange(len(seen))).all()
    start = data.draw(st.integers(0, len(whole)))
    rest = list(loader.epoch(3, start))
    np.testing.assert_array_equal([a for a, _ in rest], [a for a, _ in whole[start:]])


def test_the_order_is_that_of_the_key_and_the_epoch():
    x = np.arange(1000)
    one = MinibatchLoader((x,), 100, rng_key=KEY)
    same = MinibatchLoader((x,), 100, rng_key=jax.random.key(1))
    other = MinibatchLoader((x,), 100, rng_key=jax.random.key(2))
    np.testing.assert_array_equal(batches(one), batches(same))
    assert (np.array(batches(one)) != batches(one, epoch=1)).mean() > 0.9
    assert (np.array(batches(one)) != batches(other)).mean() > 0.9


@pytest.mark.parametrize("block", [1, 10])
def test_a_row_is_as_likely_anywhere_in_an_epoch(block):
    x = np.arange(200)
    loader = MinibatchLoader((x,), 50, rng_key=KEY, block_size=block, blocks_at_once=4)
    places = np.zeros((200, 4))
    for epoch in range(400):
        for step, rows in enumerate(batches(loader, epoch)):
            places[rows, step] += 1
    # Each count is binomial(400, 1/4): mean 100, standard deviation 8.7.
    assert np.abs(places - 100).max() < 5 * 8.7
    within = np.corrcoef(np.concatenate(batches(loader)), x)[0, 1]
    assert abs(within) < 4 / np.sqrt(200 / block)


def test_files_are_read_as_arrays_are(tmp_path):
    x = np.random.default_rng(0).normal(size=(103, 3)).astype(np.float32)
    x.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.float32, "r", shape=x.shape)
    stored = zarr.create_array(tmp_path / "z", data=x, chunks=(10, 3))
    expected = batches(
        MinibatchLoader((x,), 8, rng_key=KEY, block_size=5, blocks_at_once=3)
    )
    for array in (mapped, stored):
        loader = MinibatchLoader(
            (array,), 8, rng_key=KEY, block_size=5, blocks_at_once=3
        )
        np.testing.assert_array_equal(batches(loader), expected)
        assert type(batches(loader)[0]) is np.ndarray
    assert MinibatchLoader((mapped,), 8, rng_key=KEY).describe() == (
        MinibatchLoader((stored,), 8, rng_key=KEY).describe()
    )


@pytest.mark.parametrize(
    ("arrays", "size", "options", "told"),
    [
        ((), 1, {}, "at least one array"),
        ((np.ones(3), np.ones(4)), 1, {}, r"\[3, 4\] rows"),
        ((np.ones(3),), 4, {}, "batch_size is 4, and there are 3 rows"),
        ((np.ones(3),), 0, {}, "batch_size must be a positive integer"),
        ((np.ones(3),), 1, {"block_size": 0}, "block_size must be a positive integer"),
    ],
)
def test_wrong_arguments_are_reported(arrays, size, options, told):
    with pytest.raises(ValueError, match=told):
        MinibatchLoader(arrays, size, rng_key=KEY, **options)
