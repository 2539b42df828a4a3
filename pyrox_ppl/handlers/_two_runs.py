"""Two runs of a model: one that meets the handlers outside, and one that repeats it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from numpyro.distributions import biject_to
from numpyro.primitives import Messenger

from pyrox_ppl._dependence import mark
from pyrox_ppl._distribution_parameters import Parts, take_apart
from pyrox_ppl._layer_state import copy_state

# Messages that ask something of the handlers outside, and change nothing.
_HARMLESS = ("inspect", "subsample", "parameter")


class FirstRun(Messenger):
    """A run whose latents, plates and params are the handlers' outside.

    The other sites are hidden: their distributions are not known yet. The values that
    the handlers give are kept for the second run.

    Attributes:
        mode: The values of `at`, unconstrained.
        direction: How far the latents are from there, unconstrained.
        transforms: The maps from unconstrained to constrained values.
        given: The messages of named sites that are not latent.
        unnamed: The values of messages without a name, in their order, by type.
    """

    def __init__(self, at: Mapping[str, Any]) -> None:
        super().__init__()
        self._at = at
        self.mode: dict[str, jax.Array] = {}
        self.direction: dict[str, jax.Array] = {}
        self.transforms: dict[str, Any] = {}
        self.given: dict[tuple[str, str], dict[str, Any]] = {}
        self.unnamed: dict[str, list[Any]] = {}

    def is_latent(self, msg: dict[str, Any]) -> bool:
        """Whether the model is linearised in a site."""
        return msg["type"] == "sample" and msg["name"] in self._at

    def process_message(self, msg: Any) -> None:
        """Hide a site that depends on the latents."""
        if is_output(msg) and not self.is_latent(msg):
            msg["stop"] = True
            if msg["value"] is None:
                msg["value"] = _placeholder(msg)

    def postprocess_message(self, msg: Any) -> None:
        """Keep the value that a site has got."""
        if self.is_latent(msg):
            self._keep_latent(msg)
        elif msg["type"] in ("prng_key", "control_flow"):
            key = msg["kwargs"]["rng_key"] if msg["type"] == "control_flow" else None
            value = key if msg["type"] == "control_flow" else msg["value"]
            self.unnamed.setdefault(msg["type"], []).append(value)
        elif not is_output(msg) and not is_harmless(msg):
            kept = dict(msg)
            kept["value"] = copy_state(msg["value"])
            kept["cond_indep_stack"] = list(msg.get("cond_indep_stack", ()))
            self.given.setdefault((msg["type"], msg["name"]), kept)

    def _keep_latent(self, msg: dict[str, Any]) -> None:
        name, fn = msg["name"], msg["fn"]
        if fn.support.is_discrete:
            raise ValueError(
                f"the site {name!r} is discrete, so nothing can be linearised in it: "
                "leave it out of `at`."
            )
        value = jnp.asarray(msg["value"])
        point = jnp.asarray(self._at[name])
        if point.shape != value.shape:
            raise ValueError(
                f"`at` has a value of shape {point.shape} for {name!r}, which has the "
                f"shape {value.shape} in this run of the model. If the site is on a "
                "plate of the data, the model has other rows now."
            )
        transform: Any = biject_to(fn.support)
        self.transforms[name] = transform
        self.mode[name] = mode = transform.inv(point.astype(value.dtype))
        self.direction[name] = transform.inv(value) - mode

    def check(self) -> None:
        """Refuse a point of which the model does not have all sites.

        Raises:
            ValueError: If it does not.
        """
        missing = [name for name in self._at if name not in self.mode]
        if missing:
            raise ValueError(
                f"`at` has values of {missing}, and the model with these arguments has "
                "no such latent sites: give the point of this model, such as "
                "guide.median(fit.params)."
            )


class SecondRun(Messenger):
    """A run that repeats the first one at other latents; a block around it hides it.

    Attributes:
        outputs: The sites that are neither latent nor given, in their order.
    """

    def __init__(self, first: FirstRun, unconstrained: Mapping[str, jax.Array]) -> None:
        super().__init__()
        self._first = first
        self._latents = {
            name: first.transforms[name](value) for name, value in unconstrained.items()
        }
        self._unnamed = {kind: iter(v) for kind, v in first.unnamed.items()}
        self._marked: list[jax.Array] = []
        self.outputs: list[Output] = []

    def marked(self) -> list[jax.Array]:
        """The marked values of the sites whose value nothing may depend on."""
        return self._marked

    def process_message(self, msg: Any) -> None:
        """Give a site the value that it has got in the first run."""
        if is_harmless(msg):
            return
        if msg["type"] == "prng_key":
            msg["value"] = next(self._unnamed["prng_key"])
        elif msg["type"] == "control_flow":
            msg["kwargs"]["rng_key"] = next(self._unnamed["control_flow"])
            msg["kwargs"]["substitute_stack"].append(("substitute", self._latents))
        elif self._first.is_latent(msg):
            msg["value"] = self._latents[msg["name"]]
        elif is_output(msg):
            self._keep_output(msg)
        else:
            first = self._first.given[msg["type"], msg["name"]]
            msg["args"] = first["args"]
            msg["value"] = copy_state(first["value"])
            if "cond_indep_stack" in msg:
                # A plate outside decides which axis one inside takes.
                msg["cond_indep_stack"] = list(first["cond_indep_stack"])

    def _keep_output(self, msg: dict[str, Any]) -> None:
        is_sample = msg["type"] == "sample"
        if is_sample and msg.get("_control_flow_done"):
            raise ValueError(
                f"the sample site {msg['name']!r} is inside a scan or cond, and is no "
                "latent at which the model is linearised: observe it after the scan, "
                "or use draws that are not linearised, "
                "AutoLaplace(model, linearized=False)."
            )
        kept = dict(msg)
        kept["cond_indep_stack"] = list(msg["cond_indep_stack"])
        kept.pop("_control_flow_done", None)
        parts = take_apart(msg["fn"]) if is_sample else None
        contents = {
            "value": msg["value"],
            "scale": msg.get("scale"),
            "arrays": parts.arrays if parts else {},
            "unconstrained": (
                {name: parts.unconstrain(name) for name in parts.transforms}
                if parts
                else {}
            ),
        }
        # A value that was given inside the model stays; a draw or an observation may
        # become another one outside, which the linear model could not follow.
        is_marked = is_sample and (msg["is_observed"] or msg["value"] is None)
        self.outputs.append(Output(kept, parts, *split_tracers(contents), is_marked))
        if is_marked:
            value = _placeholder(msg) if msg["value"] is None else msg["value"]
            msg["value"] = jax.tree.map(mark, value)
            self._marked.extend(jax.tree.leaves(msg["value"]))


@dataclasses.dataclass(frozen=True)
class Output:
    """A site that is neither latent nor given, as a run of the model made it.

    Attributes:
        message: Its message, when it left the model.
        parts: The parts of its distribution; None if it is deterministic.
        contents: Its arrays, as leaves: those that were traced are absent.
        structure: How the leaves go together.
        traced: The traced arrays.
        is_marked: Whether nothing may depend on its value.
    """

    message: dict[str, Any]
    parts: Parts | None
    contents: list[Any]
    structure: Any
    traced: list[Any]
    is_marked: bool

    @property
    def name(self) -> str:
        """The name of the site."""
        return self.message["name"]

    def put(self, values: list[Any]) -> dict[str, Any]:
        """The contents, with values in place of the traced arrays."""
        given = iter(values)
        leaves = [next(given) if x is _TRACED else x for x in self.contents]
        return jax.tree.unflatten(self.structure, leaves)

    def put_marks(self, values: list[bool]) -> dict[str, Any]:
        """A boolean for each array: False for those that were not traced."""
        given = iter(values)
        marks = [next(given) if x is _TRACED else False for x in self.contents]
        # The leaves of a distribution or transform must not be booleans.
        return _by_path(self.structure, marks)


_TRACED = object()


def split_tracers(contents: dict[str, Any]) -> tuple[list[Any], Any, list[Any]]:
    """The leaves of a tree, its structure, and the leaves that are traced."""
    leaves, structure = jax.tree.flatten(contents)
    traced = [leaf for leaf in leaves if isinstance(leaf, Tracer)]
    rest = [_TRACED if isinstance(leaf, Tracer) else leaf for leaf in leaves]
    return rest, structure, traced


def _by_path(structure: Any, leaves: list[Any]) -> dict[str, Any]:
    """The leaves by the first two steps of their paths."""
    numbered = jax.tree.unflatten(structure, list(range(len(leaves))))
    out: dict[str, Any] = {}
    for part, value in numbered.items():
        if part in ("arrays", "unconstrained"):
            out[part] = {
                name: [leaves[i] for i in jax.tree.leaves(tree)]
                for name, tree in value.items()
            }
        else:
            out[part] = [leaves[i] for i in jax.tree.leaves(value)]
    return out


def is_harmless(msg: dict[str, Any]) -> bool:
    """Whether a message only asks something of the handlers outside."""
    return msg["type"] in _HARMLESS


def is_output(msg: dict[str, Any]) -> bool:
    """Whether a message is of a site that may depend on the latents."""
    return msg["type"] in ("sample", "deterministic")


def _placeholder(msg: dict[str, Any]) -> jax.Array:
    """A value for a site that nothing may depend on."""
    fn = msg["fn"]
    shape = (*msg["kwargs"]["sample_shape"], *fn.shape())
    zeros = jnp.zeros(shape, int if fn.is_discrete else float)
    return zeros if fn.support is None else fn.support.feasible_like(zeros)
