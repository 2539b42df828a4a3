"""Draws in one form, from a dictionary or a DataTree."""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, Self

import jax
import numpy as np

# Where the trained values differ from chain to chain, a draw holds the number of its
# chain under this name. No site of a DataTree has it.
CHAIN = "chain"


@dataclasses.dataclass(frozen=True)
class Draws:
    """The draws of every site, along one leading axis.

    Attributes:
        values: Site name -> an array of shape ``(number, *site)``.
        shape: The sample axes as they were given: ``(draw,)`` or ``(chain, draw)``.
        params: The trained values of ``param`` and ``mutable`` sites, without an axis
            of draws. From a DataTree, a site that is a tree of arrays comes array by
            array, under ``<site>.<path>``.
        attrs: The ``attrs`` of a DataTree's sites.
        guide_params: The trained values of a DataTree's guide.
        linearized_at: Values of sites around which the function of the draws is linear,
            with a leading axis: one entry for all draws, or one for each chain. Those
            of a DataTree of a guide that linearises; empty for all others.
        may_be_grouped: Whether the draws of a dictionary may be grouped by chain: the
            user did not say how many sample axes there are, and all sites have the
            first two axes in common.
        by_chain: The trained values that a DataTree of an ensemble has of each member,
            with a leading axis of chains.
        guide_by_chain: The same for its guide.
    """

    values: dict[str, Any]
    shape: tuple[int, ...]
    params: dict[str, Any]
    attrs: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    guide_params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    may_be_grouped: bool = False
    by_chain: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    guide_by_chain: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    linearized_at: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def latents_linearized_at(self) -> dict[str, Any]:
        """Those of the values that belong to latent sites, not to computed ones."""
        return {
            site: value
            for site, value in self.linearized_at.items()
            if not self.attrs.get(site, {}).get("deterministic")
        }

    @property
    def num_modes(self) -> int:
        """Around how many points the function is linear: none, one, or one a chain."""
        return max((len(value) for value in self.linearized_at.values()), default=0)

    def at_linearization(self) -> Self:
        """The points around which the function is linear, as draws."""
        values = {site: self.linearized_at.get(site) for site in self.values}
        points = {s: np.asarray(v) for s, v in values.items() if v is not None}
        return dataclasses.replace(self, values=points, shape=(self.num_modes,))

    @property
    def number(self) -> int:
        """The number of draws in all chains together."""
        return math.prod(self.shape)

    @classmethod
    def read(cls, draws: Any, batch_ndims: int | None = None) -> Self:
        """Read a dictionary of draws or an ArviZ ``DataTree``.

        Args:
            draws: Site name -> array; or a DataTree (or an object like it) whose group
                ``posterior`` has the draws, and ``params`` the trained parameters.
            batch_ndims: The number of sample axes of a dictionary's arrays, by default
                1; that of a DataTree is 2.

        A source without draws, only with trained values, counts as one draw of no site.

        Raises:
            TypeError: If `draws` is neither.
            ValueError: If there are no draws, or if the sample axes of sites differ.
        """
        params: dict[str, Any] = {}
        guide_params: dict[str, Any] = {}
        by_chain: dict[str, Any] = {}
        guide_by_chain: dict[str, Any] = {}
        mode: dict[str, Any] = {}
        attrs: dict[str, Mapping[str, Any]] = {}
        may_be_grouped = False
        if hasattr(draws, "children"):
            if not {"posterior", "params"} & set(draws.children):
                raise ValueError(
                    "this DataTree has no group 'posterior' with draws; its groups are "
                    f"{sorted(draws.children)}."
                )
            batch_ndims = 2
            values = {}
            if "posterior" in draws.children:
                values = variables(draws["posterior"], "chain", "draw")
                attrs = _attrs(draws["posterior"])
            if "params" in draws.children:
                params, by_chain = _trained(draws["params"])
                attrs = _attrs(draws["params"]) | attrs
            if "guide_params" in draws.children:
                guide_params, guide_by_chain = _trained(draws["guide_params"])
            if "linearized_at" in draws.children:
                of_all, of_each = _trained(draws["linearized_at"])
                mode = {site: value[None] for site, value in of_all.items()} | of_each
        elif isinstance(draws, Mapping) and not hasattr(draws, "data_vars"):
            second = {np.shape(value)[1:2] for value in draws.values()}
            may_be_grouped = (
                batch_ndims is None and len(second) == 1 and () not in second
            )
            batch_ndims = 1 if batch_ndims is None else batch_ndims
            values = dict(draws)
        else:
            raise TypeError(
                "draws must be a dictionary from site names to arrays (such as "
                "`mcmc.get_samples()`) or an ArviZ DataTree (see `to_datatree`; wrap a "
                "Dataset `ds` of chains and draws as "
                "`xarray.DataTree.from_dict({'posterior': ds})`), got "
                f"{type(draws).__name__}. A fit becomes a tree by `to_datatree(fit, "
                "..., guide=guide)`."
            )
        if not values:
            shape = (1,) * (batch_ndims or 1)
            for value in by_chain.values():
                shape = (len(value), 1)
            return cls({}, shape, params, attrs, guide_params, by_chain=by_chain)
        shapes = {name: np.shape(value)[:batch_ndims] for name, value in values.items()}
        different = set(shapes.values())
        if len(different) != 1 or len(next(iter(different))) != batch_ndims:
            raise ValueError(
                f"every site needs the same {batch_ndims} leading sample axes, got "
                f"{shapes}. Pass their number as `batch_ndims`: 1 for "
                "`mcmc.get_samples()`, 2 for draws grouped by chain."
            )
        shape = different.pop()
        if math.prod(shape) == 0:
            raise ValueError(f"there are no draws: the sample axes have size {shape}.")
        flat = {
            name: _array(value).reshape(
                math.prod(shape), *np.shape(value)[batch_ndims:]
            )
            for name, value in values.items()
        }
        for site, value in {**by_chain, **guide_by_chain, **mode}.items():
            if len(value) not in (1, shape[0]):
                raise ValueError(
                    f"the tree has draws of {shape[0]} chains, and values of {site!r} "
                    f"for {len(value)}: select chains of the whole tree, "
                    "tree.isel(chain=[...]), not of one group."
                )
        return cls(
            flat,
            shape,
            params,
            attrs,
            guide_params,
            may_be_grouped,
            by_chain,
            guide_by_chain,
            mode,
        )

    def on_device(self) -> dict[str, jax.Array]:
        """The values as JAX arrays, and the chain of each draw where it matters."""
        values = {n: jax.numpy.asarray(value) for n, value in self.values.items()}
        if self.by_chain or self.num_modes > 1:
            chains, draws = self.shape
            values[CHAIN] = jax.numpy.repeat(jax.numpy.arange(chains), draws)
        return values


def _array(value: Any) -> Any:
    """Draws as an array; they may be a list of numbers."""
    return value if hasattr(value, "reshape") else np.asarray(value)


def _trained(group: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The values of a group without draws: those of all chains, and those of each."""
    found = group.data_vars.items()
    own = {name for name, variable in found if CHAIN in variable.dims}
    others = {name for name, _ in found} - own
    return variables(group, names=others), variables(group, CHAIN, names=own)


def variables(
    group: Any, *leading: str, names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of a DataTree's group, by the names of the sites in NumPyro.

    Raises:
        ValueError: If a variable lacks one of the leading axes.
    """
    arrays = {}
    for name, variable in group.data_vars.items():
        if names is not None and name not in names:
            continue
        missing = [axis for axis in leading if axis not in variable.dims]
        if missing:
            raise ValueError(
                f"the variable {name!r} of the DataTree has the axes "
                f"{variable.dims}, and draws need {leading}. Select one chain with "
                "`isel(chain=[0])`, and `unstack` stacked axes."
            )
        own = _in_order(name, [dim for dim in variable.dims if dim not in leading])
        site = variable.attrs.get("numpyro_name", name)
        arrays[site] = variable.transpose(*leading, *own).values
    return arrays


def _in_order(name: str, dims: list[Any]) -> list[Any]:
    """A variable's axes in the order of the site's, which xarray does not preserve.

    A number in an axis' name is its place. In a module's parameter the plate comes
    before the outputs, and the outputs before the inputs.
    """
    module = name.rpartition(".")[0]
    numbers, named = {}, []
    for dim in dims:
        match = re.fullmatch(rf"{re.escape(name)}_dim_(\d+)(_axis)*", str(dim))
        if match:
            numbers[dim] = int(match[1])
        else:
            named.append(dim)
    last = [f"{module}.out", f"{module}.in"]
    ends = [str(dim).removesuffix("_axis") for dim in named]
    ranks = [last.index(end) if end in last else -1 for end in ends]
    ordered = [named[i] for i in sorted(range(len(named)), key=ranks.__getitem__)]
    for dim in sorted(numbers, key=numbers.__getitem__):
        ordered.insert(numbers[dim], dim)
    return ordered


def _attrs(group: Any) -> dict[str, Mapping[str, Any]]:
    return {
        variable.attrs.get("numpyro_name", name): variable.attrs
        for name, variable in group.data_vars.items()
    }
