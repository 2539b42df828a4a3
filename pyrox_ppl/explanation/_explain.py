"""explain: says what a model will do with its parameters, before it runs."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpyro import handlers
from numpyro.distributions import Distribution
from numpyro.distributions.transforms import biject_to
from numpyro.infer import Predictive
from numpyro.primitives import Messenger

from pyrox_ppl._layer_state import CopyState
from pyrox_ppl._numpyro import handler_stack
from pyrox_ppl._observed_shapes import CheckObservedShapes
from pyrox_ppl._parameter import Parameter
from pyrox_ppl._reads import SITES
from pyrox_ppl.explanation._explanation import (
    ExplainedParameter,
    ExplainedSite,
    Explanation,
)
from pyrox_ppl.handlers._base import AbstractParameterHandler, note_forgotten_vmap


def explain(
    model: Callable, *args: Any, loss: Any = None, **kwargs: Any
) -> Explanation:
    """List every parameter that a model reads, what it becomes, and by which handler.

    The model runs abstractly, with shapes in place of numbers (``jax.eval_shape``):
    nothing is drawn, computed or compiled, whatever the sizes. An error that the model
    would raise (a glob that matches nothing, a prior that does not fit) is raised here,
    and so is one for observations that a distribution broadcasts to all pairs.
    A parameter that is read both inside and outside a block has two rows and a note,
    because it is the stored constant outside.

    **Sites**: none.

    Args:
        model: A NumPyro model, or any function that calls modules. It needs no seed.
        *args: The model's arguments.
        loss: A loss of :mod:`pyrox_ppl.infer` with noise for each row of data
            (``LocalReparam_ELBO()``, ``Flipout_ELBO()``): a column then says which
            parameters get it, and why others are drawn once.
        **kwargs: The model's keyword arguments.

    Returns:
        A record of everything, which prints as a table.

    Example:
        >>> import equinox as eqx, jax, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> mlp = eqx.nn.MLP(1, 1, 16, 1, key=jax.random.key(0))
        >>> def model(x, y=None):
        ...     with px.bayesianize(prior_std=0.5, where="*.layers.1.*"):
        ...         net = px.bind(mlp, "net")
        ...     with numpyro.plate("row", x.shape[0]):
        ...         mean = jax.vmap(net)(x)[:, 0]
        ...         numpyro.sample("y", dist.Normal(mean, 0.1), obs=y)
        >>> x = jax.numpy.ones((20, 1))
        >>> explanation = px.explain(model, x, y=x[:, 0])
        >>> explanation
        parameter            shape    becomes   by           prior
        net.layers.0.weight  (16, 1)  constant
        net.layers.0.bias    (16,)    constant
        net.layers.1.weight  (1, 16)  sample    bayesianize  Normal(0, 0.5)
        net.layers.1.bias    (1,)     sample    bayesianize  Normal(0, 0.5)
        <BLANKLINE>
        other site  shape  type      plates  distribution
        y           (20,)  observed  row     Normal(float32[20], 0.1)
        <BLANKLINE>
        latent dimension 17, learned 0, constant 32
        1,000 draws of every site take 145 KiB
        >>> explanation.memory(100_000)
        14800000
    """
    recorder = _Recorder()
    sites: dict[str, ExplainedSite] = {}

    def run() -> None:
        seed = handlers.seed(rng_seed=0)
        with CheckObservedShapes(), handlers.trace() as trace, seed, recorder:
            model(*args, **kwargs)
        for name, site in trace.items():
            if site["type"] in SITES:
                sites[name] = _explain_site(site, trace)

    def predictive(rng_key: jax.Array, num_samples: int) -> dict[str, jax.Array]:
        prior = Predictive(handlers.uncondition(model), num_samples=num_samples)
        with CopyState():
            return prior(rng_key, *args, **kwargs)

    try:
        with CopyState():
            jax.eval_shape(run)
    except TypeError as error:
        _check_arguments(model, args, kwargs, error)
        note_forgotten_vmap(error)
        raise
    noise = _describe_noise(loss, model, args, kwargs)
    parameters = tuple(
        dataclasses.replace(row, noise=noise.get(row.name))
        for row in recorder.rows.values()
    )
    own = {row.name for row in parameters if row.becomes != "constant"}
    return Explanation(
        parameters=parameters,
        sites=tuple(site for name, site in sites.items() if name not in own),
        parameter_sites=tuple(site for name, site in sites.items() if name in own),
        _predictive=predictive,
    )


def _describe_noise(
    loss: Any, model: Callable, args: tuple, kwargs: dict[str, Any]
) -> dict[str, str]:
    """What a loss says of its noise, by the name of the parameter."""
    if loss is None:
        return {}
    describe = getattr(loss, "describe_noise", None)
    if describe is None:
        raise TypeError(
            f"loss={loss!r} draws every parameter once for all rows of data, as all of "
            "NumPyro's losses do: explain takes LocalReparam_ELBO() or Flipout_ELBO()."
        )
    with CopyState():
        return describe(model, *args, **kwargs)


def _check_arguments(
    model: Callable, args: tuple, kwargs: dict[str, Any], error: TypeError
) -> None:
    """Raise if the arguments do not fit the model's signature."""
    try:
        inspect.signature(model).bind(*args, **kwargs)
    except TypeError as why:
        raise TypeError(
            f"explain cannot run the model with these arguments: {why}. Pass the "
            "model's arguments after it: explain(model, x, ...)."
        ) from error


class _Recorder(Messenger):
    """Records every parameter that is read, and what the handlers made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[tuple[str, str | None], ExplainedParameter] = {}

    def record_read(
        self, parameter: Parameter, msg: dict[str, Any], module: Any
    ) -> None:
        """Record a parameter, unless this is a second read."""
        # `do` adds this suffix to the name of the value that it fixes.
        handler, name = None, msg["name"].removesuffix("__CF")
        for other in handler_stack():
            if not isinstance(other, AbstractParameterHandler):
                continue
            for answer in other.block.answers.values():
                if answer.message is msg:
                    handler = type(other).__name__
                elif answer.message["value"] is msg["value"]:
                    return
        becomes = "constant" if handler is None else _becomes(msg)
        fn = msg.get("fn") if handler is not None else None
        row = ExplainedParameter(
            name=name,
            shape=jnp.shape(msg["value"]),
            becomes=becomes,
            handler=handler,
            prior=_describe(fn) if isinstance(fn, Distribution) else None,
            parameter=dataclasses.replace(parameter, stored=None),
        )
        # A read outside the block is another row, for there it is a constant.
        self.rows.setdefault((name, handler), row)


def _becomes(msg: dict[str, Any]) -> str:
    """Return what the handlers made of a parameter's message."""
    if msg["type"] not in SITES:
        return "generated"
    return "observed" if msg.get("is_observed") else msg["type"]


def _explain_site(site: dict[str, Any], trace: dict[str, Any]) -> ExplainedSite:
    """Make the record of a site in a trace."""
    value, fn = site["value"], site["fn"] if site["type"] == "sample" else None
    observed = fn is not None and site["is_observed"]
    latent_dim = 0
    if fn is not None and not observed and not fn.support.is_discrete:
        # Inference works in unconstrained space: a simplex has one dimension less.
        shape = biject_to(fn.support).inverse_shape(jnp.shape(value))
        latent_dim = math.prod(shape)
        # A subsampled plate shows a minibatch here, but its latents are all inferred.
        for frame in site["cond_indep_stack"]:
            if frame.name in trace:
                latent_dim = latent_dim * trace[frame.name]["args"][0] // frame.size
    dtype = jnp.result_type(value)
    return ExplainedSite(
        name=site["name"],
        type="observed" if observed else site["type"],
        shape=jnp.shape(value),
        distribution=None if fn is None else _describe(fn),
        plates=tuple(frame.name for frame in site["cond_indep_stack"]),
        num_bytes=math.prod(jnp.shape(value)) * dtype.itemsize,
        latent_dim=latent_dim,
    )


def _describe(fn: Distribution) -> str:
    """Write a distribution in one line, without the shapes it was broadcast to."""
    while (base := getattr(fn, "base_dist", None)) is not None:
        if getattr(fn, "transforms", None):
            return f"{type(fn).__name__}({_describe(base)})"
        fn = base
    stored = vars(fn)
    values = [stored[name] for name in fn.arg_constraints if name in stored]
    return f"{type(fn).__name__}({', '.join(map(_describe_value, values))})"


def _describe_value(value: Any) -> str:
    """Write an array as a number if all its entries are equal, else dtype and shape."""
    if not isinstance(value, Tracer):
        numbers = np.unique(np.asarray(value, dtype=float))
        if len(numbers) == 1:
            return f"{numbers[0]:.4g}"
    shape = ",".join(map(str, jnp.shape(value)))
    return f"{jnp.result_type(value)}[{shape}]"
