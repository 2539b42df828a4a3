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
    mathematics, in `forward`, with the parameters on ``self``. Calling the module
    first reads them (see :func:`bind`), once for the whole tree below it.
    """

    # Static, so that the mark survives flattening: a bound module stays bound under
    # every JAX transform and in every copy.
    _bound: bool = eqx.field(default=False, init=False, static=True, repr=False)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Set the mark on the instance, whatever ``__init__`` a subclass writes.

        Equinox mistakes an instance that lacks one of its fields for a function
        wrapper.
        """
        self = super().__new__(cls)
        object.__setattr__(self, "_bound", False)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Read the parameters, then evaluate `forward` with the same arguments."""
        return bind(self).forward(*args, **kwargs)

    @abc.abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the module with the parameters that it holds."""


def bind[Module](
    module: Module, name: str | None = None, *, plate: str | None = None
) -> Module:
    """Read every parameter of a module; return the module with the answers in place.

    Each parameter is one NumPyro message. The innermost handler that selects it
    (:func:`~pyrox_ppl.bayesianize`, ...) decides what it becomes; a parameter that no
    handler selects stays the stored constant. The result is an ordinary module of the
    same class, dtypes and shapes: call it as often as you like, under any transform.

    Modules of :mod:`pyrox_ppl.nn` bind themselves when they are called. Any other
    Equinox module (or any pytree of arrays) takes part through this function.

    **Sites**: one per selected parameter, named by its path in the module:
    ``<name>.layers.0.weight``. An array stored at two places is one site, named by the
    first place. If the module is an argument of the ``jit`` around the read, `bind`
    cannot see such a tie: each place holds its own tracer and becomes its own site. Let
    the compiled function close over the module instead, or declare the tie in the
    module (``eqx.nn.Shared``). Running state (``eqx.nn.State``, and the initial value
    of an ``eqx.nn.StateIndex``) is not a parameter. Keep it in a ``mutable`` site, as
    in the second example.

    A bound module of :mod:`pyrox_ppl.nn` stays bound after its block has ended, and
    inside every module that it becomes a part of: its parameters are not read again.
    So do not keep one for another model; make an unbound module with
    :func:`~pyrox_ppl.module_from_mean`, :func:`~pyrox_ppl.module_from_draw` or
    :func:`~pyrox_ppl.load`.

    Args:
        module: Any Equinox module or pytree.
        name: The root of the parameters' names; by default the class name in snake
            case.
        plate: The name of an active ``numpyro.plate``. The selected parameters are then
            independent for each member of the plate, and *every* array of the returned
            module has a leading axis of the plate's size, ready for
            ``eqx.filter_vmap``. Without it parameters are global: no plate multiplies
            them.

    Returns:
        The module itself if it is already bound or no handler is on NumPyro's stack;
        otherwise a bound copy.

    Raises:
        ValueError: If a parameter is read inside a ``jit``, ``scan``, ``while_loop``,
            ``cond`` or ``checkpoint`` that was entered inside a handler block; if the
            module is an argument of a ``vmap`` or ``grad`` entered there; if the plate
            is not active; if a value and its parameter differ in shape.

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

        A layer with a state, which SVI carries from step to step:

        >>> make = eqx.nn.make_with_state(eqx.nn.BatchNorm)
        >>> norm, start = make(2, axis_name="rows", mode="batch")
        >>> def model(x, inference=False):
        ...     with px.bayesianize(prior=px.priors.fan_in(0.1)):
        ...         net = eqx.nn.inference_mode(px.bind(norm, "norm"), inference)
        ...     held = numpyro.primitives.mutable("state", {"now": start})
        ...     over_rows = jax.vmap(net, (0, None), (0, None), axis_name="rows")
        ...     y, held["now"] = over_rows(x, held["now"])
        ...     return y
        >>> sorted(trace(seed(model, 0)).get_trace(jax.numpy.ones((4, 2))))
        ['norm.bias', 'norm.weight', 'state']

        Without ``vmap``, give the layer a copy, ``jax.tree.map(lambda a: a,
        held["now"])``: an ``eqx.nn.State`` can be used once, and NumPyro runs a model
        several times.
    """
    if name is not None:
        check_name(name)
    if not handler_stack() and plate is None:
        return module  # a deterministic call costs nothing extra
    if isinstance(module, AbstractModule) and module._bound:
        if plate is not None:
            raise ValueError(
                f"{type(module).__name__} is already bound, so plate={plate!r} would "
                "have no effect: bind the unbound module."
            )
        _report_bound([module], called=True)
        return module
    frame = None if plate is None else _active_plate(plate)
    return _bind(module, class_name(module) if name is None else name, frame, ())


def bind_except[Module](module: Module, replaced: Collection[str]) -> Module:
    """Bind a module without the parameters that the caller replaces afterwards.

    `replaced` holds their dotted paths in the module. They are not read, because each
    read could make a site whose value nobody uses.
    """
    if not handler_stack() or (isinstance(module, AbstractModule) and module._bound):
        return module
    return _bind(module, class_name(module), None, replaced)


def stop_reads[Module](module: Module) -> Module:
    """Copy a module so that a call reads nothing and uses the arrays it holds."""
    return _mark_bound(rebuild(module, jax.tree.leaves(module)))


def replace_parameters[Module](
    module: Module, values: Mapping[str, jax.Array]
) -> Module:
    """Replace the parameters at the given dotted paths by values."""
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
    """Read the parameters except those in `replaced`, once per member of a plate."""
    leaves = jax.tree.leaves(module)
    nested = _bound_modules(module)
    _report_bound(nested, called=False)
    # Their arrays are answers already; a second read would make second sites.
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
        value = read_value(read, frame, module)
        for position in read.positions:
            leaves[position] = value
    if frame is not None:
        leaves = [
            _add_member_axis(leaf, old, frame)
            for leaf, old in zip(leaves, jax.tree.leaves(module), strict=True)
        ]
    return _mark_bound(rebuild(module, leaves))


def _check_transforms(reads: list[Read], module: Any) -> None:
    """Refuse reads under a transform that would make them wrong.

    A staging transform would leak the values, or skip the read on a cache hit; under a
    ``vmap`` over the module all members would share one value.
    """
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
                "leak, or be missing when the compiled function runs again. Write "
                "`net = bind(net)` inside the block, before the transform, and use the "
                "bound `net` in it."
            )
        if any(mark.is_transformed(read.stored) for read in reads):
            raise ValueError(
                f"{type(module).__name__} reads its parameters "
                f"({reads[0].parameter.name!r}, ...) inside a vmap or grad over the "
                f"module itself, entered inside {block}: all members would share one "
                "value, and its gradient would be zero. Write `net = bind(net)` inside "
                "the block, before the transform, or `bind(net, plate=...)` for one "
                "value per member."
            )


def _active_plate(name: str) -> Any:
    """Find a plate on NumPyro's stack by its name."""
    plates = {h.name: h for h in handler_stack() if is_plate(h)}
    if name not in plates:
        raise ValueError(
            f"bind(..., plate={name!r}) must be called inside `with numpyro.plate("
            f"{name!r}, size):`; the active plates are {sorted(plates)}."
        )
    return plates[name]


def _add_member_axis(leaf: Any, old: Any, plate: Any) -> Any:
    """Make the first axis of an array the axis of the plate's members."""
    if not eqx.is_array(leaf):
        return leaf
    size = plate.subsample_size
    if leaf.ndim > old.ndim:
        # A plate at dim=-3 puts axes of size 1 between its members and the parameter.
        return leaf.reshape(size, *old.shape)
    return jnp.broadcast_to(jnp.expand_dims(leaf, 0), (size, *old.shape))


def _bound_modules(module: Any) -> list[Any]:
    """List the modules inside this one that were bound earlier."""

    def is_bound(node: Any) -> bool:
        return isinstance(node, AbstractModule) and node._bound

    nodes = jax.tree.leaves(module, is_leaf=is_bound)
    return [node for node in nodes if is_bound(node)]


def _report_bound(modules: list[Any], *, called: bool) -> None:
    """Report modules that are not read to the open blocks, for their error messages."""
    for handler in handler_stack():
        if getattr(handler, "entered_at", None) is not None:
            for module in modules:
                handler.record_bound_module(type(module).__name__, called)


def _mark_bound[Module](module: Module) -> Module:
    """Mark a fresh copy and every module nested in it as bound, in place."""

    def mark(node: Any) -> bool:
        if isinstance(node, AbstractModule):
            # Equinox freezes modules, but nobody else holds this fresh copy yet.
            object.__setattr__(node, "_bound", True)
        return False

    jax.tree.leaves(module, is_leaf=mark)
    return module
