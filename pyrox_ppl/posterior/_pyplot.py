"""matplotlib's pyplot, imported when a picture is drawn."""

import importlib
from typing import Any


def pyplot(function: str) -> Any:
    """Import pyplot for a function, or say how to install it."""
    try:
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise ImportError(
            f"{function} needs matplotlib, which is not installed: "
            "`pip install 'pyrox-ppl[plots]'`."
        ) from error
