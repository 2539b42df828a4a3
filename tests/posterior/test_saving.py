"""save and load: the same bits in another process, and files that are refused."""

import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from models import make_field, make_mlp

import pyrox_ppl as px
from pyrox_ppl._parameter import parameters_of
from pyrox_ppl.posterior import _saving as saving

KEY = jax.random.key(0)
Z = jnp.array([0.5, 1.0])
X = jnp.linspace(-1.0, 1.0, 10).reshape(5, 2)
SUFFIXES = (".nc", ".zarr.zip")


def tree_of(module, name):
    reads = parameters_of(module, name)
    draws = {
        read.parameter.name: 0.1 * jax.random.normal(KEY, (6, *read.stored.shape))
        for read in reads[:3]
    }
    return px.to_datatree(draws, rng_key=KEY)


FIELD = make_field(depth=3)
# One process does all, as its start takes seconds: it predicts from two files, loads a
# class that is not there, and dies while it saves.
ELSEWHERE = """
import os, sys, numpy as np, jax.numpy as jnp, pyrox_ppl as px
from pyrox_ppl.posterior import _saving as saving
*paths, zoo, killed = sys.argv[1:]
x, z = jnp.linspace(-1.0, 1.0, 10).reshape(5, 2), jnp.array([0.5, 1.0])
for path in paths:
    saved = px.load(path)
    fit = px.predict(saved.module, saved.posterior, x, z, name=saved.name)
    np.savez(path + ".npz", mean=fit.mean, std=fit.std, median=fit.quantiles[0.5])
try:
    px.load(zoo)
except ValueError as error:
    print(error, flush=True)
write = saving.write_tree
saving.write_tree = lambda tree, path: (write(tree, path), os.kill(os.getpid(), 9))
px.save(killed, px.to_datatree({"a": jnp.zeros(3)}))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """What another process did with the files of this one."""
    folder = tmp_path_factory.mktemp("elsewhere")
    tree, one = tree_of(FIELD, "left.field"), px.to_datatree({"a": jnp.ones(3)})
    paths = [folder / f"fit{suffix}" for suffix in SUFFIXES]
    for number, path in enumerate(paths, 1):
        px.save(path, tree, FIELD, name="left.field")
        assert len(list(folder.iterdir())) == number
    px.save(folder / "zoo.nc", one, make_zoo(identity))
    px.save(folder / "killed.nc", one)
    command = [sys.executable, "-W", "error", "-c", ELSEWHERE, *paths]
    done = subprocess.run(
        [*command, folder / "zoo.nc", folder / "killed.nc"],
        capture_output=True,
        text=True,
        check=False,
    )
    return folder, tree, done


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_another_process_predicts_the_same_bits(elsewhere, suffix):
    folder, tree, done = elsewhere
    path = folder / f"fit{suffix}"
    ours = px.predict(FIELD, tree, X, Z, name="left.field")
    assert (folder / f"{path.name}.npz").is_file(), done.stderr
    with np.load(folder / f"{path.name}.npz") as theirs:
        assert np.array_equal(theirs["mean"], ours.mean)
        assert np.array_equal(theirs["std"], ours.std)
        assert np.array_equal(theirs["median"], ours.quantiles[0.5])
    saved = px.load(path)
    assert saved.posterior.identical(tree)
    assert eqx.tree_equal(saved.module, FIELD)
    assert saved.posterior.attrs["rng_key"] == "[0, 0]"


class Zoo(eqx.Module):
    """One of everything that a module may hold."""

    half: jax.Array
    tied: jax.Array
    table: np.ndarray
    flags: jax.Array
    parts: dict
    steps: tuple
    activation: object = eqx.field(static=True)
    sizes: tuple = eqx.field(static=True)


def identity(x):
    """A function with a name."""
    return x


def make_zoo(activation):
    half = jnp.arange(3.0, dtype=jnp.bfloat16)
    return Zoo(
        half,
        half,
        np.arange(4),
        jnp.array([True, False]),
        {"net": make_mlp(), "none": None},
        (1, 2.5, "three", np.dtype("f4"), float("inf")),
        activation,
        (1, 2),
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_module_of_everything_comes_back(tmp_path, suffix):
    zoo = make_zoo(jax.nn.relu)
    path = tmp_path / f"zoo{suffix}"
    px.save(path, px.to_datatree({"a": jnp.ones(3)}), zoo)
    back = px.load(path).module
    assert eqx.tree_equal(back, zoo)
    assert back.half is back.tied
    assert back.half.dtype == jnp.bfloat16
    assert back.activation is jax.nn.relu
    assert back.steps == zoo.steps


def test_what_has_no_name_is_refused_and_the_file_is_as_it_was(tmp_path):
    path = tmp_path / "fit.nc"
    tree = px.to_datatree({"a": jnp.ones(3)})
    px.save(path, tree)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"Zoo\.activation.*lambda.*no name"):
        px.save(path, tree, make_zoo(lambda x: x))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_interrupted_save_leaves_the_file_before(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"fit{suffix}"
    px.save(path, px.to_datatree({"a": jnp.ones(3)}))
    before, write = path.read_bytes(), saving.write_tree

    def interrupted(tree, temporary):
        write(tree, temporary)
        temporary.write_bytes(temporary.read_bytes()[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "write_tree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        px.save(path, px.to_datatree({"a": jnp.zeros(3)}))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_save_leaves_the_file_before(elsewhere):
    folder, _, done = elsewhere
    assert done.returncode == -9, done.stderr
    assert px.load(folder / "killed.nc").posterior["posterior"][
        "a"
    ].values.tolist() == [[1.0] * 3]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_or_damaged_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"fit{suffix}"
    values = jnp.linspace(1.0, 2.0, 4000)
    px.save(path, px.to_datatree({"a": values}))
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated or damaged"):
            px.load(path)
    if suffix == ".nc":
        place = whole.find(np.asarray(values, np.float32)[1000:1100].tobytes())
        path.write_bytes(whole[:place] + b"\0" * 40 + whole[place + 40 :])
        with pytest.raises(ValueError, match="damaged: its arrays"):
            px.load(path)


def test_foreign_and_missing_files_are_refused(tmp_path):
    xr.Dataset({"a": 1.0}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="not written by pyrox_ppl"):
        px.load(tmp_path / "other.nc")
    (tmp_path / "text.nc").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="truncated or damaged"):
        px.load(tmp_path / "text.nc")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        px.load(tmp_path / "none.nc")
    with pytest.raises(ValueError, match=r"end in \.nc"):
        px.save(tmp_path / "fit.pkl", px.to_datatree({"a": jnp.ones(3)}))


def test_a_class_that_is_not_there_is_named(elsewhere):
    assert "and there is none" in elsewhere[2].stdout
