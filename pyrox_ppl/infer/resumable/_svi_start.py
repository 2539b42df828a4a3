"""How a resumable run of SVI starts: compiled, with programs that its object keeps."""

from collections.abc import Callable
from typing import Any, NamedTuple

from numpyro.infer import SVI

from pyrox_ppl._observed_shapes import check_observed_shapes
from pyrox_ppl.infer._arrays import strong
from pyrox_ppl.infer.compiled._arguments import (
    join_arguments,
    on_device,
    split_arguments,
)
from pyrox_ppl.infer.compiled._svi import CompiledSVI
from pyrox_ppl.infer.resumable._site_order import order_sites

# The attribute of NumPyro's SVI object in which its compiled programs are kept: they
# end with it, and a pickled copy has none.
_TWIN = "_pyrox_ppl_compiled"


class Started(NamedTuple):
    """An SVI object that has been initialised.

    Attributes:
        svi: The object itself, or the CompiledSVI of its parts.
        state: The state before the first step, which nothing else holds.
        data: The arrays among the keyword arguments and the other arguments.
        programs: What was made for this object, before or now.
    """

    svi: SVI
    state: Any
    data: list
    programs: Any


def start_svi(
    svi: SVI,
    rng_key: Any,
    args: tuple,
    kwargs: dict[str, Any],
    *,
    init_params: Any,
    plan: Any,
    others: tuple = (),
    make: Callable[[SVI, Callable[[list], tuple]], Any],
) -> Started:
    """Initialise an SVI object, and find or make the programs of its steps.

    Args:
        svi: NumPyro's SVI object. A subclass of it starts as it defines, and nothing of
            it is kept.
        rng_key: The key of ``svi.init``.
        args: The arguments of the model.
        kwargs: Its keyword arguments.
        init_params: As in ``svi.init``.
        plan: What the programs depend on besides `svi` and the arguments.
        others: Other arguments of the programs.
        make: Makes them, from an SVI object whose steps are the same in any process,
            and a function from `data` to `others` and `kwargs`.
    """
    twin = compiled_twin(svi)
    chosen = svi if twin is None else twin
    if twin is None:  # a CompiledSVI checks them itself
        check_observed_shapes(svi.model, args, kwargs | svi.static_kwargs)
    state = strong(chosen.init(rng_key, *args, init_params=init_params, **kwargs))
    svi.constrain_fn = chosen.constrain_fn

    def make_now(static: Any) -> Any:
        ordered = order_sites(svi, state, *on_device((args, kwargs)))
        return make(ordered, lambda arrays: join_arguments(arrays, static))

    if twin is None:
        data, static = split_arguments((others, kwargs))
        return Started(svi, state, data, make_now(static))
    return Started(twin, state, *twin.keep(plan, others, kwargs, make_now))


def compiled_twin(svi: SVI) -> CompiledSVI | None:
    """The CompiledSVI that keeps the programs of an SVI object."""
    if isinstance(svi, CompiledSVI):
        return svi
    if type(svi) is not SVI:
        return None
    parts = svi.model, svi.guide, svi.optim, svi.loss
    twin = vars(svi).get(_TWIN)
    if twin is None:
        twin = vars(svi)[_TWIN] = CompiledSVI(*parts, **svi.static_kwargs)
    twin.model, twin.guide, twin.optim, twin.loss = parts
    twin.static_kwargs, twin.constrain_fn = svi.static_kwargs, svi.constrain_fn
    return twin
