"""bayesianize: turns parameters into sample sites with a prior."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.primitives import apply_stack

from pyrox_ppl._parameter import Parameter
from pyrox_ppl._prior import NonCentered, Rule
from pyrox_ppl._where import Where, check_takes_parameter, matches_parameter
from pyrox_ppl.handlers._base import AbstractParameterHandler, refuse_complex
from pyrox_ppl.handlers._block import Block, describe_parameters
from pyrox_ppl.handlers._fit_prior import fit_prior
from pyrox_ppl.handlers._stack import check_is_new, is_fixed

Prior = dist.Distribution | Rule | Mapping[str, dist.Distribution | Rule]

_FALLBACK = "*"


class bayesianize(AbstractParameterHandler):
    r"""Turn the parameters read inside into ``numpyro.sample`` sites with a prior.

    By default :math:`\theta_i \sim \mathrm{Normal}(0, s)`, independently for every
    entry of every *generator* parameter: the parameters of conditioners and of networks
    that generate features, or all parameters of a module that holds no generator. A
    wrapped inner network, a context encoder and a readout stay constants.

    **Sites**: one per selected parameter, under its name, with the prior as its
    distribution; all its axes are event axes. A plate around the block does not
    multiply it. The value is cast to the parameter's dtype on its way into the module.
    NumPyro's handlers inside the block act on the site as if ``numpyro.sample`` had
    been called where the module is read. The block reads each parameter once, so the
    handlers around the first read count.

    Args:
        fn: A model to decorate; without it the handler is a context manager.
        prior_std: :math:`s`, the standard deviation of the default prior. A positive
            number, or a traced value (a hierarchical scale). In the units of the
            parameter.
        prior: Instead of `prior_std`: a distribution whose shape broadcasts to each
            parameter's; a callable ``Parameter -> Distribution`` (the usual ones are in
            :mod:`pyrox_ppl.priors`); or a dict from globs on the parameter's name to
            either. The first matching glob wins, and ``"*"`` is the fallback; a tied
            array has a name for each of its places. A callable may sample sites of its
            own (a hierarchical scale), which are global as well. If it returns
            :class:`~pyrox_ppl.priors.NonCentered`, the parameter is a deterministic
            site, computed from ``<parameter>_decentered``.
        where: Which parameters: a glob, a sequence of globs, or a predicate on
            :class:`~pyrox_ppl.Parameter`.

    Raises:
        ValueError: If a key of `prior` or a glob of `where` matches nothing, if a
            selected parameter gets no prior, if the block intercepts nothing, if a
            prior does not fit a parameter's shape or is discrete, or if two different
            modules are read under one name.
        TypeError: If a selected parameter is complex, or a prior is not a distribution.

    References:
        Neal, R. M. (1996). Bayesian Learning for Neural Networks. Springer.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist, pyrox_ppl as px
        >>> from numpyro.infer import MCMC, NUTS
        >>> from pyrox_ppl.nn import FiLM
        >>> film = FiLM.init(1, 1, key=jax.random.key(0))
        >>> def model(h, z, y=None):
        ...     with px.bayesianize(prior={"*.bias": dist.Normal(0.0, 0.1),
        ...                                "*.weight": dist.Normal(0.0, 1.0)}):
        ...         mean = film(h, z)
        ...     numpyro.sample("y", dist.Normal(mean, 0.1).to_event(2), obs=y)
        >>> h = z = jax.numpy.linspace(-1, 1, 8)[:, None]
        >>> mcmc = MCMC(NUTS(model), num_warmup=20, num_samples=10, progress_bar=False)
        >>> mcmc.run(jax.random.key(1), h, z, y=h * z)
        >>> for name, draws in sorted(mcmc.get_samples().items()):
        ...     print(name, draws.shape)
        affine_modulation.generator.bias (10, 2)
        affine_modulation.generator.weight (10, 2, 1)
    """

    def __init__(
        self,
        fn: Callable | None = None,
        *,
        prior_std: ArrayLike = 1.0,
        prior: Prior | None = None,
        where: Where = None,
    ) -> None:
        super().__init__(fn, where)
        if isinstance(prior_std, int | float) and not 0 < prior_std < math.inf:
            raise ValueError(f"prior_std must be positive and finite, got {prior_std}.")
        default = isinstance(prior_std, int | float) and prior_std == 1.0
        if prior is not None and not default:
            raise ValueError("give either prior_std or prior, not both.")
        self._rules = _rules(dist.Normal(0.0, prior_std) if prior is None else prior)
        self._keys = tuple(self._rules) if isinstance(prior, Mapping) else ()

    def answer(self, msg: dict[str, Any], parameter: Parameter) -> None:
        """Turn the parameter into a sample site."""
        refuse_complex(parameter, "priors are over real numbers")
        check_is_new(msg, "sample")
        prior = self._prior(msg, parameter)
        if not isinstance(prior, NonCentered):
            self.make_sample_site(msg, fit_prior(prior, parameter))
        elif is_fixed(msg):
            # The value is given, so there is no noise to sample.
            self.make_sample_site(msg, fit_prior(prior.distribution, parameter))
        else:
            self._decenter(msg, prior, parameter)

    def check_effect(self, block: Block) -> None:
        """Also raise if a key of `prior` had no effect."""
        super().check_effect(block)
        answered = [block.parameters[name] for name in block.answers]
        winners = {self._deciding_key(parameter) for parameter in answered}
        for key in self._keys:
            if key in winners or key == _FALLBACK:
                continue
            if any(matches_parameter(parameter, key) for parameter in answered):
                why = "comes after keys that match the same parameters: put it first"
            elif any(matches_parameter(p, key) for p in block.parameters.values()):
                why = "matches only parameters that are not selected: see `where`"
            else:
                why = "matches no parameter"
            raise ValueError(
                f"the prior key {key!r} of bayesianize {why}. "
                f"{describe_parameters(block)}"
            )

    def _deciding_key(self, parameter: Parameter) -> str | None:
        """Find the key that decides for a parameter: the first match on its names."""
        named = (key for key in self._rules if key != _FALLBACK)
        keys = (key for key in named if matches_parameter(parameter, key))
        return next(keys, _FALLBACK if _FALLBACK in self._rules else None)

    def _decenter(
        self, msg: dict[str, Any], prior: NonCentered, parameter: Parameter
    ) -> None:
        """Sample the standard form, and compute the parameter from it."""
        fitted = fit_prior(prior.distribution, parameter)
        fn: Any = prior.distribution
        name = f"{parameter.name}_decentered"
        noise = {**msg, "name": name, "cond_indep_stack": []}
        # An init strategy inverts these to start at the stored value.
        noise["loc_scale"] = (fn.loc, fn.scale)
        self.make_sample_site(noise, fit_prior(prior.standard, parameter))
        with self.stand_at_read(msg, parameter, msg["plate"]):
            apply_stack(noise)
        shape = jnp.shape(noise["value"])
        loc, scale = (jnp.broadcast_to(value, shape) for value in (fn.loc, fn.scale))
        msg["fn"] = fitted  # nothing draws from it: reports show it as the prior
        msg["value"] = loc + scale * noise["value"]
        msg["type"] = "deterministic"

    def _prior(self, msg: dict[str, Any], parameter: Parameter) -> Any:
        """Look up a parameter's prior; sites of a callable stand at the read."""
        key = self._deciding_key(parameter)
        rule = None if key is None else self._rules[key]
        if rule is not None and not isinstance(rule, dist.Distribution):
            with self.stand_at_read(msg, parameter):
                rule = rule(parameter)
        if rule is None:
            raise ValueError(
                f"the parameter {parameter.name!r} is selected but got no prior. Add a "
                "key for it (or '*', the fallback), or exclude it by `where`. "
                f"{describe_parameters(self.block)}"
            )
        return rule


def _rules(prior: Any) -> dict[str, Any]:
    """Bring `prior` to one form: a dict from globs to distributions or callables."""
    rules = dict(prior) if isinstance(prior, Mapping) else {_FALLBACK: prior}
    for key, rule in rules.items():
        if not isinstance(key, str):
            raise TypeError(f"a prior key must be a glob on names, got {key!r}.")
        if isinstance(rule, type):
            raise TypeError(
                f"a prior must be a distribution, such as Normal(0.0, 1.0), or a "
                "callable Parameter -> Distribution, got the class "
                f"{rule.__name__} for {key!r}: make an instance of it."
            )
        if not (isinstance(rule, dist.Distribution) or callable(rule)):
            raise TypeError(
                "a prior must be a NumPyro distribution or a callable Parameter -> "
                f"Distribution, got {rule!r} for {key!r}."
            )
        if not isinstance(rule, dist.Distribution):
            check_takes_parameter("prior", rule)
    return rules
