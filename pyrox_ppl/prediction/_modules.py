"""Modules whose parameters are draws: all of them, one of them, or their mean."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from pyrox_ppl._dict_order import rebuild
from pyrox_ppl.prediction._draws import Draws
from pyrox_ppl.prediction._matching import match_draws
from pyrox_ppl.prediction._members import is_array, plate_size, with_leading


def modules_from_draws[Module](
    module: Module,
    draws: Any,
    *,
    name: str | None = None,
    params: Mapping[str, Any] | None = None,
    batch_ndims: int | None = None,
) -> Module:
    """Return one module that holds every draw: each array has a leading draw axis.

    **Shapes**: an array of shape ``s`` becomes ``(draws, *s)``, one chain after the
    other. If a parameter was read by ``bind(..., plate=...)``, every array becomes
    ``(draws, members, *s)``. A parameter without draws has its trained value, from
    `params` or a DataTree; one that was neither inferred nor learned keeps its stored
    value. Both are repeated.

    **Sites**: matched by the rule of :func:`~pyrox_ppl.bind`: the root, then the path.
    Sites that belong to a parameter with draws are ignored: ``<parameter>.scale``,
    ``<parameter>_decentered``, and so on. Any other site under the root that is not a
    parameter (a deterministic ``net.out``) may be misspelt or belong to another module:
    in a dictionary it raises, whereas a DataTree that was made with the model says what
    it is.

    A tied array gets its draws in all of its places. It is recognised as one and the
    same array, or by the record in a DataTree. A copy of the module
    (``copy.deepcopy``, ``jax.tree.map``) has two arrays, of which a dictionary fills
    the one that it names.

    Args:
        module: The module that the model read, with its stored values.
        draws: A dictionary of draws, such as ``mcmc.get_samples()``, or a DataTree of
            :func:`~pyrox_ppl.to_datatree`. Sites under another root are ignored. The
            members of an ensemble are the chains of its tree; if all parameters are
            learned, its ``fit.params`` are such a dictionary as well.
        name: The root of the names: the name given to ``bind``, with the prefixes of
            every scope; by default the class name in snake case.
        params: Trained values, such as ``fit.params``. A DataTree contains them; a
            dictionary of draws does not, and without them the stored, untrained values
            are used.
        batch_ndims: The number of sample axes of a dictionary, by default 1.

    Returns:
        A module of the same class, ready for ``eqx.filter_vmap``.

    Raises:
        ValueError: If no site, or not every site under the root, is a parameter of the
            module; if there are draws of the noise behind a parameter
            (``<parameter>_decentered``) but not of the parameter; if no trained value
            belongs to a parameter; if a shape differs, or an axis may be either a plate
            or the draws of a chain; or if the DataTree is that of a guide that
            linearises, whose draws are not those of networks.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, pyrox_ppl as px
        >>> linear = eqx.nn.Linear(2, 3, key=jax.random.key(0))
        >>> draws = {"linear.weight": jnp.ones((5, 3, 2)), "noise": jnp.ones(5)}
        >>> modules = px.modules_from_draws(linear, draws)
        >>> modules.weight.shape, modules.bias.shape
        ((5, 3, 2), (5, 3))
        >>> eqx.filter_vmap(lambda net: net(jnp.ones(2)))(modules).shape
        (5, 3)
    """
    return _stack(module, _read_sampled(draws, batch_ndims), name, params)


def module_from_draw[Module](
    module: Module,
    draws: Any,
    i: int | tuple[int, int],
    *,
    name: str | None = None,
    params: Mapping[str, Any] | None = None,
    batch_ndims: int | None = None,
) -> Module:
    """Return the module of one draw.

    Args:
        module: The module that the model read, with its stored values.
        draws: As for :func:`modules_from_draws`.
        i: The number of the draw, counted through the chains; or ``(chain, draw)``.
        name: The root of the names, as for :func:`modules_from_draws`.
        params: The trained values, as for :func:`modules_from_draws`.
        batch_ndims: The number of sample axes of a dictionary, by default 1.

    Returns:
        A module of the same class and shapes (with an axis of members if it was bound
        on a plate).

    Raises:
        IndexError: If there is no such draw.
        ValueError: As :func:`modules_from_draws`.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, pyrox_ppl as px
        >>> linear = eqx.nn.Linear(2, 1, key=jax.random.key(0))
        >>> draws = {"linear.bias": jnp.arange(5.0)[:, None]}
        >>> float(px.module_from_draw(linear, draws, 3).bias[0])
        3.0
    """
    given = _read_sampled(draws, batch_ndims)
    if isinstance(i, tuple):
        if len(i) != len(given.shape):
            raise IndexError(
                f"draw {i} has {len(i)} indices, the draws have shape {given.shape}."
            )
        if not all(0 <= one < size for one, size in zip(i, given.shape, strict=True)):
            raise IndexError(f"draw {i} does not exist: the draws are {given.shape}.")
        index = int(np.ravel_multi_index(i, given.shape))
    else:
        index = i
    if not -given.number <= index < given.number:
        raise IndexError(f"draw {i} of {given.number} does not exist.")
    index %= given.number

    def pick(value: Any) -> Any:
        """The entry of this draw; there are as many as draws, or as chains."""
        return value[index * len(value) // given.number][None]

    return _unstack(module, _with_one_draw(given, pick), name, params)


def module_from_mean[Module](
    module: Module,
    draws: Any,
    *,
    name: str | None = None,
    params: Mapping[str, Any] | None = None,
    batch_ndims: int | None = None,
) -> Module:
    r"""Return the module whose parameters are the means over the draws.

    :math:`\bar\theta = \frac1S \sum_s \theta_s`. A network's symmetries make this a
    poor summary of several chains: its function is *not* the mean of the functions,
    which :func:`~pyrox_ppl.predict` gives. Of a guide that linearises it is the module
    at the mode, whose function is that mean.

    Args:
        module: The module that the model read, with its stored values.
        draws: As for :func:`modules_from_draws`.
        name: The root of the names, as for :func:`modules_from_draws`.
        params: The trained values, as for :func:`modules_from_draws`.
        batch_ndims: The number of sample axes of a dictionary, by default 1.

    Returns:
        A module of the same class and shapes.

    Raises:
        ValueError: As :func:`modules_from_draws`.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, pyrox_ppl as px
        >>> linear = eqx.nn.Linear(2, 1, key=jax.random.key(0))
        >>> draws = {"linear.bias": jnp.arange(5.0)[:, None]}
        >>> float(px.module_from_mean(linear, draws).bias[0])
        2.0
    """
    given = Draws.read(draws, batch_ndims)
    if given.num_modes > 1:
        raise ValueError(
            f"these draws are those of {given.num_modes} tangents, each at a mode of "
            "its own, and no network has their mean function: select a member, "
            "tree.isel(chain=[0]), or use `predict`."
        )
    if given.linearized_at:
        given = given.at_linearization()

    def mean(value: Any) -> Any:
        value = jax.device_get(value)
        return value.mean(0, np.promote_types(value.dtype, np.float64))[None]

    return _unstack(module, _with_one_draw(given, mean), name, params)


def _read_sampled(draws: Any, batch_ndims: int | None) -> Draws:
    """Draws, each of which is a network.

    Raises:
        ValueError: If they are those of a tangent.
    """
    given = Draws.read(draws, batch_ndims)
    if given.linearized_at:
        raise ValueError(
            "these draws are weights of the network's tangent at a mode, and the "
            "network itself at them predicts something else (Immer et al., 2021). "
            "`predict` and `diagnose` use the tangent, and `module_from_mean` gives "
            "the network at the mode. For networks of sampled weights make the tree "
            "with AutoLaplace(..., linearized=False)."
        )
    return given


def _with_one_draw(draws: Draws, to_one: Callable[[Any], Any]) -> Draws:
    """A single draw, made of the entries of each array, in place of all draws."""
    parts = {
        part: {site: to_one(value) for site, value in getattr(draws, part).items()}
        for part in ("values", "by_chain", "guide_by_chain")
    }
    return dataclasses.replace(draws, shape=(1,), **parts)


def _stack(
    module: Any, draws: Draws, name: str | None, params: Mapping[str, Any] | None
) -> Any:
    """The module with the draw axis, and the plate's, on every array."""
    trained, by_position = match_draws(module, draws, name, params)
    members = plate_size(module, trained, by_position)
    leading = (draws.number,) if members is None else (draws.number, members)
    leaves = jax.tree.leaves(trained)
    for position, old in enumerate(jax.tree.leaves(module)):
        leaf = leaves[position]
        if is_array(leaf):
            value = by_position.get(position)
            value = jnp.asarray(leaf)[None] if value is None else value
            leaves[position] = with_leading(value, leading, old)
    return rebuild(trained, leaves)


def _unstack(
    module: Any, draws: Draws, name: str | None, params: Mapping[str, Any] | None
) -> Any:
    """The module of a single draw."""
    stacked = _stack(module, draws, name, params)
    leaves = [x[0] if eqx.is_array(x) else x for x in jax.tree.leaves(stacked)]
    return rebuild(stacked, leaves)
