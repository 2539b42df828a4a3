"""Priors with heavy tails, scaled by the fan-in: most weights small, a few large."""

import math

import numpyro.distributions as dist
from jax.typing import ArrayLike

from pyrox_ppl._prior import Rule
from pyrox_ppl.priors._check import check_positive
from pyrox_ppl.priors._fixed import centre


def laplace(scale: ArrayLike = 1.0) -> Rule:
    r"""Make a Laplace prior scaled by the fan-in: most weights small, a few large.

    .. math:: \theta_i \sim \mathrm{Laplace}(0, b / \sqrt{n_\mathrm{in}})

    Its standard deviation is :math:`\sqrt 2\, b / \sqrt{n_\mathrm{in}}`. To use the
    same scale for every parameter, pass ``dist.Laplace(0.0, b)`` as the prior. The
    scale of a normalisation layer is centred on one, as for :func:`fan_in`.

    **Shapes**: `scale` broadcasts to the parameter's shape. **Sites**: the parameter's.

    Args:
        scale: :math:`b`, positive.

    Returns:
        A rule for ``bayesianize(prior=...)``.

    Raises:
        ValueError: If `scale` is not positive and finite; on reading, if it does not
            broadcast to the parameter's shape.
        TypeError: If `scale` is not a number.

    References:
        Fortuin, V., Garriga-Alonso, A., Ober, S. W., et al. (2022). Bayesian Neural
        Network Priors Revisited. ICLR. Heavy tails fit fully connected networks better
        than normal priors.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> weight = px.Parameter("w", (), (3, 4), np.dtype("f4"), "generator", 4)
        >>> print(px.priors.laplace()(weight).scale)
        0.5
    """
    check_positive("scale", scale)
    return lambda p: dist.Laplace(centre(p), scale / math.sqrt(p.fan_in))


def student_t(df: ArrayLike = 3.0, scale: ArrayLike = 1.0) -> Rule:
    r"""Make a Student-t prior scaled by the fan-in: every weight has heavy tails.

    .. math:: \theta_i \sim \mathrm{StudentT}(\nu, 0, s / \sqrt{n_\mathrm{in}})

    Its standard deviation is :math:`\sqrt{\nu / (\nu - 2)}` times the scale if
    :math:`\nu > 2`, and infinite for :math:`1 < \nu \le 2`. The scale of a
    normalisation layer is centred on one, as for :func:`fan_in`.

    **Shapes**: `df` and `scale` broadcast to the parameter's shape. **Sites**: the
    parameter's.

    Args:
        df: :math:`\nu`, the degrees of freedom, positive.
        scale: :math:`s`, positive.

    Returns:
        A rule for ``bayesianize(prior=...)``.

    Raises:
        ValueError: If `df` or `scale` is not positive and finite; on reading, if it
            does not broadcast to the parameter's shape.
        TypeError: If `df` or `scale` is not a number.

    References:
        Fortuin, V., Garriga-Alonso, A., Ober, S. W., et al. (2022). Bayesian Neural
        Network Priors Revisited. ICLR.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> weight = px.Parameter("w", (), (3, 4), np.dtype("f4"), "generator", 4)
        >>> print(px.priors.student_t(df=5.0)(weight).scale)
        0.5
    """
    check_positive("df", df)
    check_positive("scale", scale)
    return lambda p: dist.StudentT(df, centre(p), scale / math.sqrt(p.fan_in))
