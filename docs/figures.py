"""Copies the figures of the tutorials, small, and draws README's and Quickstart's."""

import contextlib
import re
import tempfile
from pathlib import Path

import matplotlib as mpl
from PIL import Image

mpl.use("agg")
HERE = Path(__file__).parent
FIGURES = HERE / "figures"
WIDTH = 1200  # pixels: twice a column, for sharp screens


def shrink(source: Path) -> None:
    """Copy a figure at the width of a page, in 128 colours."""
    image = Image.open(source).convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)))
    image.quantize(128).save(FIGURES / source.name, optimize=True)


def draw(page: Path, name: str, blocks: int | None = None) -> None:
    """Draw the `figure` that the first blocks of a page make."""
    names: dict = {"__name__": page.stem}
    found = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    for block in found[:blocks]:
        exec(compile(block, page.name, "exec"), names)
    names["figure"].savefig(FIGURES / name, dpi=200)
    shrink(FIGURES / name)


def main() -> None:
    """Write every figure that the pages show."""
    FIGURES.mkdir(exist_ok=True)
    for source in sorted((HERE.parent / "tutorials" / "output").glob("*.png")):
        shrink(source)
    draw(HERE.parent / "README.md", "readme.png", blocks=3)
    # Quickstart writes files: it runs where they may lie.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        draw(HERE / "quickstart.md", "first_fit.png")


if __name__ == "__main__":
    main()
