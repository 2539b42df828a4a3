"""The tutorials run top to bottom, their own assertions included."""

import os
import re
import subprocess
import sys
from pathlib import Path

import docs_pages
import pytest

# Even their small settings take more than half a minute.
LONG = (
    *("burgers", "co2", "conditioning", "diagnosing", "digits", "digits_as_fields"),
    *("flow_vector_field", "groups", "neural_implicit_flow"),
    *("one_module_five_meanings", "shapes", "spacetime", "which_posterior"),
)
TUTORIALS = sorted((Path(__file__).parent.parent / "tutorials").glob("*.py"))


def test_there_is_a_tutorial():
    assert "quickstart" in {path.stem for path in TUTORIALS}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, id=p.stem, marks=pytest.mark.slow if p.stem in LONG else ())
        for p in TUTORIALS
    ],
)
def test_a_tutorial_runs_and_writes_what_it_says(path, tmp_path):
    copy = tmp_path / path.name
    copy.write_text(path.read_text())
    (tmp_path / "data").symlink_to(path.parent / "data")
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    # A tutorial that would take too long here has small settings, and says so.
    environment["PYROX_PPL_SMALL"] = "1"
    if path.stem not in LONG:  # it compiles for longer than it runs
        environment["XLA_FLAGS"] = "--xla_backend_optimization_level=1"
    done = subprocess.run(
        [sys.executable, "-W", "error", copy],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    printed = " ".join(docs_pages.without_numbers(done.stdout))
    text = re.sub(r"^# ?", "", path.read_text(), flags=re.MULTILINE)
    for language, block in docs_pages.fences(text):
        if language == "text":
            assert " ".join(docs_pages.without_numbers(block)) in printed, printed
    written = {file.suffix for file in (tmp_path / "output").iterdir()}
    assert ".png" in written
    if "to_netcdf" in path.read_text():
        assert ".nc" in written
