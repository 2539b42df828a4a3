"""BlackJAX, imported where a kernel needs it."""

import importlib
from typing import Any


def import_blackjax(module: str, kernel: str) -> Any:
    """Import a module of BlackJAX.

    Args:
        module: Its name within BlackJAX.
        kernel: The kernel that needs it, for the error.

    Raises:
        ImportError: If BlackJAX is not installed.
    """
    try:
        return importlib.import_module(f"blackjax.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "blackjax":
            raise
        raise ImportError(
            f"{kernel} steps BlackJAX's program, and BlackJAX is not installed: "
            'pip install "pyrox-ppl[samplers]".'
        ) from error
