"""What every structure of the curvature and of the posterior has in common."""

import abc
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp

from pyrox_ppl.infer.curvature._at_mode import ModelAtMode, Values
from pyrox_ppl.infer.curvature._layout import Layout


class AbstractPosterior(eqx.Module):
    """A normal distribution around the mode, in unconstrained space."""

    layout: eqx.AbstractVar[Layout]

    @abc.abstractmethod
    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> Values:
        """Draw deviations from the mode, by site, of shape ``shape + site shape``."""

    @abc.abstractmethod
    def solve(self, values: Values) -> Values:
        """Multiply the covariance with a vector, by site."""

    @abc.abstractmethod
    def log_det(self) -> jax.Array:
        """The log-determinant of the precision; differentiable in the prior."""

    @abc.abstractmethod
    def diagonal(self) -> Values:
        """The marginal variances, by site."""

    @abc.abstractmethod
    def check(self) -> None:
        """Raise a ValueError that names a site whose precision is not positive."""


class AbstractCurvature(eqx.Module):
    r"""The generalised Gauss-Newton matrix of a likelihood, in some structure.

    .. math:: H = \sum_b w_b \sum_{n \in b} J_n^\top \Lambda_n J_n

    Attributes:
        arrays: What was accumulated, by name.
        layout: The sites.
    """

    arrays: eqx.AbstractVar[Values]
    layout: eqx.AbstractVar[Layout]

    @property
    def num_passes(self) -> int:
        """How often the data must be gone through."""
        return 1

    @abc.abstractmethod
    def add_batch(
        self,
        at_mode: ModelAtMode,
        args: tuple,
        kwargs: dict[str, Any],
        weight: jax.Array,
        key: jax.Array | None,
    ) -> Self:
        """Add the weighted curvature of one batch."""

    def finish_pass(self) -> Self:
        """End a pass through the data."""
        return self

    @abc.abstractmethod
    def posterior(self, prior: Any, *, damping: Any = 0.0) -> AbstractPosterior:
        """The posterior with a prior's precision."""

    def accumulate(
        self,
        at_mode: ModelAtMode,
        args: tuple,
        kwargs: dict[str, Any],
        *,
        weight: Any = 1.0,
        key: jax.Array | None = None,
    ) -> Self:
        """Add the curvature of one batch, in a program compiled once for its shape.

        The model's own scale counts. A model that multiplies a batch of B rows by N/B,
        as one with a subsampled plate does, describes all N rows: give it the weight
        B/N, so that an epoch adds up to the data once.

        Args:
            at_mode: The model at the mode.
            args: The arguments of the model.
            kwargs: The keyword arguments of the model.
            weight: The weight of the batch.
            key: A PRNG key, for sampled labels.

        Returns:
            The curvature with the batch added.
        """
        weight = jnp.asarray(weight, float)
        return at_mode.run(_accumulate, self, args, kwargs, weight, key)


def _accumulate(
    at_mode: Any, curvature: Any, args: Any, kwargs: Any, weight: Any, key: Any
) -> Any:
    return curvature.add_batch(at_mode, args, kwargs, weight, key)


def raise_not_positive(site: str, what: str) -> None:
    """Raise for a direction in which the posterior would have no finite spread."""
    raise ValueError(
        f"the posterior's precision at the mode is not positive: for the site {site!r} "
        f"it {what}. Neither the prior nor the data fix this direction, or the mode is "
        "no mode. Give the site a proper prior, train for longer, leave the site out "
        "with `where`, or add a multiple of the identity with `damping=`."
    )
