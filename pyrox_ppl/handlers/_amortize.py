"""amortize: a parameter becomes a value that is generated from a context."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from pyrox_ppl._parameter import Parameter
from pyrox_ppl.handlers._base import (
    AbstractParameterHandler,
    Where,
)
from pyrox_ppl.handlers._block import Block
from pyrox_ppl.handlers._fit import fit
from pyrox_ppl.handlers._stack import check_is_new


class amortize(AbstractParameterHandler):
    r"""Generate the parameters read inside from a context, :math:`\theta = g(z)`.

    The generator is called once, on entering the block, under the handlers outside:
    ``with bayesianize(), amortize(generator=g, context=z): net(x)`` puts priors on the
    weights of ``g`` alone, and ``with learn(), amortize(...)`` trains these.
    :class:`pyrox_ppl.nn.HyperNetwork` is a generator for any module; any function of
    the context that returns a mapping is one, too. Its keys are the parameters' paths
    in the module, joined by dots (``"layers.0.weight"``, without the root; a tied array
    goes by the path of any of its places, and is replaced at all); its values are

    - arrays, of the parameter's shape;
    - NumPyro distributions: a sample site under the parameter's name, which is a prior
      that depends on the context in a model, an amortised posterior in a guide;
    - functions of the stored array that return one of the two: :math:`\theta =
      \theta_0 + \Delta(z)`.

    **Shapes**: as the generator has it; a :class:`~pyrox_ppl.nn.HyperNetwork` takes one
    context ``(K,)``. For a context per row, `vmap` around the block: with ``g`` bound
    before it, that is one forward pass each. That is for arrays: a distribution
    inside a `vmap` would be one site, whose value leaks; give each row a plate's
    member instead. Inside ``bind(..., plate=name)`` an array, or a distribution by its
    batch axes, may have the plate's members in front: one for each.

    **Sites**: none for a generated array; one for a generated distribution, under the
    parameter's name, global as those of :func:`~pyrox_ppl.bayesianize` unless ``bind``
    was asked for a plate. Those of the generator are under the scopes outside the block
    only.

    Args:
        fn: A model or guide to decorate; without it the handler is a context manager.
        generator: A function of the context; a module of :mod:`pyrox_ppl.nn` binds
            itself, any other one must be bound in it to take part.
        context: What the generator is called with: ``z``.
        where: Which parameters: a glob, a sequence of globs, or a predicate on
            :class:`~pyrox_ppl.Parameter`. By default those that the generator has a
            value for.

    Raises:
        ValueError: If the generator is one for another target: a shape differs, a value
            has no parameter or a selected parameter no value; if its values would go
            to two different modules; if a distribution does not fit.
        TypeError: If the generator returns anything but such a mapping.

    References:
        Ha, Dai, Le (2017). HyperNetworks. ICLR.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, pyrox_ppl as px
        >>> from numpyro.handlers import seed, trace
        >>> from pyrox_ppl.nn import HyperNetwork
        >>> line = eqx.nn.Linear(2, 1, key=jax.random.key(0))
        >>> g = HyperNetwork.init(line, 3, key=jax.random.key(1))
        >>> def model(x, z):
        ...     with px.bayesianize(), px.amortize(generator=g, context=z):
        ...         net = px.bind(line, "line")
        ...     return jax.vmap(net)(x)
        >>> sites = trace(seed(model, 0)).get_trace(jnp.ones((4, 2)), jnp.ones(3))
        >>> for name, site in sites.items():
        ...     print(name, site["value"].shape)
        hyper_network.heads.bias.weight (1, 3)
        hyper_network.heads.bias.bias (1,)
        hyper_network.heads.weight.weight (2, 3)
        hyper_network.heads.weight.bias (1, 2)
    """

    def __init__(
        self,
        fn: Callable | None = None,
        *,
        generator: Callable[[Any], Mapping[str, Any]],
        context: Any,
        where: Where = None,
    ) -> None:
        if not callable(generator):
            raise TypeError(
                "generator must be a function of the context, such as a HyperNetwork, "
                f"got {generator!r}."
            )
        self._generator = generator
        self._context = context
        super().__init__(fn, where)

    def prepare(self) -> dict[str, Any]:
        """Run the generator, under the handlers outside."""
        values = self._generator(self._context)
        named = isinstance(values, Mapping) and all(isinstance(k, str) for k in values)
        if not named or not values:
            raise TypeError(
                "a generator must return a mapping from the dotted paths of parameters "
                f"('layers.0.weight') to values, got {values!r}."
            )
        return dict(values)

    def selects_by_default(self, parameter: Parameter) -> bool:
        """Whether the generator has a value for a parameter."""
        return any(path in self.block.prepared for path in parameter.paths)

    def answer(self, msg: dict[str, Any], parameter: Parameter) -> None:
        """Give the parameter its generated value, or make it a sample site."""
        value = self._value(msg, parameter)
        if isinstance(value, dist.Distribution):
            check_is_new(msg, "sample")
            self.to_sample_site(msg, fit(value, parameter, msg["plate"]))
            return
        msg["value"] = self._fit_array(value, parameter, msg["plate"])

    def check_effect(self, block: Block) -> None:
        """Raise as well if a value was generated that no parameter was there for."""
        read = {path for p in block.read.values() for path in p.paths}
        unread = [key for key in block.prepared if key not in read]
        if unread:
            raise ValueError(
                f"the generator has values for {unread}, and no such parameter was "
                f"read inside the amortize block: {_both(block)}The target may be "
                "another one, or not have been read through `bind(module, name)`; or a "
                "handler further in took the parameter: then put amortize innermost, "
                "with a `where`."
            )
        super().check_effect(block)

    def _value(self, msg: dict[str, Any], parameter: Parameter) -> Any:
        """What the generator has for a parameter, functions applied."""
        block = self.block
        keys = [path for path in parameter.paths if path in block.prepared]
        if not keys:
            raise ValueError(
                f"`where` of amortize selects {parameter.name!r}, and the generator "
                f"has no value for {parameter.paths[0]!r}: {_both(block)}Leave it out "
                "by `where`, or generate it."
            )
        path, *others = keys
        if any(block.prepared[other] is not block.prepared[path] for other in others):
            raise ValueError(
                f"the generator has several values for {parameter.name!r}, which is "
                f"one array at several places: {keys}. Generate one of them, or untie "
                "the places."
            )
        for name, first in block.answered.items():
            same = path in block.read[name].paths
            if same and first.stored is not msg["stored"]:
                raise ValueError(
                    f"two different modules would get the generated value for "
                    f"{path!r}, as {name!r} and as {parameter.name!r}. A generator has "
                    f"one target: say which by `where` (a glob, such as "
                    f"{name.removesuffix(path) + '*'!r})."
                )
        value = block.prepared[path]
        if isinstance(value, dist.Distribution) or not callable(value):
            return value
        with self.at_the_read(msg, parameter):
            return value(msg["stored"])

    def _fit_array(self, value: Any, parameter: Parameter, plate: Any) -> jax.Array:
        """The value as an array of the parameter's shape, or of the plate's members."""
        array, shape = jnp.asarray(value), parameter.shape
        if plate is not None and array.shape == (plate.subsample_size, *shape):
            array = array.reshape(
                plate.subsample_size, *(1,) * (-plate.dim - 1), *shape
            )
        elif array.shape != shape:
            raise ValueError(
                f"the generator's value for {parameter.name!r} has shape "
                f"{array.shape}, but the parameter has shape {shape}: "
                f"{_both(self.block)}The generator is one for another target, or was "
                "given several contexts (use jax.vmap around the block)."
            )
        if jnp.iscomplexobj(array) and not jnp.issubdtype(
            parameter.dtype, jnp.complexfloating
        ):
            raise TypeError(
                f"the generator's value for {parameter.name!r} is complex, but the "
                f"parameter is {parameter.dtype}."
            )
        return array


def _both(block: Block) -> str:
    """What was generated and what was read, for an error message."""
    generated = (f"  {k} {_describe(v)}" for k, v in block.prepared.items())
    read = [f"  {p.name} {p.shape}" for p in block.read.values()]
    return "\n".join(
        ["generated are", *generated, "and read were", *(read or ["  none"]), ""]
    )


def _describe(value: Any) -> str:
    if isinstance(value, dist.Distribution):
        return f"{type(value).__name__} {value.shape()}"
    if callable(value):
        return "a function of the stored array"
    return str(jnp.shape(value))
