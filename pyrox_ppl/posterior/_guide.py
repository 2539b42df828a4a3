"""Draws from a trained guide."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpyro import handlers
from numpyro.distributions import Delta, Independent
from numpyro.infer.autoguide import AutoGuide, AutoGuideList
from numpyro.primitives import Messenger

from pyrox_ppl._dependence import abstract_trace, find_dependence, mark
from pyrox_ppl._full_data import is_factor
from pyrox_ppl.prediction._loop import DrawLoop, keys_of_draws
from pyrox_ppl.prediction._model_call import ModelCall
from pyrox_ppl.prediction._trained import check_trained, with_params


@dataclasses.dataclass(frozen=True)
class GuideDraws:
    """The draws of a guide.

    Attributes:
        guide: The guide.
        values: The draws of the model's sites.
        random: The draws of the sites that the guide draws at random, from which all
            others follow.
        is_point: Whether the guide is a point estimate. It has one draw, or as many as
            were asked for where the model draws noise of its own (dropout).
        trained: The names of the guide's ``param`` and ``mutable`` sites.
        has_density: Whether a call of the guide says how dense its draws are.
    """

    guide: Callable
    values: dict[str, np.ndarray]
    random: dict[str, np.ndarray]
    is_point: bool
    trained: frozenset[str]
    has_density: bool


def draw_guide(
    guide: Callable,
    call: ModelCall,
    rng_key: PRNGKeyArray,
    num_samples: int,
    members: int | None = None,
) -> GuideDraws:
    """Draw from a guide with its trained parameters, plates whole.

    The draws are those of NumPyro's ``Predictive(model, guide=guide, params=params,
    num_samples=num_samples)``. Where a call of an autoguide is a point and its
    posterior is not (``AutoLaplace``, ``AutoLaplaceApproximation``), they are those of
    its ``sample_posterior(rng_key, params, sample_shape=(num_samples,))``.

    Args:
        guide: The guide.
        call: The call of its model, with the trained values of both.
        rng_key: The key of the draws.
        num_samples: How many draws to take.
        members: The number of members, if this is the guide of an ensemble. The trained
            values then have an axis of members; each member draws as a guide alone
            would with its key of ``jax.random.split(rng_key, members)``, and the draws
            of all are along one axis.

    Raises:
        ValueError: If the guide has parameters without trained values.
    """
    auxiliary: set[str] = set()
    random: set[str] = set()
    trained: set[str] = set()
    # Arguments of the program: XLA slowly evaluates constants while it compiles.
    arrays, static = eqx.partition(dict(call.params), eqx.is_array)

    def at(member: Any, arrays: dict[str, Any] = arrays) -> ModelCall:
        own = eqx.combine(arrays, static)
        if members is not None:
            own = jax.tree.map(lambda value: jnp.asarray(value)[member], own)
        return dataclasses.replace(call, params=own)

    def draw(
        key_and_member: tuple[jax.Array, Any], arrays: dict[str, Any]
    ) -> dict[str, jax.Array]:
        key, member = key_and_member
        own = at(member, arrays)
        trace = handlers.trace(handlers.seed(own.run_guide(guide), key)).get_trace()
        check_trained(trace, own.params, of="guide")
        trained.update(n for n, s in trace.items() if s["type"] in ("param", "mutable"))
        sample = {n: site for n, site in trace.items() if site["type"] == "sample"}
        drawn = {n: site for n, site in sample.items() if not site["is_observed"]}
        auxiliary.update(n for n, site in sample.items() if is_factor(site))
        random.update(n for n, site in drawn.items() if not _is_delta(site["fn"]))
        return {name: jnp.asarray(site["value"]) for name, site in drawn.items()}

    points = set(jax.eval_shape(draw, (rng_key, 0), arrays)) - random - auxiliary
    for part in autoguides_of(guide):
        added = getattr(part, "added_params", None)
        trained.update(added(call.params) if added else ())
    samplers = [
        part for part in autoguides_of(guide) if _draws_only_when_asked(part, at(0))
    ]
    is_point = not (random or samplers)
    number = 1 if is_point and not _draws_keys(at(0)) else num_samples
    each = [rng_key] if members is None else list(jax.random.split(rng_key, members))
    keys = jnp.concatenate([keys_of_draws(key, number) for key in each])
    numbers = jnp.repeat(jnp.arange(len(each)), number)
    values = DrawLoop(draw, (keys, numbers), len(keys), arrays).run(arrays)
    for part in samplers:
        posteriors = [
            part.sample_posterior(
                key,
                at(member).params,
                *call.args,
                sample_shape=(number,),
                **call.kwargs,
            )
            for member, key in enumerate(each)
        ]
        values.update(
            {
                n: np.concatenate([np.asarray(drawn[n]) for drawn in posteriors])
                for n in posteriors[0]
                if n in points
            }
        )
    return GuideDraws(
        guide,
        values={n: value for n, value in values.items() if n not in auxiliary},
        random={n: value for n, value in values.items() if n in random},
        is_point=is_point,
        trained=frozenset(trained),
        # The density of a mixture takes that of every member at every draw.
        has_density=members is None and not samplers and not auxiliary - values.keys(),
    )


def autoguides_of(guide: Any) -> list[AutoGuide]:
    """The autoguides that a guide consists of."""
    if isinstance(guide, AutoGuideList):
        return [part for each in guide for part in autoguides_of(each)]
    return [guide] if isinstance(guide, AutoGuide) else []


def _draws_only_when_asked(part: AutoGuide, call: ModelCall) -> bool:
    """Whether a call is a point, and ``sample_posterior`` depends on its key."""

    def key_and_values() -> tuple[dict[str, Any], dict[str, Any]]:
        data = mark(jax.random.key_data(jax.random.key(0)))
        key = jax.random.wrap_key_data(data)
        with handlers.block():
            trained = handlers.seed(with_params(part, call.params), key)
            trace = handlers.trace(trained).get_trace(*call.args, **call.kwargs)
        sample = {n: site for n, site in trace.items() if site["type"] == "sample"}
        if not sample:  # NumPyro's guides fail to draw nothing
            return {"key": data}, {"posterior": {}}
        called = {
            f"call of {name}": site["value"]
            for name, site in sample.items()
            if not _is_delta(site["fn"])
        }
        drawn = part.sample_posterior(key, call.params, *call.args, **call.kwargs)
        # What the model computes may have noise of its own.
        latent = {name: value for name, value in drawn.items() if name in sample}
        return {"key": data}, {"posterior": latent, **called}

    dependence = find_dependence(key_and_values)
    return bool(dependence["posterior"]) and set(dependence) == {"posterior"}


class _KeyListener(Messenger):
    """Notices whether a model asks for a key (``numpyro.prng_key``), as for dropout."""

    heard = False

    def process_message(self, msg: dict[str, Any]) -> None:
        self.heard |= msg["type"] == "prng_key"


def _draws_keys(call: ModelCall) -> bool:
    """Whether the model has noise of its own, so that it differs at one point."""
    listener = _KeyListener(call.run)

    def run() -> None:
        abstract_trace(listener)

    jax.eval_shape(run)  # computes nothing
    return listener.heard


def _is_delta(fn: Any) -> bool:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return isinstance(fn, Delta)
