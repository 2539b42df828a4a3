"""Modules back out: draws of sites in the places of the parameters they are of."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from pyrox_ppl._parameter import Read, class_name, parameters_of
from pyrox_ppl.infer.draws import Draws


def posterior_modules[Module](
    module: Module,
    draws: Any,
    *,
    name: str | None = None,
    batch_ndims: int | None = None,
) -> Module:
    """Return one module that holds every draw: each array has a leading draw axis.

    **Shapes**: an array of shape ``s`` becomes ``(draws, *s)``, chains after each
    other; where the parameter was read by ``bind(..., plate=...)``, ``(draws, members,
    *s)``, and so does every other array. A parameter of which there are no draws keeps
    its stored value, repeated (or its trained one, if `draws` is a DataTree with
    ``params``).

    **Sites**: matched by the rule of :func:`~pyrox_ppl.bind`: the root, then the path.

    Args:
        module: The module that the model read, with its stored values.
        draws: A dictionary of draws, such as ``mcmc.get_samples()``, or a DataTree of
            :func:`~pyrox_ppl.to_datatree`. Sites under another root are left aside.
        name: The root of the names: what ``bind`` was given, with the prefixes of
            every scope; by default the class name in snake case.
        batch_ndims: The number of sample axes of a dictionary, by default 1.

    Returns:
        A module of the same class, ready for ``eqx.filter_vmap``.

    Raises:
        ValueError: If no site, or not every site under the root, is a parameter of the
            module, with both lists; if a shape differs.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, pyrox_ppl as px
        >>> linear = eqx.nn.Linear(2, 3, key=jax.random.key(0))
        >>> draws = {"linear.weight": jnp.ones((5, 3, 2)), "noise": jnp.ones(5)}
        >>> modules = px.posterior_modules(linear, draws)
        >>> modules.weight.shape, modules.bias.shape
        ((5, 3, 2), (5, 3))
        >>> eqx.filter_vmap(lambda net: net(jnp.ones(2)))(modules).shape
        (5, 3)
    """
    return _stacked(module, Draws.of(draws, batch_ndims), name)


def draw_module[Module](
    module: Module,
    draws: Any,
    i: int | tuple[int, int],
    *,
    name: str | None = None,
    batch_ndims: int | None = None,
) -> Module:
    """Return the module of one draw.

    Args:
        module: The module that the model read, with its stored values.
        draws: As for :func:`posterior_modules`.
        i: The number of the draw, the chains after each other; or ``(chain, draw)``.
        name: The root of the names, as for :func:`posterior_modules`.
        batch_ndims: The number of sample axes of a dictionary, by default 1.

    Returns:
        A module of the same class and shapes (with an axis of members if it was bound
        on a plate).

    Raises:
        IndexError: If there is no such draw.
        ValueError: As :func:`posterior_modules`.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, pyrox_ppl as px
        >>> linear = eqx.nn.Linear(2, 1, key=jax.random.key(0))
        >>> draws = {"linear.bias": jnp.arange(5.0)[:, None]}
        >>> float(px.draw_module(linear, draws, 3).bias[0])
        3.0
    """
    given = Draws.of(draws, batch_ndims)
    if isinstance(i, tuple):
        if len(i) != len(given.shape):
            raise IndexError(
                f"draw {i} has {len(i)} indices, the draws have shape {given.shape}."
            )
        index = int(np.ravel_multi_index(i, given.shape, mode="raise"))
    else:
        index = i
    if not -given.number <= index < given.number:
        raise IndexError(f"draw {i} of {given.number} does not exist.")
    one = {site: value[index][None] for site, value in given.values.items()}
    return _first(module, Draws(one, (1,), given.params), name)


def mean_module[Module](
    module: Module,
    draws: Any,
    *,
    name: str | None = None,
    batch_ndims: int | None = None,
) -> Module:
    r"""Return the module whose parameters are the means over the draws.

    :math:`\bar\theta = \frac1S \sum_s \theta_s`. A network's symmetries make this a
    poor summary of several chains: its function is *not* the mean of the functions,
    which :func:`~pyrox_ppl.predict` gives.

    Args:
        module: The module that the model read, with its stored values.
        draws: As for :func:`posterior_modules`.
        name: The root of the names, as for :func:`posterior_modules`.
        batch_ndims: The number of sample axes of a dictionary, by default 1.

    Returns:
        A module of the same class and shapes.

    Raises:
        ValueError: As :func:`posterior_modules`.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, pyrox_ppl as px
        >>> linear = eqx.nn.Linear(2, 1, key=jax.random.key(0))
        >>> draws = {"linear.bias": jnp.arange(5.0)[:, None]}
        >>> float(px.mean_module(linear, draws).bias[0])
        2.0
    """
    given = Draws.of(draws, batch_ndims)
    mean = {
        site: np.asarray(value, np.float64).mean(0, keepdims=True)
        for site, value in given.values.items()
    }
    return _first(module, Draws(mean, (1,), given.params), name)


def parameter_draws(
    module: Any, draws: Draws, name: str | None
) -> tuple[Any, dict[int, Any]]:
    """The module with its trained values, and the draws by leaf position.

    Nothing is repeated here: what has no draws stays as it is.
    """
    values = _values(module, draws, name)
    leaves, treedef = jax.tree.flatten(module)
    trained = jax.tree.unflatten(treedef, _with_params(module, draws, name, leaves))
    by_position = {p: value for read, value in values for p in read.positions}
    return trained, by_position


def _stacked(module: Any, draws: Draws, name: str | None) -> Any:
    """The module with the draw axis, and the plate's, on every array."""
    trained, by_position = parameter_draws(module, draws, name)
    leaves, treedef = jax.tree.flatten(trained)
    leading: tuple[int, ...] = (draws.number,)
    for position, value in by_position.items():
        if value.ndim > 1 + leaves[position].ndim:
            leading = value.shape[:2]
    for position, leaf in enumerate(leaves):
        if position in by_position:
            value = by_position[position]
            if value.ndim - leaf.ndim < len(leading):
                value = jnp.expand_dims(value, 1)
        elif eqx.is_array(leaf) or isinstance(leaf, np.ndarray):
            value = jnp.expand_dims(jnp.asarray(leaf), tuple(range(len(leading))))
        else:
            continue
        leaves[position] = jnp.broadcast_to(value, (*leading, *leaf.shape))
    return jax.tree.unflatten(treedef, leaves)


def _first(module: Any, draws: Draws, name: str | None) -> Any:
    """The module of the only draw."""
    arrays, rest = eqx.partition(_stacked(module, draws, name), eqx.is_array)
    return eqx.combine(jax.tree.map(lambda leaf: leaf[0], arrays), rest)


def _values(module: Any, draws: Draws, name: str | None) -> list[tuple[Read, Any]]:
    """Each parameter of which there are draws, with them, in the parameter's dtype."""
    root = class_name(module) if name is None else name
    reads = {read.parameter.name: read for read in parameters_of(module, root)}
    under_root = [site for site in draws.values if site.startswith(f"{root}.")]
    unknown = [site for site in under_root if site not in reads]
    matched = [site for site in reads if site in draws.values]
    if unknown or not (matched or any(site in draws.params for site in reads)):
        raise ValueError(
            f"the draws do not match {type(module).__name__} under the name {root!r}"
            + (f": {unknown} are no parameters of it" if unknown else "")
            + f".\nIts parameters: {list(reads)}\nThe draws: {list(draws.values)}\n"
            + _advice(root, reads, draws)
        )
    return [(reads[site], _fit(reads[site], draws.values[site])) for site in matched]


def _advice(root: str, reads: dict[str, Read], draws: Draws) -> str:
    """Name the root under which the draws would match, if there is one."""
    roots = {
        site.removesuffix(parameter.removeprefix(root))
        for site in draws.values
        for parameter in reads
        if site.endswith(parameter.removeprefix(root))
    } - {""}
    if not roots:
        return "Give the module that the model read."
    return "Did you mean " + " or ".join(f"name={r!r}" for r in sorted(roots)) + "?"


def _fit(read: Read, value: Any) -> Any:
    """A draw axis, the plate's axis if there is one, and the parameter's own shape."""
    own = read.parameter.shape
    shape = np.shape(value)
    middle = shape[1 : len(shape) - len(own)]
    members = [size for size in middle if size != 1] or [1] * bool(middle)
    if shape[len(shape) - len(own) :] != own or len(members) > 1:
        raise ValueError(
            f"the draws of {read.parameter.name!r} have shape {shape[1:]} each, the "
            f"parameter has shape {own}: they come from another module, or "
            "`batch_ndims` is not their number of sample axes."
        )
    fitted = value.reshape(shape[0], *members, *own)
    return jnp.asarray(fitted).astype(read.parameter.dtype)


def _with_params(
    module: Any, draws: Draws, name: str | None, leaves: list[Any]
) -> list[Any]:
    """The leaves, those of trained ``param`` sites replaced."""
    leaves = list(leaves)
    root = class_name(module) if name is None else name
    for read in parameters_of(module, root):
        if read.parameter.name in draws.params:
            value = _fit(read, np.asarray(draws.params[read.parameter.name])[None])[0]
            for position in read.positions:
                leaves[position] = value
    return leaves
