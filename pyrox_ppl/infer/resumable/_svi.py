"""SVI that survives its process: losses and states on disk, committed together."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpyro.infer import SVI
from numpyro.infer.svi import SVIRunResult
from tqdm.auto import tqdm

from pyrox_ppl._cost import Cost, CountedSVIResult, gradients_of_svi
from pyrox_ppl._loop_convolutions import with_fast_convolutions
from pyrox_ppl._observed_shapes import check_observed_shapes
from pyrox_ppl.infer._arrays import is_sharded, strong, to_numpy
from pyrox_ppl.infer._mutable_state import (
    check_keeps_state,
    collected_params,
    make_update,
)
from pyrox_ppl.infer.compiled._arguments import put_arrays, take_arrays
from pyrox_ppl.infer.compiled._svi import CompiledSVI
from pyrox_ppl.infer.compiled._svi_params import materialize_params
from pyrox_ppl.infer.resumable._fingerprint import (
    Fingerprint,
    name_arguments,
    take_fingerprint,
)
from pyrox_ppl.infer.resumable._loop import Run, Segment, check_call, complete
from pyrox_ppl.infer.resumable._site_order import order_sites


def run_svi(
    svi: SVI,
    rng_key: jax.Array,
    num_steps: int,
    *args: Any,
    path: str | Path,
    segment: int | None = None,
    progress_bar: bool = True,
    stable_update: bool = False,
    init_params: dict[str, Any] | None = None,
    allow_other_environment: bool = False,
    **kwargs: Any,
) -> SVIRunResult:
    """Do what ``svi.run`` does, in segments that are safe on disk once they are done.

    After each segment the losses and the state (parameters, optimiser, mutable sites,
    key) are committed together, by one atomic rename. A process that is killed loses
    the segment it was in; started again with the same arguments, the run continues
    after its last commit. **The result is bit for bit the same as without the
    interruption.** See :func:`run_mcmc` for what is on disk, and
    :func:`run_minibatches` for data that come in batches.

    Args:
        svi: NumPyro's SVI object, for the bits of its own ``run``, or a
            :class:`CompiledSVI`, which starts in a fraction of the time.
        rng_key: The key of the run.
        num_steps: How many steps.
        *args: Arguments of the model and guide.
        path: The directory; made if it does not exist.
        segment: How many steps make a segment. By default a twentieth of all.
        progress_bar: Whether to show one; it begins at the steps already done.
        stable_update: As in ``svi.run``: leave out a step that is not finite.
        init_params: As in ``svi.run``.
        allow_other_environment: As in :func:`run_mcmc`.
        **kwargs: Keyword arguments of the model and guide.

    Returns:
        NumPyro's ``SVIRunResult``: parameters, state, and the losses of all steps;
        besides, the attributes ``seconds`` and ``gradient_evaluations``.

    Raises:
        TypeError: If `rng_key` is no key.
        ValueError: If the run at `path` was begun with something else, if a file of it
            is damaged, or if JAX runs in several processes. The directory is left as
            it is.
        RuntimeError: If another process is working on `path`.
        OSError: If the disk is full; what was committed is safe.
        ImportError: If zarr is not installed.

    Example:
        >>> import jax, numpyro, tempfile, numpyro.distributions as dist
        >>> from numpyro.infer import SVI, Trace_ELBO, autoguide
        >>> from pyrox_ppl.infer import run_svi
        >>> def model(y):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", y.shape[0]):
        ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> guide = autoguide.AutoNormal(model)
        >>> svi = SVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
        >>> path, y = tempfile.mkdtemp() + "/run", jax.numpy.array([1.0, 2.0])
        >>> result = run_svi(
        ...     svi, jax.random.key(0), 40, y, path=path, progress_bar=False
        ... )
        >>> result.losses.shape
        (40,)
    """
    check_call("run_svi(svi, rng_key, num_steps, *args, path=...)", rng_key)
    for name, value in (("num_steps", num_steps), ("segment", segment)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be a positive number of steps, not {value}.")
    size = min(segment or max(num_steps // 20, 1), num_steps)
    if not isinstance(svi, CompiledSVI):  # which checks them itself
        check_observed_shapes(svi.model, args, kwargs | svi.static_kwargs)
    start = strong(svi.init(rng_key, *args, init_params=init_params, **kwargs))
    check_keeps_state(svi, start)
    ordered = order_sites(svi, start, args, kwargs)
    if isinstance(svi, CompiledSVI):
        ordered = materialize_params(ordered)
    update = make_update(ordered, stable=stable_update)

    # A constant of a program is not sharded: arrays on several devices are arguments.
    data, *constant = take_arrays((args, kwargs), is_sharded)

    def advance(state: Any, steps: Any, data: Any) -> Any:
        args, kwargs = put_arrays(data, *constant)

        def body(i: Any, carry: Any) -> Any:
            state, losses = carry
            state, loss = update(state, *args, **kwargs)
            return state, losses.at[i].set(loss)

        loss = jax.eval_shape(lambda s: update(s, *args, **kwargs)[1], state)
        return lax.fori_loop(0, steps, body, (state, jnp.zeros(size, loss.dtype)))

    example = (start, np.int32(1), data)
    _, like = jax.eval_shape(advance, *example)
    # A state is on disk before the next segment takes its memory.
    compiled = jax.jit(with_fast_convolutions(advance), donate_argnums=0)

    def segment_of_steps(state: Any, progress: dict[str, Any], bar: tqdm) -> Segment:
        # The number of steps is an argument, so that the last, shorter segment runs the
        # same machine code as the others.
        steps = min(size, num_steps - progress["steps"])
        state, losses = compiled(state, np.int32(steps), data)
        losses = to_numpy(losses)[:steps]
        bar.set_postfix_str(f"loss: {np.mean(losses):.4f}", refresh=False)
        return Segment(state, {"steps": progress["steps"] + steps}, {"loss": losses})

    def fingerprint() -> Fingerprint:
        return take_fingerprint(
            "SVI",
            settings={
                "num_steps": num_steps,
                "segment": size,
                "loss": type(svi.loss).__qualname__,
            },
            rng_key=rng_key,
            arguments=name_arguments(args, kwargs) | {"init_params": init_params},
            model=(svi.model, args, kwargs | svi.static_kwargs),
            step=(advance, example),
            start=start,
        )

    run = Run(
        start=start,
        progress={"steps": 0},
        total=num_steps,
        rows={"loss": jax.ShapeDtypeStruct((num_steps,), like.dtype)},
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
    params = svi.get_params(state) | collected_params(svi.guide, state)
    cost = Cost(progress.get("seconds"), gradients_of_svi(svi, num_steps))
    return CountedSVIResult.make(params, state, rows["loss"], cost=cost)
