"""Parameters of a module: their records, names, roles and tied leaves."""

import dataclasses
import re
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from pyrox_ppl._fans import NormPart, fan_out_of_shape
from pyrox_ppl._leaves import Leaf, Role, at_all_places, leaves_of


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a module, as a ``where`` or ``prior`` callable sees it.

    Attributes:
        name: The dotted site name, for example
            ``"conditioned_inr.conditioners.0.generator.weight"``, with the prefix of
            every :func:`~pyrox_ppl.scope` between the read and the handler that asks.
        path: The place in the module, without root and prefixes:
            ``("conditioners", 0, "generator", "weight")``.
        shape: Shape of the stored array.
        dtype: dtype of the stored array; the value that replaces it is cast to it.
        role: ``"generator"`` if the parameter makes a conditioning (it belongs to a
            conditioner, or to a network that generates features), or if its module
            holds no generator at all; ``"backbone"`` otherwise. A tied array is a
            generator if it is one at any of its places.
        fan_in: The number of inputs that one output sums over: the product of all axes
            but the first (``eqx.nn.Linear`` stores its weight as (out, in)). A
            ``bias``, a vector or a scalar takes the fan-in of the ``weight`` beside it,
            or 1 if there is none. It is 1 in a normalisation layer, which multiplies
            each number by its own, and in an ``eqx.nn.Embedding``, which looks its
            outputs up. An output of an ``eqx.nn.ConvTranspose`` meets one tap of its
            kernel in ``stride``, on average. The axes of layers that
            ``eqx.filter_vmap`` stacked do not count. A tied array has the largest of
            its places, also of those that ``eqx.nn.Shared`` fills.
        stored: The array that the module holds, for a prior or a start around it. The
            record's ``repr`` and equality ignore it.
        tied: The paths of the other places in the module that hold the same array.
        norm: What the parameter is to its own normalisation layer
            (``eqx.nn.LayerNorm``, ``RMSNorm``, ``GroupNorm``, ``BatchNorm``, or a
            subclass): ``"scale"`` for its ``weight``, ``"shift"`` for its ``bias``. A
            tied array is a scale if it is one at any of its places. None everywhere
            else, also in layers of your own.
        fan_out: The number of outputs that one input reaches: the first axis times all
            but the first two; in a convolution over its groups and strides, in an
            ``eqx.nn.Embedding`` the length of a row, in a normalisation layer 1.
        paths: The dotted path of each place in the module that holds the array.
        names: The name at each of these places; the first is the site's. A glob in
            ``where``, or a key of ``prior``, may match any of them.

    Example:
        >>> import jax
        >>> import numpyro.distributions as dist
        >>> from numpyro.handlers import seed
        >>> import pyrox_ppl as px
        >>> from pyrox_ppl.nn import FiLM
        >>> film = FiLM.init(3, 2, key=jax.random.key(0))
        >>> def prior(parameter):
        ...     print(parameter.name, parameter.shape, parameter.fan_in)
        ...     return dist.Normal(0.0, parameter.fan_in**-0.5)
        >>> with seed(rng_seed=0), px.bayesianize(prior=prior):
        ...     y = film(jax.numpy.ones(3), jax.numpy.ones(2))
        affine_modulation.generator.weight (6, 2) 2
        affine_modulation.generator.bias (6,) 2
    """

    name: str
    path: tuple[str | int, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    role: Role
    fan_in: int
    stored: Any = dataclasses.field(default=None, repr=False, compare=False)
    tied: tuple[tuple[str | int, ...], ...] = dataclasses.field(default=(), repr=False)
    norm: NormPart | None = None
    fan_out: int = dataclasses.field(default=0, repr=False)

    def __post_init__(self) -> None:
        if not self.fan_out:
            alone = self.norm is not None
            fan_out = 1 if alone else fan_out_of_shape(self.shape)
            object.__setattr__(self, "fan_out", fan_out)

    @property
    def names(self) -> tuple[str, ...]:
        """The name at each place that holds the array; the first is the site's."""
        root = self.name.removesuffix(path_name(self.path))
        return (self.name, *(root + path_name(path) for path in self.tied))

    @property
    def paths(self) -> tuple[str, ...]:
        """The dotted path of each place that holds the array; the first is `path`."""
        return tuple(path_name(path) for path in (self.path, *self.tied))


def is_backbone(parameter: Parameter) -> bool:
    """Whether a parameter is backbone, for use as ``where=px.is_backbone``.

    Args:
        parameter: The parameter that a handler asks about.

    Returns:
        ``True`` for a parameter of a wrapped inner network, of a network that only
        encodes the context, or of a readout.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> weight = px.Parameter("a.b", ("b",), (), np.dtype("f4"), "backbone", 1)
        >>> px.is_backbone(weight)
        True
    """
    return parameter.role == "backbone"


def is_generator(parameter: Parameter) -> bool:
    """Whether a parameter is a generator, for use as ``where=px.is_generator``.

    Handlers select the generators by default.

    Args:
        parameter: The parameter that a handler asks about.

    Returns:
        ``True`` for a parameter of a conditioner, of a network that generates features,
        or of a module that holds no generator at all.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> weight = px.Parameter("a.b", ("b",), (), np.dtype("f4"), "backbone", 1)
        >>> px.is_generator(weight)
        False
    """
    return parameter.role == "generator"


class Read(NamedTuple):
    """A parameter, its stored array, and the leaf positions that are tied to it."""

    parameter: Parameter
    stored: jax.Array
    positions: tuple[int, ...]


def check_name(name: str) -> str:
    """Return `name` if a site name may contain it; raise otherwise."""
    if not isinstance(name, str):
        raise TypeError(f"a name must be a string, got {name!r}.")
    if not name or "/" in name:
        raise ValueError(
            f"{name!r} cannot name a parameter: a name must not be empty and must not "
            "contain '/', which ArviZ's DataTree refuses; use '.' instead."
        )
    return name


def class_name(module: Any) -> str:
    """Return the class name in snake case: ``ConditionedINR``: ``conditioned_inr``."""
    if isinstance(module, jax.Array | np.ndarray):
        return "array"  # each transform has its own class of tracers
    name = type(module).__name__.lstrip("_")
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return words.lower()


def path_name(path: tuple[str | int, ...]) -> str:
    """Join a path by dots, which also replace slashes: ``layers.0.weight``."""
    return ".".join(str(key).replace("/", ".") for key in path)


def parameters_of(module: Any, root: str) -> list[Read]:
    """List every parameter of `module` in tree order, each tied array once.

    A parameter is an array leaf of floating or complex dtype. Integer arrays, PRNG
    keys, functions and Python numbers are constants, and so is Equinox's running state
    (a ``State``, and the initial value of a ``StateIndex``).
    """
    leaves = list(leaves_of(module))
    holds_generator = any(leaf.role == "generator" for leaf in leaves)
    default: Role = "backbone" if holds_generator else "generator"
    # Tied leaves are one array object, so its id groups them. No id leaves this call.
    positions: dict[int, list[int]] = {}
    first: dict[int, Leaf] = {}
    for position, leaf in enumerate(leaves):
        if eqx.is_inexact_array(leaf.value) and not leaf.is_state:
            positions.setdefault(id(leaf.value), []).append(position)
            first.setdefault(id(leaf.value), leaf)
    reads: dict[str, Read] = {}
    for tie, leaf in first.items():
        name = f"{root}.{path_name(leaf.path)}" if leaf.path else root
        if name in reads:
            raise ValueError(
                f"two arrays of {type(module).__name__} have the same name {name!r}: "
                f"{reads[name].parameter.path} and {leaf.path}. Rename a dictionary "
                "key so that the paths differ when they are joined by dots."
            )
        places = [leaves[position] for position in positions[tie]]
        joint = at_all_places(places)
        parameter = Parameter(
            name=name,
            path=leaf.path,
            shape=leaf.value.shape,
            dtype=leaf.value.dtype,
            role=joint.role or default,
            fan_in=joint.fan_in,
            stored=leaf.value,
            tied=tuple(place.path for place in places[1:]),
            norm=joint.norm,
            fan_out=joint.fan_out,
        )
        reads[name] = Read(parameter, leaf.value, tuple(positions[tie]))
    return list(reads.values())
