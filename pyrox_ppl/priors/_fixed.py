"""Priors of a fixed scale: a number, scaled by the fan-in, or around stored values."""

import math

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike

from pyrox_ppl._parameter import Parameter
from pyrox_ppl._prior import Rule
from pyrox_ppl.priors._check import check_positive


def normal(std: ArrayLike = 1.0) -> Rule:
    r"""Make an isotropic normal prior, the same for every parameter.

    .. math:: \theta_i \sim \mathrm{Normal}(0, s^2)

    **Shapes**: `std` broadcasts to the parameter's shape. **Sites**: the parameter's.

    Args:
        std: :math:`s`, positive, in the units of the parameter.

    Returns:
        A rule for ``bayesianize(prior=...)``.

    Raises:
        ValueError: If `std` is not positive and finite; on reading, if it does not
            broadcast to the parameter's shape.
        TypeError: If `std` is not a number.

    References:
        MacKay, D. J. C. (1992). A Practical Bayesian Framework for Backpropagation
        Networks. Neural Computation 4(3).

    Example:
        >>> import equinox as eqx, jax, pyrox_ppl as px
        >>> from numpyro.handlers import seed, trace
        >>> linear = eqx.nn.Linear(4, 1, key=jax.random.key(0))
        >>> def model():
        ...     rules = {"*.bias": px.priors.normal(0.1), "*": px.priors.fan_in()}
        ...     with px.bayesianize(prior=rules):
        ...         px.bind(linear, "net")
        >>> for name, site in trace(seed(model, 0)).get_trace().items():
        ...     print(name, f"{site['fn'].variance.max():.2f}")
        net.weight 0.25
        net.bias 0.01
    """
    check_positive("std", std)
    return lambda parameter: dist.Normal(0.0, std)


def fan_in(std: ArrayLike = 1.0) -> Rule:
    r"""Make a normal prior that keeps the scale of a layer's output at every width.

    .. math:: \theta_i \sim \mathrm{Normal}(0, s^2 / n_\mathrm{in})

    A sum over :math:`n_\mathrm{in}` inputs of unit variance then has variance
    :math:`s^2`, and a wide network tends to a Gaussian process. A bias takes the fan-in
    of the ``weight`` beside it. For biases as wide as the layer's output, give them a
    rule of their own by name.

    The scale of a normalisation layer of Equinox (the ``weight`` of ``LayerNorm``,
    ``RMSNorm``, ``GroupNorm``, ``BatchNorm``) is centred on one,
    :math:`\mathrm{Normal}(1, s^2)`, and its shift on zero: around zero, the scale would
    silence the layer. The class of the layer decides, not a name. The scale of a
    normalisation layer of your own is unknown and centred on zero like any weight: give
    it a rule by name, ``{"*.my_norm.scale": dist.Normal(1.0, 0.1), "*": fan_in()}``.

    **Shapes**: `std` broadcasts to the parameter's shape. **Sites**: the parameter's.

    Args:
        std: :math:`s`, positive: the standard deviation of a layer's output.

    Returns:
        A rule for ``bayesianize(prior=...)``.

    Raises:
        ValueError: If `std` is not positive and finite; on reading, if it does not
            broadcast to the parameter's shape.
        TypeError: If `std` is not a number.

    References:
        Neal, R. M. (1996). Bayesian Learning for Neural Networks, chapter 2. Springer.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> weight = px.Parameter("w", (), (3, 16), np.dtype("f4"), "generator", 16)
        >>> print(px.priors.fan_in(2.0)(weight).scale)
        0.5
    """
    check_positive("std", std)
    return lambda p: dist.Normal(centre(p), std / math.sqrt(p.fan_in))


def glorot(gain: ArrayLike = 1.0) -> Rule:
    r"""Make a normal prior with the variance of Glorot's initialisation.

    .. math:: \theta_i \sim \mathrm{Normal}(0, 2 g^2 / (n_\mathrm{in} + n_\mathrm{out}))

    This keeps the scale of both a layer's output and its gradient.
    :math:`n_\mathrm{out}` is the number of outputs that one input reaches,
    ``Parameter.fan_out``. In a normalisation layer both are 1; its scale is centred on
    one, as for :func:`fan_in`.

    **Shapes**: `gain` broadcasts to the parameter's shape. **Sites**: the parameter's.

    Args:
        gain: :math:`g`, positive: 1 for tanh-like activations.

    Returns:
        A rule for ``bayesianize(prior=...)``.

    Raises:
        ValueError: If `gain` is not positive and finite; on reading, if it does not
            broadcast to the parameter's shape.
        TypeError: If `gain` is not a number.

    References:
        Glorot, X., Bengio, Y. (2010). Understanding the Difficulty of Training Deep
        Feedforward Neural Networks. AISTATS.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> weight = px.Parameter("w", (), (2, 6), np.dtype("f4"), "generator", 6)
        >>> print(px.priors.glorot()(weight).scale)
        0.5
    """
    check_positive("gain", gain)

    def rule(parameter: Parameter) -> dist.Distribution:
        both = parameter.fan_in + parameter.fan_out
        return dist.Normal(centre(parameter), gain * math.sqrt(2.0 / both))

    return rule


def kaiming(negative_slope: float = 0.0) -> Rule:
    r"""Make a normal prior with the variance of Kaiming He's initialisation, for ReLU.

    .. math:: \theta_i \sim \mathrm{Normal}(0, 2 / ((1 + a^2)\, n_\mathrm{in}))

    The factor 2 offsets ReLU, which halves the mean square of a layer's output. The
    scale of a normalisation layer is centred on one, as for :func:`fan_in`.

    **Sites**: the parameter's.

    Args:
        negative_slope: :math:`a`, the slope of the activation below zero.

    Returns:
        A rule for ``bayesianize(prior=...)``.

    Raises:
        ValueError: If `negative_slope` is not finite.

    References:
        He, K., Zhang, X., Ren, S., Sun, J. (2015). Delving Deep into Rectifiers. ICCV.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> weight = px.Parameter("w", (), (3, 8), np.dtype("f4"), "generator", 8)
        >>> print(px.priors.kaiming()(weight).scale)
        0.5
    """
    if not math.isfinite(negative_slope):
        raise ValueError(f"negative_slope must be finite, got {negative_slope!r}.")
    return fan_in(math.sqrt(2.0 / (1.0 + negative_slope**2)))


def around_stored(std: ArrayLike) -> Rule:
    r"""Make a normal prior centred on the value that the module holds.

    .. math:: \theta_i \sim \mathrm{Normal}(\theta_i^\mathrm{stored}, s^2)

    Use it for a pre-trained module: to fine-tune every weight within a budget (`std`)
    or, with ``where``, to put a Bayesian last layer on fixed features. NumPyro starts
    chains at random by default; ``NUTS(model, init_strategy=px.infer.init_to_stored)``
    starts them at the stored values.

    **Shapes**: `std` broadcasts to the parameter's shape. **Sites**: the parameter's.

    Args:
        std: :math:`s`, positive, in the units of the parameter.

    Returns:
        A rule for ``bayesianize(prior=...)``.

    Raises:
        ValueError: If `std` is not positive and finite; on reading, if it does not
            broadcast to the parameter's shape.
        TypeError: If `std` is not a number.

    References:
        Krishnan, R., Subedar, M., Tickoo, O. (2020). Specifying Weight Priors in
        Bayesian Deep Neural Networks with Empirical Bayes. AAAI.

    Example:
        >>> import equinox as eqx, jax, pyrox_ppl as px
        >>> from numpyro.handlers import seed, trace
        >>> mlp = eqx.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
        >>> def model():
        ...     near = px.priors.around_stored(0.1)
        ...     with px.bayesianize(prior=near, where="*.layers.1.*"):
        ...         px.bind(mlp, "net")
        >>> site = trace(seed(model, 0)).get_trace()["net.layers.1.weight"]
        >>> bool((site["fn"].mean == mlp.layers[1].weight).all())
        True
    """
    check_positive("std", std)

    def rule(parameter: Parameter) -> dist.Distribution:
        # A half-precision mean would round the prior's density.
        dtype = jnp.promote_types(parameter.dtype, jnp.float32)
        return dist.Normal(jnp.asarray(parameter.stored, dtype), std)

    return rule


def centre(parameter: Parameter) -> float:
    """The value around which a parameter leaves its layer as it is, on average."""
    return 1.0 if parameter.norm == "scale" else 0.0
