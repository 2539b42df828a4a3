"""show_versions: every dependency by its installed version, every device, one block."""

import importlib.metadata
import re
import subprocess
import sys

import jax
import pytest

import pyrox_ppl
from pyrox_ppl import _show_versions


@pytest.fixture
def shown(capsys):
    """What a call prints, as name -> value."""

    def call():
        pyrox_ppl.show_versions()
        lines = capsys.readouterr().out.splitlines()
        return {s[:13].rstrip(): s[14:] for s in lines}

    return call


def test_every_dependency_is_shown_as_installed(shown):
    lines = shown()
    assert lines["pyrox_ppl"] == pyrox_ppl.__version__
    assert lines["python"].startswith(".".join(map(str, sys.version_info[:3])))
    required = importlib.metadata.requires("pyrox-ppl") or []
    tools = re.compile(r"extra == .(dev|docs|test)")
    names = {re.match(r"[\w-]+", r)[0] for r in required if not tools.search(r)}
    assert len(names) > 6
    for name in names - {"pyrox-ppl"}:
        assert lines[name] == importlib.metadata.version(name), name


def test_a_missing_extra_is_named_as_such(shown, monkeypatch):
    monkeypatch.setattr(_show_versions, "_DISTRIBUTIONS", ("jax", "no-such-name"))
    assert shown()["no-such-name"] == "not installed"


def test_devices_of_one_kind_are_counted(shown):
    lines = shown()
    assert lines["jax backend"] == jax.default_backend()
    assert (
        lines["jax devices"] == f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    )
    assert lines["jax x64"] == str(jax.config.jax_enable_x64)


def test_a_backend_that_does_not_start_is_part_of_the_report(shown, monkeypatch):
    def broken():
        raise RuntimeError("no driver:\n  version 12 was expected")

    monkeypatch.setattr(jax, "default_backend", broken)
    lines = shown()
    assert lines["jax backend"] == "none (no driver: version 12 was expected)"


def test_it_imports_none_of_what_it_names():
    code = (
        "import sys, pyrox_ppl\n"
        "pyrox_ppl.show_versions()\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "arviz" in done.stdout
    heavy = {"arviz", "arviz_base", "xarray", "matplotlib", "h5py", "zarr", "optax"}
    assert not heavy & set(done.stderr.split())
