"""The port to NumPyro: the only file that touches NumPyro's private names.

Each function and each base class says why NumPyro's public interface is not enough.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpyro
from numpyro.distributions import MaskedDistribution
from numpyro.distributions.transforms import UnpackTransform
from numpyro.infer import HMC, MCMC, NUTS, Predictive
from numpyro.infer.autoguide import AutoDiagonalNormal
from numpyro.infer.mcmc import MCMCKernel
from numpyro.primitives import _PYRO_STACK, Messenger

# What HMC and NUTS keep of a run. Setting them up again finds all of it anew.
SET_BY_KERNELS = frozenset(
    {
        "_dynamic_support",
        "_init_fn",
        "_inv_transforms",
        "_postprocess_fn",
        "_potential_fn_gen",
        "_sample_fn",
    }
)

# What autoguides keep of their first run. No attribute says which these are.
SET_BY_GUIDES = frozenset(
    {
        "prototype_trace",
        "latent_dim",
        "_event_dims",
        "_init_latent",
        "_init_locs",
        "_postprocess_fn",
        "_potential_fn",
        "_potential_fn_gen",
        "_prototype_frame_full_sizes",
        "_prototype_frames",
        "_prototype_plate_sizes",
        "_unpack_latent",
    }
)


def handler_stack() -> tuple[Any, ...]:
    """The active handlers, the outermost first.

    NumPyro sends messages through its stack but does not show it, and what a parameter
    becomes depends on which handlers stand around its read, and in which order.
    """
    return tuple(_PYRO_STACK)


@contextlib.contextmanager
def use_handlers(stack: Sequence[Messenger]) -> Iterator[None]:
    """Run the body under these handlers in place of the active ones.

    NumPyro's ``block`` hides a site from every handler outside it; a parameter must be
    hidden from some of them (its plates) and seen by others.
    """
    before = list(_PYRO_STACK)
    _PYRO_STACK[:] = stack
    try:
        yield
    finally:
        _PYRO_STACK[:] = before


class Collection(NamedTuple):
    """Which iterations of a run are collected.

    Attributes:
        lower: The first iteration that is collected.
        upper: The number of iterations.
        size: How many are collected, before thinning.
        phase: What the progress bar calls them; None for warm-up, then sampling.
    """

    lower: int
    upper: int
    size: int
    phase: str | None


def take_collection(mcmc: MCMC) -> Collection:
    """The iterations that the next run collects; the run after it is an ordinary one.

    ``MCMC.warmup`` tells ``MCMC.run`` by private attributes to warm up only.
    """
    params = dict(mcmc._collection_params)
    mcmc._set_collection_params()
    if mcmc.post_warmup_state is not None:
        return Collection(0, mcmc.num_samples, mcmc.num_samples, "sample")
    lower, upper = params["lower"], params["upper"]
    size = params["collection_size"]
    size = upper - lower if size is None else size
    return Collection(lower, upper, size, params["phase"])


def record_run(
    mcmc: MCMC, states: dict[str, Any], last_state: Any, args: tuple, kwargs: dict
) -> None:
    """Fill an MCMC object as ``mcmc.run`` does, with draws that were made elsewhere.

    NumPyro has no public way in for draws: ``get_samples`` and ``print_summary`` read
    these attributes. `states` holds the collected fields by name, each with the leading
    axes ``(chain, draw)``; the arguments are those of the model.
    """
    mcmc._states, mcmc._states_flat, mcmc._last_state = states, None, last_state
    mcmc._args, mcmc._kwargs = args, kwargs


def arguments_of_run(mcmc: MCMC) -> tuple[tuple, dict[str, Any]]:
    """The arguments that the model of an MCMC was last run with."""
    return mcmc._args, mcmc._kwargs


def has_collected(mcmc: MCMC) -> bool:
    """Whether an MCMC object holds draws, which ``get_samples`` can only assert."""
    return mcmc._states is not None


def takes_traced_arguments(mcmc: MCMC) -> bool:
    """Whether an MCMC object was made with ``jit_model_args=True``."""
    return mcmc._jit_model_args


class AbstractFlattenedMCMC(MCMC):
    """``MCMC`` whose subclass joins chains and draws: NumPyro does it by array."""

    def _flatten(self, states: Any) -> Any:
        """Join the first two axes of every array."""
        raise NotImplementedError

    def _get_states_flat(self) -> Any:
        if self._states_flat is None:
            self._states_flat = self._flatten(self._states)
        return self._states_flat


def init_strategy(kernel: Any) -> Callable:
    """The ``init_strategy`` that a kernel was made with."""
    return kernel._init_strategy


def uses_forward_mode(kernel: HMC) -> bool:
    """The ``forward_mode_differentiation`` that a kernel was made with."""
    return kernel._forward_mode_differentiation


def max_tree_depths(kernel: NUTS) -> tuple[int, int]:
    """The largest depths of the trees, in warm-up and after it."""
    depth = kernel._max_tree_depth
    return depth if isinstance(depth, tuple) else (depth, depth)


def copy_kernel(kernel: MCMCKernel) -> Any:
    """A kernel with the same settings, which runs without changing the first.

    NumPyro fills a mass matrix of blocks in place, so the copy has its own.
    """
    fresh: Any = copy.copy(kernel)
    if isinstance(fresh, HMC) and isinstance(fresh._inverse_mass_matrix, dict):
        fresh._inverse_mass_matrix = dict(fresh._inverse_mass_matrix)
    return fresh


def replace_model(kernel: Any, model: Callable) -> Any:
    """A copy of a kernel for another model with the same sites.

    ``kernel.wrap_model`` would make a NUTS of a :class:`AbstractVectorNUTS`.
    """
    fresh = copy.copy(kernel)
    if isinstance(fresh, AbstractVectorNUTS):
        fresh._sites_model = model
    else:
        fresh._model = model
    return fresh


class AbstractVectorNUTS(NUTS):
    """NUTS of a model, over one vector that a subclass makes of its sites.

    NUTS takes either a model, and holds a value per site, or a potential function, and
    does not know a model. The choice is made in private methods.
    """

    def __init__(self, model: Callable, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        # HMC looks sites up in its state where it holds a model.
        self._sites_model, self._model = model, None

    @property
    def model(self) -> Callable:
        """The NumPyro model."""
        return self._sites_model

    def _start(
        self, rng_key: Any, model_args: tuple, model_kwargs: dict, init_params: Any
    ) -> Any:
        """Find the vector where the chain begins, and the functions of it."""
        raise NotImplementedError

    def _init_state(
        self, rng_key: Any, model_args: tuple, model_kwargs: dict, init_params: Any
    ) -> Any:
        start = self._start(rng_key, model_args, model_kwargs, init_params)
        self._potential_fn_gen = start.potential_fn
        self._postprocess_fn = start.postprocess_fn
        self._init_fn, self._sample_fn = start.algorithm(
            potential_fn_gen=start.potential_fn,
            kinetic_fn=self._kinetic_fn,
            algo=self._algo,
        )
        return start.state

    def get_constrain_fn(
        self,
        model_args: tuple = (),
        model_kwargs: dict | None = None,
        *,
        return_deterministic: bool = False,
    ) -> Callable:
        """The map from the vector to constrained values by site."""
        if self._postprocess_fn is None:
            raise RuntimeError("get_constrain_fn needs an initialised kernel.")
        return self._postprocess_fn(*model_args, **(model_kwargs or {}))

    def _by_site(self) -> Any:
        """NUTS with the same settings, its state by site."""
        kernel: Any = NUTS(self.model)
        vars(kernel).update(vars(copy.copy(self)))
        kernel._model = vars(kernel).pop("_sites_model")
        return kernel


class AbstractVectorNormal(AutoDiagonalNormal):
    """``AutoDiagonalNormal`` whose subclass lays the vector out, and draws it.

    NumPyro orders the vector, and draws it, in private methods.
    """

    def _lay_out(
        self, rng_key: Any, sites: dict[str, Any], potential_fn: Callable
    ) -> tuple[UnpackTransform, Any]:
        """The map from the vector to sites, and the vector at which the guide starts.

        NumPyro found `sites`, unconstrained initial values, with `rng_key`;
        `potential_fn` is a function of such values.
        """
        raise NotImplementedError

    def _draw(self, posterior: Any, sample_shape: tuple[int, ...]) -> Any:
        """Sample the vector."""
        raise NotImplementedError

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        rng_key = numpyro.prng_key()
        super()._setup_prototype(*args, **kwargs)
        self._unpack_latent, self._init_latent = self._lay_out(
            rng_key, self._init_locs, self._potential_fn
        )
        # Nobody reads them again. Kept, they would keep NumPyro's search for them alive
        # in a compiled program.
        self._init_locs = {}

    def _sample_latent(
        self, *args: Any, sample_shape: tuple[int, ...] = (), **kwargs: Any
    ) -> Any:
        return self._draw(self._get_posterior(), sample_shape)


def attributes_of_guide(guide: Any) -> dict[str, Any]:
    """The attributes of a guide, but for the parts of an ``AutoGuideList``."""
    attributes = dict(getattr(guide, "__dict__", {}))
    attributes.pop("_guides", None)
    return attributes


def replace_parts(guide: Any, parts: list[Any]) -> None:
    """Give an ``AutoGuideList`` other parts: it can only ``append``."""
    guide._guides = parts


def batch_shape(predictive: Predictive) -> tuple[int, ...]:
    """The leading axes of predictions, which NumPyro computes but does not show."""
    return predictive._batch_shape


def mask_of_distribution(fn: MaskedDistribution) -> Any:
    """The mask of a masked distribution, which has no public attribute for it."""
    return fn._mask
