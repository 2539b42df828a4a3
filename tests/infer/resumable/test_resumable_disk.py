"""A run on disk: a full disk, a lock, a bar, no zarr."""

import errno
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import MCMC, NUTS

from pyrox_ppl.infer import run_mcmc
from pyrox_ppl.infer.resumable import _store

KEY = jax.random.key(3)


def run(path, **kwargs):
    mcmc = MCMC(
        NUTS(potential_fn=lambda x: 0.5 * jnp.sum(x**2)),
        num_warmup=4,
        num_samples=8,
        **{"progress_bar": False} | kwargs,
    )
    return run_mcmc(mcmc, KEY, path=path, segment=2, init_params=jnp.ones(2))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return run(tmp_path_factory.mktemp("expected") / "run").get_samples()


def fail_at(monkeypatch, place, count, error):
    passed = []

    def reached(point):
        passed.append(point)
        if passed.count(place) == count and point == place:
            raise error

    monkeypatch.setattr(_store, "reached", reached)


@pytest.mark.parametrize("place", ["draws", "state", "manifest"])
def test_a_full_disk_is_reported_and_loses_nothing(
    tmp_path, monkeypatch, expected, place
):
    path = tmp_path / "run"
    full = OSError(errno.ENOSPC, "No space left on device")
    fail_at(monkeypatch, place, 3 if place == "draws" else 5, full)
    with pytest.raises(OSError, match=r"free some space and start again") as error:
        run(path)
    assert error.value.errno == errno.ENOSPC
    assert "'draws': 2" in str(error.value)
    monkeypatch.undo()
    np.testing.assert_array_equal(run(path).get_samples(), expected)


def test_another_error_of_the_disk_stays_what_it_is(tmp_path, monkeypatch):
    fail_at(monkeypatch, "state", 3, PermissionError(errno.EACCES, "denied"))
    with pytest.raises(PermissionError, match="denied"):
        run(tmp_path / "run")


def test_two_processes_do_not_work_on_one_run(tmp_path):
    path = tmp_path / "run"
    run(path)
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'w')\n"
        "fcntl.flock(f, fcntl.LOCK_EX); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(RuntimeError, match="another process is working on"):
            run(path)
        other.communicate()
    run(path)


def test_a_directory_that_is_no_run_is_left_alone(tmp_path, expected):
    note = tmp_path / "note.txt"
    note.write_text("mine")
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        run(note)
    (tmp_path / "empty").mkdir()
    np.testing.assert_array_equal(run(tmp_path / "empty").get_samples(), expected)


def test_a_run_is_begun_whole_or_not_at_all(tmp_path, monkeypatch, expected):
    path = tmp_path / "deep" / "run"
    fail_at(monkeypatch, "created", 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(path)
    assert not path.exists()
    monkeypatch.undo()
    np.testing.assert_array_equal(run(path).get_samples(), expected)
    assert [p.name for p in path.parent.iterdir()] == ["run"]


def test_the_bar_begins_at_what_is_done(tmp_path, monkeypatch, capfd):
    path = tmp_path / "run"
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.delenv("CI", raising=False)
    fail_at(monkeypatch, "committed", 5, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(path, progress_bar=True)
    monkeypatch.undo()
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.delenv("CI", raising=False)
    capfd.readouterr()
    run(path, progress_bar=True)
    shown = capfd.readouterr().err
    assert " 0/12" not in shown
    assert "8/12" in shown
    assert "12/12" in shown


def test_without_zarr_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r'pip install "pyrox-ppl\[io\]"'):
        run(tmp_path / "run")


def test_a_segment_is_at_least_one_draw(tmp_path):
    mcmc = MCMC(NUTS(potential_fn=jnp.sum), num_warmup=1, num_samples=2)
    with pytest.raises(ValueError, match="positive number of draws, not 0"):
        run_mcmc(mcmc, KEY, path=tmp_path / "run", segment=0)
