"""SVI over minibatches: one compiled step, early stopping, commits to disk."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpyro.infer import SVI

from pyrox_ppl._cost import gradients_of_svi
from pyrox_ppl.infer._arrays import copy_arrays
from pyrox_ppl.infer._batch_scale import check_batch_scale
from pyrox_ppl.infer._mutable_state import check_keeps_state, collected_params
from pyrox_ppl.infer.data._loader import (
    MinibatchLoader,
    describe_held_out,
    held_out_batches,
)
from pyrox_ppl.infer.resumable._epochs import (
    Epochs,
    fill,
    make_programs,
    num_at_once,
)
from pyrox_ppl.infer.resumable._fingerprint import Fingerprint, take_fingerprint
from pyrox_ppl.infer.resumable._loop import Run, check_call, complete
from pyrox_ppl.infer.resumable._svi_start import start_svi


class MinibatchResult(NamedTuple):
    """What :func:`run_minibatches` returns: NumPyro's ``SVIRunResult``, and more.

    Attributes:
        params: The parameters of the best epoch (without held-out data: of the last).
        state: NumPyro's SVI state after the same epoch.
        losses: The loss of every step, ``(steps,)``.
        held_out: The loss on held-out data after every epoch, ``(epochs,)``, or empty.
        best_epoch: The epoch of `params`, from 0.
        seconds: How long the steps and evaluations took, in all processes, with the
            compilation of their programs.
        gradient_evaluations: The number of gradients: one for each step and particle.
    """

    params: dict[str, Any]
    state: Any
    losses: jax.Array
    held_out: np.ndarray
    best_epoch: int
    seconds: float | None
    gradient_evaluations: int

    def __repr__(self) -> str:
        steps, epochs = len(self.losses), len(self.held_out)
        loss = f"{steps} steps"
        if steps:
            loss += f", the last loss {float(self.losses[-1]):.5g}"
        judged = ""
        if epochs:
            least = float(self.held_out[self.best_epoch])
            judged = f", a held-out loss of {least:.5g}, the least of {epochs}"
        params = ", ".join(
            f"{n} {np.shape(v)}" for n, v in list(self.params.items())[:4]
        )
        more = f" and {len(self.params) - 4} more" if len(self.params) > 4 else ""
        return (
            f"MinibatchResult({loss}; epoch {self.best_epoch}{judged}; params: "
            f"{params}{more})"
        )


def run_minibatches(
    svi: SVI,
    rng_key: jax.Array,
    loader: MinibatchLoader,
    num_epochs: int,
    *,
    held_out: MinibatchLoader | tuple[Any, ...] | None = None,
    held_out_kwargs: Mapping[str, Any] | None = None,
    patience: int | None = None,
    path: str | Path | None = None,
    segment: int | None = None,
    stable_update: bool = False,
    init_params: dict[str, Any] | None = None,
    progress_bar: bool = True,
    allow_other_environment: bool = False,
    **kwargs: Any,
) -> MinibatchResult:
    r"""Run ``svi.update`` over the batches of a loader, epoch by epoch.

    The model is called as ``model(*batch, **kwargs)``. It must scale a batch up to all
    data, or the prior counts as often as there are batches. Put the data on a plate of
    the size of *all* data, and the weights outside of it::

        def model(x, y):
            with px.bayesianize():                  # global: once, whatever the batch
                mean = net(x)
            with numpyro.plate("row", loader.num_rows, subsample_size=x.shape[0]):
                numpyro.sample("y", dist.Normal(mean, 0.1), obs=y)

    Its loss :math:`-\mathrm{ELBO}_B = \mathrm{KL}(q \,\|\, p) - \frac{N}{B}
    \sum_{i \in B} \mathrm{E}_q \log p(y_i \mid \theta)` is then unbiased for the loss
    on all data. Learning-rate schedules and the number of particles are those of the
    optimiser and the loss that `svi` was made with.

    The run starts as :class:`CompiledSVI` does, and `svi` keeps the programs, so that a
    later run on batches of the same shapes compiles nothing. A model may read the sizes
    of a loader; changes of the contents of its arrays are not seen.

    Args:
        svi: NumPyro's SVI object, or a :class:`CompiledSVI`.
        rng_key: The key of the run (the loader has its own).
        loader: The data.
        num_epochs: How many times all data are seen, at most.
        held_out: Other rows, on which the loss is evaluated after each epoch, by 16
            draws of the guide, the same each time. A loader (the loss is then the mean
            over its batches), or the arrays of one batch. The result is the epoch with
            the least of these losses.
        held_out_kwargs: Keyword arguments of the model and guide that differ on
            `held_out`, such as ``{"inference": True}`` for a model that then leaves
            dropout out and normalises with running statistics.
        patience: Stop after this many epochs without a new least loss on `held_out`.
        path: A directory for commits. A run that was killed then continues after its
            last commit, with the data in the same order. The result is bit for bit
            the same as without the interruption.
        segment: How many steps make a segment, which is committed whole. By default
            those of an epoch.
        stable_update: As in ``svi.run``: leave out a step that is not finite.
        init_params: Initial values of param sites, as in ``svi.run``.
        progress_bar: Whether to show one, with the losses.
        allow_other_environment: As in :func:`run_mcmc`.
        **kwargs: Keyword arguments of the model and guide, the same for all batches of
            `loader`.

    Returns:
        Parameters, state and losses.

    Raises:
        TypeError: If `rng_key` is no key.
        ValueError: If a site over the rows of a batch does not count (all rows) / (rows
            of the batch) times as often as one over none of them, if `patience` or
            `held_out_kwargs` is given without `held_out`, if the loss on `held_out` is
            finite after no epoch, if the model has ``mutable`` sites and the loss
            several particles, if the run at `path` was begun with something else or is
            damaged, or if `path` is given where JAX runs in several processes.

    References:
        Hoffman, M. D., Blei, D. M., Wang, C., Paisley, J. (2013). Stochastic
        Variational Inference. JMLR 14, 1303-1347.

    Example:
        >>> import jax, numpy as np, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import SVI, Trace_ELBO, autoguide
        >>> from pyrox_ppl.infer import MinibatchLoader, run_minibatches
        >>> y = np.random.default_rng(0).normal(1.0, 1.0, 64).astype(np.float32)
        >>> loader = MinibatchLoader((y,), 16, rng_key=jax.random.key(0))
        >>> def model(y):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", loader.num_rows, subsample_size=len(y)):
        ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> guide = autoguide.AutoNormal(model)
        >>> svi = SVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
        >>> fit = run_minibatches(
        ...     svi, jax.random.key(1), loader, 3, progress_bar=False
        ... )
        >>> fit.losses.shape
        (12,)
    """
    call = "run_minibatches(svi, rng_key, loader, num_epochs, path=...)"
    check_call(call, rng_key, commits=path is not None)
    if patience is not None and (held_out is None or patience < 1):
        raise ValueError(
            f"patience is {patience}, and held_out is "
            f"{'absent' if held_out is None else 'given'}: early stopping needs "
            "held-out data and a positive number of epochs."
        )
    if held_out_kwargs and held_out is None:
        raise ValueError(
            f"held_out_kwargs is {dict(held_out_kwargs)!r}, and held_out is absent: "
            "pass the held-out data as well."
        )
    for name, value in (("num_epochs", num_epochs), ("segment", segment)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be positive, not {value}.")
    update_key, evaluate_key = jax.random.split(rng_key)
    first = next(loader.epoch(0))
    check_batch_scale(svi.model, first, loader.num_rows, kwargs | svi.static_kwargs)
    chosen, start, data, programs = start_svi(
        svi,
        update_key,
        first,
        kwargs,
        init_params=init_params,
        plan=("minibatches", stable_update),
        others=(dict(held_out_kwargs or {}),),
        make=partial(make_programs, stable_update),
    )
    check_keeps_state(svi, start)
    total = num_epochs * loader.steps_per_epoch
    batches = fill(tuple(rows[None] for rows in first), num_at_once(first))
    example = start, batches, np.int32(1), data
    _, losses = jax.eval_shape(programs.advance, *example)
    size = min(segment or loader.steps_per_epoch, total)

    def fingerprint() -> Fingerprint:
        evaluation = None
        if held_out is not None:
            batch = next(held_out_batches(held_out))
            evaluation = programs.evaluate, (start, batch, evaluate_key, data)
        return take_fingerprint(
            "minibatch SVI",
            settings={"num_epochs": num_epochs, "segment": size, "patience": patience},
            rng_key=rng_key,
            arguments={
                **kwargs,
                "init_params": init_params,
                "loader": loader.describe(),
                "held_out": describe_held_out(held_out),
                "held_out_kwargs": dict(held_out_kwargs or {}),
            },
            model=(svi.model, first, kwargs | svi.static_kwargs),
            step=(programs.advance, example),
            start=start,
            evaluation=evaluation,
        )

    epochs = Epochs(
        loader=loader,
        held_out=held_out,
        patience=patience,
        total=total,
        size=size,
        at_once=num_at_once(first),
        advance=lambda *inputs: programs.advance(*inputs, data),
        evaluate=lambda state, batch: programs.evaluate(
            state, batch, evaluate_key, data
        ),
    )
    run = Run(
        start=(start,) if held_out is None else (start, copy_arrays(start)),
        progress={"steps": 0, "held_out": [], "best_epoch": 0, "stopped": False},
        total=total,
        rows={"loss": jax.ShapeDtypeStruct((total,), losses.dtype)},
        axis=0,
        block=size,
        segment=epochs.segment,
        stable=stable_update,
    )
    states, progress, rows = complete(
        run,
        path=path,
        fingerprint=fingerprint,
        allow_other_environment=allow_other_environment,
        progress_bar=progress_bar,
    )
    if held_out is not None and not any(map(math.isfinite, progress["held_out"])):
        raise ValueError(
            "the loss on held_out was finite after no epoch, so none is the best: look "
            "for NaN in held_out, or train with a smaller learning rate."
        )
    state = states[-1]  # the best, or without held-out data the last
    return MinibatchResult(
        chosen.get_params(state) | collected_params(svi.guide, state),
        state,
        rows["loss"],
        np.array(progress["held_out"]),
        progress["best_epoch"],
        progress.get("seconds"),
        gradients_of_svi(svi, progress["steps"]),
    )
