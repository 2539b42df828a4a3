"""The reference shows every public name, and no other."""

import inspect
import re

import docs_pages
import pytest

import pyrox_ppl as px
from pyrox_ppl import explanation, prediction

API = docs_pages.DOCS / "api"
SHOWN = {
    name
    for page in API.glob("*.md")
    for name in re.findall(r"^::: (\S+)$", page.read_text(), flags=re.MULTILINE)
}
PARTS = ("nn", "priors", "infer", "scores", "posterior")


def public_names(module):
    """The public names of a part: `__all__`, or what its `__init__` imports."""
    if hasattr(module, "__all__"):
        return set(module.__all__)
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }


@pytest.mark.parametrize("part", ["top", *PARTS])
def test_every_public_name_is_in_the_reference(part):
    if part == "top":
        names = {f"pyrox_ppl.{name}" for name in px.__all__}
        names -= {f"pyrox_ppl.{name}" for name in PARTS}
    else:
        module = getattr(px, part)
        names = {f"pyrox_ppl.{part}.{name}" for name in public_names(module)}
        # What stands at the top as well is shown there alone.
        names -= {f"pyrox_ppl.{part}.{name}" for name in px.__all__ if part != "scores"}
    assert not names - SHOWN, "add `::: NAME` to a page of docs/api"


@pytest.mark.parametrize("room", [prediction, explanation])
def test_what_a_room_offers_is_in_the_reference(room):
    shown = {name.rsplit(".", 1)[-1] for name in SHOWN}
    assert not public_names(room) - shown, "add `::: NAME` to a page of docs/api"


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_what_the_reference_shows_exists(name):
    value = px
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    assert inspect.getdoc(value)
