"""The front door: the README's code runs, and its links and version hold."""

import importlib.metadata
import re
from pathlib import Path

import matplotlib as mpl
import pytest

import pyrox_ppl

mpl.use("agg")
import matplotlib.pyplot as plt

ROOT = Path(pyrox_ppl.__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def run_readme(change=lambda block: block):
    """Run the code blocks of the README in order, and return their names."""
    names = {"__name__": "readme"}
    for number, block in enumerate(BLOCKS):
        exec(compile(change(block), f"README.md block {number}", "exec"), names)
    return names


def test_the_code_blocks_of_the_readme_run_in_order(capsys):
    """With few draws and steps, which take time; the next test takes them all."""
    assert len(BLOCKS) >= 2

    def shorten(block):
        few = "num_warmup=10, num_samples=10"
        block = re.sub(r"num_warmup=\d+, num_samples=\d+", few, block)
        return re.sub(r"svi\.run\(run_key, \d+", "svi.run(run_key, 10", block)

    names = run_readme(shorten)
    assert len(names["fit"].losses) == 10
    assert len(names["posterior"].posterior.draw) == 10
    plt.close("all")


@pytest.mark.slow
def test_the_first_example_passes_its_diagnosis(capsys):
    diagnosis = run_readme()["diagnosis"]
    assert diagnosis.ok, diagnosis
    assert all(check.passed is not False for check in diagnosis.checks)
    (verdict,) = re.findall(r"# (Verdict: .*)", README)
    assert verdict in str(diagnosis)
    plt.close("all")


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_the_links_of_the_readme_lead_to_files(target):
    if not target.startswith("http"):
        assert (ROOT / target).exists()


def test_the_version_is_in_one_place():
    assert importlib.metadata.version("pyrox-ppl") == pyrox_ppl.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {pyrox_ppl.__version__}" in changelog


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 60
