"""The front door: the README's code runs, and its links and version hold."""

import importlib.metadata
import re
from pathlib import Path

import pytest

import pyrox_ppl

ROOT = Path(pyrox_ppl.__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_code_blocks_of_the_readme_run_in_order(capsys):
    assert len(BLOCKS) >= 2
    names = {"__name__": "readme"}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"README.md block {number}", "exec"), names)
    assert "posterior" in names


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
