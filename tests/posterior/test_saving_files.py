"""Files: of shared nodes, of state, edited ones, odd trees, hundreds of layers."""

import json
import sys
import time
import types

import equinox as eqx
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import pyrox_ppl as px
from pyrox_ppl.posterior import _saving as saving

KEY = jax.random.key(0)
TREE = px.to_datatree({"a": jnp.ones(3)})


class Holder(eqx.Module):
    value: object
    static: object = eqx.field(static=True, default=None)


def round_trip(tmp_path, module, suffix=".nc", tree=TREE):
    path = tmp_path / f"fit{suffix}"
    px.save(path, tree, module)
    return px.load(path)


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


def module_of_a_class(field):
    """A module as another process imports it, whose class has this second field."""
    place = types.ModuleType("place")
    code = f"class Net(eqx.Module):\n    a: object\n    {field}: object"
    exec("import equinox as eqx\n" + code, vars(place))
    return place


def test_a_class_with_other_fields_is_refused(tmp_path, monkeypatch):
    before = module_of_a_class("b")
    monkeypatch.setitem(sys.modules, "place", before)
    px.save(tmp_path / "fit.nc", TREE, before.Net(1.0, 2.0))
    assert px.load(tmp_path / "fit.nc").module.b == 2.0
    monkeypatch.setitem(sys.modules, "place", module_of_a_class("c"))
    fields = r"its fields were \['a', 'b'\] and are now \['a', 'c'\]"
    with pytest.raises(ValueError, match=fields):
        px.load(tmp_path / "fit.nc")


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
        tree = tree.copy()
        tree.attrs["inference"] = "other"
        write(tree, path)

    write = saving.write_tree
    monkeypatch.setattr(saving, "write_tree", forgetful)
    with pytest.raises(ValueError, match=r"\.nc does not keep .* as it is"):
        px.save(tmp_path / "fit.nc", TREE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".nc", ".zarr.zip"])
def test_a_tree_is_written_as_it_is_whatever_file_it_came_from(tmp_path, suffix):
    tree = TREE.copy(deep=True)
    encoding = {"dtype": "int16", "scale_factor": 0.3, "_FillValue": -1}
    tree["posterior/a"].encoding.update(encoding)
    assert round_trip(tmp_path, None, suffix, tree).posterior.identical(tree)
    assert tree["posterior/a"].encoding == encoding


@pytest.mark.wrong_types
def test_what_is_no_tree_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"in this order, got dict"):
        px.save(tmp_path / "fit.nc", {"a": jnp.ones(3)})
    with pytest.raises(TypeError, match=r"in this order, got Linear"):
        px.save(tmp_path / "fit.nc", eqx.nn.Linear(1, 1, key=KEY), TREE)


def test_a_file_that_lost_its_digest_is_damaged(tmp_path):
    px.save(tmp_path / "fit.nc", TREE)
    with h5py.File(tmp_path / "fit.nc", "a") as file:
        del file.attrs["digest"]
    with pytest.raises(ValueError, match="is damaged"):
        px.load(tmp_path / "fit.nc")


@eqx.filter_jit
def compiled(x):
    return jnp.tanh(x)


def test_a_function_that_equinox_compiled_is_known_by_its_name(tmp_path):
    mlp = eqx.nn.MLP(1, 1, 2, 1, activation=compiled, key=KEY)
    back = round_trip(tmp_path, mlp).module
    np.testing.assert_array_equal(back(jnp.ones(1)), mlp(jnp.ones(1)))
    assert eqx.tree_equal(back, mlp)
