"""The ELBO with noise of its own for each row of data, over any model and module."""

import abc
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpyro import handlers
from numpyro.distributions.kl import kl_divergence
from numpyro.distributions.util import scale_and_mask
from numpyro.infer.elbo import ELBO
from numpyro.util import check_model_guide_match

from pyrox_ppl.infer.losses._estimate import Estimator
from pyrox_ppl.infer.losses._gaussian import Gaussian
from pyrox_ppl.infer.losses._guide_sites import (
    NormalSite,
    find_conditions,
    find_normal_sites,
    is_real,
)
from pyrox_ppl.infer.losses._plan import Plan, make_plan


class AbstractRowELBO(ELBO):
    """An ELBO whose noise is new for each row of data wherever that is exact.

    A subclass says how a product of weights and rows is drawn whose rows are all apart.
    """

    def __init__(
        self, num_particles: int = 1, vectorize_particles: bool | Callable = True
    ) -> None:
        super().__init__(num_particles, vectorize_particles)  # pyright: ignore[reportArgumentType] NumPyro's own annotation of a map is too narrow

    @property
    @abc.abstractmethod
    def _local(self) -> bool:
        """Whether products are drawn, where all rows are apart; else signs flip."""

    def loss_with_mutable_state(
        self,
        rng_key: jax.Array,
        param_map: dict[str, jax.Array],
        model: Callable,
        guide: Callable,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The negative ELBO, and the values of ``mutable`` sites; as in NumPyro."""

        def particle(key: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
            return self._particle(key, param_map, model, guide, args, kwargs)

        if self.num_particles == 1:
            elbo, state = particle(rng_key)
            return {"loss": -elbo, "mutable_state": state or None}
        keys = jax.random.split(rng_key, self.num_particles)
        elbos, state = self.vectorize_particles_fn(particle, keys)
        if state:
            warnings.warn(
                "mutable state is ignored when num_particles > 1.", stacklevel=2
            )
        return {"loss": -jnp.mean(elbos), "mutable_state": None}

    def _particle(
        self,
        key: jax.Array,
        params: dict[str, jax.Array],
        model: Callable,
        guide: Callable,
        args: tuple,
        kwargs: dict[str, Any],
    ) -> tuple[jax.Array, dict[str, Any]]:
        model_key, guide_key, noise_key = jax.random.split(key, 3)

        def run_guide(given: dict[str, jax.Array]) -> Any:
            seeded = handlers.seed(guide, guide_key)
            substituted = handlers.substitute(seeded, data={**params, **given})
            return handlers.trace(substituted).get_trace(*args, **kwargs)

        guide_trace = run_guide({})
        mutable = _mutable_values(guide_trace)
        normals = find_normal_sites(guide, guide_trace, run_guide)
        read: set[str] = set()

        def program(values: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, Any]]:
            replayed: Any = {
                name: {**site, "value": values[name]} if name in values else site
                for name, site in guide_trace.items()
            }
            seeded = handlers.replay(handlers.seed(model, model_key), replayed)
            run = handlers.substitute(seeded, data={**params, **mutable})
            trace = handlers.trace(run).get_trace(*args, **kwargs)
            read.update(n for n, site in trace.items() if _is_read(site))
            check_model_guide_match(trace, guide_trace)
            return _elbo(trace, guide_trace, normals), _mutable_values(trace)

        draws = {name: normals[name].value for name in sorted(normals)}
        closed, shape = jax.make_jaxpr(program, return_shape=True)(draws)
        # The last weights of the list are those that are no parameters.
        weights = [name if name in read else None for name in draws]
        conditions = find_conditions(normals, run_guide)
        plan = make_plan(closed, weights, conditions)
        self._check(plan, normals, read)
        inputs = [
            normals[name].value
            if name not in read or name in plan.dropped
            else _gaussian(normals[name])
            for name in draws
        ]
        results = Estimator(plan, self._local, noise_key).run(closed, inputs)
        elbo, state = jax.tree.unflatten(jax.tree.structure(shape), results)
        return elbo, {**mutable, **state}

    def describe_noise(
        self, model: Callable, *args: Any, **kwargs: Any
    ) -> dict[str, str]:
        """Say how each parameter is drawn under a guide of factorised normals.

        :func:`~pyrox_ppl.explain` calls this method. The model runs abstractly.

        Args:
            model: The model.
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            Words by the name of the site: whether each row of data has noise of its
            own, or why not.
        """
        found: dict[str, Any] = {}

        def run(values: dict[str, jax.Array]) -> tuple[list[Any], dict[str, Any]]:
            seeded = handlers.seed(handlers.substitute(model, data=values), 0)
            trace = handlers.trace(seeded).get_trace(*args, **kwargs)
            found.update({n: s["value"] for n, s in trace.items() if _is_read(s)})
            sites = (s for n, s in trace.items() if s["type"] == "sample")
            terms = [_log_density(s, s["value"]) for s in sites if not _is_read(s)]
            return terms, _mutable_values(trace)

        jax.eval_shape(lambda: run({}))
        shapes = {name: jax.typeof(found[name]) for name in sorted(found)}
        plan = make_plan(jax.make_jaxpr(run)(shapes), list(shapes))
        # A prior in non-centred form has the noise of its parameter.
        return {n.removesuffix("_decentered"): self._describe(plan, n) for n in shapes}

    def _describe(self, plan: Plan, name: str) -> str:
        if name in plan.dropped:
            return f"one draw: {plan.dropped[name]}"
        uses = {
            path
            for path, use in plan.uses.items()
            if any(part.weight == name for part in use.parts)
        }
        words = set()
        for path in uses:
            if plan.is_full(path):
                words.add("drawn per row" if self._local else "signs per row")
            else:
                by = plan.mixed[path]
                words.add(f"signs per row: its products meet again in `{by}`")
        return "; ".join(sorted(words)) or "not used"

    def _check(
        self, plan: Plan, normals: dict[str, NormalSite], read: set[str]
    ) -> None:
        """Raise if no weight gets noise of its own for each row."""
        name = type(self).__name__
        if not read & set(normals):
            raise ValueError(
                f"{name} finds no weights: it acts on the parameters that `bind` reads "
                "as sample sites whose guide is a factorised Normal. The model reads "
                f"{sorted(read)}, the guide has Normal sites {sorted(normals)}. Use "
                "AutoNormal or AutoFlatNormal, or another loss."
            )
        if not plan.uses:
            reasons = "; ".join(f"{w}: {why}" for w, why in plan.dropped.items())
            raise ValueError(
                f"{name} would be TraceMeanField_ELBO under another name, because no "
                f"weight can have noise of its own for each row of data ({reasons}). "
                "Rows that a likelihood or a layer couples, as a multivariate site "
                "over the rows or batch normalisation do, need one draw of the weights "
                "for all of them: use TraceMeanField_ELBO. A network that is called "
                "on one row at a time needs `jax.vmap(net)(x)`."
            )


def _gaussian(site: NormalSite) -> Gaussian:
    return Gaussian(site.loc, site.scale**2, site.value - site.loc)


def _is_read(site: dict[str, Any]) -> bool:
    """Whether `bind` made a site, of which it is known what the module stores."""
    return (
        site["type"] == "sample"
        and not site["is_observed"]
        and site.get("stored") is not None
        and is_real(site["fn"].support)
    )


def _mutable_values(trace: Any) -> dict[str, Any]:
    return {n: site["value"] for n, site in trace.items() if site["type"] == "mutable"}


def _log_density(site: Any, value: Any) -> jax.Array:
    args = (site["intermediates"],) if site["intermediates"] else ()
    log_prob = site["fn"].log_prob(value, *args)
    return jnp.sum(scale_and_mask(log_prob, site["scale"]))


def _divergence(law: dict[str, Any], site: dict[str, Any]) -> jax.Array:
    """The divergence of a posterior from a prior, in closed form."""
    if not _is_same(law["scale"], site["scale"]):
        raise NotImplementedError("A `scale` handler weighs one of the two alone.")
    return jnp.sum(scale_and_mask(kl_divergence(law["fn"], site["fn"]), law["scale"]))


def _is_same(left: Any, right: Any) -> bool:
    """Whether two scales are surely the same; None is one."""
    if left is right:
        return True
    if any(isinstance(scale, Tracer) for scale in (left, right)):
        return False
    # As NumPy's: within a program, comparing JAX's arrays would be a part of it.
    left, right = (np.asarray(1.0 if s is None else s) for s in (left, right))
    return bool(np.all(left == right))


def _elbo(trace: Any, guide_trace: Any, normals: dict[str, NormalSite]) -> jax.Array:
    """The ELBO of one draw, with divergences in closed form where NumPyro has them."""
    terms = []
    for name, site in trace.items():
        if site["type"] != "sample":
            continue
        if site["is_observed"]:
            terms.append(_log_density(site, site["value"]))
            continue
        normal = normals.get(name)
        law = guide_trace[name]
        if normal is not None:
            law = {**guide_trace[normal.source], "fn": normal.fn, "intermediates": []}
        try:
            divergence = _divergence(law, site)
        except NotImplementedError:
            # An ordinary draw: the density of a weight is no sum over rows of data.
            value = guide_trace[name]["value"]
            terms += [_log_density(site, value), -_log_density(law, value)]
        else:
            terms.append(-divergence)
    for name, site in guide_trace.items():
        if site["type"] == "sample" and name not in trace:
            terms.append(-_auxiliary_density(name, site, normals))
    return jnp.asarray(sum(terms, start=jnp.array(0.0)))


def _auxiliary_density(
    name: str, site: Any, normals: dict[str, NormalSite]
) -> jax.Array:
    """The density of a guide's vector, less the sites cut from it."""
    density = _log_density(site, site["value"])
    cut = (normal for normal in normals.values() if normal.source == name)
    for normal in cut:
        density -= _log_density({**site, "fn": normal.fn}, normal.value)
    return density
