"""The reference shows every public name, and no other."""

import inspect
import re

import docs_pages
import pytest

import pyrox_ppl as px
from pyrox_ppl import explanation, prediction
from pyrox_ppl.infer import data, guides, kernels, losses, optim, resumable

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


def shown(name):
    """Whether a page shows a name, at the top of the package or in one of its parts."""
    return any(place.rsplit(".", 1)[-1] == name for place in SHOWN)


@pytest.mark.parametrize("part", ["top", *PARTS])
def test_every_public_name_is_in_the_reference(part):
    if part == "top":
        names = {f"pyrox_ppl.{name}" for name in px.__all__}
        names -= {f"pyrox_ppl.{name}" for name in (*PARTS, "posterior")}
    else:
        module = getattr(px, part)
        names = {f"pyrox_ppl.{part}.{name}" for name in public_names(module)}
        # What stands at the top as well is shown there alone.
        names -= {f"pyrox_ppl.{part}.{name}" for name in px.__all__ if part != "scores"}
    assert not names - SHOWN, "add `::: NAME` to a page of docs/api"


@pytest.mark.parametrize(
    "room", [guides, kernels, losses, optim, data, resumable, prediction, explanation]
)
def test_nothing_that_a_room_offers_is_missing(room):
    assert not {name for name in public_names(room) if not shown(name)}


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_what_the_reference_shows_exists(name):
    value = px
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    assert inspect.getdoc(value)
