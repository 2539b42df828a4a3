"""FlatNUTS: NumPyro's NUTS with all sites in one vector."""

from collections.abc import Callable
from typing import Any

from numpyro.infer import NUTS

from pyrox_ppl._numpyro import (
    AbstractVectorNUTS,
    init_strategy,
    uses_forward_mode,
)
from pyrox_ppl.infer._init_to_stored import init_to_stored
from pyrox_ppl.infer.kernels._blackjax import import_blackjax
from pyrox_ppl.infer.kernels._low_rank import low_rank_hmc
from pyrox_ppl.infer.kernels._start import VectorStart, find_start

# Arguments of NUTS that say how it finds its mass matrix, or that look at it.
_OF_A_MATRIX = (
    "adapt_mass_matrix",
    "find_heuristic_step_size",
    "kinetic_fn",
    "regularize_mass_matrix",
)


class FlatNUTS(AbstractVectorNUTS):
    r"""NumPyro's NUTS with one vector as its state, in place of an array per site.

    The vector :math:`u \in \mathbb{R}^D` holds the unconstrained values of all latent
    sites, in the order of their names. The leapfrog steps move it in the potential

    .. math:: U(u) = -\log p(y, \theta(u)) - \log |\partial\theta / \partial u|

    with one addition where NUTS has one per site, so a model of many sites compiles
    faster. Otherwise the sampler is the same, in NumPyro's ``MCMC`` and in
    :class:`~pyrox_ppl.infer.CompiledMCMC`. Its draws come from the same posterior, but
    the same key gives other draws than NUTS: the momentum is drawn for the whole
    vector, and the chain starts elsewhere.

    The state has no sites, so ``extra_fields=("z.site",)`` needs NUTS. A kernel that
    wraps this one and looks sites up, such as ``HMCECS``, gets a NUTS with the same
    settings (see :meth:`wrap_model`).

    **Shapes**: ``state.z`` is ``(D,)``; the draws have their sites' shapes.

    **Sites**: those of the model. The draws are constrained, and include deterministic
    sites.

    Args:
        model: The NumPyro model.
        dense_mass: Whether the mass matrix is full. Blocks of sites need NUTS.
        inverse_mass_matrix: An array of shape ``(D,)`` or ``(D, D)``, in the order of
            the vector.
        init_strategy: As in NUTS; the default is :func:`init_to_stored`.
        adaptation: What the warm-up finds the mass matrix by. ``"numpyro"``: NumPyro's
            own way, by the variance of the draws. ``"low_rank"``: by draws and
            gradients, a diagonal matrix with a correction of rank ten, as nutpie and
            BlackJAX have it (extra ``samplers``); the state then holds the draws and
            gradients of a window. Its matrix is in ``state.adapt_state.mm_state``,
            while ``adapt_state.inverse_mass_matrix`` is one.
        **kwargs: The other arguments of ``numpyro.infer.NUTS``.

    Raises:
        TypeError: If `dense_mass` or `inverse_mass_matrix` names sites, if one of them
            comes with ``adaptation="low_rank"``, or if a potential function is given.
        ImportError: If that needs BlackJAX, and it is not installed.
        ValueError: If ``init_params``, a dict of unconstrained values by site (or the
            vector itself), lacks a site or has one too many.

    References:
        Hoffman, M. D. and Gelman, A. (2014). The No-U-Turn Sampler. JMLR 15. Seyboldt,
        A., Carlson, E. L. and Carpenter, B. (2026). Preconditioning Hamiltonian Monte
        Carlo by Minimizing Fisher Divergence. arXiv:2603.18845.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC
        >>> from pyrox_ppl.infer import FlatNUTS
        >>> def model():
        ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        ...     numpyro.sample("x", dist.Normal(0.0, scale).expand([3]).to_event(1))
        >>> mcmc = MCMC(FlatNUTS(model), num_warmup=20, num_samples=10,
        ...             progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> {name: draws.shape for name, draws in mcmc.get_samples().items()}
        {'scale': (10,), 'x': (10, 3)}
        >>> mcmc.last_state.z.shape
        (4,)
    """

    def __init__(
        self,
        model: Callable,
        *,
        dense_mass: bool = False,
        inverse_mass_matrix: Any = None,
        init_strategy: Callable = init_to_stored,
        adaptation: str = "numpyro",
        **kwargs: Any,
    ) -> None:
        if not callable(model) or "potential_fn" in kwargs:
            raise TypeError(
                "FlatNUTS takes a model. For a potential function use "
                "numpyro.infer.NUTS, whose state has the shape that you give it."
            )
        if not isinstance(dense_mass, bool) or isinstance(inverse_mass_matrix, dict):
            raise TypeError(
                "FlatNUTS keeps all sites in one vector, so dense_mass is a bool "
                f"and inverse_mass_matrix an array, got {dense_mass!r} and "
                f"{type(inverse_mass_matrix).__name__}. For blocks of sites use "
                "numpyro.infer.NUTS."
            )
        if adaptation not in ("numpyro", "low_rank"):
            raise ValueError(
                f"adaptation must be 'numpyro' or 'low_rank', got {adaptation!r}."
            )
        if adaptation == "low_rank":
            import_blackjax("adaptation.metric_recipes", "FlatNUTS")
            given = {name for name in _OF_A_MATRIX if name in kwargs}
            given |= {"dense_mass"} if dense_mass else set()
            given |= (
                {"inverse_mass_matrix"} if inverse_mass_matrix is not None else set()
            )
            if given:
                raise TypeError(
                    "adaptation='low_rank' finds a mass matrix of its own: leave out "
                    f"{sorted(given)}."
                )
        self._adaptation = adaptation
        super().__init__(
            model,
            dense_mass=dense_mass,
            inverse_mass_matrix=inverse_mass_matrix,
            init_strategy=init_strategy,
            **kwargs,
        )

    def _start(
        self, rng_key: Any, model_args: tuple, model_kwargs: dict, init_params: Any
    ) -> VectorStart:
        start, _ = find_start(
            rng_key,
            self.model,
            model_args,
            model_kwargs,
            init_params,
            strategy=init_strategy(self),
            forward=uses_forward_mode(self),
        )
        if self._adaptation == "low_rank":
            return start._replace(algorithm=low_rank_hmc)
        return start

    def wrap_model(self, wrapper: Callable) -> NUTS:
        """NUTS with these settings for ``wrapper(self.model)``, its state by site.

        Kernels that change the model of another one (``HMCECS``, ``HMCGibbs``) call it.
        They look sites up in the state, and a vector has none.

        Raises:
            TypeError: If the mass matrix is of low rank, which NUTS does not have.
        """
        if self._adaptation == "low_rank":
            raise TypeError(
                "FlatNUTS with adaptation='low_rank' cannot run inside another kernel, "
                "which makes a NUTS of it: leave adaptation out there."
            )
        return self._by_site().wrap_model(wrapper)
