"""A model bound to its arguments and trained values: one call, on all of its data."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from pyrox_ppl._dependence import abstract_trace, find_dependence
from pyrox_ppl._full_data import full_data
from pyrox_ppl.handlers import linearize
from pyrox_ppl.prediction._draws import CHAIN
from pyrox_ppl.prediction._trained import with_params


@dataclasses.dataclass(frozen=True, eq=False)
class ModelCall:
    """A model with all that one call of it needs.

    Attributes:
        model: The NumPyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        params: The trained values of its ``param`` and ``mutable`` sites, and of those
            of its guide. Of an ensemble, those of the first member.
        by_chain: Of an ensemble, the trained values of all members, along one axis.
        linearized_at: Values of latent sites around which the model is linearised
            (:func:`~pyrox_ppl.linearize`), with a leading axis: one entry for all
            draws, or one for each chain. Empty for the model as it is.
    """

    model: Callable[..., Any]
    args: tuple
    kwargs: Mapping[str, Any]
    params: Mapping[str, Any]
    by_chain: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    linearized_at: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def with_trained(
        self, params: Mapping[str, Any], by_chain: Mapping[str, Any]
    ) -> "ModelCall":
        """The call with more trained values; its own come first."""
        by_chain = {n: v for n, v in by_chain.items() if n not in self.params}
        first = {name: value[0] for name, value in by_chain.items()}
        params = {**params, **first, **self.params}
        return dataclasses.replace(self, params=params, by_chain=by_chain)

    def at(self, draw: Mapping[str, Any]) -> tuple["ModelCall", Mapping[str, Any]]:
        """The call with what belongs to a draw's chain, and the draw's sites."""
        if not self.depends_on_chain:
            return self, draw
        sites = {name: value for name, value in draw.items() if name != CHAIN}
        chain = draw.get(CHAIN, 0)
        own = {name: jnp.asarray(v)[chain] for name, v in self.by_chain.items()}
        mode = self.linearized_at
        if self.num_modes > 1:
            mode = {name: jnp.asarray(v)[chain][None] for name, v in mode.items()}
        call = dataclasses.replace(
            self, params={**self.params, **own}, by_chain={}, linearized_at=mode
        )
        return call, sites

    @property
    def depends_on_chain(self) -> bool:
        """Whether the call differs from chain to chain."""
        return bool(self.by_chain) or self.num_modes > 1

    @property
    def num_modes(self) -> int:
        """Around how many points the model is linearised."""
        return max((len(value) for value in self.linearized_at.values()), default=0)

    @functools.cached_property
    def run(self) -> Callable[[], Any]:
        """The call, on all of the data and with the trained values in place."""
        return full_data(self._given)

    def run_guide(self, guide: Callable[..., Any]) -> Callable[[], Any]:
        """The call of a guide of this model, which decides for their common plates."""
        run = with_params(guide, self.params)
        return full_data(functools.partial(run, *self.args, **self.kwargs), self._given)

    def trace(self, draw: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
        """The sites of the model at one draw; deterministic ones are computed.

        Raises:
            ValueError: If the draw has another shape than its site.
        """
        call, draw = self.at(draw)

        def put(site: dict[str, Any]) -> Any:
            is_latent = site["type"] == "sample" and not site["is_observed"]
            if not is_latent or site["name"] not in draw:
                return None
            check_draw(site, draw[site["name"]])
            return draw[site["name"]]

        run = handlers.substitute(handlers.seed(call.run, seed), substitute_fn=put)
        return handlers.trace(run).get_trace()

    def find_latents(self) -> set[str]:
        """The sites without observations on which other sample sites depend."""

        def latents_and_distributions() -> tuple[dict[str, Any], dict[str, Any]]:
            trace = abstract_trace(self.run)
            samples = {n: s for n, s in trace.items() if s["type"] == "sample"}
            causes = {n: s["value"] for n, s in samples.items() if not s["is_observed"]}
            return causes, {n: jax.tree.leaves(s["fn"]) for n, s in samples.items()}

        dependence = find_dependence(latents_and_distributions)
        return set().union(*(causes - {name} for name, causes in dependence.items()))

    @functools.cached_property
    def _given(self) -> Callable[[], Any]:
        """The call with the trained values, on the data that it is given."""
        model = self.model
        if self.linearized_at:
            mode = {name: value[0] for name, value in self.linearized_at.items()}
            model = linearize(model, mode)
        run = with_params(model, self.params)
        return functools.partial(run, *self.args, **self.kwargs)


def check_draw(site: dict[str, Any], value: Any) -> None:
    """Refuse a draw whose shape is not that of the site it is about to stand in for.

    Inside a ``scan`` the draws of all steps are along one more axis, possibly of fewer
    steps. Whether a site is inside one is known only after the run: `check_draws`.

    Raises:
        ValueError: If the shapes differ.
    """
    shape, expected = np.shape(value), _shape(site)
    if shape != expected and (site["type"] != "sample" or shape[1:] != expected):
        raise _mismatch(site, shape)


def check_draws(trace: dict[str, Any], draws: Mapping[str, Any]) -> None:
    """Refuse draws whose shapes are not those of the sites of a finished run.

    Raises:
        ValueError: If the shapes differ.
    """
    for name in draws:
        site = trace.get(name, {"type": None})
        if site["type"] == "sample" and not site.get("_control_flow_done"):
            shape = np.shape(site["value"])
            if shape not in ((), _shape(site)):
                raise _mismatch(site, shape)


def check_names(
    call: ModelCall,
    trace: dict[str, Any],
    draws: Mapping[str, Any],
    unused: Collection[str] = (),
) -> None:
    """Refuse draws of other sites than the model's, which would draw its own anew.

    A site without draws is drawn from its prior on purpose (a new group), and draws
    may be of more sites than the model has. A parameter of a module without draws, or
    a latent site, beside draws of its shape that belong to no site, is a misspelt name
    or another model.

    Args:
        call: The call of the model.
        trace: A run of the model.
        draws: The draws.
        unused: Sites of the model that need no draws.

    Raises:
        ValueError: If no draw belongs to a site of the model; or if some do not, and a
            parameter of a module has none, or a latent site of their shape.
    """
    unknown = sorted(draws.keys() - trace.keys())
    if not unknown:
        return
    undrawn = {
        name: site
        for name, site in trace.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and name not in draws
        and name not in unused
    }
    missing = [n for n, site in undrawn.items() if site.get("parameter") is not None]
    if not missing and len(unknown) < len(draws):
        shapes = {np.shape(draws[name]) for name in unknown}
        alike = [n for n, site in undrawn.items() if _shape(site) in shapes]
        latents = call.find_latents() if alike else ()
        missing = [name for name in alike if name in latents]
        if not missing:
            return
    samples = [n for n, site in trace.items() if site["type"] == "sample"]
    raise ValueError(
        f"the draws do not match the model: it has no site {unknown}, and would draw "
        f"{missing or samples} from their priors. Take the model, and the names, of "
        "the draws; to draw these sites from their priors, leave what the model lacks "
        "out of the dictionary of draws."
    )


def _shape(site: dict[str, Any]) -> tuple[int, ...]:
    """The shape of one draw of a sample site, or of a computed value."""
    is_sample = site["type"] == "sample"
    return site["fn"].shape() if is_sample else np.shape(site["value"])


def _mismatch(site: dict[str, Any], shape: tuple[int, ...]) -> ValueError:
    # JAX answers an index past the end with the last member, without a word: group 7
    # of five would silently get the weights of group 4.
    plates = {f.name: f.size for f in site.get("cond_indep_stack") or ()}
    name = site["name"]
    return ValueError(
        f"a draw of {name!r} has shape {shape}, and the model with these arguments "
        f"has {name!r} of shape {_shape(site)}"
        + (f", on the plates {plates}" if plates else "")
        + ": the draws belong to other members or rows than these. To predict new "
        "groups, leave the site out of the dictionary of draws, and `predict` draws "
        "it from its prior; or give the draws of these members only "
        "(draws[:, members])."
    )
