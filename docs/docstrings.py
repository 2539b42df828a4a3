"""Docstrings as Markdown: the roles, formulas and examples that Sphinx would read."""

import re
from typing import Any

import griffe
import latex2mathml.converter

_ROLE = re.compile(r":(class|func|meth|mod|data|attr|exc):`(~?)([^`]+)`")
_INLINE = re.compile(r":math:`([^`]+)`")
_DISPLAY = re.compile(
    r"^(?P<indent> *)\.\. math::[ ]*(?P<first>.*)\n(?P<rest>(?:(?P=indent) +.*\n|\n)*)",
    re.MULTILINE,
)
_LITERAL = re.compile(
    r"^(?P<indent> *)(?P<text>\S.*)::\n\n(?P<code>(?:(?P=indent) +.*\n|\n)+)",
    re.MULTILINE,
)


class SphinxToMarkdown(griffe.Extension):
    """Rewrites each docstring of the package before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Turn roles into links, formulas into MathML, literal blocks into fences."""
    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
    text = _DISPLAY.sub(_display, text + "\n")
    text = _LITERAL.sub(_fence, text)
    text = _INLINE.sub(lambda m: _mathml(m[1], "inline"), text)
    return _ROLE.sub(_link, text)


def _link(match: re.Match[str]) -> str:
    target = match[3]
    shown = target.rsplit(".", 1)[-1] if match[2] else target
    if match[1] == "mod" or not target.startswith("pyrox_ppl"):
        return f"`{shown}`"
    return f"[`{shown}`][{target}]"


def _display(match: re.Match[str]) -> str:
    formula = " ".join(f"{match['first']} {match['rest']}".split())
    return f"{match['indent']}{_mathml(formula, 'block')}\n\n"


def _fence(match: re.Match[str]) -> str:
    indent, code = match["indent"], match["code"].rstrip("\n")
    return f"{indent}{match['text']}:\n\n{indent}```python\n{code}\n{indent}```\n\n"


def _mathml(formula: str, display: str) -> str:
    text = latex2mathml.converter.convert(" ".join(formula.split()), display=display)
    # The converter takes the relation for a name, which has no space around it.
    text = text.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")
    # Markdown would take a formula at the beginning of a line for a block.
    return text if display == "block" else f"<span>{text}</span>"
