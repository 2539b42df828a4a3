"""What kind of outcome a distribution has, and what it says of one in closed form."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints

from pyrox_ppl.prediction._precision import in_single

Kind = Literal[
    "binary", "categorical", "circular", "continuous", "count", "multivariate"
]


class Outcome(NamedTuple):
    """How the values of a site are to be judged.

    Attributes:
        kind: ``"binary"`` (0 or 1), ``"categorical"`` (a class, its number a name),
            ``"count"`` (an integer whose size means something), ``"continuous"``,
            ``"circular"`` (an angle), or ``"multivariate"`` (a vector whose entries
            are drawn together).
        num_classes: The number of classes of a binary or categorical outcome.
        is_ordered: Whether the order of the classes means something.
        ndim: The number of axes of one value: 0 unless it is multivariate.
    """

    kind: Kind
    num_classes: int | None = None
    is_ordered: bool = False
    ndim: int = 0


def outcome_of(fn: dist.Distribution) -> Outcome | None:
    """Classify a distribution by its support; None where it declares no support.

    A Binomial and a Categorical have the same support, an interval of integers; only
    of the Categorical are the integers names.
    """
    base = _one_value(fn)
    while isinstance(
        base, dist.ExpandedDistribution | dist.MixtureSameFamily | dist.MixtureGeneral
    ):
        base = _one_value(_inner(base))
    if base.event_dim:
        return Outcome("multivariate", ndim=base.event_dim)
    if base.support is None:
        return None
    if isinstance(base, dist.CategoricalProbs | dist.CategoricalLogits):
        probabilities: Any = base.probs
        is_ordered = isinstance(base, dist.OrderedLogistic)
        return Outcome("categorical", probabilities.shape[-1], is_ordered)
    if base.support is constraints.boolean:
        return Outcome("binary", 2)
    if base.support is constraints.circular:
        return Outcome("circular")
    return Outcome("count" if base.is_discrete else "continuous")


def class_probabilities(fn: dist.Distribution) -> jax.Array:
    r"""The probability of each class, :math:`p(y = k)`.

    Returns:
        Of a binary outcome the probability of 1, of the shape of a draw; of a
        categorical one all probabilities along a new last axis.
    """
    fn = in_single(fn)
    base = _one_value(fn)
    outcome = outcome_of(fn)
    if outcome is None or outcome.num_classes is None:
        raise ValueError(f"the values of {fn} are no classes.")

    def probability(value: int) -> jax.Array:
        return jnp.exp(base.log_prob(jnp.full(base.shape(), value)))

    if outcome.kind == "binary":
        return probability(1)
    if isinstance(base, dist.MixtureSameFamily | dist.MixtureGeneral):
        return jnp.stack([probability(k) for k in range(outcome.num_classes)], -1)
    while isinstance(base, dist.ExpandedDistribution):
        shape, base = fn.shape(), _one_value(base.base_dist)
        return jnp.broadcast_to(base.probs, (*shape, base.probs.shape[-1]))
    return base.probs


def mean_and_variance(fn: dist.Distribution) -> tuple[jax.Array, jax.Array] | None:
    """The mean and variance of each value, or None where NumPyro has no formula."""
    fn = in_single(fn)
    try:
        mean, variance = fn.mean, fn.variance
    except NotImplementedError:
        return None
    shape = fn.shape()
    return jnp.broadcast_to(mean, shape), jnp.broadcast_to(variance, shape)


def _inner(fn: Any) -> Any:
    """What an expanded distribution or a mixture is made of; components are alike."""
    match fn:
        case dist.MixtureSameFamily():
            return fn.component_distribution
        case dist.MixtureGeneral():
            return fn.component_distributions[0]
        case _:
            return fn.base_dist


def _one_value(fn: Any) -> Any:
    """The distribution of the single values that ``to_event`` and ``mask`` wrap."""
    while isinstance(fn, dist.Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn
