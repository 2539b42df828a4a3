"""Draws in the forms that users have them, brought to one."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Self

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Draws:
    """The draws of every site, along one leading axis.

    Attributes:
        values: Site name -> an array of shape ``(number, *site)``.
        shape: The sample axes as they were given: ``(draw,)`` or ``(chain, draw)``.
        params: The trained values of ``param`` and ``mutable`` sites, without an axis
            of draws. The arrays of a site that is a tree of them are under
            ``<site>.<path>`` where they come from a DataTree.
        guide_params: The trained values of a DataTree's guide.
        about: What a DataTree says of each of its sites (``attrs``).
        may_be_grouped: Whether a dictionary may be of draws grouped by chain: nobody
            said how many sample axes there are, and all sites have the first two axes
            in common.
    """

    values: dict[str, Any]
    shape: tuple[int, ...]
    params: dict[str, Any]
    about: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    guide_params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    may_be_grouped: bool = False

    @property
    def number(self) -> int:
        """How many draws there are, of all chains."""
        return math.prod(self.shape)

    @classmethod
    def read(cls, draws: Any, batch_ndims: int | None = None) -> Self:
        """Bring a dictionary of draws or an ArviZ ``DataTree`` to this form.

        Args:
            draws: Site name -> array; or a DataTree (or an object like it) whose group
                ``posterior`` has the draws, and ``params`` the trained parameters.
            batch_ndims: The number of sample axes of a dictionary's arrays, by default
                1; that of a DataTree is 2.

        What was only trained, and has no draws, is one draw of no site.

        Raises:
            TypeError: If `draws` is neither.
            ValueError: If there are no draws, or if sites differ in their sample axes.
        """
        params: dict[str, Any] = {}
        guide_params: dict[str, Any] = {}
        about: dict[str, Mapping[str, Any]] = {}
        may_be_grouped = False
        if hasattr(draws, "children"):
            if not {"posterior", "params"} & set(draws.children):
                raise ValueError(
                    "this DataTree has no group 'posterior', so it holds no draws; its "
                    f"groups are {sorted(draws.children)}."
                )
            batch_ndims = 2
            values = {}
            if "posterior" in draws.children:
                values = variables(draws["posterior"], "chain", "draw")
                about = _attrs(draws["posterior"])
            if "params" in draws.children:
                params = variables(draws["params"])
                about = _attrs(draws["params"]) | about
            if "guide_params" in draws.children:
                guide_params = variables(draws["guide_params"])
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
                "`mcmc.get_samples()`) or an ArviZ DataTree (such as that of "
                "`to_datatree`; a Dataset `ds` of chains and draws as "
                "`xarray.DataTree.from_dict({'posterior': ds})`), got "
                f"{type(draws).__name__}."
            )
        if not values:
            shape = (1,) * (batch_ndims or 1)
            return cls({}, shape, params, about, guide_params)
        shapes = {name: np.shape(value)[:batch_ndims] for name, value in values.items()}
        different = set(shapes.values())
        if len(different) != 1 or len(next(iter(different))) != batch_ndims:
            raise ValueError(
                f"every site needs the same {batch_ndims} leading sample axes, got "
                f"{shapes}. `batch_ndims` says how many there are: 1 for "
                "`mcmc.get_samples()`, 2 if they are grouped by chain."
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
        return cls(flat, shape, params, about, guide_params, may_be_grouped)

    def on_device(self) -> dict[str, jax.Array]:
        """The values as JAX arrays."""
        return {name: jax.numpy.asarray(value) for name, value in self.values.items()}


def _array(value: Any) -> Any:
    """The draws as an array, if they came as a list of numbers."""
    return value if hasattr(value, "reshape") else np.asarray(value)


def variables(group: Any, *leading: str) -> dict[str, np.ndarray]:
    """The arrays of a DataTree's group by the names that NumPyro gave the sites.

    Raises:
        ValueError: If a variable lacks one of the leading axes.
    """
    arrays = {}
    for name, variable in group.data_vars.items():
        missing = [axis for axis in leading if axis not in variable.dims]
        if missing:
            raise ValueError(
                f"the variable {name!r} of the DataTree has the axes "
                f"{variable.dims}, and draws need {leading}. Select one chain as "
                "`isel(chain=[0])`, and `unstack` what was stacked."
            )
        own = _in_order(name, [dim for dim in variable.dims if dim not in leading])
        site = variable.attrs.get("numpyro_name", name)
        arrays[site] = variable.transpose(*leading, *own).values
    return arrays


def _in_order(name: str, dims: list[Any]) -> list[Any]:
    """A variable's axes as the site has them: for xarray their order means nothing.

    A number in an axis' name is its place. Of a module's parameter the plate is before
    the outputs, and those are before the inputs.
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
