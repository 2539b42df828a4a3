"""Every block of code in the pages of the site runs, a page after the other."""

import re

import docs_pages
import matplotlib as mpl
import pytest

mpl.use("agg")
# They fit, and the default tests must stay short.
LONG = {
    "classification",
    "conditioned-field",
    "groups",
    "laplace-torch",
    "minibatches",
    "posterior",
    "quickstart",
    "saving",
    "state",
    "tyxe",
    "varying-noise",
}
FOREIGN = "py"  # another library's code, beside its port: it does not run here
PAGES = [p for p in docs_pages.PAGES if p.parent.name != "errors"]
API = docs_pages.DOCS / "api"
TUTORIALS = sorted((docs_pages.ROOT / "tutorials").glob("*.py"))


def marks(path):
    """The marks of a page; the reference has a page of the name of a long one."""
    return pytest.mark.slow if path.stem in LONG and path.parent != API else ()


@pytest.mark.rank_promotion
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=f"{p.parent.name}/{p.stem}", marks=marks(p)) for p in PAGES],
)
def test_the_code_of_a_page_runs_in_order(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": path.stem}
    printed = ""
    for number, (language, block) in enumerate(docs_pages.fences(path.read_text())):
        if language == "python":
            docs_pages.run(block, names, f"{path.name} block {number}")
            printed = capsys.readouterr().out
        elif language == "text":
            shown, said = map(docs_pages.without_numbers, (block, printed))
            assert shown == said, printed


@pytest.mark.parametrize("path", docs_pages.PAGES, ids=lambda p: p.stem)
def test_a_page_names_the_language_of_its_blocks(path):
    languages = {language for language, _ in docs_pages.fences(path.read_text())}
    allowed = {"python", "sh", "text", "toml"}
    if path.parent.name == "coming-from":
        allowed |= {FOREIGN}
    assert languages <= allowed


@pytest.mark.parametrize("path", docs_pages.PAGES, ids=lambda p: p.stem)
def test_the_links_of_a_page_lead_to_files(path):
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        made = target.removesuffix(".md").split("/")[-1]
        if target.startswith("http") or made in ("index", "results", "changelog"):
            continue
        if "tutorials/" in target:
            assert (docs_pages.ROOT / "tutorials" / f"{made}.py").exists(), target
        elif made != "contributing":
            assert (path.parent / target).exists(), target


def test_every_page_is_in_the_navigation():
    navigation = (docs_pages.ROOT / "mkdocs.yml").read_text()
    pages = [p.relative_to(docs_pages.DOCS).as_posix() for p in docs_pages.PAGES]
    assert not [
        page for page in pages if not re.search(rf"[ :-] {page}$", navigation, re.M)
    ]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_the_pages_have_the_figures_of_a_tutorial(path):
    saved = re.findall(r'savefig\(OUTPUT / "([\w.-]+\.png)"', path.read_text())
    assert saved, "the gallery shows a figure of each tutorial"
    kept = {figure.name for figure in (docs_pages.DOCS / "figures").glob("*.png")}
    assert not set(saved) - kept, "run `make figures`"
