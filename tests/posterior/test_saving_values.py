"""What a module may hold comes back as it was, or is refused; nothing else."""

import collections
import dataclasses
import enum
import functools
import json
import subprocess
import sys
import time
from typing import NamedTuple

import equinox as eqx
import h5py
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
import xarray as xr

import pyrox_ppl as px
from pyrox_ppl.posterior import saving

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


def test_shared_nodes_stay_shared(tmp_path):
    pair = (eqx.nn.Embedding(6, 4, key=KEY), eqx.nn.Linear(4, 6, key=KEY))
    tied = eqx.nn.Shared(pair, lambda p: p[1].weight, lambda p: p[0].weight)
    two = eqx.nn.Shared(
        {"a": pair, "b": pair},
        lambda p: (p["b"][0].weight, p["b"][1]),
        lambda p: (p["a"][0].weight, p["a"][1]),
    )
    for shared in (tied, two):
        back = round_trip(tmp_path, shared).module
        again = round_trip(tmp_path, back).module
        assert eqx.tree_equal(again(), shared())
        assert len(jax.tree.leaves(back)) == len(jax.tree.leaves(shared))
    embedding, linear = round_trip(tmp_path, tied).module()
    assert embedding.weight is linear.weight
    turned = eqx.nn.Shared(
        (eqx.nn.Linear(2, 3, key=KEY), eqx.nn.Linear(3, 2, key=KEY)),
        lambda p: p[1].weight,
        lambda p: p[0].weight.T,
    )
    with pytest.raises(ValueError, match=r"Shared\.\w+ is .*lambda.*no name"):
        px.save(tmp_path / "no.nc", TREE, turned)


@pytest.mark.rank_promotion
@pytest.mark.parametrize("suffix", [".nc", ".zip"])
def test_a_module_and_its_state_predict_as_before(tmp_path, suffix):
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(2, "b", mode="ema")
    linear = eqx.nn.Linear(2, 2, key=KEY)
    spectral, other = eqx.nn.make_with_state(eqx.nn.SpectralNorm)(
        linear, "weight", key=KEY
    )
    x = jax.random.normal(KEY, (5, 2)) + 3.0
    call = jax.vmap(norm, axis_name="b", in_axes=(0, None), out_axes=(0, None))
    _, state = call(x, state)
    norm = eqx.nn.inference_mode(norm)
    both = ((norm, state), (spectral, other))
    back = round_trip(tmp_path, both, suffix).module
    for (ours, own), (theirs, their) in zip(both, back, strict=True):
        assert (theirs(x[0], their)[0] == ours(x[0], own)[0]).all()
    assert abs(norm(jnp.full(2, 3.0), state)[0]).max() < 1.0  # a mean of about 3


def test_a_layer_whose_state_was_not_taken_out_comes_back(tmp_path):
    norm = eqx.nn.BatchNorm(2, "b", mode="batch")
    both = round_trip(tmp_path, (norm, norm)).module
    state = eqx.nn.State(both)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(eqx.nn.State(norm)))
    assert both[0].batch_counter.marker is both[1].batch_counter.marker


def test_a_float64_module_needs_x64(tmp_path):
    path = tmp_path / "fit.nc"
    with jax.enable_x64(True):
        px.save(path, TREE, Holder(jnp.array([0.1, 1 / 3])))
        assert px.load(path).module.value.dtype == jnp.float64
    with pytest.raises(ValueError, match=r"float64.*float32.*jax_enable_x64"):
        px.load(path)


def test_an_edited_attribute_is_refused(tmp_path):
    path = tmp_path / "fit.nc"
    px.save(path, TREE, Holder(jnp.ones(2), 30.0), name="left")
    for place, name, old, new in (
        ("module", "structure", "30.0", "90.0"),
        ("/", "module_name", "left", "right"),
        ("/", "inference", "draws", "SVI"),
    ):
        with h5py.File(path, "r+") as file:
            text = file[place].attrs[name]
            assert old in text
            file[place].attrs[name] = text.replace(old, new)
        with pytest.raises(ValueError, match="damaged: its arrays or attributes"):
            px.load(path)
        with h5py.File(path, "r+") as file:
            file[place].attrs[name] = text
    assert px.load(path).module.static == 30.0


CHANGED = """
import numpy, sys, types, pyrox_ppl as px
place = types.ModuleType("place"); sys.modules["place"] = place
code = f"class Net(eqx.Module):\\n    a: object\\n    {sys.argv[2]}: object"
exec("import equinox as eqx\\n" + code, vars(place))
if sys.argv[3] == "save":
    tree = px.to_datatree({"a": numpy.ones(3)})
    px.save(sys.argv[1], tree, place.Net(1.0, 2.0))
else:
    px.load(sys.argv[1])
"""


def test_a_class_with_other_fields_is_refused(tmp_path):
    path = tmp_path / "fit.nc"
    command = [sys.executable, "-c", CHANGED, path]
    subprocess.run([*command, "b", "save"], check=True)
    done = subprocess.run(
        [*command, "c", "load"], capture_output=True, text=True, check=False
    )
    assert "its fields were ['a', 'b'] and are ['a', 'c']" in done.stderr


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


@pytest.mark.parametrize("suffix", [".nc", ".zip"])
def test_trees_of_odd_names_and_values_come_back(tmp_path, suffix):
    tree = px.to_datatree({"a\\b": jnp.ones((3, 2)), "c d.λ": jnp.ones(3)})
    data = xr.Dataset(
        {
            "swapped": ("x", np.arange(3, dtype=">f8")),
            "words": ("x", ["a", "bc", "λ"]),
            "truth": ("x", [True, False, True]),
            "when": ("x", np.array(["2026-01-01"] * 3, "M8[ns]")),
            "none": (("x", "nothing"), np.zeros((3, 0))),
        },
        coords={"x": ["p", "q", "r"]},
        attrs={"numbers": [1, 2], "one": [1], "number": 2.5},
    )
    tree["more"] = xr.DataTree(data)
    back = round_trip(tmp_path, None, suffix, tree).posterior
    xr.testing.assert_equal(back["posterior"].dataset, tree["posterior"].dataset)
    for name in data.variables:
        assert back["more"][name].values.tolist() == data[name].values.tolist()


def test_hundreds_of_layers_are_quick(tmp_path):
    layers = [eqx.nn.Linear(2, 2, key=KEY) for _ in range(300)]
    begun = time.perf_counter()
    back = round_trip(tmp_path, Holder(layers)).module
    assert time.perf_counter() - begun < 10.0
    assert eqx.tree_equal(back, Holder(layers))
    with h5py.File(tmp_path / "fit.nc") as file:
        assert len(json.loads(file["module"].attrs["shapes"])) == 600
        assert len(file["module"]) <= 3


def test_what_a_format_cannot_keep_is_told_at_once(tmp_path, monkeypatch):
    def forgetful(tree, path):
        write(tree.assign_attrs(inference="other"), path)

    write = saving._write
    monkeypatch.setattr(saving, "_write", forgetful)
    with pytest.raises(ValueError, match=r"\.nc does not keep .* as it is"):
        px.save(tmp_path / "fit.nc", TREE)
    assert not list(tmp_path.iterdir())
