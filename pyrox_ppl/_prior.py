"""What a prior may be: a rule, or a distribution sampled in its standard form."""

import dataclasses
from collections.abc import Callable
from typing import Any

from numpyro.distributions import Distribution, constraints

from pyrox_ppl._parameter import Parameter


@dataclasses.dataclass(frozen=True)
class NonCentered:
    r"""A non-centred prior: inference samples the parameter in its standard form.

    .. math:: \theta = \mu + \sigma\,\varepsilon, \qquad \varepsilon \sim p(0, 1)

    The parameter :math:`\theta` has the law :math:`p(\mu, \sigma)`, but inference
    samples :math:`\varepsilon`. If :math:`\sigma` is itself a latent site, this spares
    NUTS the funnel. A rule returns it in place of the distribution.

    **Sites**: ``<parameter>_decentered``, a sample site (the name that NumPyro's
    ``LocScaleReparam`` gives), and ``<parameter>``, a deterministic site. With
    ``bind(..., plate=...)`` both are inside the plate. If ``condition`` or ``do`` fixes
    the parameter, there is no noise to sample: ``<parameter>`` is then a sample site
    with `distribution` as its law, and ``<parameter>_decentered`` is absent.

    Args:
        distribution: A location-scale distribution over the real numbers: ``Normal``,
            ``Laplace``, ``StudentT``, ``Cauchy``, ... Its shape broadcasts to the
            parameter's.

    Raises:
        TypeError: If `distribution` has no ``loc`` or no ``scale``.
        ValueError: If its support is not the real line.

    References:
        Papaspiliopoulos, O., Roberts, G. O., Sköld, M. (2007). A General Framework for
        the Parametrization of Hierarchical Models. Statistical Science 22(1).

    Example:
        >>> import equinox as eqx, jax, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> from numpyro.handlers import seed, trace
        >>> linear = eqx.nn.Linear(2, 1, use_bias=False, key=jax.random.key(0))
        >>> def model():
        ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        ...     prior = px.priors.NonCentered(dist.Normal(0.0, scale))
        ...     with px.bayesianize(prior=lambda parameter: prior):
        ...         px.bind(linear, "net")
        >>> for name, site in trace(seed(model, 0)).get_trace().items():
        ...     print(name, site["type"])
        scale sample
        net.weight_decentered sample
        net.weight deterministic
    """

    distribution: Distribution

    def __post_init__(self) -> None:
        fn = self.distribution
        if not {"loc", "scale"} <= set(getattr(fn, "arg_constraints", ())):
            raise TypeError(
                "NonCentered needs a distribution with a loc and a scale, such as "
                f"Normal(loc, scale), got {fn!r}."
            )
        if fn.support is not constraints.real:
            raise ValueError(
                f"NonCentered needs a distribution over the real numbers, but "
                f"{type(fn).__name__} has the support {fn.support}."
            )

    @property
    def standard(self) -> Distribution:
        """The same distribution with location 0 and scale 1."""
        fn: Any = self.distribution
        given = {name: getattr(fn, name) for name in fn.arg_constraints}
        return type(fn)(**{**given, "loc": 0.0, "scale": 1.0})


Rule = Callable[[Parameter], Distribution | NonCentered | None]
