"""MCMC that survives its process: segments on disk, each one committed whole."""

from pathlib import Path
from typing import Any

import jax
from numpyro.infer import MCMC
from tqdm.auto import tqdm

from pyrox_ppl._cost import Cost, keep_cost
from pyrox_ppl._numpyro import record_run, takes_traced_arguments
from pyrox_ppl._observed_shapes import check_observed_shapes
from pyrox_ppl.infer._arrays import flat, to_numpy
from pyrox_ppl.infer.resumable._fingerprint import (
    Fingerprint,
    name_arguments,
    take_fingerprint,
)
from pyrox_ppl.infer.resumable._loop import Run, Segment, check_call, complete
from pyrox_ppl.infer.resumable._segments import Segments


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
    """Do what ``mcmc.run`` does, in segments that are safe on disk once they are done.

    After each segment the draws, their statistics, and the kernel's state with its key
    are committed together, by one atomic rename. A process that is killed, at any
    moment, loses the segment it was in; started again with the same arguments, the run
    continues after its last commit. **The result is bit for bit the same as without the
    interruption.** Warm-up is committed in the same way, every ``segment * thinning``
    steps.

    The draws have the same distribution as the draws of ``mcmc.run(rng_key, *args,
    ...)``. On a CPU they have been the same bit for bit with one chain of NumPyro's
    ``MCMC``, and with ``sequential`` and ``vectorized`` chains. They may differ in bits
    where a compiled program searches the initial values (``parallel`` chains, a
    callable ``chain_method``, :class:`CompiledMCMC`), and where XLA compiles NumPyro's
    own loop to other instructions.

    **On disk**: `path` is a directory. Its ``draws.zarr`` has an array
    ``(chain, draw, ...)`` for each site and field, and may be read at any time; draws
    still to come are zero. A run that is already finished at `path` returns at once.

    Args:
        mcmc: NumPyro's MCMC object or a :class:`CompiledMCMC`, not run yet: its kernel,
            numbers of warm-up steps, samples and chains, thinning, chain method and
            progress bar count. If it has a ``post_warmup_state``, the run starts there,
            without warm-up.
        rng_key: The key of the run.
        *args: Arguments of the model.
        path: The directory; made if it does not exist.
        segment: How many draws (kept ones, per chain) make a segment. By default a
            twentieth of all.
        extra_fields: As in ``mcmc.run``.
        init_params: As in ``mcmc.run``.
        allow_other_environment: Continue also where JAX, NumPyro, the processor or a
            setting that decides the last bits of a number has changed. Then the sites
            of the model are still compared, but not what else it computes.
        **kwargs: Keyword arguments of the model.

    Returns:
        `mcmc`, filled as by ``mcmc.run``: ``get_samples``, ``get_extra_fields``,
        ``last_state`` and ``print_summary`` have all draws.

    Raises:
        TypeError: If `rng_key` is no key.
        ValueError: If the run at `path` was begun with other arguments, another model,
            kernel, key, number of chains or environment, if a file of it is damaged,
            or if JAX runs in several processes. The directory is left as it is.
        RuntimeError: If another process is working on `path`.
        OSError: If the disk is full; what was committed is safe.
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
    check_call("run_mcmc(mcmc, rng_key, *args, path=...)", rng_key)
    size = _segment_size(mcmc, segment)
    model = getattr(mcmc.sampler, "model", None)
    if model is not None:
        check_observed_shapes(model, args, kwargs)
    segments = Segments(
        mcmc,
        rng_key,
        args,
        kwargs,
        init_params=init_params,
        extra_fields=tuple(extra_fields),
        size=size,
    )

    def fingerprint() -> Fingerprint:
        method = mcmc.chain_method
        return take_fingerprint(
            "MCMC",
            settings={
                "class": type(mcmc).__qualname__,
                "kernel": type(mcmc.sampler).__qualname__,
                "jit_model_args": takes_traced_arguments(mcmc),
                "num_warmup": mcmc.num_warmup,
                "num_samples": mcmc.num_samples,
                "num_chains": mcmc.num_chains,
                "thinning": mcmc.thinning,
                "chain_method": getattr(method, "__qualname__", method),
                "segment": size,
                "fields": " ".join(segments.like),
            },
            rng_key=rng_key,
            arguments=name_arguments(args, kwargs) | {"init_params": init_params},
            model=(model, args, kwargs),
            step=(segments.segment, segments.example),
            start=segments.start,
        )

    state, progress, rows = complete(
        _run(mcmc, segments),
        path=path,
        fingerprint=fingerprint,
        allow_other_environment=allow_other_environment,
        progress_bar=mcmc.progress_bar,
    )
    structure = jax.tree.structure(segments.like)
    states = jax.tree.unflatten(structure, list(rows.values()))
    record_run(mcmc, states, state, args, kwargs)
    cost = (progress.get(name) for name in Cost._fields)
    keep_cost(mcmc, Cost(*cost))
    return mcmc


def _run(mcmc: MCMC, segments: Segments) -> Run:
    """The segments as a run: first steps of which nothing is kept, then draws."""
    thinning, size = mcmc.thinning, segments.size
    warmup = mcmc.num_warmup if mcmc.post_warmup_state is None else 0
    # As MCMC.run does, the steps that thinning leaves over come before the first draw.
    unkept = warmup + mcmc.num_samples % thinning
    names, like = flat(segments.like)

    def segment(state: Any, progress: dict[str, Any], bar: tqdm) -> Segment:
        done, drawn = progress["steps"], progress["draws"]
        before = progress.get("gradient_evaluations")

        def counted(new: int | None) -> dict[str, int]:
            # Unknown in a run that an older version began, as for other kernels.
            if new is None or before is None:
                return {}
            return {"gradient_evaluations": before + new}

        bar.set_description("warmup" if done < warmup else "sample")
        if done < unkept:
            steps = min(size * thinning, unkept - done)
            state, _, new = segments.run(state, 1, steps)
            progress = {"steps": done + steps, "draws": 0}
            return Segment(state, progress | counted(new), {})
        draws = min(size, mcmc.num_samples // thinning - drawn)
        state, kept, new = segments.run(state, draws, thinning)
        rows = [to_numpy(leaf)[:, :draws] for leaf in jax.tree.leaves(kept)]
        own = {"steps": done + draws * thinning, "draws": drawn + draws}
        own |= counted(new)
        return Segment(state, own, dict(zip(names, rows, strict=True)))

    return Run(
        start=segments.start,
        progress={"steps": 0, "draws": 0, "gradient_evaluations": 0},
        total=warmup + mcmc.num_samples,
        rows=dict(zip(names, like, strict=True)),
        axis=1,
        block=size,
        segment=segment,
    )


def _segment_size(mcmc: MCMC, segment: int | None) -> int:
    total = mcmc.num_samples // mcmc.thinning
    if segment is None:
        return max(total // 20, 1)
    if segment < 1:
        raise ValueError(f"segment must be a positive number of draws, not {segment}.")
    return min(segment, total)
