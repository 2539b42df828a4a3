"""The versions that are declared are those that `make test-lowest` runs."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import pyrox_ppl

ROOT = Path(pyrox_ppl.__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def declared(*extras):
    """Name -> requirement, of the dependencies and of the extras."""
    lines = [*PROJECT["dependencies"], *(r for e in extras for r in EXTRAS[e])]
    requirements = map(Requirement, lines)
    return {r.name: r for r in requirements if r.name != "pyrox-ppl"}


def pins():
    """Name -> version in the constraints of `make test-lowest`."""
    lines = (ROOT / ".ci" / "lowest.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {name: Version(version) for name, version in pairs}


def lower_bound(requirement):
    (bound,) = (s.version for s in requirement.specifier if s.operator in (">=", "=="))
    return Version(bound)


@pytest.mark.parametrize("name", declared(*(e for e in EXTRAS if e != "dev")))
def test_every_lower_bound_is_pinned(name):
    requirement = declared(*EXTRAS)[name]
    assert pins()[name] == lower_bound(requirement)


def test_numpyro_has_an_upper_bound():
    operators = {s.operator for s in declared()["numpyro"].specifier}
    assert "<" in operators


def test_the_lowest_python_is_the_one_that_is_declared():
    assert PROJECT["requires-python"] == ">=3.12"
    assert "make_venv.sh $(LOWEST) 3.12" in (ROOT / "Makefile").read_text()


def test_the_core_that_runs_on_them_is_there():
    makefile = (ROOT / "Makefile").read_text()
    core = re.search(r"^CORE \?= ((?:.*\\\n)*.*)", makefile, flags=re.MULTILINE)
    assert core is not None
    paths = core[1].replace("\\", " ").split()
    assert len(paths) > 5
    assert not [path for path in paths if not (ROOT / path).exists()]
