"""A model as functions of the unconstrained values of its latent sites, at a mode."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to
from numpyro.distributions.util import scale_and_mask, sum_rightmost

from pyrox_ppl._layer_state import copy_state
from pyrox_ppl.infer.curvature._compiled import Compiled
from pyrox_ppl.infer.curvature._fisher import Whitened, whiten

Values = dict[str, jax.Array]

_NOT_OBSERVED = (
    "the model has no observed site, so there is no likelihood whose curvature could "
    "be computed: pass the data, as in the fit."
)


class ModelAtMode(eqx.Module):
    r"""A model at a mode, as functions of the unconstrained values :math:`u`.

    Args:
        model: The NumPyro model.
        mode: The unconstrained values of all latent sites, by name.
        params: The values of ``param`` and ``mutable`` sites, by name.
        sites: The latent sites that vary; the others are held at the mode. None for
            all.
        num_samples: From how many random columns the Fisher information of each datum
            is estimated; None for the exact one, or one sampled label where it is not
            known.
        compiled: The functions compiled for this model, to use them again at another
            mode; by default none yet.

    Raises:
        ValueError: If `sites` names a site that the mode lacks, or none.
    """

    model: Callable
    mode: Values
    params: Values
    sites: tuple[str, ...] = eqx.field(static=True)
    num_samples: int | None = eqx.field(static=True)
    _compiled: Compiled | None

    def __init__(
        self,
        model: Callable,
        mode: Mapping[str, Any],
        *,
        params: Mapping[str, Any] | None = None,
        sites: tuple[str, ...] | None = None,
        num_samples: int | None = None,
        compiled: Compiled | None = None,
    ) -> None:
        self.model = model
        self.mode = {name: jnp.asarray(mode[name]) for name in sorted(mode)}
        self.params = dict(params or {})
        self.sites = tuple(sorted(self.mode if sites is None else sites))
        self.num_samples = num_samples
        # What the model closes over may change, so no program outlives this object.
        self._compiled = Compiled() if compiled is None else compiled
        unknown = sorted(set(self.sites) - set(self.mode))
        if unknown or not self.sites:
            raise ValueError(
                f"the curvature is of the sites {list(self.sites)}, of which "
                f"{unknown} are no latent sites: those are {sorted(self.mode)}."
            )

    @property
    def start(self) -> Values:
        """The values of the sites that vary, at the mode, in at least 32 bits."""
        return {
            name: self.mode[name].astype(
                jnp.promote_types(self.mode[name].dtype, jnp.float32)
            )
            for name in self.sites
        }

    def whitened(
        self, u: Values, key: jax.Array | None, args: tuple, kwargs: dict[str, Any]
    ) -> dict[str, Whitened]:
        """The whitened parameters of the observed sites.

        The key also seeds the model: a plate that subsamples by itself takes other rows
        under another key.

        Raises:
            ValueError: If nothing is observed.
        """
        trace = self.trace(u, args, kwargs, key)
        observed = [n for n, site in trace.items() if _is_observed(site)]
        if not observed:
            raise ValueError(_NOT_OBSERVED)
        keys: Any = [None] * len(observed)
        if key is not None:
            keys = jax.random.split(jax.random.fold_in(key, 1), len(observed))
        return {
            name: whiten(trace[name], k, self.num_samples)
            for name, k in zip(observed, keys, strict=True)
        }

    def restrict(self, sites: tuple[str, ...]) -> "ModelAtMode":
        """The same model with fewer sites that vary."""
        return ModelAtMode(
            self.model,
            self.mode,
            params=self.params,
            sites=sites,
            num_samples=self.num_samples,
            compiled=self._compiled,
        )

    def run(self, function: Callable, *inputs: Any) -> Any:
        """Call ``function(at_mode, *inputs)`` in a program compiled once.

        A compiled function that held its own program could not be freed, so inside it
        this object has none.
        """
        if self._compiled is None:
            return function(self, *inputs)
        inside = eqx.tree_at(lambda at_mode: at_mode._compiled, self, None)
        return self._compiled(function, inside, *inputs)

    def log_likelihood(
        self,
        u: Values,
        args: tuple,
        kwargs: dict[str, Any],
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The log-density of the observed sites, scaled and masked."""
        terms = self.log_likelihoods(u, args, kwargs, key)
        return sum(map(jnp.sum, terms.values()), start=jnp.zeros(()))

    def log_likelihoods(
        self,
        u: Values,
        args: tuple,
        kwargs: dict[str, Any],
        key: jax.Array | None = None,
    ) -> Values:
        """The log-densities of every observed site, scaled and masked."""
        trace = self.trace(u, args, kwargs, key)
        return {n: _log_density(s) for n, s in trace.items() if _is_observed(s)}

    def log_prior(self, u: Values, args: tuple, kwargs: dict[str, Any]) -> jax.Array:
        """The log-density of all latent sites in unconstrained space."""
        values = {**self.mode, **u}
        trace = self.trace(u, args, kwargs)
        terms = [
            jnp.sum(_log_density(site)) + _log_det(site, values[name])
            for name, site in trace.items()
            if site["type"] == "sample" and not site["is_observed"]
        ]
        return jnp.asarray(sum(terms, start=jnp.zeros(())))

    def trace(
        self,
        u: Values,
        args: tuple,
        kwargs: dict[str, Any],
        key: jax.Array | None = None,
    ) -> Any:
        """The sites of one run of the model.

        Args:
            u: The values of sites that are not at the mode.
            args: The arguments of the model.
            kwargs: Its keyword arguments.
            key: Seeds the model; without a key its own randomness is always the same.
        """
        values = {**self.mode, **u}

        def constrain(site: dict[str, Any]) -> Any:
            name = site["name"]
            if site["type"] in ("param", "mutable") and name in self.params:
                return copy_state(self.params[name])
            if site["type"] != "sample":
                return None
            if site["is_observed"] or site["value"] is not None:
                return None
            if name not in values:
                return None
            return _transform(site, values[name])[0]

        seeded = handlers.seed(self.model, 0 if key is None else key)
        run = handlers.substitute(seeded, substitute_fn=constrain)
        trace = handlers.trace(run).get_trace(*args, **kwargs)
        _check_latent(trace, values)
        return trace


def _check_latent(trace: Any, values: Values) -> None:
    observed = any(_is_observed(site) for site in trace.values())
    for name, site in trace.items():
        if site["type"] != "sample" or site["is_observed"]:
            continue
        if name not in values and not observed:
            raise ValueError(_NOT_OBSERVED)
        if name not in values:
            kind = "discrete" if site["fn"].support.is_discrete else "latent"
            raise ValueError(
                f"the {kind} site {name!r} has no value at the mode, which has "
                f"{sorted(values)}. Sum a discrete site out in the model; if the site "
                "is the data, pass them as in the fit."
            )
        shape = jnp.shape(site["value"])
        expected = site["fn"].shape()
        if shape != expected:
            raise ValueError(
                f"the latent site {name!r} has shape {expected} in this batch, but its "
                f"value at the mode has shape {shape}. A latent site in a subsampled "
                "plate has other members in every minibatch: give the whole plate."
            )


def _is_observed(site: dict[str, Any]) -> bool:
    return site["type"] == "sample" and site["is_observed"]


def _log_density(site: dict[str, Any]) -> jax.Array:
    args = (site["intermediates"],) if site["intermediates"] else ()
    log_prob = site["fn"].log_prob(site["value"], *args)
    return scale_and_mask(log_prob, site["scale"])


def _transform(site: dict[str, Any], u: jax.Array) -> tuple[jax.Array, Any]:
    """The constrained value, and the transform; None for the identity."""
    support = site["fn"].support
    transform: Any = biject_to(support)
    index = site["infer"].get("_scan_current_index")
    if index is not None:
        shift = transform.codomain.event_dim - transform.domain.event_dim
        # In NumPyro's scan a site may hold one value for each iteration.
        if jnp.ndim(u) > len(site["fn"].shape()) - shift:
            u = u[index]
    if _is_real(support):
        return u, None
    return transform(u), transform


def _log_det(site: dict[str, Any], u: jax.Array) -> Any:
    """The log-determinant of a site's transform, summed, scaled as the site is."""
    value, fn = site["value"], site["fn"]
    if _is_real(fn.support):
        return 0.0
    log_det = biject_to(fn.support).log_abs_det_jacobian(u, value)
    extra = jnp.ndim(log_det) - jnp.ndim(value) + len(fn.event_shape)
    log_det = sum_rightmost(log_det, extra)
    return jnp.sum(scale_and_mask(log_det, site["scale"]))


def _is_real(support: Any) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real
