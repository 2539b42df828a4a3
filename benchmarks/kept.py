"""Rows of a long benchmark, each kept in a file of its own as soon as it is measured.

A benchmark that was killed continues with the rows that are missing.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Kept:
    """The rows in a folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str) -> dict[str, Any] | None:
        """A row, or None if it is not there yet."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def measure(self, name: str, function: Callable[[], Any]) -> Any:
        """The row of this name, measured if it is not there yet.

        What could not be measured, None, is measured again next time.
        """
        row = self.get(name)
        if row is None:
            row = function()
            # Renamed when complete: a file that is there is whole.
            draft = self.folder / f"{name}.draft"
            draft.write_text(json.dumps(row))
            os.replace(draft, self.folder / f"{name}.json")
        return row
