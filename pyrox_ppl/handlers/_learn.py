"""learn: a parameter becomes a param site, trained by SVI."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from numpyro.util import identity

from pyrox_ppl._parameter import Parameter
from pyrox_ppl.handlers._base import AbstractParameterHandler, Where, refuse_complex
from pyrox_ppl.handlers._stack import check_is_new


class learn(AbstractParameterHandler):
    r"""Turn the parameters read inside into ``numpyro.param`` sites.

    A point estimate, :math:`\hat\theta = \arg\max_\theta` of the ELBO, started at the
    stored value. By default every *generator* parameter is learned, or every parameter
    of a module that holds no generator; the others stay the constants they are.

    Only SVI trains a param site. NUTS, ``Predictive`` and ``log_density`` hold it, as
    every ``numpyro.param``, at its initial value, which is the stored one, unless the
    trained values are given to them: ``Predictive(..., params=fit.params)``, or
    ``NUTS(numpyro.handlers.substitute(model, data=fit.params))``.

    **Sites**: one param per selected parameter, under its name, of its shape and dtype,
    unconstrained. A plate around the block does not subsample it. For
    ``bind(..., plate=name)`` it has a member for each of the plate in front, all
    started at the stored value. NumPyro's handlers inside the block act on them as if
    ``numpyro.param`` had been called where the module is read. Two blocks that read one
    module share its sites; so do a model and its guide.

    Args:
        fn: A model or guide to decorate; without it the handler is a context manager.
        where: Which parameters: a glob, a sequence of globs, or a predicate on
            :class:`~pyrox_ppl.Parameter`.

    Raises:
        ValueError: If a glob of `where` matches nothing, if the block intercepts
            nothing, or if two different modules are read under one name: in the block,
            in another block of the model, or in model and guide where ``SVI`` sees them
            (a module that is an argument of a compiled step is a tracer there, and is
            told apart by its shape alone).
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

        The module with the trained values in place, which other models can read:

        >>> trained = px.module_from_mean(film, {}, params=fit.params)
        >>> bias = fit.params["affine_modulation.generator.bias"]
        >>> bool((trained.generator.bias == bias).all())
        True
    """

    def __init__(self, fn: Callable | None = None, *, where: Where = None) -> None:
        super().__init__(fn, where)

    def answer(self, msg: dict[str, Any], parameter: Parameter) -> None:
        """Make the parameter a param site."""
        refuse_complex(
            parameter,
            "optimisers would follow its gradient in JAX's convention, which climbs in "
            "the imaginary part",
        )
        check_is_new(msg, "param")
        stored, plate = msg["stored"], msg["plate"]
        if plate is not None:
            lead = (plate.size, *(1,) * (-plate.dim - 1))
            stored = jnp.broadcast_to(
                jnp.expand_dims(stored, tuple(range(len(lead)))),
                (*lead, *parameter.shape),
            )
            # So that the plate takes the members of a minibatch.
            msg["kwargs"] = {"event_dim": len(parameter.shape)}
        msg["fn"] = identity
        msg["args"] = (stored,)
        msg["type"] = "param"
