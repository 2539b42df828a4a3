"""A wheel and an sdist hold what they should and work in an empty environment."""

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import pyrox_ppl

ROOT = Path(pyrox_ppl.__file__).parent.parent
MODEL = """
import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
from numpyro.infer import Predictive
import pyrox_ppl as px

film = px.nn.FiLM.init(3, 2, key=jax.random.key(0))

def model(h, z):
    with px.bayesianize():
        numpyro.deterministic("f", film(h, z))

draws = Predictive(model, num_samples=5)(jax.random.key(1), jnp.ones(3), jnp.ones(2))
print(px.__file__)
print({name: value.shape for name, value in sorted(draws.items())})
"""


def run(*command, folder):
    """Run a command that knows nothing of this checkout; what it prints."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def make_venv(folder):
    run(sys.executable, "-m", "venv", folder, folder=folder.parent)
    return next(folder.glob("bin/python")), "-m", "pip", "--quiet", "install"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that was built from it in a clean environment."""
    folder = tmp_path_factory.mktemp("build")
    python, *install = make_venv(folder / "venv")
    run(python, *install, "build", folder=folder)
    run(python, "-m", "build", "--outdir", folder / "dist", ROOT, folder=folder)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        text = wheel.read(metadata).decode()
    files = {n for n in names if ".dist-info/" not in n}
    sources = (ROOT / "pyrox_ppl").rglob("*.py")
    expected = {str(path.relative_to(ROOT)) for path in sources}
    assert files == expected | {"pyrox_ppl/py.typed"}
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert "Requires-Python: >=3.12" in text
    assert f"Version: {pyrox_ppl.__version__}" in text


@pytest.mark.slow
def test_the_sdist_holds_what_its_tests_read(built):
    with tarfile.open(built[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    needed = {"Makefile", ".ci/lowest.txt", "CONTRIBUTING.md", "README.md", "LICENSE"}
    assert needed | {"pyrox_ppl/py.typed", "tests/conftest.py"} <= names
    assert {str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob("*.py")} <= names
    assert not {
        n for n in names if n.startswith((".venv", ".git/", "tutorials/output"))
    }


@pytest.mark.slow
def test_the_wheel_installs_and_runs_in_an_empty_environment(built, tmp_path):
    python, *install = make_venv(tmp_path / "venv")
    run(python, *install, built[1], folder=tmp_path)
    place, result = run(
        python, "-W", "error", "-c", MODEL, folder=tmp_path
    ).splitlines()
    assert Path(place).is_relative_to(tmp_path)
    generator = "affine_modulation.generator"
    shapes = {f"{generator}.bias": (5, 6), f"{generator}.weight": (5, 6, 2)}
    assert ast.literal_eval(result) == {**shapes, "f": (5, 3)}
    shown = run(
        python, "-c", "import pyrox_ppl as p; p.show_versions()", folder=tmp_path
    )
    assert "zarr          not installed" in shown
    shutil.rmtree(tmp_path / "venv")
