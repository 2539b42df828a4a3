"""linearize: a model whose likelihood is linear in its latents around a point."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun
from numpyro import handlers
from numpyro.primitives import apply_stack

from pyrox_ppl._dependence import follow
from pyrox_ppl._distribution_parameters import Parts
from pyrox_ppl._numpyro import handler_stack
from pyrox_ppl.handlers._two_runs import FirstRun, Output, SecondRun, is_harmless

_LATENTS = "the latents"


def linearize(model: Callable, at: Mapping[str, Any]) -> Callable:
    r"""Return a model whose likelihood depends on its latents by a linear function.

    .. math::
        f_{\mathrm{lin}}(u) = f(u^*) + J_f(u^*)\, (u - u^*), \qquad
        \theta = b(u), \quad \theta^* = b(u^*)

    Here :math:`\theta` are the latents named in `at`, :math:`b` is the bijection to
    their support (the identity for weights), and :math:`f` is

    - every parameter of the distribution of any other sample site, in its own
      unconstrained space: a location or logits as they are, a scale or a rate by its
      logarithm, probabilities by their logits;
    - every deterministic site.

    The prior stays as it is. The values are those of one forward-mode derivative of the
    model at the mode. A Laplace approximation fits this model, not the original one:
    its curvature is that of the linear model, and predictions of the original network
    at its draws are much worse (Immer et al., 2021).

    The result is a NumPyro model with the same sites, for ``Predictive``, ``MCMC``, or
    :func:`~pyrox_ppl.predict`. It returns None. What a parameter's value was when the
    original model ran does not matter: probabilities that float32 rounds to 0 or 1 have
    no derivative left, so give distributions logits.

    Args:
        model: The NumPyro model, with its :func:`~pyrox_ppl.bayesianize` inside.
        at: The point :math:`\theta^*`: values of latent sites by name, constrained, as
            ``guide.median(fit.params)`` returns them.

    Returns:
        The linear model.

    Raises:
        TypeError: If `model` is a module.
        ValueError: If `at` is empty. On a call, if `at` names a site that the model
            lacks, or that is discrete or has another shape; if a value that is to be
            linearised is an integer, or belongs to a distribution whose parameters are
            not known; if a site depends on the value of another sample site that `at`
            does not name (an autoregression on an observation); or if an observation is
            inside a ``scan`` or ``cond``.

    References:
        Immer, A., Korzepa, M., Bauer, M. (2021). Improving predictions of Bayesian
        neural nets via local linearization. AISTATS.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> from numpyro.infer import Predictive
        >>> def model(x):
        ...     slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     numpyro.deterministic("f", jnp.sin(slope * x))
        >>> linear = px.linearize(model, {"slope": 0.0})
        >>> draws = {"slope": jnp.array([0.5, 3.0])}
        >>> Predictive(linear, draws)(jax.random.key(0), 1.0)["f"]
        Array([0.5, 3. ], dtype=float32)
    """
    if isinstance(model, eqx.Module):
        raise TypeError(
            f"linearize takes a NumPyro model, and {type(model).__name__} is a module: "
            "px.linearize(model, at), with the model that reads it."
        )
    if not at:
        raise ValueError(
            "`at` names no site, so there is nothing to linearise the model in: give "
            "the values of its latent sites, such as guide.median(fit.params)."
        )

    @functools.wraps(model, updated=())
    def linearized(*args: Any, **kwargs: Any) -> None:
        for handler in handler_stack():
            if getattr(handler, "entered_at", None) is not None:
                raise ValueError(
                    f"linearize runs inside a {type(handler).__name__} block, which "
                    "would answer for the model's parameters at each of its runs: put "
                    "the block inside, linearize(bayesianize(model), at)."
                )
        first = FirstRun(at)
        with first:
            model(*args, **kwargs)
        first.check()
        run = functools.partial(model, *args, **kwargs)
        for message in _linear_sites(run, first):
            apply_stack(message)

    return linearized


def _linear_sites(run: Callable[[], Any], first: FirstRun) -> list[dict[str, Any]]:
    """The messages of the sites that are not latent, linear in the latents."""
    outputs: list[Output] = []

    def outputs_at(mode: dict[str, jax.Array]) -> tuple[list[Any], list[list[Any]]]:
        second = SecondRun(first, mode)
        hidden = handlers.block(hide_fn=lambda msg: not is_harmless(msg))
        with hidden, second:
            run()
        outputs[:] = second.outputs
        return second.marked(), [output.traced for output in outputs]

    closed, shapes = jax.make_jaxpr(outputs_at, return_shape=True)(first.mode)
    jaxpr, marked = closed.jaxpr, len(shapes[0])
    names = [output.name for output in outputs if output.is_marked]
    causes = {v: {name} for v, name in zip(jaxpr.outvars[:marked], names, strict=True)}
    causes |= {variable: {_LATENTS} for variable in jaxpr.invars}
    reached = follow(jaxpr, causes)[marked:]
    values, tangents = jax.jvp(
        jaxpr_as_fun(closed),
        jax.tree.leaves(first.mode),
        jax.tree.leaves(first.direction),
    )
    values, tangents = values[marked:], tangents[marked:]
    messages, start = [], 0
    for output in outputs:
        stop = start + len(output.traced)
        here = slice(start, stop)
        messages.append(
            _linear_site(output, values[here], tangents[here], reached[here])
        )
        start = stop
    return messages


def _linear_site(
    output: Output, values: list[Any], tangents: list[Any], reached: list[set[str]]
) -> dict[str, Any]:
    """The message of one site."""
    other = sorted(set().union(*reached) - {_LATENTS, output.name})
    if other:
        raise ValueError(
            f"the site {output.name!r} depends on the values of the sample sites "
            f"{other}, at which the model is not linearised: pass such values as "
            "arguments of the model, or use draws that are not linearised, "
            "AutoLaplace(model, linearized=False)."
        )
    depends = [_LATENTS in names for names in reached]
    moved = [
        value + tangent if is_moved and _is_inexact(value) else value
        for value, tangent, is_moved in zip(values, tangents, depends, strict=True)
    ]
    is_wrong = [
        is_moved and not _is_inexact(value)
        for value, is_moved in zip(values, depends, strict=True)
    ]
    exact, linear = output.put(values), output.put(moved)
    moves, wrong = output.put_marks(depends), output.put_marks(is_wrong)
    message = {**output.message, "value": exact["value"], "scale": exact["scale"]}
    if _any(moves["scale"]):
        raise ValueError(
            f"the scale of the site {output.name!r} depends on the latents, and cannot "
            "be linearised."
        )
    parts = output.parts
    if parts is None:
        if _any(wrong["value"]):
            raise ValueError(
                f"the deterministic site {output.name!r} holds integers, which cannot "
                "be linearised: write the numbers that they are computed from to a "
                "site (logits, not their argmax)."
            )
        return message | {"value": linear["value"]}
    if _any(moves["value"]):
        raise ValueError(
            f"the observation of {output.name!r} depends on the latents, and cannot be "
            "linearised."
        )
    return message | {
        "fn": _linear_distribution(output.name, parts, exact, linear, moves)
    }


def _linear_distribution(
    site: str, parts: Parts, exact: Any, linear: Any, moves: Any
) -> Any:
    """A distribution whose parameters are linear in their unconstrained space."""
    arrays = dict(exact["arrays"])
    for name in arrays:
        if not _any(moves["arrays"][name]):
            continue
        if name not in parts.transforms:
            raise ValueError(
                f"{name!r} of the distribution of the site {site!r} depends on the "
                "latents, and is no parameter that can be linearised: write the "
                "likelihood with a distribution of NumPyro whose parameter it is, or "
                "use draws that are not linearised, "
                "AutoLaplace(model, linearized=False)."
            )
        value = parts.transforms[name](linear["unconstrained"][name])
        arrays[name] = value.astype(jnp.result_type(arrays[name]))
    return parts.rebuild(arrays)


def _any(tree: Any) -> bool:
    return any(jax.tree.leaves(tree))


def _is_inexact(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact)
