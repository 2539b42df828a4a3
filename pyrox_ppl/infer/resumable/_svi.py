"""SVI that survives its process: the same commits as resumable MCMC."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpyro.infer import SVI
from numpyro.infer.svi import SVIRunResult
from tqdm.auto import tqdm

from pyrox_ppl.infer._arrays import (
    digest,
    from_numpy,
    is_sharded,
    stored_as,
    strong,
    to_numpy,
)
from pyrox_ppl.infer.compiled._arguments import put_arrays, take_arrays
from pyrox_ppl.infer.resumable._fingerprint import (
    arguments,
    environment,
    program,
    sites_of,
)
from pyrox_ppl.infer.resumable._resume import (
    check_one_process,
    load_state,
    open_or_begin,
    save_state,
)
from pyrox_ppl.infer.resumable._site_order import in_order


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
    """Do what ``svi.run`` does, in segments that are safe on disk as they are done.

    After each segment the losses and the state (parameters, optimiser, mutable sites,
    key) are committed together, by one atomic rename. A process that is killed loses
    the segment it was in; started again with the same arguments, the run goes on where
    it stood. **The result is bit for bit that of a run never interrupted.** See
    :func:`run_mcmc` for what is on disk, and :func:`run_minibatches` for data that
    come in batches.

    Args:
        svi: NumPyro's SVI object.
        rng_key: The key of the run.
        num_steps: How many steps.
        *args: Arguments of the model and guide.
        path: The directory; made if it does not exist.
        segment: How many steps make a segment. By default a twentieth of all.
        progress_bar: Whether to show one; it begins at what is done.
        stable_update: As in ``svi.run``: leave out a step that is not finite.
        init_params: As in ``svi.run``.
        allow_other_environment: Go on also if JAX, NumPyro, the processor or a
            setting that decides the last bits of a number is another one.
        **kwargs: Keyword arguments of the model and guide.

    Returns:
        NumPyro's ``SVIRunResult``: parameters, state, and the losses of all steps.

    Raises:
        ValueError: If the run at `path` was begun with something else, or if a file of
            it is damaged, or if JAX runs in several processes. The directory is left
            as it is.
        RuntimeError: If another process is working on `path`.
        OSError: If the disk is full; what was committed stands.
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
    if num_steps < 1:
        raise ValueError(f"num_steps must be a positive integer, not {num_steps}.")
    if segment is not None and segment < 1:
        raise ValueError(f"segment must be a positive number of steps, not {segment}.")
    check_one_process("run_svi")
    path = Path(path)
    size = min(segment or max(num_steps // 20, 1), num_steps)
    start = strong(svi.init(rng_key, *args, init_params=init_params, **kwargs))
    ordered = in_order(svi)
    update = ordered.stable_update if stable_update else ordered.update

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
    compiled = jax.jit(advance)
    with open_or_begin(
        path,
        fingerprint={
            "kind": "SVI",
            "settings": {
                "num_steps": num_steps,
                "segment": size,
                "loss": type(svi.loss).__qualname__,
            },
            "key": digest(rng_key),
            "arguments": arguments(args, kwargs, init_params=init_params),
            "sites": sites_of(svi.model, args, kwargs | svi.static_kwargs),
            "environment": environment(),
            **program(advance, example),
            "start": digest(start),
        },
        allow_other_environment=allow_other_environment,
        progress={"steps": 0},
        state=start,
        fields={"loss": ((num_steps,), stored_as(like)[1])},
        block=size,
    ) as store:
        state, done = load_state(store, start), store.progress["steps"]
        with tqdm(
            total=num_steps, initial=done, disable=not progress_bar, unit="step"
        ) as bar:
            while done < num_steps:
                steps = min(size, num_steps - done)
                state, losses = compiled(state, np.int32(steps), data)
                losses = to_numpy(losses)[:steps]
                done += steps
                save_state(store, {"steps": done}, state, {"loss": losses})
                state = strong(state)
                bar.set_postfix_str(f"loss: {np.mean(losses):.4f}", refresh=False)
                bar.update(steps)
        losses = from_numpy(store.read(num_steps)["loss"], like)
    return SVIRunResult(svi.get_params(state), state, losses)
