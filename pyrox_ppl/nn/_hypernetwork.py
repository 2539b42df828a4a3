"""HyperNetwork: generates the parameters of any module from a context."""

from collections.abc import Callable
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from pyrox_ppl._bind import (
    AbstractModule,
    bind,
    bind_except,
    replace_parameters,
    stop_reads,
)
from pyrox_ppl._parameter import class_name, parameters_of, path_name
from pyrox_ppl._where import Where
from pyrox_ppl.nn._check import check_positive, check_size, check_width
from pyrox_ppl.nn._head import (
    AbstractHead,
    FullHead,
    LowRankHead,
    LowRankOffset,
    low_rank_is_smaller,
    matrix_shape,
    parameter_scale,
)
from pyrox_ppl.nn._rows import map_rows
from pyrox_ppl.nn._target import select_parameters


class HyperNetwork(AbstractModule):
    r"""Generates the parameters of any module, :math:`\theta_i = \theta_{0i} + G_i z`.

    Each parameter of the target has one *head*, centred on the target's own value. At
    z = 0 the generated network is the target. For :math:`z \sim N(0, I)` every entry of
    a parameter varies with the standard deviation :math:`s_i` times `init_scale`,
    whatever K is. The scale :math:`s_i` is the root mean square of the parameter or, if
    all its entries are zero, that of a linear layer, :math:`(3 n)^{-1/2}` for n inputs.
    (:math:`G_i` is drawn from :math:`N(0, (s_i\,\text{init\_scale})^2 / K)`.)

    With ``rank=r`` a matrix has a low-rank head if that has fewer parameters:
    :math:`\theta_i(z) = \theta_{0i} + L_i(z) R_i^\top` with :math:`L_i` linear in z.
    For a matrix of C by C_in these are :math:`r (C (K + 1) + C_{in})` parameters in
    place of :math:`C C_{in} (K + 1)`. The :math:`\theta_0` of a low-rank head is the
    target's, not a parameter of the generator.

    An optional trunk turns the raw context into features, which all heads take in place
    of z. The trunk is *backbone*: only the heads are generators.

    A call with a context returns a mapping from the paths of the target's parameters to
    values, which :func:`~pyrox_ppl.amortize` takes; a low-rank value is a function of
    the stored array. Two tied arrays of the target have one head, and its value goes to
    both paths. Make the generator outside of compiled functions: inside one that takes
    the target as an argument, the tie cannot be seen.

    **Shapes**: ``z`` ``(K,)``, one context. For several, use `vmap` or :meth:`map`.

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
    # All paths of each tied array of the target; the first one names its head.
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
            target: The module to generate the parameters of, trained or not.
            cond_dim: K, the width of the raw context ``z``.
            key: A JAX PRNG key.
            init_scale: How much the generated parameters vary with the heads' input,
                relative to themselves.
            where: Which parameters are generated: a glob, a sequence of globs, or a
                predicate on :class:`~pyrox_ppl.Parameter`; all by default. Names begin
                with the target's class in snake case (``mlp.layers.0.weight``).
            rank: The rank r of the heads of matrices; full heads by default.
            trunk: Any module from one raw context to a vector, the input of the heads.

        Raises:
            ValueError: If a size or scale is not positive, if a glob of `where` matches
                nothing or nothing is selected, if `rank` makes no head smaller, or if
                the trunk does not return a vector.
            TypeError: If a selected parameter is complex, or `where` has a wrong type.
        """
        check_size(cond_dim=cond_dim)
        check_positive(init_scale=init_scale)
        if rank is not None:
            check_size(rank=rank)
        width = cond_dim if trunk is None else _trunk_width(trunk, cond_dim)
        reads = select_parameters(target, where)
        low = [
            rank is not None and low_rank_is_smaller(read.parameter.shape, rank, width)
            for read in reads
        ]
        if rank is not None and not any(low):
            shapes = sorted({read.parameter.shape for read in reads})
            raise ValueError(
                f"rank={rank} has no effect: no low-rank head would be smaller than "
                f"the full head of its parameter, for the selected shapes {shapes}. "
                "Give a lower rank, or none."
            )
        heads: dict[str, AbstractHead] = {}
        for read, is_low, head_key in zip(
            reads, low, jax.random.split(key, len(reads)), strict=True
        ):
            spread = init_scale * parameter_scale(read.stored, read.parameter)
            heads[path_name(read.parameter.path)] = (
                LowRankHead.init(read.stored, width, spread, rank, head_key)
                if is_low and rank is not None
                else FullHead.init(read.stored, width, spread, head_key)
            )
        # Sort the heads as JAX flattens a dict, so that flattening never reorders them.
        ties = tuple(read.parameter.paths for read in reads if read.parameter.tied)
        return cls(dict(sorted(heads.items())), trunk, cond_dim, ties)

    def forward(self, z: Any) -> dict[str, jax.Array | LowRankOffset]:
        """Map the paths of the target's parameters to values, for one context."""
        z = check_width(self, "z", z, "cond_dim", self.cond_dim)
        if z.ndim != 1:
            raise ValueError(
                f"z has shape {z.shape}, but a HyperNetwork takes one context of shape "
                f"(cond_dim,) = ({self.cond_dim},). For several, use jax.vmap around "
                "it, or `map`."
            )
        features = z if self.trunk is None else map_rows(self.trunk, z)
        values = {path: head(features) for path, head in self.heads.items()}
        return {path: values[head] for path, head in self._head_paths().items()}

    def generate[Module](self, target: Module, z: Any) -> Module:
        """Make an ordinary module: the target with the generated parameters.

        The other parameters of the target are read, as ``bind`` reads them.

        Args:
            target: The module that the generator was made for.
            z: One context of shape ``(K,)``.

        Returns:
            A module of the target's class; it is bound if a handler is on NumPyro's
            stack.

        Raises:
            ValueError: If the generator was made for another target.
        """
        self._check_target(target)
        return bind(self)._generate_into(bind_except(target, self._head_paths()), z)

    def map(
        self, target: Callable, x: Any, z: Any, *, batch_size: int | None = None
    ) -> jax.Array:
        """Evaluate one generated network per context, each on its own points.

        Args:
            target: The module that the generator was made for; it takes one point.
            x: Points of shape ``(B, P, *point)``, or ``(1, P, *point)`` if all contexts
                share them.
            z: Contexts of shape ``(B, K)``.
            batch_size: How many networks to hold in memory at a time; all by default.

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
                f"x has shape {x.shape} and z has shape {z.shape}, but x must be "
                "points (B, P, *point) or (1, P, *point), and z contexts "
                "(B, cond_dim)."
            )
        if batch_size is not None:
            check_size(batch_size=batch_size)
        generator, rest = bind(self), bind_except(target, self._head_paths())

        def one(row: tuple[jax.Array, jax.Array]) -> jax.Array:
            points, context = row
            return jax.vmap(generator._generate_into(rest, context))(points)

        def shared(context: jax.Array) -> jax.Array:
            return one((x[0], context))

        function: Callable = one if len(x) == len(z) else shared
        rows: Any = (x, z) if len(x) == len(z) else z
        try:
            if batch_size is None or x.size == 0:  # `lax.map` divides by the size
                return jax.vmap(function)(rows)
            return jax.lax.map(function, rows, batch_size=batch_size)
        except TypeError as error:  # JAX raises it for shapes that do not fit
            raise ValueError(
                f"x has shape {x.shape}, but {type(target).__name__} does not take one "
                f"point of shape {x.shape[2:]}: {error}"
            ) from error

    def _head_paths(self) -> dict[str, str]:
        """Map every path that takes a value to the path that names its head."""
        tied = {path: first for first, *others in self.ties for path in others}
        return tied | {path: path for path in self.heads}

    def _generate_into[Module](self, target: Module, z: Any) -> Module:
        """Generate the parameters for a context, and put them into the target."""
        values = self.forward(z)
        made = {}
        for parameter, stored, _ in parameters_of(target, class_name(target)):
            path = path_name(parameter.path)
            value = values.get(path)
            if path in self.heads:
                value = value(stored) if callable(value) else value
                made[path] = jnp.asarray(value, parameter.dtype)
        # A tied parameter gets one array at all its places, so that it stays tied.
        return replace_parameters(
            target, {p: made[first] for p, first in self._head_paths().items()}
        )

    def _check_target(self, target: Any) -> None:
        """Raise unless every head has a parameter of its shape in the target."""
        head_of, shapes = self._head_paths(), {}
        for parameter, _, _ in parameters_of(target, class_name(target)):
            paths = parameter.paths
            shapes |= dict.fromkeys(paths, parameter.shape)
            if len({head_of.get(path) for path in paths}) > 1:
                raise ValueError(
                    f"the generator was made for another target: {paths} of "
                    f"{type(target).__name__} hold one array, but the generator has "
                    f"values for {sorted(head_of)}, of which {self.ties} are tied."
                )
        expected = {path: head.target_shape() for path, head in self.heads.items()}
        for path, first in head_of.items():
            head, shape = self.heads[first], shapes.get(path)
            if isinstance(head, LowRankHead) and shape is not None and len(shape) > 1:
                shape = matrix_shape(shape)
            if shape != expected[first]:
                raise ValueError(
                    f"the generator was made for another target: it generates "
                    f"{expected}, but {type(target).__name__} has {shapes}."
                )


def _trunk_width(trunk: Callable, cond_dim: int) -> int:
    """Find the width of the vector that a trunk returns for one context."""
    raw = jax.ShapeDtypeStruct((cond_dim,), jnp.zeros(()).dtype)
    out = eqx.filter_eval_shape(map_rows, stop_reads(trunk), raw)
    shape = getattr(out, "shape", None)
    if shape is None or len(shape) != 1:
        raise ValueError(
            f"trunk must return one vector for a context of shape ({cond_dim},), got "
            f"{shape if shape is not None else out!r}."
        )
    return shape[0]
