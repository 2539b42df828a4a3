"""Pages of the site that the repository holds already, as hooks of MkDocs."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "tutorials").glob("*.py"))
# The page of the site for a file of the repository.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/results/README.md": "results.md",
}
# How a search ranks pages: 1 where nothing is said, and 0 leaves a page out.
RANKS = {
    "how-to/": 2,
    "api/": 2,
    "faq.md": 2,
    "quickstart.md": 2,
    "coming-from/": 0.25,
    "coming-from/random-modules.md": 2,
    "changelog.md": 0,
    "results.md": 0,
}
# CPU seconds of a run on two cores of an AMD EPYC that other programs used too.
SECONDS = {
    "burgers": 239,
    "co2": 41,
    "conditioning": 52,
    "diagnosing": 46,
    "digits": 163,
    "digits_as_fields": 44,
    "flow_vector_field": 79,
    "groups": 51,
    "neural_implicit_flow": 29,
    "one_module_five_meanings": 63,
    "quickstart": 67,
    "shapes": 74,
    "spacetime": 298,
    "which_posterior": 107,
}
_LINK = re.compile(
    r"(?P<mark>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]+)(?P<rest>[^)]*)\)"
)
_PRINTED = re.compile(r'(<div class="language-text)([ "].*?</div>)', flags=re.DOTALL)
_COLUMNS = re.compile(r"\S {2,}\S.*\n.*\S {2,}\S")
_SAVED = re.compile(r'savefig\(OUTPUT / "([\w.-]+\.png)"')


def on_config(config: MkDocsConfig) -> None:
    """List the tutorials in the navigation, their gallery first."""
    names = [f"tutorials/{path.stem}.md" for path in order(TUTORIALS)]
    for entry in config.nav or ():
        if "Tutorials" in entry:
            entry["Tutorials"] = ["tutorials/index.md", *names]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are made from files outside `docs`."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text()
        add(files, config, page, move_links(text, Path(source).parent))
    for path in TUTORIALS:
        add(files, config, f"tutorials/{path.stem}.md", tutorial(path))
    add(files, config, "tutorials/index.md", gallery())


def add(files: Files, config: MkDocsConfig, page: str, text: str) -> None:
    """Add a page with this text."""
    files.append(File.generated(config, page, content=text))


def move_links(text: str, folder: Path) -> str:
    """Turn links between files of the repository into links between pages.

    A link to a file that no page shows keeps its text alone. Badges are left out.
    """

    def move(match: re.Match[str]) -> str:
        if match["target"].startswith("http"):
            return match[0]
        page = page_of((folder / match["target"]).as_posix())
        if page is None:
            return match["text"]
        return f"{match['mark']}[{match['text']}]({page}{match['rest']})"

    text = re.sub(r"^\[!\[.*\n", "", text, flags=re.MULTILINE)
    return _LINK.sub(move, text)


def page_of(file: str) -> str | None:
    """Find the page or picture that shows a file of the repository, if there is one."""
    if file in PAGES:
        return PAGES[file]
    if file.startswith("docs/"):
        return file.removeprefix("docs/")
    if file.startswith("tutorials/") and file.endswith(".py"):
        return file.removesuffix(".py") + ".md"
    if not (ROOT / file).exists():
        raise PluginError(f"a page links to {file}, which is not in the repository.")
    return None


def order(paths: list[Path]) -> list[Path]:
    """Order the tutorials as the README lists them, new ones last."""
    readme = (ROOT / "README.md").read_text()
    return sorted(paths, key=lambda p: readme.find(p.name) % (len(readme) + 1))


def cells(path: Path) -> list[tuple[bool, str]]:
    """Split a py:percent script in cells: whether it is text, and what it says."""
    parts = re.split(r"^# %%(.*)\n", path.read_text(), flags=re.MULTILINE)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return [
        (True, re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip())
        if "[markdown]" in kind
        else (False, body.strip())
        for kind, body in pairs
    ]


def figures(path: Path) -> list[str]:
    """Find the figures of a tutorial: those that it saves."""
    return _SAVED.findall(path.read_text())


def tutorial(path: Path) -> str:
    """Render a tutorial: text, code in fences, figures where they are saved."""
    page = []
    for is_text, body in cells(path):
        page.append(body if is_text else f"```python\n{body}\n```")
        for name in () if is_text else _SAVED.findall(body):
            check_figure(path, name)
            page.append(f"![The figure {name} of this tutorial](../figures/{name})")
    page.append(f"The script is `tutorials/{path.name}`; `make tutorials` runs it.")
    return "\n\n".join(page)


def gallery() -> str:
    """Render the list of the tutorials: titles, first lines and pictures."""
    cards = []
    for path in order(TUTORIALS):
        text = cells(path)[0][1]
        title, summary = re.match(r"# (.*)\n\n((?:.+\n?)+)", text).groups()
        # What a colon announces stays in the tutorial.
        summary = re.sub(r":$", ".", summary.strip())
        names = figures(path)
        if not names:
            raise PluginError(f"{path.name} saves no figure: the gallery needs one.")
        check_figure(path, names[-1])
        cards.append(
            "<div markdown>\n\n"
            f"[![{title}](../figures/{names[-1]})]({path.stem}.md)\n\n"
            f"**[{title}]({path.stem}.md)**\n\n{summary}\n\n"
            f"{run_time(path.stem)}</div>"
        )
    return (
        "# Tutorials\n\nEach is a script that runs top to bottom and asserts what it "
        "claims. Start with [the station](quickstart.md), then learn "
        "[what to look at](diagnosing.md) and [which posterior](which_posterior.md) to "
        "take. The others stand by themselves.\n\n"
        'They need `pip install ".[tutorials]"`, in the folder of the repository. '
        "`make tutorials` installs it and runs them all. The run times are seconds of "
        "CPU, on two cores of an AMD EPYC (no GPU) that other programs used too."
        '\n\n<div class="gallery" markdown>\n\n' + "\n\n".join(cards) + "\n\n</div>\n"
    )


def run_time(name: str) -> str:
    """Say how long a tutorial runs, where it was measured."""
    return f"*{SECONDS[name]} s of CPU*\n\n" if name in SECONDS else ""


def check_figure(path: Path, name: str) -> None:
    """Raise if the repository holds no copy of a figure."""
    if not (ROOT / "docs" / "figures" / name).is_file():
        raise PluginError(
            f"docs/figures/{name}, which {path.name} saves, is missing: `make figures` "
            "runs the tutorials and copies their figures."
        )


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Leave Markdown as it is, and rank the page; one without a title is a mistake."""
    for start, rank in RANKS.items():
        if page.file.src_uri.startswith(start):
            page.meta["search"] = {"boost": rank} if rank else {"exclude": True}
    if not re.search(r"^# ", markdown, flags=re.MULTILINE):
        raise PluginError(f"{page.file.src_uri} has no title.")
    return markdown


def on_page_content(html: str, **kwargs: Any) -> str:
    """Mark printed text that has columns: it scrolls where other text wraps."""

    def mark(match: re.Match[str]) -> str:
        return f"{match[1]}{' columns' if _COLUMNS.search(match[2]) else ''}{match[2]}"

    return _PRINTED.sub(mark, html)
