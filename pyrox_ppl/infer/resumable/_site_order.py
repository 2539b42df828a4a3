"""NumPyro's Trace_ELBO with its sites added up in one order, whatever the process."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.infer import ELBO, SVI, Trace_ELBO
from numpyro.infer.util import compute_log_probs


def order_sites(svi: SVI, state: Any, args: tuple, kwargs: dict[str, Any]) -> SVI:
    """Copy an initialised SVI object, so that its steps are the same in any process.

    NumPyro's ``Trace_ELBO`` adds up the sites in the order of a set of their names, and
    Python orders sets of strings anew in each process. The sum then has other last
    bits, and its program another text. In the copy, :class:`OrderedTraceELBO` adds them
    up. ``TraceMeanField_ELBO`` and ``RenyiELBO`` take the sites in the order of the
    trace, so that they need no such care. Other losses stay as they are: one whose
    program depends on the order of a set is refused when another process continues it.
    """
    if type(svi.loss) is not Trace_ELBO or not svi.loss.sum_sites:
        return svi
    # NumPyro's loss is traced, and never run, for its checks of sites and plates.
    jax.eval_shape(lambda state: svi.evaluate(state, *args, **kwargs), state)
    ordered = copy.copy(svi)
    ordered.loss = OrderedTraceELBO(svi.loss)
    return ordered


class OrderedTraceELBO(ELBO):
    r"""The loss of ``Trace_ELBO``, term by term in the order of model, then guide.

    .. math:: -\sum_i \left(\log p(z_i) - \log q(z_i)\right), \qquad z \sim q,

    over all sample sites :math:`i`; a site that is only in the model or only in the
    guide has one of the two terms. Keys, terms and the mean over particles are those of
    NumPyro; its checks of sites and plates are left out.

    Args:
        loss: NumPyro's loss, for its settings.
    """

    def __init__(self, loss: Trace_ELBO) -> None:
        super().__init__(loss.num_particles, loss.vectorize_particles)
        self._has_multi_sample_guide = loss.multi_sample_guide

    def loss_with_mutable_state(
        self,
        rng_key: jax.Array,
        param_map: dict[str, jax.Array],
        model: Any,
        guide: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The loss, and the values of mutable sites if there is one particle."""

        def particle(key: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
            model_key, guide_key = jax.random.split(key)
            log_q, guide_trace = compute_log_probs(
                handlers.seed(guide, guide_key), args, kwargs, param_map
            )
            mutable = _values(guide_trace, "mutable")
            params = param_map | mutable
            if self._has_multi_sample_guide:
                log_p = _sum_over_samples(
                    model, args, kwargs, params, model_key, guide_trace
                )
            else:
                seeded = handlers.seed(model, model_key)
                log_p, model_trace = compute_log_probs(
                    handlers.replay(seeded, guide_trace), args, kwargs, params
                )
                mutable |= _values(model_trace, "mutable")
            zero = jnp.array(0.0)
            names = dict.fromkeys([*log_p, *log_q])
            terms = [log_p.get(name, zero) - log_q.get(name, zero) for name in names]
            return sum(terms, start=zero), mutable

        if self.num_particles == 1:
            elbo, mutable = particle(rng_key)
            return {"loss": -elbo, "mutable_state": mutable or None}
        keys = jax.random.split(rng_key, self.num_particles)
        elbos = self.vectorize_particles_fn(lambda key: particle(key)[0], keys)
        return {"loss": -jnp.mean(elbos), "mutable_state": None}


def _sum_over_samples(
    model: Any,
    args: tuple,
    kwargs: dict[str, Any],
    params: dict[str, Any],
    rng_key: jax.Array,
    guide_trace: dict[str, Any],
) -> dict[str, jax.Array]:
    """The model's log density of every site, summed over the samples of a guide."""
    samples = _values(guide_trace, "sample")
    number = next(iter(samples.values())).shape[0]
    latents = {name: value for name, value in samples.items() if value.size > 0}
    latents |= _values(guide_trace, "deterministic")
    plates = _values(guide_trace, "plate")

    def one(key: jax.Array, latents: dict[str, jax.Array]) -> dict[str, jax.Array]:
        with handlers.seed(rng_seed=key), handlers.substitute(data=latents | plates):
            return compute_log_probs(model, args, kwargs, params)[0]

    log_p = jax.vmap(one)(jax.random.split(rng_key, number), latents)
    return {name: jnp.sum(log_p[name], axis=0) for name in log_p}


def _values(trace: dict[str, Any], kind: str) -> dict[str, Any]:
    return {name: s["value"] for name, s in trace.items() if s["type"] == kind}
