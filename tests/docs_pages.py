"""The Markdown pages of `docs`, and the code in them."""

import re
from pathlib import Path

import pyrox_ppl

ROOT = Path(pyrox_ppl.__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def fences(text):
    """The fenced blocks of a page, in order: their language and their text."""
    return [
        (language, re.sub(rf"^{indent}", "", body, flags=re.MULTILINE))
        for indent, language, body in _FENCE.findall(text)
    ]


def run(block, names, where):
    """Run a block of code among the names of its page."""
    exec(compile(block, where, "exec"), names)


def without_numbers(text):
    """The words of what a program prints; digits differ from machine to machine."""
    return re.sub(r"-?\d[\d.,]*", "#", text).split()
