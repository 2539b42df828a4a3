"""What a run on disk must be continued with, and an error where that has changed."""

import hashlib
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib.version
import numpy as np
import numpyro
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal  # pyright: ignore[reportPrivateImportUsage] - jax.extend marks no exports
from numpyro import handlers

from pyrox_ppl._version import __version__
from pyrox_ppl.infer._arrays import digest, flat
from pyrox_ppl.infer.resumable._code import describe_code, show
from pyrox_ppl.infer.resumable._disk import warn_user

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class Fingerprint(NamedTuple):
    """What a run must be continued with.

    The fields are compared in this order. The first difference is reported, because it
    explains the later ones.
    """

    kind: str
    settings: dict[str, Any]
    rng_key: str
    arguments: dict[str, str]
    sites: dict[str, str]
    environment: dict[str, str]
    program: str
    code: dict[str, str]
    evaluation: dict[str, Any]
    start: str


_MEANING = {
    "kind": "the kinds of run",
    "settings": "the settings",
    "rng_key": "the keys",
    "arguments": "the arguments of the model",
    "sites": "the sites of the model",
    "environment": "the environments",
    "program": "the computations of the model, or of the kernel or optimiser,",
    "code": "the Python functions that the model calls back",
    "evaluation": "the computations of the held-out loss",
    "start": "the initial states (by settings of the kernel, or initial parameters)",
}
# What may differ between two environments though the model is the same.
_BOUND_TO_ENVIRONMENT = ("environment", "program", "code", "evaluation", "start")


def take_fingerprint(
    kind: str,
    *,
    settings: dict[str, Any],
    rng_key: Any,
    arguments: dict[str, Any],
    model: tuple[Callable | None, tuple, dict[str, Any]],
    step: tuple[Callable, tuple],
    start: Any,
    evaluation: tuple[Callable, tuple] | None = None,
) -> Fingerprint:
    """Describe a run.

    `model` comes with its arguments and keyword arguments; `step`, the compiled
    function of the run, and `evaluation`, the compiled held-out loss, come with example
    arguments.
    """
    return Fingerprint(
        kind=kind,
        settings=settings,
        rng_key=digest(rng_key),
        arguments=_describe_arguments(arguments),
        sites=_describe_sites(*model),
        environment=_describe_environment(),
        **describe_program(*step),
        evaluation={} if evaluation is None else describe_program(*evaluation),
        start=digest(start),
    )


def name_arguments(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a model by the names that an error calls them."""
    return {**{f"argument {i}": value for i, value in enumerate(args)}, **kwargs}


def _describe_environment() -> dict[str, str]:
    """Everything besides the program that decides the bits of a result."""
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


def _describe_arguments(arguments: dict[str, Any]) -> dict[str, str]:
    """Every leaf of the arguments, by its path."""
    names, leaves = flat(arguments)
    return {n: show(leaf, digest) for n, leaf in zip(names, leaves, strict=True)}


def _describe_sites(
    model: Callable | None, args: tuple, kwargs: dict[str, Any]
) -> dict[str, str]:
    """Type, distribution, shape and dtype of every site of a model, by name."""
    sites: dict[str, str] = {}
    if model is None:
        return sites

    def record() -> None:
        seeded = handlers.seed(model, jax.random.key(0))
        for name, site in handlers.trace(seeded).get_trace(*args, **kwargs).items():
            function = type(site.get("fn")).__name__ if site["type"] == "sample" else ""
            observed = "observed" if site.get("is_observed") else ""
            dtype = getattr(site["value"], "dtype", type(site["value"]).__name__)
            words = (site["type"], observed, function, np.shape(site["value"]), dtype)
            sites[name] = " ".join(str(word) for word in words if word != "")

    jax.eval_shape(record)
    return sites


def describe_program(function: Callable, args: tuple) -> dict[str, Any]:
    """Describe what a function computes: the parts ``program`` and ``code`` of a run.

    ``program`` is the hash of its jaxpr and of all constants in it, also those of
    functions that are compiled within it. ``code`` describes the Python functions that
    it calls at run time (``jax.pure_callback``): a jaxpr shows only their names.
    """
    traced = jax.make_jaxpr(function)(*args)
    text = _ADDRESS.sub("", str(traced))
    constants: list[Any] = []
    callbacks: list[Callable] = []
    _collect_hidden(traced, constants, callbacks)
    code: dict[str, str] = {}
    for index, callback in enumerate(callbacks):
        name = getattr(callback, "__qualname__", type(callback).__qualname__)
        code |= describe_code(callback, f"callback {index} {name}")
    text = hashlib.sha256(text.encode()).hexdigest()
    return {"program": digest(text, constants), "code": code}


def _collect_hidden(part: Any, constants: list[Any], callbacks: list[Callable]) -> None:
    """Collect what the text of a jaxpr leaves out."""
    if isinstance(part, ClosedJaxpr | Jaxpr):
        constants.extend(getattr(part, "consts", ()))
        for equation in part.eqns:
            constants.extend(
                atom.val for atom in equation.invars if isinstance(atom, Literal)
            )
            # A callback that prints or logs decides no result.
            if "debug" not in equation.primitive.name:
                given = equation.params.get("callback")
                if given is not None:
                    callbacks.append(getattr(given, "callback_func", given))
            _collect_hidden(list(equation.params.values()), constants, callbacks)
    elif isinstance(part, np.ndarray):
        constants.append(part)
    elif isinstance(part, list | tuple):
        for item in part:
            _collect_hidden(item, constants, callbacks)


def check(
    stored: dict[str, Any],
    current: Fingerprint,
    path: Path,
    allow_other_environment: bool,
) -> None:
    """Compare what a run was begun with to what it would be continued with.

    In another environment the same model may print as another program, and its initial
    state may have other last bits. Where that is allowed they are not compared.

    Raises:
        ValueError: If they differ; it says in what.
    """
    elsewhere = stored.get("environment") != current.environment
    for part, now in current._asdict().items():
        before, meaning = stored.get(part), _MEANING[part]
        if before == now:
            continue
        if allow_other_environment and elsewhere and part in _BOUND_TO_ENVIRONMENT:
            if part in ("program", "code", "evaluation"):
                warn_user(
                    f"{path} was begun in another environment, where {meaning} were "
                    "written differently, so a change of them cannot be detected: make "
                    "sure that the model and its kernel or optimiser are those that "
                    "the run was begun with."
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
            advice += _lengthen(before or {}, now)
        raise ValueError(
            f"{path} holds another run: {meaning} differ"
            f"{_differences(before, now)}. {advice}. Nothing on disk was changed."
        )


def _lengthen(before: dict[str, Any], now: dict[str, Any]) -> str:
    """How to lengthen a run, where its length is the only difference."""
    changed = {n for n in {**before, **now} if before.get(n) != now.get(n)}
    # By default a segment is a fraction of the run, and so changes with its length.
    longer = changed - {"segment"}
    if longer == {"num_samples"}:
        return (
            ". For more draws, finish this run as it was begun, and sample the rest "
            "under a new path from where it ended: "
            "rest = MCMC(kernel, num_warmup=..., num_samples=<how many more>); "
            "rest.post_warmup_state = mcmc.last_state; "
            "run_mcmc(rest, mcmc.last_state.rng_key, ..., path=new_path)"
        )
    if longer in ({"num_steps"}, {"num_epochs"}):
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
    shown = [
        f"{name} was {before.get(name, 'absent')} and is {now.get(name, 'absent')}"
        for name in names[:5]
    ]
    more = f", and {len(names) - 5} more" if len(names) > 5 else ""
    return f" ({'; '.join(shown)}{more})"


def _processor() -> str:
    """The name of the processor: XLA compiles other code for another one."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.machine()} {platform.processor()}, {os.cpu_count()} cores"
