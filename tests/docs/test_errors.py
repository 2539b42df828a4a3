"""The error pages: each program raises the error that is shown, and its mend runs."""

import functools
import re

import docs_pages
import pytest

ERRORS = sorted((docs_pages.DOCS / "errors").glob("*.md"))


def entries():
    """A page, its common code, and of each entry the program, its error, its mend."""
    for path in ERRORS:
        setup, *parts = re.split(r"^## ", path.read_text(), flags=re.MULTILINE)
        common = [code for kind, code in docs_pages.fences(setup) if kind == "python"]
        for part in parts:
            title, blocks = part.splitlines()[0], docs_pages.fences(part)
            yield pytest.param("\n".join(common), blocks, id=f"{path.stem}: {title}")


ENTRIES = list(entries())


@functools.cache
def run_common(code):
    """Run the common code of a page, once."""
    names = {"__name__": "page"}
    docs_pages.run(code, names, "setup")
    return names


def pattern_of(shown):
    """A regular expression for an error as a page shows it, where ``...`` is a gap."""
    words = " ".join(shown.split())
    return ".*".join(map(re.escape, words.split("..."))) + "$"


@pytest.mark.rank_promotion
@pytest.mark.wrong_types
@pytest.mark.parametrize(("common", "blocks"), ENTRIES)
def test_the_program_raises_what_is_shown_and_the_mend_runs(
    common, blocks, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (_, program), (kind, shown), (_, mend) = blocks
    assert kind == "text"
    broken, mended = run_common(common).copy(), run_common(common).copy()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - compared in full below
        docs_pages.run(program, broken, "program")
    error = f"{type(caught.value).__name__}: {caught.value}"
    assert re.match(pattern_of(shown), " ".join(error.split())), error
    docs_pages.run(mend, mended, "mend")


def test_there_are_entries_for_every_kind_of_mistake():
    assert len(ENTRIES) >= 30
