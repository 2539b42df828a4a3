"""Copies the figures of the tutorials, small, and draws that of the README."""

import re
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


def main() -> None:
    """Write every figure that the pages show."""
    FIGURES.mkdir(exist_ok=True)
    for source in sorted((HERE.parent / "tutorials" / "output").glob("*.png")):
        shrink(source)
    readme = (HERE.parent / "README.md").read_text()
    names: dict = {"__name__": "readme"}
    for block in re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[:3]:
        exec(compile(block, "README.md", "exec"), names)
    names["figure"].savefig(FIGURES / "readme.png", dpi=200)
    shrink(FIGURES / "readme.png")


if __name__ == "__main__":
    main()
