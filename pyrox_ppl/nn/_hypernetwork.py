"""HyperNetwork: generates the parameters of any module from a context."""

from collections.abc import Callable
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from pyrox_ppl._bind import AbstractModule, as_stored, bind, bind_but, put
from pyrox_ppl._parameter import class_name, parameters_of, path_name
from pyrox_ppl._where import Where
from pyrox_ppl.nn._check import check_positive, check_size, check_width
from pyrox_ppl.nn._head import (
    AbstractHead,
    FullHead,
    LowRankHead,
    LowRankOffset,
    matrix_shape,
    saves,
    spread_of,
)
from pyrox_ppl.nn._rows import each_row
from pyrox_ppl.nn._target import paths_of, selected


class HyperNetwork(AbstractModule):
    r"""Generates the parameters of any module, :math:`\theta_i = \theta_{0i} + G_i z`.

    One *head* per parameter of a target, around the target's own value: at z = 0 the
    generated network is the target, and for :math:`z \sim N(0, I)` every entry of a
    parameter varies around it with the standard deviation :math:`s_i` times
    `init_scale`, whatever K is. :math:`s_i` is the root mean square of the parameter
    or, if it is zero throughout, :math:`(3 n)^{-1/2}` for n inputs, which is that of a
    linear layer. (:math:`G_i` is drawn from :math:`N(0, (s_i\,\text{init\_scale})^2 /
    K)`.)

    With ``rank=r`` a matrix has a low-rank head, :math:`\theta_i(z) = \theta_{0i} +
    L_i(z) R_i^\top` with :math:`L_i` linear in z, where that has fewer parameters: for
    a matrix of C by C_in, :math:`r (C (K + 1) + C_{in})` in place of :math:`C C_{in}
    (K + 1)`. Its :math:`\theta_0` is the target's and no parameter of the generator.

    A trunk, if there is one, turns the raw context into the features that all heads
    take in place of z. It is *backbone*: only the heads are generators.

    Called with a context, it returns a mapping from the paths of the target's
    parameters to their values, as :func:`~pyrox_ppl.amortize` takes it; with a low rank
    the value is a function of the stored array. Two arrays that are tied in the target
    have one head, and its value goes to both paths: also where the target is an
    argument of a compiled function, in which nothing shows that they were tied. (So
    make the generator outside of it.)

    **Shapes**: ``z`` ``(K,)``, one context. For several, `vmap` it, or use `map`.

    **Sites** under a handler: ``hyper_network.heads.<path>.weight`` of shape ``(size,
    K)`` and ``.bias`` of the parameter's own shape; with a low rank ``.weight`` ``(C r,
    K)``, ``.bias`` ``(C, r)`` and ``.right`` ``(C_in, r)``; ``hyper_network.trunk``.

    Raises:
        ValueError: If ``z`` is not one context, `cond_dim` wide.

    References:
        Ha, Dai, Le (2017). HyperNetworks. ICLR.
        Hu et al. (2022). LoRA: Low-rank adaptation of large language models. ICLR.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp
        >>> from pyrox_ppl.nn import HyperNetwork
        >>> mlp = eqx.nn.MLP(2, 1, 8, 1, key=jax.random.key(0))
        >>> g = HyperNetwork.init(mlp, 3, key=jax.random.key(1))
        >>> {path: value.shape for path, value in g(jnp.ones(3)).items()}
        ... # doctest: +NORMALIZE_WHITESPACE
        {'layers.0.bias': (8,), 'layers.0.weight': (8, 2),
         'layers.1.bias': (1,), 'layers.1.weight': (1, 8)}
        >>> x, z = jnp.ones((10, 4, 2)), jnp.zeros((10, 3))  # 4 points for each z
        >>> y = g.map(mlp, x, z, batch_size=5)
        >>> y.shape, bool(jnp.allclose(y[0, 0], mlp(x[0, 0])))
        ((10, 4, 1), True)
    """

    heads: dict[str, AbstractHead]
    trunk: Any = eqx.field(metadata={"parameter_role": "backbone"})
    cond_dim: int = eqx.field(static=True)
    # The paths of each array that the target held at several; a head has the first.
    ties: tuple[tuple[str, ...], ...] = eqx.field(static=True, default=())

    @classmethod
    def init(
        cls,
        target: Any,
        cond_dim: int,
        *,
        key: PRNGKeyArray,
        init_scale: float = 0.1,
        where: Where = None,
        rank: int | None = None,
        trunk: Callable[[jax.Array], jax.Array] | None = None,
    ) -> Self:
        """Put a head around every parameter of a target.

        Args:
            target: The module whose parameters are generated, as trained as you like.
            cond_dim: K, the width of the raw context ``z``.
            key: A JAX PRNG key.
            init_scale: How much the generated parameters vary with the heads' input,
                relative to themselves.
            where: Which parameters are generated: a glob, a sequence of globs, or a
                predicate on :class:`~pyrox_ppl.Parameter`; all by default. Names begin
                with the target's class in snake case (``mlp.layers.0.weight``).
            rank: The rank r of the heads of matrices; full heads by default.
            trunk: Any module from one raw context to a vector, the heads' input.

        Raises:
            ValueError: If a size or scale is not positive, if a glob of `where` matches
                nothing or nothing is selected, if no head would be the smaller for
                `rank`, or if the trunk does not return a vector.
            TypeError: If a selected parameter is complex, or `where` is of no form.
        """
        check_size(cond_dim=cond_dim)
        check_positive(init_scale=init_scale)
        if rank is not None:
            check_size(rank=rank)
        width = cond_dim if trunk is None else _width_of(trunk, cond_dim)
        reads = selected(target, where)
        low = [
            rank is not None and saves(read.parameter.shape, rank, width)
            for read in reads
        ]
        if rank is not None and not any(low):
            shapes = sorted({read.parameter.shape for read in reads})
            raise ValueError(
                f"rank={rank} has no effect: no selected parameter, of shapes "
                f"{shapes}, is a matrix whose low-rank head would be smaller than the "
                "full one. Give a lower rank, or none."
            )
        heads: dict[str, AbstractHead] = {}
        for read, is_low, head_key in zip(
            reads, low, jax.random.split(key, len(reads)), strict=True
        ):
            spread = init_scale * spread_of(read.stored, read.parameter)
            heads[path_name(read.parameter.path)] = (
                LowRankHead.init(read.stored, width, spread, rank, head_key)
                if is_low and rank is not None
                else FullHead.init(read.stored, width, spread, head_key)
            )
        # In the order in which JAX flattens a dict.
        ties = tuple(paths_of(read.parameter) for read in reads if read.parameter.tied)
        return cls(dict(sorted(heads.items())), trunk, cond_dim, ties)

    def forward(self, z: Any) -> dict[str, jax.Array | LowRankOffset]:
        """Path -> value, for one context."""
        z = check_width(self, "z", z, "cond_dim", self.cond_dim)
        if z.ndim != 1:
            raise ValueError(
                f"z has shape {z.shape}, but a HyperNetwork takes one context of shape "
                f"(cond_dim,) = ({self.cond_dim},). For several, use jax.vmap around "
                "it, or `map`."
            )
        features = z if self.trunk is None else each_row(self.trunk, z)
        values = {path: head(features) for path, head in self.heads.items()}
        return {path: values[head] for path, head in self._head_of().items()}

    def generate[Module](self, target: Module, z: Any) -> Module:
        """The target with the generated parameters in place, an ordinary module.

        The parameters that are not generated are read as ``bind`` reads them.

        Args:
            target: The module that the generator was made for.
            z: One context, of shape ``(K,)``.

        Returns:
            A module of the target's class, bound if a handler is on NumPyro's stack.

        Raises:
            ValueError: If the generator was made for another target.
        """
        self._check_target(target)
        return bind(self)._put(bind_but(target, self._head_of()), z)

    def map(
        self, target: Callable, x: Any, z: Any, *, batch_size: int | None = None
    ) -> jax.Array:
        """One generated network per context, each on its own batch of points.

        Args:
            target: The module that the generator was made for, of one point.
            x: Points of shape ``(B, P, *point)``, or ``(1, P, *point)`` if all contexts
                have the same.
            z: Contexts of shape ``(B, K)``.
            batch_size: How many networks are held in memory at a time; all by default.

        Returns:
            An array of shape ``(B, P, *out)``.

        Raises:
            ValueError: If the generator was made for another target, or the leading
                axes do not fit.
        """
        self._check_target(target)
        z = check_width(self, "z", z, "cond_dim", self.cond_dim)
        x = jnp.asarray(x)
        if z.ndim != 2 or x.ndim < 2 or x.shape[0] not in (1, z.shape[0]):
            raise ValueError(
                f"x has shape {x.shape} and z {z.shape}, but expected are points "
                "(B, P, *point), or (1, P, *point), and contexts (B, cond_dim)."
            )
        if batch_size is not None:
            check_size(batch_size=batch_size)
        generator, rest = bind(self), bind_but(target, self._head_of())

        def one(row: tuple[jax.Array, jax.Array]) -> jax.Array:
            points, context = row
            return jax.vmap(generator._put(rest, context))(points)

        def shared(context: jax.Array) -> jax.Array:
            return one((x[0], context))

        function: Callable = one if len(x) == len(z) else shared
        rows: Any = (x, z) if len(x) == len(z) else z
        try:
            if batch_size is None or x.size == 0:  # `lax.map` divides by the size
                return jax.vmap(function)(rows)
            return jax.lax.map(function, rows, batch_size=batch_size)
        except TypeError as error:  # as JAX raises it for shapes that do not fit
            raise ValueError(
                f"x has shape {x.shape}, and {type(target).__name__} does not take one "
                f"of its points, of shape {x.shape[2:]}: {error}"
            ) from error

    def _head_of(self) -> dict[str, str]:
        """Every path that a value goes to -> the path that its head is under."""
        tied = {path: first for first, *others in self.ties for path in others}
        return tied | {path: path for path in self.heads}

    def _put[Module](self, target: Module, z: Any) -> Module:
        """Generate, and put what was generated in place."""
        values = self.forward(z)
        made = {}
        for parameter, stored, _ in parameters_of(target, class_name(target)):
            path = path_name(parameter.path)
            value = values.get(path)
            if path in self.heads:
                value = value(stored) if callable(value) else value
                made[path] = jnp.asarray(value, parameter.dtype)
        # One array at all its places, so that they stay tied.
        return put(target, {p: made[first] for p, first in self._head_of().items()})

    def _check_target(self, target: Any) -> None:
        """Raise unless the target has a parameter of the right shape for each head."""
        head_of, shapes = self._head_of(), {}
        for parameter, _, _ in parameters_of(target, class_name(target)):
            paths = paths_of(parameter)
            shapes |= dict.fromkeys(paths, parameter.shape)
            if len({head_of.get(path) for path in paths}) > 1:
                raise ValueError(
                    f"the generator was made for another target: {paths} of "
                    f"{type(target).__name__} hold one array, and the generator has "
                    f"values for {sorted(head_of)}, those of {self.ties} being one."
                )
        expected = {path: head.shape_of() for path, head in self.heads.items()}
        for path, first in head_of.items():
            head, shape = self.heads[first], shapes.get(path)
            if isinstance(head, LowRankHead) and shape is not None and len(shape) > 1:
                shape = matrix_shape(shape)
            if shape != expected[first]:
                raise ValueError(
                    f"the generator was made for another target: it generates "
                    f"{expected}, and {type(target).__name__} has {shapes}."
                )


def _width_of(trunk: Callable, cond_dim: int) -> int:
    """The width of the vector that a trunk makes of a context."""
    raw = jax.ShapeDtypeStruct((cond_dim,), jnp.zeros(()).dtype)
    out = eqx.filter_eval_shape(each_row, as_stored(trunk), raw)
    shape = getattr(out, "shape", None)
    if shape is None or len(shape) != 1:
        raise ValueError(
            f"trunk must make one vector of a context of shape ({cond_dim},), got "
            f"{shape if shape is not None else out!r}."
        )
    return shape[0]
