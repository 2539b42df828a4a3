"""amortize: turns parameters into values that a generator makes from a context."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from pyrox_ppl._parameter import Parameter
from pyrox_ppl._where import Where
from pyrox_ppl.handlers._base import AbstractParameterHandler
from pyrox_ppl.handlers._block import Block
from pyrox_ppl.handlers._fit_prior import fit_prior
from pyrox_ppl.handlers._stack import check_is_new


class amortize(AbstractParameterHandler):
    r"""Generate the parameters read inside from a context, :math:`\theta = g(z)`.

    The block calls the generator once, on entry, under the handlers outside:
    ``with bayesianize(), amortize(generator=g, context=z): net(x)`` puts priors on the
    weights of ``g`` alone, and ``with learn(), amortize(...)`` trains them. A
    :class:`pyrox_ppl.nn.HyperNetwork` is a generator for any module; so is any function
    of the context that returns a mapping. The keys are dotted paths of parameters in
    the module (``"layers.0.weight"``, without the root). A tied array may be named by
    any of its paths and is replaced at all of them. The values are

    - arrays of the parameter's shape;
    - NumPyro distributions: each makes a sample site under the parameter's name, which
      is a context-dependent prior in a model and an amortised posterior in a guide;
    - functions of the stored array that return one of the two: :math:`\theta =
      \theta_0 + \Delta(z)`.

    **Shapes**: the context is whatever the generator takes; a
    :class:`~pyrox_ppl.nn.HyperNetwork` takes one context ``(K,)``. For one context per
    row, put a `vmap` around the block and bind ``g`` before it; each row then costs one
    forward pass of ``g``. This works for arrays only: a distribution inside a `vmap`
    would make one site, whose value leaks, so use a plate instead. Inside
    ``bind(..., plate=name)`` an array, or the batch axes of a distribution, may have a
    leading axis with one entry per member of the plate.

    **Sites**: none for a generated array. A generated distribution makes one, under the
    parameter's name; it is global, as in :func:`~pyrox_ppl.bayesianize`, unless
    ``bind`` was given a plate. The generator's own sites take the prefixes of the
    scopes outside the block, not of those inside it.

    Args:
        fn: A model or guide to decorate; without it the handler is a context manager.
        generator: A function of the context. A module of :mod:`pyrox_ppl.nn` binds
            itself; the function must bind any other module for it to take part.
        context: The argument of the generator: ``z``.
        where: Which parameters: a glob, a sequence of globs, or a predicate on
            :class:`~pyrox_ppl.Parameter`. By default those that the generator has
            values for.

    Raises:
        ValueError: If the generator was made for another target: a shape differs, a
            value has no parameter, or a selected parameter has no value; if its values
            would go to two different modules; if a distribution does not fit.
        TypeError: If the generator does not return such a mapping.

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
        """Run the generator under the handlers outside the block."""
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
        """Give the parameter its generated value, or turn it into a sample site."""
        value = self._value(msg, parameter)
        if isinstance(value, dist.Distribution):
            check_is_new(msg, "sample")
            self.make_sample_site(msg, fit_prior(value, parameter, msg["plate"]))
            return
        msg["value"] = self._fit_array(value, parameter, msg["plate"])

    def check_effect(self, block: Block) -> None:
        """Also raise if no parameter was read for a generated value."""
        read = {path for p in block.parameters.values() for path in p.paths}
        unread = [key for key in block.prepared if key not in read]
        if unread:
            raise ValueError(
                f"the generator has values for {unread}, but the amortize block read "
                f"no such parameter: {_describe_values(block)}Read the generator's own "
                "target inside the block, by `bind(module, name)` if it is not of "
                "pyrox_ppl.nn. If a handler further in took the parameter, put "
                "amortize innermost, with a `where`."
            )
        super().check_effect(block)

    def _value(self, msg: dict[str, Any], parameter: Parameter) -> Any:
        """Look up the value for a parameter; apply it if it is a function."""
        block = self.block
        keys = [path for path in parameter.paths if path in block.prepared]
        if not keys:
            raise ValueError(
                f"`where` of amortize selects {parameter.name!r}, but the generator "
                f"has no value for {parameter.paths[0]!r}: {_describe_values(block)}"
                "Exclude it by `where`, or generate it."
            )
        path, *others = keys
        if any(block.prepared[other] is not block.prepared[path] for other in others):
            raise ValueError(
                f"the generator has several values for {parameter.name!r}, but it is "
                f"one array stored at {keys}. Generate one value, or untie the places."
            )
        for name, first in block.answers.items():
            same = path in block.parameters[name].paths
            if same and first.stored is not msg["stored"]:
                raise ValueError(
                    f"two different modules would get the generated value for "
                    f"{path!r}: as {name!r} and as {parameter.name!r}. A generator has "
                    "one target: select it by `where` (a glob such as "
                    f"{name.removesuffix(path) + '*'!r})."
                )
        value = block.prepared[path]
        if isinstance(value, dist.Distribution) or not callable(value):
            return value
        with self.stand_at_read(msg, parameter):
            return value(msg["stored"])

    def _fit_array(self, value: Any, parameter: Parameter, plate: Any) -> jax.Array:
        """Check the shape of a value: the parameter's, or one per member of a plate."""
        array, shape = jnp.asarray(value), parameter.shape
        if plate is not None and array.shape == (plate.subsample_size, *shape):
            array = array.reshape(
                plate.subsample_size, *(1,) * (-plate.dim - 1), *shape
            )
        elif array.shape != shape:
            raise ValueError(
                f"the generator's value for {parameter.name!r} has shape "
                f"{array.shape}, but the parameter has shape {shape}: "
                f"{_describe_values(self.block)}The generator was made for another "
                "target, or got several contexts (put jax.vmap around the block)."
            )
        if jnp.iscomplexobj(array) and not jnp.issubdtype(
            parameter.dtype, jnp.complexfloating
        ):
            raise TypeError(
                f"the generator's value for {parameter.name!r} is complex, but the "
                f"parameter is {parameter.dtype}."
            )
        return array


def _describe_values(block: Block) -> str:
    """List the generated values and the parameters read, for an error message."""
    generated = (f"  {k} {_describe(v)}" for k, v in block.prepared.items())
    read = [f"  {p.name} {p.shape}" for p in block.parameters.values()]
    return "\n".join(
        ["generated values:", *generated, "parameters read:", *(read or ["  none"]), ""]
    )


def _describe(value: Any) -> str:
    if isinstance(value, dist.Distribution):
        return f"{type(value).__name__} {value.shape()}"
    if callable(value):
        return "a function of the stored array"
    return str(jnp.shape(value))
