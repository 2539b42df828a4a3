"""MCMC that survives its process: segments on disk, each one committed whole."""

from pathlib import Path
from typing import Any

import jax
from numpyro.infer import MCMC
from tqdm.auto import tqdm

from pyrox_ppl._numpyro import record_run, takes_traced_arguments
from pyrox_ppl.infer._arrays import (
    digest,
    flat,
    from_numpy,
    stored_as,
    strong,
    to_numpy,
)
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
from pyrox_ppl.infer.resumable._segments import Segments
from pyrox_ppl.infer.resumable._store import RunStore


def run_mcmc(
    mcmc: MCMC,
    rng_key: jax.Array,
    *args: Any,
    path: str | Path,
    segment: int | None = None,
    extra_fields: tuple[str, ...] | list[str] = (),
    init_params: Any = None,
    allow_other_environment: bool = False,
    **kwargs: Any,
) -> MCMC:
    """Do what ``mcmc.run`` does, in segments that are safe on disk as they are done.

    After each segment the draws, their statistics, and the kernel's state with its key
    are committed together, by one atomic rename. A process that is killed, whenever it
    is, loses the segment it was in; started again with the same arguments, the run goes
    on where it stood. **The result is bit for bit that of a run never interrupted.**
    Warm-up is committed in the same way, every ``segment * thinning`` steps.

    The draws are also those of ``mcmc.run(key, *args, ...)`` in distribution. On a CPU
    they have been the same bit for bit with one chain of NumPyro's ``MCMC``, and with
    ``sequential`` and ``vectorized`` ones; not where initial values are found inside
    a compiled program (``parallel`` chains, a callable ``chain_method``,
    :class:`CompiledMCMC`), and XLA may compile NumPyro's own loop to other
    instructions.

    **On disk**: `path` is a directory. ``draws.zarr`` in it has an array
    ``(chain, draw, ...)`` for each site and field, and may be read at any time; what is
    not sampled yet is zero. The directory of a finished run answers at once.

    Args:
        mcmc: NumPyro's MCMC object or a :class:`CompiledMCMC`, not run yet: its kernel,
            numbers of warm-up steps, samples and chains, thinning, chain method and
            progress bar count. If it has a ``post_warmup_state``, that is where it
            starts, without warm-up.
        rng_key: The key of the run.
        *args: Arguments of the model.
        path: The directory; made if it does not exist.
        segment: How many draws (kept ones, per chain) make a segment. By default a
            twentieth of all.
        extra_fields: As in ``mcmc.run``.
        init_params: As in ``mcmc.run``.
        allow_other_environment: Go on also if JAX, NumPyro, the processor or a
            setting that decides the last bits of a number is another one. There the
            sites of the model are compared, but not what else it computes.
        **kwargs: Keyword arguments of the model.

    Returns:
        `mcmc`, filled as by ``mcmc.run``: ``get_samples``, ``get_extra_fields``,
        ``last_state`` and ``print_summary`` have all draws.

    Raises:
        ValueError: If the run at `path` was begun with other arguments, another model,
            kernel, key, number of chains or environment, if a file of it is damaged,
            or if JAX runs in several processes. The directory is left as it is.
        RuntimeError: If another process is working on `path`.
        OSError: If the disk is full; what was committed stands.
        ImportError: If zarr is not installed.

    Example:
        >>> import jax, numpyro, tempfile, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC, NUTS
        >>> from pyrox_ppl.infer import run_mcmc
        >>> def model(y):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", y.shape[0]):
        ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> path, y = tempfile.mkdtemp() + "/run", jax.numpy.array([1.0, 2.0])
        >>> kernel = NUTS(model)
        >>> mcmc = MCMC(kernel, num_warmup=30, num_samples=40, progress_bar=False)
        >>> mcmc = run_mcmc(mcmc, jax.random.key(0), y, path=path)
        >>> mcmc.get_samples()["mean"].shape
        (40,)
    """
    path = Path(path)
    size = _segment_size(mcmc, segment)
    check_one_process("run_mcmc")
    segments = Segments(
        mcmc,
        rng_key,
        args,
        kwargs,
        init_params=init_params,
        extra_fields=tuple(extra_fields),
        size=size,
    )
    fingerprint = _fingerprint(mcmc, segments, rng_key, args, kwargs, init_params)
    names, like = flat(segments.like)
    fields = dict(zip(names, [stored_as(leaf) for leaf in like], strict=True))
    with open_or_begin(
        path,
        fingerprint=fingerprint,
        allow_other_environment=allow_other_environment,
        progress={"steps": 0, "draws": 0},
        state=segments.start,
        fields=fields,
        axis=1,
        block=size,
    ) as store:
        state = _go_on(store, segments, mcmc, names)
        stored = store.read(mcmc.num_samples // mcmc.thinning)
    draws = [from_numpy(stored[n], leaf) for n, leaf in zip(names, like, strict=True)]
    states = jax.tree.unflatten(jax.tree.structure(segments.like), draws)
    record_run(mcmc, states, state, args, kwargs)
    return mcmc


def _go_on(store: RunStore, segments: Segments, mcmc: MCMC, names: list[str]) -> Any:
    """Run and commit the segments that are missing; return the last state."""
    thinning, size = mcmc.thinning, segments.size
    total = mcmc.num_samples // thinning
    # The steps of which nothing is kept: warm-up, and those that thinning leaves over,
    # which MCMC.run takes first.
    warmup = mcmc.num_warmup if mcmc.post_warmup_state is None else 0
    unkept = warmup + mcmc.num_samples % thinning
    done, drawn = store.progress["steps"], store.progress["draws"]
    state = load_state(store, segments.start)
    with tqdm(
        total=warmup + mcmc.num_samples,
        initial=done,
        disable=not mcmc.progress_bar,
        unit="step",
    ) as bar:
        while drawn < total:
            bar.set_description("warmup" if done < warmup else "sample")
            rows = None
            if done < unkept:
                steps = min(size * thinning, unkept - done)
                state, _ = segments.run(state, 1, steps)
            else:
                draws = min(size, total - drawn)
                state, kept = segments.run(state, draws, thinning)
                leaves = [to_numpy(leaf)[:, :draws] for leaf in jax.tree.leaves(kept)]
                rows = dict(zip(names, leaves, strict=True))
                steps, drawn = draws * thinning, drawn + draws
            done += steps
            save_state(store, {"steps": done, "draws": drawn}, state, rows)
            state = strong(state)
            bar.update(steps)
    return state


def _segment_size(mcmc: MCMC, segment: int | None) -> int:
    total = mcmc.num_samples // mcmc.thinning
    if segment is None:
        return max(total // 20, 1)
    if segment < 1:
        raise ValueError(f"segment must be a positive number of draws, not {segment}.")
    return min(segment, total)


def _fingerprint(
    mcmc: MCMC,
    segments: Segments,
    key: jax.Array,
    args: tuple,
    kwargs: dict[str, Any],
    init_params: Any,
) -> dict[str, Any]:
    """What the run must be continued with."""
    method = mcmc.chain_method
    return {
        "kind": "MCMC",
        "settings": {
            "class": type(mcmc).__qualname__,
            "kernel": type(mcmc.sampler).__qualname__,
            "jit_model_args": takes_traced_arguments(mcmc),
            "num_warmup": mcmc.num_warmup,
            "num_samples": mcmc.num_samples,
            "num_chains": mcmc.num_chains,
            "thinning": mcmc.thinning,
            "chain_method": getattr(method, "__qualname__", method),
            "segment": segments.size,
            "fields": " ".join(segments.like),
        },
        "key": digest(key),
        "arguments": arguments(args, kwargs, init_params=init_params),
        "sites": sites_of(getattr(mcmc.sampler, "model", None), args, kwargs),
        "environment": environment(),
        "start": digest(segments.start),
        **program(segments.segment, segments.example),
    }
