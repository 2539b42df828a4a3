"""What a run on disk must be continued with, and what an error says if it is not."""

import hashlib
import os
import platform
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jaxlib.version
import numpy as np
import numpyro
from numpyro import handlers

from pyrox_ppl._version import __version__
from pyrox_ppl.infer._arrays import digest, flat

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
# In the order in which a difference is told: the first explains those after it.
_MEANING = {
    "kind": "the kinds of run",
    "settings": "the settings",
    "key": "the keys",
    "arguments": "the arguments of the model",
    "sites": "the sites of the model",
    "environment": "the environments",
    "program": "the computations of the model, or of the kernel or optimiser,",
    "start": "the initial states (by settings of the kernel, or initial parameters)",
}

_OF_ENVIRONMENT = ("environment", "program", "start")


def environment() -> dict[str, str]:
    """All but the program that decides the bits of a result."""
    device = jax.devices()[0]
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "numpy": np.__version__,
        "numpyro": numpyro.__version__,
        "pyrox_ppl": __version__,
        "device": f"{device.platform} {device.device_kind}",
        "machine": _processor(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "jax_enable_x64": str(jax.config.jax_enable_x64),
        "jax_default_matmul_precision": str(jax.config.jax_default_matmul_precision),
    }


def arguments(args: tuple, kwargs: dict[str, Any], **more: Any) -> dict[str, str]:
    """The digest of every array and other leaf of the arguments, by its path."""
    numbered = {f"argument {i}": value for i, value in enumerate(args)}
    names, leaves = flat({**numbered, **kwargs, **more})
    return {name: digest(leaf) for name, leaf in zip(names, leaves, strict=True)}


def sites_of(model: Callable | None, args: tuple, kwargs: dict[str, Any]) -> dict:
    """Name -> type, distribution, shape and dtype of every site of a model."""
    found: dict[str, str] = {}
    if model is None:
        return found

    def record() -> None:
        seeded = handlers.seed(model, jax.random.key(0))
        for name, site in handlers.trace(seeded).get_trace(*args, **kwargs).items():
            function = type(site.get("fn")).__name__ if site["type"] == "sample" else ""
            observed = "observed" if site.get("is_observed") else ""
            dtype = getattr(site["value"], "dtype", type(site["value"]).__name__)
            words = (site["type"], observed, function, np.shape(site["value"]), dtype)
            found[name] = " ".join(str(word) for word in words if word != "")

    jax.eval_shape(record)
    return found


def program(function: Callable, args: tuple) -> str:
    """The hash of what a function computes: its jaxpr and the constants in it."""
    traced = jax.make_jaxpr(function)(*args)
    text = _ADDRESS.sub("", str(traced))
    return digest(hashlib.sha256(text.encode()).hexdigest(), list(traced.consts))


def check(
    stored: dict[str, Any],
    current: dict[str, Any],
    path: Path,
    any_environment: bool,
) -> None:
    """Compare what a run was begun with to what it would be continued with.

    In another environment the same model may print as another program, and its initial
    state have other last bits. Where that is allowed they are not compared.

    Raises:
        ValueError: If they differ; it says in what.
    """
    elsewhere = stored.get("environment") != current.get("environment")
    for part, meaning in _MEANING.items():
        before, now = stored.get(part), current.get(part)
        if before == now:
            continue
        if any_environment and elsewhere and part in _OF_ENVIRONMENT:
            if part == "program":
                warnings.warn(
                    f"{path} was begun in another environment, where {meaning} were "
                    "written otherwise, so that a change of them would not be seen: "
                    "see to it that the model and its kernel or optimiser are the ones "
                    "that the run was begun with.",
                    stacklevel=5,
                )
            continue
        advice = (
            "Continue it where it was begun, or pass any_environment=True: the draws "
            "then stay correct, but are not bit for bit those of an uninterrupted run"
            if part == "environment"
            else "Start again with what the run was begun with, or give a new path"
        )
        raise ValueError(
            f"{path} holds another run: {meaning} differ"
            f"{_differences(before, now)}. {advice}. Nothing on disk was changed."
        )


def _differences(before: Any, now: Any) -> str:
    if not isinstance(before, dict) or not isinstance(now, dict):
        return ""
    names = [n for n in {**before, **now} if before.get(n) != now.get(n)]
    told = [
        f"{name} was {before.get(name, 'absent')} and is {now.get(name, 'absent')}"
        for name in names[:5]
    ]
    more = f", and {len(names) - 5} more" if len(names) > 5 else ""
    return f" ({'; '.join(told)}{more})"


def _processor() -> str:
    """The processor's name: XLA writes other code for another one."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.machine()} {platform.processor()}, {os.cpu_count()} cores"
