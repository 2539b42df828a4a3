"""What a Laplace approximation adds to the parameters of a fit."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer

from pyrox_ppl._cost import replace_params
from pyrox_ppl.infer.curvature import restore_curvature, restore_prior

Values = dict[str, jax.Array]


def params_of(fit: Any) -> dict[str, Any]:
    """The parameters of a fit, with the state of the model's layers."""
    state = getattr(getattr(fit, "state", None), "mutable_state", None) or {}
    return {**state, **(fit if isinstance(fit, Mapping) else fit.params)}


def put_into(fit: Any, added: Values, *, in_place_of: list[str]) -> Any:
    """The fit with more parameters; those of an earlier call are left out."""
    given = fit if isinstance(fit, Mapping) else fit.params
    params = {n: v for n, v in given.items() if n not in in_place_of} | added
    return params if isinstance(fit, Mapping) else replace_params(fit, params)


def with_all_digits[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Let a function multiply matrices in all digits of float32.

    JAX's default on a GPU, TF32, keeps three, and a posterior is widest along the
    smallest eigenvalues.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return call


@dataclasses.dataclass(frozen=True)
class LaplaceFit:
    """The curvature of the likelihood and the prior at a mode.

    Attributes:
        structure: The structure of the curvature.
        curvature: That of the likelihood.
        prior: The precision of the prior.
        gradient: The gradient of the log likelihood, for the sites with a spread.
        log_joint: The log joint density at the mode, in unconstrained space.
    """

    structure: str
    curvature: Any
    prior: Any
    gradient: Values
    log_joint: jax.Array

    def to_params(self, prefix: str, mode: Values) -> Values:
        """The arrays under names that begin with a prefix, and checksums of the mode.

        Args:
            prefix: The beginning of the names.
            mode: The values of all latent sites, constrained.
        """
        parts = {
            f"curvature.{self.structure}": self.curvature.arrays,
            f"prior.{self.structure}": self.prior.arrays,
            "gradient": self.gradient,
        }
        named = {
            f"{prefix}.{part}.{name}": array
            for part, arrays in parts.items()
            for name, array in arrays.items()
        }
        named[f"{prefix}.log_joint"] = self.log_joint
        return {**named, f"{prefix}.checksums": jnp.asarray(_checksums(mode))}

    @classmethod
    def from_params(
        cls,
        params: Mapping[str, Any],
        prefix: str,
        structure: str,
        sites: tuple[str, ...],
        mode: Values,
    ) -> Self:
        """Undo :meth:`to_params`.

        Args:
            params: The parameters.
            prefix: The beginning of the names.
            structure: The structure of the curvature.
            sites: The sites that have a spread.
            mode: The values of all latent sites, constrained.

        Raises:
            ValueError: If the parameters hold no curvature of this structure and these
                sites, or that of another mode.
        """

        def part(name: str) -> Values:
            start = f"{prefix}.{name}."
            return {
                key.removeprefix(start): jnp.asarray(value)
                for key, value in params.items()
                if key.startswith(start)
            }

        gradient, arrays = part("gradient"), part(f"curvature.{structure}")
        if not gradient:
            raise ValueError(
                "the fit has a mode and no curvature yet, so there is no spread to "
                "draw from: call fit = guide.add_curvature(fit, *args, **kwargs) with "
                "the arguments of the fit, or with its loader."
            )
        if not arrays:
            raise ValueError(
                f"the fit has a curvature of another structure than {structure!r}: use "
                "the guide that added it, or call guide.add_curvature again."
            )
        if set(gradient) != set(sites):
            raise ValueError(
                f"the curvature is that of the sites {sorted(gradient)}, and `where` "
                f"of this guide selects {sorted(sites)}: use the guide that added it, "
                "or call guide.add_curvature again."
            )
        _check_checksums(params[f"{prefix}.checksums"], mode)
        shapes = {name: value.shape for name, value in gradient.items()}
        return cls(
            structure,
            restore_curvature(structure, arrays, shapes),
            restore_prior(structure, part(f"prior.{structure}"), shapes),
            gradient,
            jnp.asarray(params[f"{prefix}.log_joint"]),
        )

    @property
    def size(self) -> int:
        """The number of weights with a spread."""
        return sum(value.size for value in self.gradient.values())

    @with_all_digits
    def posterior(self, damping: float) -> Any:
        """The normal distribution of the deviations from the mode."""
        return _posterior(self.curvature, self.prior, damping)

    @with_all_digits
    def sample(
        self, key: jax.Array, shape: tuple[int, ...], mode: Values, damping: float
    ) -> Values:
        """Unconstrained draws; sites without a spread stay at the mode."""
        return _sample(self.posterior(damping), key, shape, mode)

    @with_all_digits
    def quantiles(self, levels: jax.Array, mode: Values, damping: float) -> Values:
        """Unconstrained quantiles, along the first axes."""
        return _quantiles(self.posterior(damping), levels, mode)

    @with_all_digits
    def log_evidence(self, damping: float) -> jax.Array:
        """Laplace's estimate of the log marginal likelihood."""
        volume = 0.5 * self.size * math.log(2 * math.pi)
        return self.log_joint + volume - 0.5 * self.posterior(damping).log_det()


# One program each, in place of a small one for every operation and shape.
@eqx.filter_jit
def _posterior(curvature: Any, prior: Any, damping: float) -> Any:
    return curvature.posterior(prior, damping=damping)


@eqx.filter_jit
def _sample(
    posterior: Any, key: jax.Array, shape: tuple[int, ...], mode: Values
) -> Values:
    values = {n: jnp.broadcast_to(v, shape + v.shape) for n, v in mode.items()}
    for name, away in posterior.sample(key, shape).items():
        values[name] += away.astype(values[name].dtype)
    return values


@eqx.filter_jit
def _quantiles(posterior: Any, levels: jax.Array, mode: Values) -> Values:
    variances = posterior.diagonal()

    def at(name: str, value: jax.Array) -> jax.Array:
        level = levels.reshape(levels.shape + (1,) * value.ndim)
        spread = jnp.sqrt(variances.get(name, jnp.zeros(value.shape)))
        first = (None,) * levels.ndim
        return value[first] + dist.Normal().icdf(level) * spread[first]

    return {name: at(name, value) for name, value in mode.items()}


def _checksums(mode: Values) -> np.ndarray:
    """A number for each site, in the order of their names.

    Entries have different factors, or those that are swapped would leave it unchanged.
    """
    entries = [_entries(mode[name]) for name in sorted(mode)]
    return np.array([np.vdot(np.cos(np.arange(e.size)), e) for e in entries], "f4")


def _check_checksums(checksums: Any, mode: Values) -> None:
    """Refuse a curvature that was added at another mode.

    Raises:
        ValueError: If it was.
    """
    if any(isinstance(value, Tracer) for value in (checksums, *mode.values())):
        return
    away = np.abs(np.asarray(checksums) - _checksums(mode))
    sizes = [np.linalg.norm(_entries(mode[name])) for name in sorted(mode)]
    wrong = away > 1e-4 * np.array(sizes) + 1e-6
    if wrong.any():
        raise ValueError(
            "the curvature was added at another mode: the sites "
            f"{[n for n, w in zip(sorted(mode), wrong, strict=True) if w]} have moved "
            "since then. The parameters of two fits may be mixed, or the fit went "
            "further: call guide.add_curvature again."
        )


def _entries(value: Any) -> np.ndarray:
    return np.ravel(np.asarray(value, float))
