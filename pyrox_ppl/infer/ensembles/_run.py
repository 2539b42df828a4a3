"""run_ensemble: many members of one fit, trained in one program."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpyro.infer import SVI
from tqdm.auto import tqdm

from pyrox_ppl._cost import gradients_of_svi
from pyrox_ppl.infer._arrays import strong, to_numpy
from pyrox_ppl.infer._batch_scale import check_batch_scale
from pyrox_ppl.infer._mutable_state import check_keeps_state, collected_params
from pyrox_ppl.infer.compiled._arguments import is_array, split_arguments
from pyrox_ppl.infer.compiled._chains import check_init_params
from pyrox_ppl.infer.ensembles._batches import (
    Pieces,
    first_batches,
    member_loaders,
    repeat_batch,
)
from pyrox_ppl.infer.ensembles._programs import Plan, are_spread, compile_members
from pyrox_ppl.infer.ensembles._start import start_members
from pyrox_ppl.infer.resumable._epochs import num_at_once
from pyrox_ppl.infer.resumable._fingerprint import (
    Fingerprint,
    name_arguments,
    take_fingerprint,
)
from pyrox_ppl.infer.resumable._loop import Run, Segment, check_call, complete
from pyrox_ppl.infer.resumable._svi_start import compiled_twin


class EnsembleResult(NamedTuple):
    """What :func:`run_ensemble` returns: NumPyro's ``SVIRunResult`` of all members.

    Attributes:
        params: The parameters, each with a leading axis of members.
        state: NumPyro's SVI states, with a leading axis of members.
        losses: The losses, ``(members, steps)``.
        seconds: How long the steps took, in seconds, compilation included. Of a run
            that was continued, the time in all processes.
        gradient_evaluations: How many gradients were computed for all members together:
            one for each member, step and particle.
    """

    params: dict[str, Any]
    state: Any
    losses: jax.Array
    seconds: float | None
    gradient_evaluations: int


def run_ensemble(
    svi: SVI,
    rng_key: jax.Array,
    num_members: int,
    num_steps: int,
    *args: Any,
    make: Callable[[jax.Array], Any] | None = None,
    batch_size: int | None = None,
    path: str | Path | None = None,
    segment: int | None = None,
    stable_update: bool = False,
    init_params: dict[str, Any] | None = None,
    progress_bar: bool = True,
    allow_other_environment: bool = False,
    **kwargs: Any,
) -> EnsembleResult:
    r"""Fit a guide several times from different starts, all fits in one program.

    With ``AutoDelta`` this is a deep ensemble: each member is a mode. With
    ``AutoNormal``, or any other guide, the ensemble is the mixture of the members'
    posteriors, :math:`q(\theta) = \frac1M \sum_m q_m(\theta)`. To ``to_datatree(fit,
    *args, guide=guide)`` each member is a chain, and every draw counts the same.

    **Modules of the members**: ``px.modules_from_draws(net, tree)``; or, if the model
    learns all parameters, ``px.modules_from_draws(net, fit.params)``.

    **Members start apart.** Where the network's initialiser puts them, if `make` draws
    the modules anew::

        run_ensemble(svi, key, 10, 2000, x, y=y, make=lambda key: MLP(..., key=key))

    Every parameter that the model samples or learns then starts at the new module's
    array, as :func:`init_to_stored` starts it at the stored one, and every other site
    at its prior median. Without `make`, latent sites start at a draw from their prior,
    which puts a wide network far from where its initialiser would. Both replace the
    ``init_loc_fn`` of autoguides. A guide that is a function starts where its ``param``
    sites say, so pass `init_params`.

    **Each member is a fit of its own.** Member m is what ``svi.run(run_key, num_steps,
    *args)`` returns, from the same start, up to rounding; ``make_key, run_key =
    jax.random.split(jax.random.split(rng_key, num_members)[m])`` are its keys.

    **Minibatches**: pass a :class:`MinibatchLoader` in place of `*args`, and a model
    for batches, as for :func:`run_minibatches`. Each step then takes a batch, and each
    member shuffles in an order of its own: member m sees the batches of
    ``dataclasses.replace(loader, rng_key=jax.random.fold_in(loader.rng_key, m))``. A
    loader with ``shuffle=False`` gives all members the same batches.

    `svi` keeps the programs, as a :class:`CompiledSVI` does: a later run of the same
    shapes compiles nothing. On several devices each one trains its share of the
    members, if their number divides evenly (and the data are not sharded). To use all
    cores of a CPU, call ``numpyro.set_host_device_count(cores)`` before JAX starts.

    Args:
        svi: NumPyro's SVI object, or a :class:`CompiledSVI`.
        rng_key: The key of the run.
        num_members: How many members, at least two.
        num_steps: How many steps each member takes.
        *args: Arguments of the model and guide, or one :class:`MinibatchLoader`.
        make: From a key, the module that the model reads, made anew; or a dictionary of
            modules by the names given to ``bind``. It runs inside a compiled program.
            A parameter that is a constant in the model keeps the model's array.
        batch_size: How many members take their steps at a time, on each device. By
            default all; fewer need less memory.
        path: A directory for commits. A run that was killed then continues after its
            last commit. The result is bit for bit the same as without the interruption.
        segment: How many steps make a segment, which is committed whole. By default a
            twentieth of all, or those of an epoch.
        stable_update: As in ``svi.run``: leave out a step that is not finite.
        init_params: Initial values of ``param`` sites by name, with a leading axis of
            members.
        progress_bar: Whether to show one, with the mean loss.
        allow_other_environment: As in :func:`run_mcmc`.
        **kwargs: Keyword arguments of the model and guide.

    Returns:
        The result of all members.

    Raises:
        TypeError: If `rng_key` is no key.
        ValueError: If a site over the rows of a batch does not count (all rows) / (rows
            of the batch) times as often as one over none of them; if there are fewer
            than two members; if two of them start at the same point; if `make` returns
            other modules than the model reads; if `init_params` has no axis of members;
            if a latent site is discrete; if the run at `path` was begun with something
            else or is damaged.
        RuntimeError: If a member starts where the density of the model is not finite.

    References:
        Lakshminarayanan, B., Pritzel, A. and Blundell, C. (2017). Simple and Scalable
        Predictive Uncertainty Estimation using Deep Ensembles. NeurIPS. Wilson, A. G.
        and Izmailov, P. (2020). Bayesian Deep Learning and a Probabilistic Perspective
        of Generalization. NeurIPS.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp
        >>> import numpyro, numpyro.distributions as dist, pyrox_ppl as px
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> from numpyro.infer.autoguide import AutoDelta
        >>> def make(key):
        ...     return eqx.nn.MLP(1, 1, 8, 1, jnp.tanh, key=key)
        >>> mlp = make(jax.random.key(0))
        >>> def model(x, y=None):
        ...     with px.bayesianize():
        ...         net = px.bind(mlp, "net")
        ...     with numpyro.plate("row", len(x)):
        ...         numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], 0.1), obs=y)
        >>> x = jnp.linspace(-1.0, 1.0, 16)[:, None]
        >>> guide = AutoDelta(model)
        >>> svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
        >>> fit = px.infer.run_ensemble(
        ...     svi, jax.random.key(1), 4, 100, x, make=make, y=x[:, 0] ** 2,
        ...     progress_bar=False,
        ... )
        >>> fit.losses.shape, fit.gradient_evaluations
        ((4, 100), 400)
        >>> tree = px.to_datatree(fit, x, y=x[:, 0] ** 2, guide=guide)
        >>> dict(tree.posterior_predictive["y"].sizes)
        {'chain': 4, 'draw': 1, 'row': 16}
    """
    call = "run_ensemble(svi, rng_key, num_members, num_steps, *args)"
    check_call(call, rng_key, commits=path is not None)
    sizes = {"num_steps": num_steps, "segment": segment, "batch_size": batch_size}
    _check_sizes(num_members, sizes)
    loaders = member_loaders(args, num_members)
    epoch = loaders[0].steps_per_epoch if loaders else max(num_steps // 20, 1)
    size = min(segment or epoch, num_steps)
    if init_params is not None:
        _check_init_params(init_params, num_members)
    keys = jax.random.split(rng_key, num_members)
    given = () if loaders else args
    twin = compiled_twin(svi)
    starts = {"make": make, "init_params": init_params}
    batches = first_batches(loaders)
    batch = tuple(rows[0] for rows in batches)
    if loaders:
        named = kwargs | svi.static_kwargs
        check_batch_scale(svi.model, batch, loaders[0].num_rows, named)
    start = strong(start_members(svi, twin, keys, batches, given, kwargs, **starts))
    check_keeps_state(svi, start)
    at_once = min(num_at_once(batch * num_members), size) if loaders else size
    arrays = [leaf for leaf in jax.tree.leaves((args, kwargs)) if is_array(leaf)]
    plan = Plan(
        num_members,
        None if batch_size is None or batch_size >= num_members else batch_size,
        at_once,
        stable_update,
        bool(loaders),
        are_spread(num_members, arrays),
    )
    compile_now = partial(compile_members, plan, svi, start, batch)
    if twin is None:
        data, static = split_arguments((given, kwargs))
        programs = compile_now(static, data)
    else:
        parts = split_arguments((given, kwargs))[0]
        data, programs = twin.keep(
            plan, given, kwargs, lambda static: compile_now(static, parts)
        )
    repeated = repeat_batch(batch, num_members, at_once) if loaders else None
    example = start, repeated, np.int32(1), data
    _, like = jax.eval_shape(programs.advance, *example)
    source = Pieces(loaders, num_steps, size, at_once)

    def segment_of_steps(state: Any, progress: dict[str, Any], bar: tqdm) -> Segment:
        losses, steps = [], progress["steps"]
        for number, batches in source.until_next_commit(steps):
            state, new = programs.advance(state, batches, np.int32(number), data)
            losses.append((new, number))
            steps += number
            bar.update(number)
        rows = np.concatenate([to_numpy(new).T[:number] for new, number in losses])
        bar.set_postfix_str(f"mean loss: {np.mean(rows):.4f}", refresh=False)
        return Segment(state, {"steps": steps}, {"loss": rows})

    def fingerprint() -> Fingerprint:
        named = name_arguments(given, kwargs)
        if loaders:
            named["loader"] = args[0].describe()
        return take_fingerprint(
            "ensemble SVI",
            settings={
                "num_members": num_members,
                "num_steps": num_steps,
                "segment": size,
                "batch_size": plan.batch_size,
                "loss": type(svi.loss).__qualname__,
            },
            rng_key=rng_key,
            arguments=named | {"init_params": init_params},
            model=(svi.model, (*batch, *given), kwargs | svi.static_kwargs),
            step=(programs.advance, example),
            start=start,
        )

    run = Run(
        start=start,
        progress={"steps": 0},
        total=num_steps,
        rows={"loss": jax.ShapeDtypeStruct((num_steps, num_members), like.dtype)},
        axis=0,
        block=size,
        segment=segment_of_steps,
        stable=stable_update,
    )
    state, progress, rows = complete(
        run,
        path=path,
        fingerprint=fingerprint,
        allow_other_environment=allow_other_environment,
        progress_bar=progress_bar,
    )
    evaluations = gradients_of_svi(svi, num_members * num_steps)
    params = programs.params(state) | collected_params(svi.guide, state)
    return EnsembleResult(
        params, state, rows["loss"].T, progress.get("seconds"), evaluations
    )


def _check_sizes(num_members: int, sizes: dict[str, int | None]) -> None:
    if num_members < 2:
        raise ValueError(
            f"an ensemble has at least two members, and num_members is {num_members}: "
            "for a single fit use run_svi, or CompiledSVI.run."
        )
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be a positive number, not {value}.")


def _check_init_params(init_params: Any, num_members: int) -> None:
    try:
        check_init_params(init_params, num_members)
    except ValueError as error:
        raise ValueError(str(error).replace("chains", "members")) from error
