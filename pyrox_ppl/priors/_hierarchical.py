"""Priors that learn their scale with the weights: one per layer, or one per weight."""

import math
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.core import Tracer
from jax.typing import ArrayLike
from numpyro.distributions import constraints

from pyrox_ppl._parameter import Parameter
from pyrox_ppl._prior import NonCentered, Rule
from pyrox_ppl.priors._check import check_positive
from pyrox_ppl.priors._fixed import centre

_HALF_NORMAL = dist.HalfNormal(1.0)


def hierarchical(scale: dist.Distribution = _HALF_NORMAL) -> Rule:
    r"""Make a normal prior that learns its scale, one per layer and kind of parameter.

    .. math::
        s \sim p(s), \qquad \varepsilon_i \sim \mathrm{Normal}(0, 1), \qquad
        \theta_i = \frac{s}{\sqrt{n_\mathrm{in}}}\, \varepsilon_i

    The groups are those of Neal: the weights of a layer form one, its biases another,
    and each group learns its own scale. Inference samples :math:`s` and
    :math:`\varepsilon` (the non-centred form), which spares NUTS the funnel. The scale
    of a normalisation layer is centred on one, as for :func:`fan_in`.

    **Sites**: ``<parameter>.scale``, ``<parameter>_decentered``, and the deterministic
    site ``<parameter>``. With ``bind(..., plate=...)`` the members share the scale but
    not :math:`\varepsilon`: partial pooling.

    Args:
        scale: :math:`p(s)`, a positive distribution of shape ().

    Returns:
        A rule for ``bayesianize(prior=...)``.

    Raises:
        TypeError: If `scale` is not a distribution.
        ValueError: If `scale` is not positive, or not of shape ().

    References:
        Neal, R. M. (1996). Bayesian Learning for Neural Networks, chapter 4. Springer.
        Betancourt, M., Girolami, M. (2015). Hamiltonian Monte Carlo for Hierarchical
        Models. CRC Press.

    Example:
        >>> import equinox as eqx, jax, pyrox_ppl as px
        >>> from numpyro.handlers import seed, trace
        >>> linear = eqx.nn.Linear(2, 3, use_bias=False, key=jax.random.key(0))
        >>> def model():
        ...     with px.bayesianize(prior=px.priors.hierarchical()):
        ...         px.bind(linear, "net")
        >>> for name, site in trace(seed(model, 0)).get_trace().items():
        ...     print(name, site["type"], site["value"].shape)
        net.weight.scale sample ()
        net.weight_decentered sample (3, 2)
        net.weight deterministic (3, 2)
    """
    if not isinstance(scale, dist.Distribution):
        raise TypeError(
            "scale must be a NumPyro distribution over positive numbers, such as "
            f"HalfNormal(1.0), got {scale!r}. For a fixed scale use normal(std) or "
            "fan_in(std)."
        )
    shape = scale.batch_shape + scale.event_shape
    if not _is_positive(scale.support) or shape:
        raise ValueError(
            "scale must be a distribution over one positive number, such as HalfNormal("
            f"1.0), got {type(scale).__name__} of shape {shape} with the support "
            f"{scale.support}."
        )

    def rule(parameter: Parameter) -> NonCentered:
        # Divided by the root of the fan-in, one p(s) suits layers of every width.
        value = numpyro.sample(f"{parameter.name}.scale", scale)
        law = dist.Normal(centre(parameter), value / math.sqrt(parameter.fan_in))
        return NonCentered(law)

    return rule


def horseshoe(scale: ArrayLike = 1.0, *, slab: ArrayLike = 2.0) -> Rule:
    r"""Make a regularised horseshoe: most weights near zero, a few up to a slab.

    .. math::
        \tau \sim \mathrm{HalfCauchy}(s), \quad
        \lambda_i \sim \mathrm{HalfCauchy}(1), \quad
        \varepsilon_i \sim \mathrm{Normal}(0, 1), \quad
        \theta_i = \frac{\tau \lambda_i}
        {\sqrt{n_\mathrm{in} + \tau^2 \lambda_i^2 / c^2}}\, \varepsilon_i

    A weight with a large :math:`\lambda_i` has about the prior
    :math:`\mathrm{Normal}(0, c^2)`, the slab, which cuts the Cauchy's tail. As
    :math:`c \to \infty` this becomes the horseshoe itself, whose tail NUTS cannot
    follow. The scale of a normalisation layer shrinks towards zero as well, which
    removes what it scales. Inference samples :math:`\tau`, :math:`\lambda` and
    :math:`\varepsilon` (the non-centred form).

    **Sites**: ``<parameter>.scale`` (:math:`\tau`), ``<parameter>.local_scale``
    (:math:`\lambda`, of the parameter's shape), ``<parameter>_decentered``, and the
    deterministic site ``<parameter>``. With ``bind(..., plate=...)`` the members share
    :math:`\tau` and :math:`\lambda`, so the same weights are large in every member.

    Args:
        scale: :math:`s`, positive: the overall scale of the weights.
        slab: :math:`c`, positive: the scale of the large weights, in the units of the
            parameter.

    Returns:
        A rule for ``bayesianize(prior=...)``.

    Raises:
        ValueError: If `scale` or `slab` is not positive and finite.
        TypeError: If `scale` or `slab` is not a number.

    References:
        Carvalho, C. M., Polson, N. G., Scott, J. G. (2010). The Horseshoe Estimator for
        Sparse Signals. Biometrika 97(2).
        Piironen, J., Vehtari, A. (2017). Sparsity Information and Regularization in the
        Horseshoe and Other Shrinkage Priors. Electronic Journal of Statistics 11(2).

    Example:
        >>> import equinox as eqx, jax, pyrox_ppl as px
        >>> from numpyro.handlers import seed, trace
        >>> linear = eqx.nn.Linear(2, 3, use_bias=False, key=jax.random.key(0))
        >>> def model():
        ...     with px.bayesianize(prior=px.priors.horseshoe(0.1)):
        ...         px.bind(linear, "net")
        >>> for name, site in trace(seed(model, 0)).get_trace().items():
        ...     print(name, site["type"], site["value"].shape)
        net.weight.scale sample ()
        net.weight.local_scale sample (3, 2)
        net.weight_decentered sample (3, 2)
        net.weight deterministic (3, 2)
    """
    check_positive("scale", scale)
    check_positive("slab", slab)

    def rule(parameter: Parameter) -> NonCentered:
        name, shape = parameter.name, parameter.shape
        # tau shrinks all weights; the heavy tail of a Cauchy lets a few escape.
        tau = numpyro.sample(f"{name}.scale", dist.HalfCauchy(scale))
        local = dist.HalfCauchy(1.0).expand(shape).to_event()
        size = tau * numpyro.sample(f"{name}.local_scale", local)
        # Piironen and Vehtari's regularised scale, with the fan-in: a small `size`
        # gives size / sqrt(n), the horseshoe; a large one tends to the slab.
        slope = size / jnp.sqrt(parameter.fan_in + (size / slab) ** 2)
        return NonCentered(dist.Normal(0.0, slope))

    return rule


def _is_positive(support: Any) -> bool:
    """Whether NumPyro's description of a support excludes negative numbers."""
    if support in (constraints.positive, constraints.softplus_positive):
        return True
    bound = getattr(support, "lower_bound", None)
    if bound is None or support.is_discrete:
        return False
    # A traced bound has no value to check.
    return isinstance(bound, Tracer) or bool(bound >= 0)
