"""What the pictures share: pyplot, imported when one is drawn, and legends below."""

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


def put_legend_below(axis: Any, columns: int) -> None:
    """Put the legend below the label of the x axis, where no data lie."""
    axis.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        borderaxespad=4.5,
        ncols=columns,
        columnspacing=1.2,
        fontsize="small",
        frameon=False,
    )
