"""The manifest of a run on disk: what of its files counts, under a seal."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pyrox_ppl.infer._arrays import canonical

FORMAT = 1
MANIFEST, PREVIOUS = "manifest.json", "manifest.previous.json"


def read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        whole = json.loads(file.read_bytes())
        manifest = whole["manifest"]
        seal = hashlib.sha256(canonical(manifest).encode()).hexdigest()
        intact = seal == whole["sha256"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(_damaged_manifest(path, error)) from error
    if not intact:
        raise ValueError(_damaged_manifest(path, "its checksum does not fit"))
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"{file} has format {manifest['format']}, and this version of pyrox_ppl "
            f"reads {FORMAT}: finish the run with the version that began it."
        )
    return manifest


def _damaged_manifest(path: Path, why: Any) -> str:
    return (
        f"{path / MANIFEST} is damaged ({why}). Nothing was changed, and the "
        f"committed blocks are still there{spare(path)}."
    )


def spare(path: Path) -> str:
    """How to go back to the commit before, if it is there."""
    if not (path / PREVIOUS).is_file():
        return ""
    return (
        f"; or copy {PREVIOUS} over {MANIFEST}, which goes back by one commit and "
        "makes the same draws again"
    )


def sealed(manifest: dict[str, Any]) -> bytes:
    """A manifest as the content of its file, with its hash."""
    seal = hashlib.sha256(canonical(manifest).encode()).hexdigest()
    return json.dumps({"sha256": seal, "manifest": manifest}, indent=1).encode()
