"""IVON: natural-gradient steps for the normals of a mean-field guide."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.example_libraries.optimizers import make_schedule
from numpyro.infer import SVI
from numpyro.optim import Adam

from pyrox_ppl.infer.optim._normal_pairs import SiteRecorder, find_pairs


class IVONState(NamedTuple):
    """The state of :class:`IVON`, beside the number of its steps.

    Attributes:
        normals: The unconstrained means and scales of the normals, by name.
        momentum: The running gradient of each mean, by name.
        optim_state: The state of the optimiser of all other parameters.
    """

    normals: dict[str, jax.Array]
    momentum: dict[str, jax.Array]
    optim_state: Any


# SVI gives the loss only to subclasses of NumPyro's optimisers, whose base is private.
class IVON(Adam):
    r"""Improved Variational Online Newton, for guides of independent normals.

    It is natural-gradient variational inference at the cost of Adam, with half of
    Adam's memory. For each entry of :math:`q = \mathrm{Normal}(m, \sigma^2)`, let
    :math:`g_m` and :math:`g_\sigma` be the gradients of the loss
    :math:`-\mathrm{ELBO}`, estimated from draws :math:`\theta = m + \sigma
    \varepsilon`, and let :math:`P = 1 / \sigma^2`. Since the entropy of :math:`q`
    contributes :math:`-1/\sigma` to :math:`g_\sigma`,

    .. math::
        \hat H = \frac{g_\sigma + 1 / \sigma}{\sigma}, \qquad
        \mathrm{E}\, \hat H = \mathrm{E}_q \left[
            -\nabla^2_\theta \log p(D, \theta) \right],

    without a second derivative. With :math:`x = (1 - b_2)(\hat H - P) / P = (1 - b_2)\,
    \sigma g_\sigma`, step :math:`t = 1, 2, \ldots` is

    .. math::
        g &\leftarrow b_1 g + (1 - b_1)\, g_m \\
        P &\leftarrow b_2 P + (1 - b_2) \hat H
            + \tfrac12 (1 - b_2)^2 (\hat H - P)^2 / P
            = P\, (1 + x + \tfrac12 x^2) \\
        m &\leftarrow m - \text{learning\_rate} \cdot
            \frac{g / (1 - b_1^t)}{P}

    The precision stays positive, because :math:`1 + x + x^2 / 2 \ge 1/2`. Where it
    comes to rest the expected gradients are zero, so the fixed point is a mean-field
    optimum. The noise of a step raises :math:`P` there by the factor :math:`1 +
    \tfrac12 (1 - b_2) \mathrm{Var}(\hat H) / P^2`. All of this happens in the guide's
    unconstrained space. A latent site with a constrained support needs nothing more,
    because its Jacobian is part of :math:`\log p`.

    **The paper's algorithm** minimises :math:`\lambda\, \mathrm{E}_q[\bar\ell] +
    \mathrm{KL}(q \,\|\, \mathrm{Normal}(0, 1 / \lambda \delta))`, with the data's mean
    loss :math:`\bar\ell`, their number :math:`\lambda` and a weight decay
    :math:`\delta`. It holds a Hessian :math:`h` of :math:`\bar\ell`. The two agree by

    .. math::
        P = \lambda (h + \delta), \qquad \hat H = \lambda (\hat h + \delta), \qquad
        g_m = \lambda (\hat g + \delta m), \qquad
        \text{learning\_rate} = \alpha\, (h_0 + \delta),

    where the guide's ``init_scale`` is :math:`1 / \sqrt{\lambda (h_0 + \delta)}`. Here
    :math:`\lambda` and :math:`\delta` are no arguments: the model scales its likelihood
    and has a prior of any kind, whose curvature :math:`\hat H` contains. Two
    differences remain. ``Trace_ELBO`` takes the prior's gradient at the draw, whereas
    the paper's is exact; for normal priors ``TraceMeanField_ELBO`` is exact as well.
    And the running mean :math:`g` includes the prior's gradient, whereas the paper
    adds :math:`\delta m` afterwards. With ``b1=0`` or a flat prior the steps are equal.

    **In practice**: a rate of one is a Newton step, so use a fraction such as 0.1, and
    let it fall towards the end of a run. The scales need about :math:`1 / (1 - b_2)`
    steps to forget their start. Where a scale is too wide for the moment, a step of
    its mean is too long, and a network at a constant rate can diverge: there set
    `clip_radius`, for example to 0.1, and look at the losses.
    Do not scale the whole loss, for example by the number of data: where model and
    guide are under ``handlers.scale(scale=s)``, all steps are :math:`s` times as long.

    **Sites**: two ``param`` sites are the mean and standard deviation of a normal if
    their names differ only in the ending, ``loc`` or ``scale``. ``AutoNormal``,
    ``AutoDiagonalNormal`` and :class:`AutoFlatNormal` name them so. `optim` optimises
    all other sites, such as those of ``learn``, of an encoder and of ``AutoDelta``.
    IVON reads the guide's distributions as JAX traces a step, and raises if a pair is
    anything else than one ``Normal``. It holds means and scales of less than 32 bits
    in 32.

    Args:
        learning_rate: The step length as a fraction of a Newton step, or a function
            of the number of steps taken that returns it.
        b1: The decay of the gradient's running mean.
        b2: The decay of the precision towards :math:`\hat H`. The paper uses
            values closer to one, such as 0.99999, for its much longer runs.
        clip_radius: A bound on :math:`|g / (1 - b_1^t) / P|`, entry by entry.
        optim: A NumPyro or Optax optimiser of all other parameters.
        pairs: Maps the name of a mean to the name of its scale where the endings do not
            show it, or to None where they show a normal that is not the guide's.

    Raises:
        ValueError: If an argument is out of range. When SVI initialises the optimiser,
            if there is no pair, or its two shapes differ. At the first step, if a pair
            is not one normal of the guide, if a normal of the guide is not a pair, or
            if a scale's constraint is neither ``positive`` nor ``softplus_positive``.
        RuntimeError: If ``update`` is called outside of ``SVI``.

    References:
        Shen, Y., Daheim, N., Cong, B., Nickl, P., Marconi, G. M., Bazan, C., Yokota,
        R., Gurevych, I., Cremers, D., Khan, M. E. and Möllenhoff, T. (2024).
        Variational Learning is Effective for Large Deep Networks. ICML.
        Lin, W., Schmidt, M. and Khan, M. E. (2020). Handling the Positive-Definite
        Constraint in the Bayesian Learning Rule. ICML.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import SVI, TraceMeanField_ELBO
        >>> from numpyro.infer.autoguide import AutoNormal
        >>> from pyrox_ppl.infer import IVON
        >>> def model(y):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", len(y)):
        ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> optim = IVON(0.1)
        >>> svi = SVI(model, AutoNormal(model), optim, TraceMeanField_ELBO())
        >>> fit = svi.run(jax.random.key(0), 2000, jnp.ones(99), progress_bar=False)
        >>> abs(fit.params["mean_auto_scale"] - 0.1) < 0.002  # 1 / sqrt(99 + 1)
        Array(True, dtype=bool)
    """

    def __init__(
        self,
        learning_rate: float | Callable,
        *,
        b1: float = 0.9,
        b2: float = 0.999,
        clip_radius: float = math.inf,
        optim: Any = None,
        pairs: Mapping[str, str | None] | None = None,
    ) -> None:
        for name, decay in (("b1", b1), ("b2", b2)):
            if not 0.0 <= decay < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {decay}.")
        if not callable(learning_rate) and not learning_rate > 0.0:
            raise ValueError(f"learning_rate must be positive, got {learning_rate}.")
        if not clip_radius > 0.0:
            raise ValueError(f"clip_radius must be positive, got {clip_radius}.")
        # SVI converts every kind of optimiser, and refuses what is none.
        self._optim = SVI(
            None, None, Adam(1e-3) if optim is None else optim, None
        ).optim
        self._rate = make_schedule(learning_rate)
        self._b1, self._b2, self._clip_radius = b1, b2, clip_radius
        self._given = dict(pairs or {})
        self._recorder: SiteRecorder | None = None

    def init(self, params: dict[str, Any]) -> Any:
        """The state at the start; as NumPyro's ``Optim.init``.

        Args:
            params: The unconstrained values of ``param`` sites by name.

        Returns:
            The number of steps taken, and an :class:`IVONState`.
        """
        pairs = find_pairs(params, self._given)
        for loc, scale in pairs.items():
            if jnp.shape(params[loc]) != jnp.shape(params[scale]):
                raise ValueError(
                    f"{loc!r} has the shape {jnp.shape(params[loc])} and {scale!r} has "
                    f"{jnp.shape(params[scale])}: IVON needs one standard deviation "
                    "for each mean. If the two are not a normal of the guide, pass "
                    f"pairs={{{loc!r}: None}}."
                )
        in_pairs = {*pairs, *pairs.values()}
        normals = {n: _widen(v) for n, v in params.items() if n in in_pairs}
        momentum = {loc: jnp.zeros_like(normals[loc]) for loc in pairs}
        others = {n: v for n, v in params.items() if n not in in_pairs}
        state = IVONState(normals, momentum, self._optim.init(others))
        return jnp.array(0), state

    def get_params(self, state: Any) -> dict[str, Any]:
        """The unconstrained values of all ``param`` sites by name."""
        _, (normals, _, optim_state) = state
        return {**normals, **self._optim.get_params(optim_state)}

    def eval_and_update(
        self, fn: Callable, state: Any, forward_mode_differentiation: bool = False
    ) -> Any:
        """Take a step; as NumPyro's ``Optim.eval_and_update``."""
        step, fn = self._watch(fn)
        return super(IVON, step).eval_and_update(
            fn, state, forward_mode_differentiation
        )

    def eval_and_stable_update(
        self, fn: Callable, state: Any, forward_mode_differentiation: bool = False
    ) -> Any:
        """Take a step if all of it is finite; as NumPyro's optimisers do."""
        step, fn = self._watch(fn)
        return super(IVON, step).eval_and_stable_update(
            fn, state, forward_mode_differentiation
        )

    def update(self, g: dict[str, Any], state: Any, value: Any = None) -> Any:
        """The state after a step along the gradient, within ``eval_and_update``."""
        if self._recorder is None:
            raise RuntimeError(
                "IVON needs to see the guide beside the gradient: call svi.update or "
                "svi.run, not optim.update."
            )
        i, (normals, momentum, optim_state) = state
        pairs = find_pairs(normals, self._given)
        transforms = self._recorder.find_transforms(pairs, self._given)
        moved, running = dict(normals), {}
        for loc, scale in pairs.items():
            transform = transforms[loc]
            start, grad_start = normals[scale], g[scale]
            sigma, slope = jax.jvp(transform, (start,), (jnp.ones_like(start),))
            # P is divided by 1 + x + x^2 / 2 = (1 + (1 + x)^2) / 2.
            x = (1.0 - self._b2) * sigma * grad_start / slope
            sigma = sigma * math.sqrt(2.0) / jnp.hypot(jnp.ones_like(x), 1.0 + x)
            b1 = jnp.asarray(self._b1, x.dtype)
            running[loc] = b1 * momentum[loc] + (1.0 - b1) * g[loc]
            newton = running[loc] / (1.0 - b1 ** (i + 1)) * sigma**2
            newton = jnp.clip(newton, -self._clip_radius, self._clip_radius)
            moved[loc] = normals[loc] - jnp.asarray(self._rate(i), x.dtype) * newton
            moved[scale] = transform.inv(sigma)
        others = {name: grad for name, grad in g.items() if name not in normals}
        optim_state = self._optim.update(others, optim_state, value=value)
        return i + 1, IVONState(moved, running, optim_state)

    def _watch(self, fn: Callable) -> tuple["IVON", Callable]:
        """This optimiser for one step, and the loss whose messages it sees."""
        step = copy.copy(self)
        step._recorder = recorder = SiteRecorder()

        def watched(params: dict[str, Any]) -> Any:
            recorder.clear()
            with recorder:
                return fn(params)

        return step, watched


def _widen(value: Any) -> jax.Array:
    """A value in 32 bits at least, so that small steps are not rounded away."""
    return jnp.asarray(value, jnp.promote_types(jnp.result_type(value), jnp.float32))
