"""What a release carries agrees with the project: badges, citation, workflows."""

import re
import tomllib
from pathlib import Path

import pytest

import pyrox_ppl

ROOT = Path(pyrox_ppl.__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_badges_are_true():
    readme = (ROOT / "README.md").read_text()
    badges = dict(re.findall(r"shields\.io/badge/(\w+)-(.+?)-blue", readme))
    assert badges["licence"].replace("--", "-") == PROJECT["license"]
    classifiers = " ".join(PROJECT["classifiers"])
    versions = re.findall(r"Python :: (\d\.\d+)", classifiers)
    assert badges["python"].split("_|_") == versions
    assert readme.count("[![") == len(badges) == 2


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {pyrox_ppl.__version__}\n" in citation
    assert f"\nlicense: {PROJECT['license']}\n" in citation


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_targets_that_a_workflow_makes_are_there(path):
    targets = re.findall(r"run: make ([\w-]+)", path.read_text())
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert not [t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)]


def test_the_workflows_run_every_declared_python():
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    classifiers = " ".join(PROJECT["classifiers"])
    versions = re.findall(r"Python :: (\d\.\d+)", classifiers)
    (matrix,) = re.findall(r"python: \[(.*)\]", text)
    assert re.findall(r"[\d.]+", matrix) == versions


def test_a_bug_report_asks_for_versions():
    template = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text()
    assert "px.show_versions()" in template


@pytest.mark.parametrize(
    "path", re.findall(r"`(pyrox_ppl/[\w/.]+)`", (ROOT / "SECURITY.md").read_text())
)
def test_the_files_that_the_security_page_names_are_there(path):
    assert (ROOT / path).is_file()
