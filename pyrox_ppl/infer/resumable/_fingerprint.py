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
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal  # pyright: ignore[reportPrivateImportUsage] - jax.extend marks no exports
from numpyro import handlers

from pyrox_ppl._version import __version__
from pyrox_ppl.infer._arrays import digest, flat
from pyrox_ppl.infer.resumable._code import describe_code

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
    "code": "the Python functions that the model calls back",
    "evaluation": "the computations of the held-out loss",
    "start": "the initial states (by settings of the kernel, or initial parameters)",
}

_OF_ENVIRONMENT = ("environment", "program", "code", "evaluation", "start")


def environment() -> dict[str, str]:
    """All but the program that decides the bits of a result."""
    device = jax.devices()[0]
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "numpy": np.__version__,
        "numpyro": numpyro.__version__,
        "python": platform.python_version(),
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


def program(function: Callable, args: tuple) -> dict[str, Any]:
    """What a function computes, as the parts ``program`` and ``code`` of a run.

    Its jaxpr and the constants in it, those of functions compiled within it too; and
    the Python functions that it calls at run time (``jax.pure_callback``), of which a
    jaxpr says nothing but the name.
    """
    traced = jax.make_jaxpr(function)(*args)
    text = _ADDRESS.sub("", str(traced))
    constants: list[Any] = []
    callbacks: list[Callable] = []
    _look_into(traced, constants, callbacks)
    code: dict[str, str] = {}
    for index, callback in enumerate(callbacks):
        name = getattr(callback, "__qualname__", type(callback).__qualname__)
        code |= describe_code(callback, f"callback {index} {name}")
    text = hashlib.sha256(text.encode()).hexdigest()
    return {"program": digest(text, constants), "code": code}


def _look_into(part: Any, constants: list[Any], callbacks: list[Callable]) -> None:
    """Collect what the text of a jaxpr leaves out."""
    if isinstance(part, ClosedJaxpr | Jaxpr):
        constants.extend(getattr(part, "consts", ()))
        for equation in part.eqns:
            constants.extend(
                atom.val for atom in equation.invars if isinstance(atom, Literal)
            )
            # One that prints or logs decides no result.
            if "debug" not in equation.primitive.name:
                given = equation.params.get("callback")
                if given is not None:
                    callbacks.append(getattr(given, "callback_func", given))
            _look_into(list(equation.params.values()), constants, callbacks)
    elif isinstance(part, np.ndarray):
        constants.append(part)
    elif isinstance(part, list | tuple):
        for item in part:
            _look_into(item, constants, callbacks)


def check(
    stored: dict[str, Any],
    current: dict[str, Any],
    path: Path,
    allow_other_environment: bool,
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
        if allow_other_environment and elsewhere and part in _OF_ENVIRONMENT:
            if part in ("program", "code", "evaluation"):
                warnings.warn(
                    f"{path} was begun in another environment, where {meaning} were "
                    "written otherwise, so that a change of them would not be seen: "
                    "see to it that the model and its kernel or optimiser are the ones "
                    "that the run was begun with.",
                    stacklevel=5,
                )
            continue
        advice = (
            "Continue it where it was begun, or pass allow_other_environment=True: "
            "the draws then stay correct, but are not bit for bit those of an "
            "uninterrupted run"
            if part == "environment"
            else "Start again with what the run was begun with, or give a new path"
        )
        if part == "settings":
            advice += _way_on(before or {}, now or {})
        raise ValueError(
            f"{path} holds another run: {meaning} differ"
            f"{_differences(before, now)}. {advice}. Nothing on disk was changed."
        )


def _way_on(before: dict[str, Any], now: dict[str, Any]) -> str:
    """How to lengthen a run, where that is the only difference."""
    longer = {n for n in {**before, **now} if before.get(n) != now.get(n)}
    if longer - {"segment"} == {"num_samples"}:
        return (
            ". For more draws, finish this run as it was begun, and sample the rest "
            "under a new path from where it ended: "
            "rest = MCMC(kernel, num_warmup=..., num_samples=<how many more>); "
            "rest.post_warmup_state = mcmc.last_state; "
            "run_mcmc(rest, mcmc.last_state.rng_key, ..., path=new_path)"
        )
    if longer - {"segment"} in ({"num_steps"}, {"epochs"}):
        return (
            ". For more steps, finish this run as it was begun, and start another one "
            "under a new path at its parameters: init_params=result.params (the "
            "optimiser begins anew)"
        )
    return ""


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
