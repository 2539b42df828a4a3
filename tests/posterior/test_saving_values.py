"""What a module may hold comes back as it was, or is refused; nothing else."""

import collections
import dataclasses
import enum
import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pyrox_ppl as px

KEY = jax.random.key(0)
TREE = px.to_datatree({"a": jnp.ones(3)})


class Kind(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Flag(enum.Flag):
    A = 1
    B = 2


class Pair(NamedTuple):
    left: jax.Array
    right: float


@dataclasses.dataclass(frozen=True)
class Settings:
    omega: float
    scale: np.ndarray


@jax.custom_jvp
def cube(x):
    return x**3


cube.defjvps(lambda t, primal_out, x: 3 * x**2 * t)


def scaled(x, by):
    return by * x


class Holder(eqx.Module):
    value: object
    static: object = eqx.field(static=True, default=None)

    def double(self, x):
        return 2 * x


def round_trip(tmp_path, module, suffix=".nc", tree=TREE):
    path = tmp_path / f"fit{suffix}"
    px.save(path, tree, module)
    return px.load(path)


VALUES = {
    "enum": Kind.LARGE,
    "flags": Flag.A | Flag.B,
    "complex": 1 + 2j,
    "none": None,
    "nan": float("nan"),
    "dtype": np.dtype("float32"),
    "small dtype": jnp.dtype("bfloat16"),
    "type of a dtype": jnp.bfloat16,
    "numpy scalar": np.float64(0.1),
    "numpy boolean": np.bool_(True),
    "bytes": b"\0\xff",
    "slice": slice(1, None, 2),
    "range": range(3),
    "ellipsis": ...,
    "set": {1, 2},
    "frozenset": frozenset(["a"]),
    "integer keys": {1: "a", 2: {True: "b"}},
    "tuple keys": {(1, "x"): "a", (1, "y"): None},
    "ordered": collections.OrderedDict(b=1, a=2),
    "default": collections.defaultdict(list, {"a": [1]}),
    "named tuple": Pair(1.0, 2.0),
    "custom_jvp": jax.nn.relu,
    "own custom_jvp": cube,
    "ufunc": np.sin,
    "jnp ufunc": jnp.add,
    "builtin": len,
    "class": Settings,
    "text": "a \\ b / λ \0 \n 'quoted\"",
    "large": 2**80,
    "negative zero": -0.0,
}


@pytest.mark.parametrize("name", VALUES)
def test_a_constant_comes_back_with_its_type(tmp_path, name):
    value = VALUES[name]
    back = round_trip(tmp_path, Holder(value)).module.value
    assert type(back) is type(value)
    assert back is value or repr(back) == repr(value)


ARRAYS = {
    "big-endian": np.arange(3, dtype=">f4"),
    "strings": np.array(["a", "λβ"]),
    "bytes": np.array([b"ab", b"c"]),
    "dates": np.array(["2026-01-01"], "M8[D]"),
    "empty": np.zeros((0, 3), np.float32),
    "empty on the device": jnp.zeros((2, 0)),
    "scalar": np.array(3.0),
    "half": np.arange(3, dtype=np.float16),
    "bfloat16": jnp.arange(3, dtype=jnp.bfloat16),
    "int4": jnp.arange(3, dtype=jnp.int4),
    "complex": np.array([1 + 2j]),
    "boolean": np.array([True, False]),
    "int8": np.arange(3, dtype=np.int8),
    "float64 of NumPy": np.array([0.1]),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(6)[::2],
    "weak": jnp.asarray(1.5),
    "weak matrix": jnp.full((2, 3), 0.1),
    "strong": jnp.float32(1.5),
}


@pytest.mark.parametrize("suffix", [".nc", ".zip"])
def test_arrays_come_back_in_every_bit(tmp_path, suffix):
    back = round_trip(tmp_path, Holder(dict(ARRAYS)), suffix).module.value
    for name, array in ARRAYS.items():
        assert isinstance(back[name], jax.Array) == isinstance(array, jax.Array), name
        assert back[name].dtype == array.dtype, name
        assert back[name].shape == array.shape, name
        assert np.asarray(back[name]).tobytes() == np.asarray(array).tobytes(), name
        if isinstance(array, jax.Array):
            assert back[name].weak_type == array.weak_type, name
    assert (jnp.bfloat16(1) * back["weak"]).dtype == jnp.bfloat16


def test_keys_and_ties_come_back(tmp_path):
    weight, table = jnp.ones((2, 2)), np.ones(2)
    rbg = jax.random.key(1, impl="rbg")
    parts = (weight, {"t": weight}, table, [table], jax.random.split(KEY, 3), rbg)
    back = round_trip(tmp_path, Holder(parts)).module.value
    assert back[0] is back[1]["t"]
    assert back[2] is back[3][0]
    assert (jax.random.normal(back[4][1]) == jax.random.normal(parts[4][1])).all()
    assert jax.random.key_impl(back[5]) == jax.random.key_impl(rbg)
    assert jnp.array_equal(jax.random.key_data(back[5]), jax.random.key_data(rbg))


def test_functions_with_arguments_and_methods_come_back(tmp_path):
    layer = Holder(jnp.ones(2))
    parts = (
        functools.partial(scaled, by=3.0),
        jtu.Partial(scaled, by=jnp.asarray(2.0)),
        layer.double,
        eqx.filter_vmap(cube),
    )
    back = round_trip(tmp_path, Holder(parts)).module.value
    assert type(back[0]) is functools.partial
    assert type(back[1]) is jtu.Partial
    assert jax.tree.leaves(back[1]) == [2.0]
    assert [float(f(jnp.float32(5.0))) for f in back[:3]] == [15.0, 10.0, 10.0]
    assert back[3](jnp.arange(3.0)).tolist() == [0.0, 1.0, 8.0]


def test_a_dataclass_and_a_named_tuple_come_back(tmp_path):
    parts = (Settings(30.0, np.arange(2)), Pair(jnp.ones(2), 2.0))
    back = round_trip(tmp_path, Holder(parts)).module.value
    assert type(back[0]) is Settings
    assert (back[0].omega, back[0].scale.tolist()) == (30.0, [0, 1])
    assert type(back[1]) is Pair
    assert back[1].left.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()], object),
        np.ma.masked_array([1.0], [True]),
        np.zeros(2, [("a", "f4")]),
        object(),
        lambda x: x,
    ],
)
def test_what_would_lose_something_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match=r"Holder\.value"):
        px.save(tmp_path / "fit.nc", TREE, Holder(value))
    assert not list(tmp_path.iterdir())
