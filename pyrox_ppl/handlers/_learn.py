"""learn: turns parameters into param sites, which SVI trains."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from numpyro.util import identity

from pyrox_ppl._parameter import Parameter
from pyrox_ppl._where import Where
from pyrox_ppl.handlers._base import AbstractParameterHandler, refuse_complex
from pyrox_ppl.handlers._stack import check_is_new


class learn(AbstractParameterHandler):
    r"""Turn the parameters read inside into ``numpyro.param`` sites.

    SVI finds the point estimate :math:`\hat\theta = \arg\max_\theta` of the ELBO,
    starting at the stored value. By default it learns every *generator* parameter, or
    every parameter of a module that holds no generator; the others stay constants.

    Only SVI trains a param site. NUTS, ``Predictive`` and ``log_density`` keep every
    ``numpyro.param`` at its initial value, which is the stored one here. To use trained
    values, pass them on: ``Predictive(..., params=fit.params)``, or
    ``NUTS(numpyro.handlers.substitute(model, data=fit.params))``.

    **Sites**: one param per selected parameter, under its name, of its shape and dtype,
    unconstrained. A plate around the block does not subsample it. With
    ``bind(..., plate=name)`` the param has a leading axis with one entry per member of
    the plate, each started at the stored value. NumPyro's handlers inside the block act
    on the site as if ``numpyro.param`` had been called where the module is read. Two
    blocks that read one module share its sites; so do a model and its guide.

    Args:
        fn: A model or guide to decorate; without it the handler is a context manager.
        where: Which parameters: a glob, a sequence of globs, or a predicate on
            :class:`~pyrox_ppl.Parameter`.

    Raises:
        ValueError: If a glob of `where` matches nothing, if the block intercepts
            nothing, or if two different modules are read under one name: in the block,
            in two blocks of the model, or in a model and its guide under ``SVI``.
            (If a module is an argument of a compiled step, model and guide hold
            tracers, which only their shapes tell apart.)
        TypeError: If a selected parameter is complex.

    References:
        Hoffman, Blei, Wang, Paisley (2013). Stochastic variational inference. JMLR 14.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist, pyrox_ppl as px
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> from pyrox_ppl.nn import FiLM
        >>> film = FiLM.init(1, 1, key=jax.random.key(0))
        >>> def model(h, z, y=None):
        ...     with px.learn():
        ...         mean = film(h, z)
        ...     numpyro.sample("y", dist.Normal(mean, 0.1).to_event(2), obs=y)
        >>> h = z = jax.numpy.linspace(-1, 1, 8)[:, None]
        >>> def guide(h, z, y=None): pass
        >>> svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
        >>> data = {"h": h, "z": z, "y": h * z}
        >>> fit = svi.run(jax.random.key(1), 10, progress_bar=False, **data)
        >>> sorted(fit.params)
        ['affine_modulation.generator.bias', 'affine_modulation.generator.weight']

        Put the trained values into a module that other models can read:

        >>> trained = px.module_from_mean(film, {}, params=fit.params)
        >>> bias = fit.params["affine_modulation.generator.bias"]
        >>> bool((trained.generator.bias == bias).all())
        True
    """

    def __init__(self, fn: Callable | None = None, *, where: Where = None) -> None:
        super().__init__(fn, where)

    def answer(self, msg: dict[str, Any], parameter: Parameter) -> None:
        """Turn the parameter into a param site."""
        refuse_complex(
            parameter,
            "JAX's gradient of a complex number is conjugated, so optimisers would "
            "climb in the imaginary part",
        )
        check_is_new(msg, "param")
        stored, plate = msg["stored"], msg["plate"]
        if plate is not None:
            lead = (plate.size, *(1,) * (-plate.dim - 1))
            stored = jnp.broadcast_to(
                jnp.expand_dims(stored, tuple(range(len(lead)))),
                (*lead, *parameter.shape),
            )
            # NumPyro's plate then takes the members of its minibatch from the param.
            msg["kwargs"] = {"event_dim": len(parameter.shape)}
        msg["fn"] = identity
        msg["args"] = (stored,)
        msg["type"] = "param"
