"""bind(): reads every parameter of a module, one NumPyro message per parameter."""

import abc
from collections.abc import Collection, Mapping
from typing import Any, Self, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from pyrox_ppl._dict_order import rebuild
from pyrox_ppl._message import is_plate, read_value
from pyrox_ppl._numpyro import handler_stack
from pyrox_ppl._parameter import (
    Read,
    check_name,
    class_name,
    parameters_of,
)

_Module = TypeVar("_Module")


class AbstractModule(eqx.Module):
    """A module that binds itself at its outermost call.

    Every module of `pyrox_ppl.nn` is one. A subclass writes only the forward
    mathematics, in `forward`, with the parameters that it finds on ``self``; calling
    the module reads them first (see :func:`bind`), once for the whole tree below it.
    """

    # Static, so that it survives flattening: a bound module stays bound under every
    # JAX transform, and in every copy.
    _bound: bool = eqx.field(default=False, init=False, static=True, repr=False)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Give the instance its own mark, whatever ``__init__`` a subclass writes.

        Equinox takes an instance that lacks one of its fields for a function wrapper.
        """
        self = super().__new__(cls)
        object.__setattr__(self, "_bound", False)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Read the parameters, then evaluate `forward` with the same arguments."""
        return bind(self).forward(*args, **kwargs)

    @abc.abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The mathematics of the module, with the parameters as they stand."""


def bind[Module](
    module: Module, name: str | None = None, *, plate: str | None = None
) -> Module:
    """Read every parameter of a module; return the module with the answers in place.

    Each parameter is one NumPyro message. The innermost handler that selects it
    (:func:`~pyrox_ppl.bayesianize`, ...) says what it becomes; a parameter that no
    handler selects stays the stored constant. What comes back is an ordinary module of
    the same class, dtypes and shapes: call it as often as you like, under any
    transform.

    Modules of :mod:`pyrox_ppl.nn` bind themselves when they are called. Any other
    Equinox module (or any pytree of arrays) takes part through this function.

    **Sites**: one per selected parameter, named by its path in the module:
    ``<name>.layers.0.weight``. The same array at two places is one site, named by the
    first of them. That they are the same cannot be seen of a module that is an argument
    of the ``jit`` around the read, where each place is a tracer of its own and becomes
    a site of its own: let the compiled function close over the module, or say in the
    module that they are one (``eqx.nn.Shared``). Running state (``eqx.nn.State``, and
    what an ``eqx.nn.StateIndex`` starts at) is no parameter.

    A module of :mod:`pyrox_ppl.nn` that is bound stays bound, also when its block has
    ended and in every module that it becomes a part of: it is read no more. So do not
    keep one for another model. What that can read is made by
    :func:`~pyrox_ppl.module_from_mean`, :func:`~pyrox_ppl.module_from_draw` or
    :func:`~pyrox_ppl.load`.

    Args:
        module: Any Equinox module or pytree.
        name: The root of the parameters' names; by default the class name in snake
            case.
        plate: The name of an active ``numpyro.plate``. The selected parameters are then
            independent per member of it, and *every* array of the module that is
            returned has a leading axis of the plate's size, ready for
            ``eqx.filter_vmap``. Without it parameters are global: no plate multiplies
            them.

    Returns:
        The module itself where no handler is on NumPyro's stack, or if it is bound
        already; else a bound copy.

    Raises:
        ValueError: If a parameter is read inside a ``jit``, ``scan``, ``while_loop``,
            ``cond`` or ``checkpoint`` that was entered inside a handler block; if the
            module is an argument of a ``vmap`` or ``grad`` entered there; if the plate
            is not active; if a value has another shape than the parameter.

    Example:
        >>> import equinox as eqx, jax, numpyro, pyrox_ppl as px
        >>> from numpyro.handlers import seed, trace
        >>> linear = eqx.nn.Linear(2, 3, key=jax.random.key(0))
        >>> def model(x):
        ...     with px.bayesianize(prior_std=0.5):
        ...         net = px.bind(linear, "readout")
        ...     return jax.vmap(net)(x)
        >>> sites = trace(seed(model, 0)).get_trace(jax.numpy.ones((4, 2)))
        >>> {name: site["value"].shape for name, site in sites.items()}
        {'readout.weight': (3, 2), 'readout.bias': (3,)}
    """
    if name is not None:
        check_name(name)
    if not handler_stack() and plate is None:
        return module
    if isinstance(module, AbstractModule) and module._bound:
        if plate is not None:
            raise ValueError(
                f"{type(module).__name__} is bound already, so plate={plate!r} would "
                "have no effect: bind the unbound module."
            )
        _tell_of_bound([module], called=True)
        return module
    frame = None if plate is None else _active_plate(plate)
    return _bind(module, class_name(module) if name is None else name, frame, ())


def bind_but[Module](module: Module, replaced: Collection[str]) -> Module:
    """Bind a module, but for parameters that :func:`put` will replace.

    Nothing is read for these, named by their dotted paths in the module: a site whose
    value nobody uses would be one too many.
    """
    if not handler_stack() or (isinstance(module, AbstractModule) and module._bound):
        return module
    return _bind(module, class_name(module), None, replaced)


def as_stored[Module](module: Module) -> Module:
    """A copy that reads nothing when it is called: it computes with what it holds."""
    return _mark_bound(rebuild(module, jax.tree.leaves(module)))


def put[Module](module: Module, values: Mapping[str, jax.Array]) -> Module:
    """Put values in the place of parameters, named by their dotted paths."""
    leaves = jax.tree.leaves(module)
    for read in parameters_of(module, class_name(module)):
        name = next((path for path in read.parameter.paths if path in values), None)
        if name is not None:
            for position in read.positions:
                leaves[position] = values[name].astype(read.parameter.dtype)
    return rebuild(module, leaves)


def _bind[Module](
    module: Module, root: str, frame: Any, replaced: Collection[str]
) -> Module:
    """Read the parameters, those in `replaced` left out, in the members of a plate."""
    leaves = jax.tree.leaves(module)
    nested = _bound_modules(module)
    _tell_of_bound(nested, called=False)
    bound_before = [leaf for node in nested for leaf in jax.tree.leaves(node)]
    reads = [
        read
        for read in parameters_of(module, root)
        if not any(read.stored is leaf for leaf in bound_before)
        and not any(path in replaced for path in read.parameter.paths)
    ]
    if reads:
        _check_transforms(reads, module)
    for read in reads:
        value = read_value(read, frame)
        for position in read.positions:
            leaves[position] = value
    if frame is not None:
        leaves = [
            _lead(leaf, old, frame)
            for leaf, old in zip(leaves, jax.tree.leaves(module), strict=True)
        ]
    return _mark_bound(rebuild(module, leaves))


def _check_transforms(reads: list[Read], module: Any) -> None:
    """Refuse reads that would leak, vanish on a cache hit, or merge what is mapped."""
    for handler in handler_stack():
        mark = getattr(handler, "entered_at", None)
        if mark is None:
            continue
        block = f"the {type(handler).__name__} block"
        if mark.is_staged_out():
            raise ValueError(
                f"{type(module).__name__} reads its parameters "
                f"({reads[0].parameter.name!r}, ...) inside a jit, scan, while_loop, "
                f"cond or checkpoint that was entered inside {block}. The values would "
                "leak, or be missing where the compiled function is used again. Write "
                "`net = bind(net)` inside the block, before the transform, and use the "
                "bound `net` in it."
            )
        if any(mark.is_transformed(read.stored) for read in reads):
            raise ValueError(
                f"{type(module).__name__} reads its parameters "
                f"({reads[0].parameter.name!r}, ...) inside a vmap or grad over the "
                f"module itself, entered inside {block}: all members would share one "
                "value, and its gradient would be zero. Write `net = bind(net)` (or "
                "`bind(net, plate=...)` for a value per member) inside the block, "
                "before the transform."
            )


def _active_plate(name: str) -> Any:
    """The plate of that name on NumPyro's stack."""
    plates = {h.name: h for h in handler_stack() if is_plate(h)}
    if name not in plates:
        raise ValueError(
            f"bind(..., plate={name!r}) must be called inside `with numpyro.plate("
            f"{name!r}, size):`; the active plates are {sorted(plates)}."
        )
    return plates[name]


def _lead(leaf: Any, old: Any, plate: Any) -> Any:
    """Give an array a leading axis of the plate's members, if it has none yet."""
    if not eqx.is_array(leaf):
        return leaf
    size = plate.subsample_size
    if leaf.ndim > old.ndim:
        return leaf.reshape(size, *old.shape)
    return jnp.broadcast_to(jnp.expand_dims(leaf, 0), (size, *old.shape))


def _bound_modules(module: Any) -> list[Any]:
    """The modules that were bound before they became part of this one."""

    def is_bound(node: Any) -> bool:
        return isinstance(node, AbstractModule) and node._bound

    nodes = jax.tree.leaves(module, is_leaf=is_bound)
    return [node for node in nodes if is_bound(node)]


def _tell_of_bound(modules: list[Any], *, called: bool) -> None:
    """Tell the open blocks of modules that are not read, for their messages."""
    for handler in handler_stack():
        if getattr(handler, "entered_at", None) is not None:
            for module in modules:
                handler.module_is_bound(type(module).__name__, called)


def _mark_bound[Module](module: Module) -> Module:
    """Mark a fresh copy and every module nested in it, in place."""

    def mark(node: Any) -> bool:
        if isinstance(node, AbstractModule):
            # Equinox freezes its modules; this one is ours alone until it is returned.
            object.__setattr__(node, "_bound", True)
        return False

    jax.tree.leaves(module, is_leaf=mark)
    return module
