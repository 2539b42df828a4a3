"""A distribution taken apart: its parameters as arrays, and back together."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.util import clamp_probs

from pyrox_ppl._numpyro import mask_of_distribution


class Parts(NamedTuple):
    """The arrays that a distribution is made of.

    Attributes:
        arrays: The arrays (or trees of them) by name: ``"loc"``, ``"base.scale"``.
        transforms: For each parameter that may move freely, the map from the real
            numbers to its values. An array without one is fixed: a mask, a count.
        rebuild: The distribution of other arrays under the same names.
    """

    arrays: dict[str, Any]
    transforms: dict[str, Any]
    rebuild: Callable[[Mapping[str, Any]], dist.Distribution]

    def unconstrain(self, name: str) -> Any:
        """The unconstrained value of a parameter that may move."""
        return self.transforms[name].inv(self.arrays[name])


def take_apart(fn: Any) -> Parts:
    """Take a distribution apart.

    The wrappers of ``to_event``, ``expand`` and ``mask``, mixtures and transformed
    distributions are taken apart as well. A distribution that does not say how to make
    another one of its kind is one fixed tree of arrays.
    """
    match fn:
        case dist.Independent():
            ndims = fn.reinterpreted_batch_ndims
            return _wrap(fn.base_dist, lambda base, _: base.to_event(ndims))
        case dist.ExpandedDistribution():
            shape = fn.batch_shape
            return _wrap(fn.base_dist, lambda base, _: base.expand(shape))
        case dist.MaskedDistribution():
            mask = mask_of_distribution(fn)
            return _wrap(
                fn.base_dist, lambda base, own: base.mask(own["mask"]), mask=mask
            )
        case dist.MixtureSameFamily():
            parts = (fn.mixing_distribution, fn.component_distribution)
            return _join(parts, lambda made: dist.MixtureSameFamily(*made))
        case dist.MixtureGeneral():
            parts = (fn.mixing_distribution, *fn.component_distributions)
            return _join(
                parts, lambda made: dist.MixtureGeneral(made[0], list(made[1:]))
            )
    names = _own_parameters(fn)
    if names:
        return _of_class(fn, names)
    if isinstance(fn, dist.TransformedDistribution):
        return _wrap(
            fn.base_dist,
            lambda base, own: dist.TransformedDistribution(base, own["transforms"]),
            transforms=fn.transforms,
        )
    return Parts({"distribution": fn}, {}, lambda arrays: arrays["distribution"])


def _own_parameters(fn: Any) -> list[str]:
    """The arguments that make a distribution like this one; none if not known."""
    try:
        taken = inspect.signature(type(fn)).parameters
    except ValueError:  # a class without a signature
        return []
    declared = [n for n in getattr(fn, "arg_constraints", None) or () if n in taken]
    given = [name for name in declared if name in vars(fn)]
    if "scale_tril" in given:
        # The others are computed from it, and a distribution takes only one of them.
        given = [n for n in given if n not in ("covariance_matrix", "precision_matrix")]
    required = [
        name
        for name, argument in taken.items()
        if argument.default is argument.empty
        and argument.kind is argument.POSITIONAL_OR_KEYWORD
    ]
    given += [name for name in required if name in declared and name not in given]
    return given if set(required) <= set(given) else []


def _of_class(fn: Any, names: list[str]) -> Parts:
    arrays = {name: getattr(fn, name) for name in names}
    transforms = {}
    for name, value in arrays.items():
        transform = _transform(fn, name)
        if transform is not None and jnp.issubdtype(
            jnp.result_type(value), jnp.floating
        ):
            transforms[name] = transform

    def rebuild(given: Mapping[str, Any]) -> dist.Distribution:
        return type(fn)(**{name: given[name] for name in names})

    return Parts(arrays, transforms, rebuild)


def _transform(fn: Any, name: str) -> Any:
    """The map from the real numbers to a parameter; None where it has none."""
    constraint = fn.arg_constraints[name]
    if isinstance(fn, dist.Delta) and name == "v":
        constraint = constraints.real
    if constraint is constraints.simplex:
        return _Softmax()
    if constraint is constraints.unit_interval:
        return _Sigmoid()
    if constraint.is_discrete:
        return None
    try:
        return biject_to(constraint)
    except NotImplementedError:
        return None


class _Softmax:
    """Probabilities from logits, as many as classes; ``biject_to`` has one fewer.

    The logits are defined up to a constant, which changes no probability.
    """

    def __call__(self, logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits, axis=-1)

    def inv(self, probs: jax.Array) -> jax.Array:
        return jnp.log(clamp_probs(probs))


class _Sigmoid:
    """A probability from its logit, finite where rounding made the probability 1."""

    def __call__(self, logits: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(logits)

    def inv(self, probs: jax.Array) -> jax.Array:
        probs = clamp_probs(probs)
        return jnp.log(probs) - jnp.log1p(-probs)


def _wrap(
    base: Any, wrap: Callable[[Any, Mapping[str, Any]], Any], **own: Any
) -> Parts:
    """A distribution around another one, with fixed arrays of its own."""
    inner = take_apart(base)
    prefix = "base."
    arrays = {f"{prefix}{name}": value for name, value in inner.arrays.items()}
    transforms = {f"{prefix}{name}": t for name, t in inner.transforms.items()}

    def rebuild(given: Mapping[str, Any]) -> dist.Distribution:
        made = inner.rebuild({name: given[f"{prefix}{name}"] for name in inner.arrays})
        return wrap(made, given)

    return Parts({**arrays, **own}, transforms, rebuild)


def _join(distributions: tuple, join: Callable[[list[Any]], Any]) -> Parts:
    """Several distributions that make one."""
    inner = [take_apart(fn) for fn in distributions]
    arrays, transforms = {}, {}
    for place, parts in enumerate(inner):
        arrays |= {f"{place}.{name}": value for name, value in parts.arrays.items()}
        transforms |= {f"{place}.{name}": t for name, t in parts.transforms.items()}

    def rebuild(given: Mapping[str, Any]) -> dist.Distribution:
        return join(
            [
                parts.rebuild({name: given[f"{place}.{name}"] for name in parts.arrays})
                for place, parts in enumerate(inner)
            ]
        )

    return Parts(arrays, transforms, rebuild)
