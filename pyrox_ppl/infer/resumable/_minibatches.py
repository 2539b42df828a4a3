"""SVI over minibatches: one compiled step, early stopping, commits to disk."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpyro.infer import SVI
from tqdm.auto import tqdm

from pyrox_ppl.infer._arrays import strong
from pyrox_ppl.infer._mutable_state import check_keeps_state, evaluate_with_state
from pyrox_ppl.infer.data._loader import (
    MinibatchLoader,
    describe_held_out,
    held_out_batches,
)
from pyrox_ppl.infer.resumable._fingerprint import Fingerprint, take_fingerprint
from pyrox_ppl.infer.resumable._loop import Run, Segment, check_call, complete
from pyrox_ppl.infer.resumable._site_order import order_sites


class MinibatchResult(NamedTuple):
    """What :func:`run_minibatches` returns: NumPyro's ``SVIRunResult``, and more.

    Attributes:
        params: The parameters of the best epoch (without held-out data: of the last).
        state: NumPyro's SVI state after the same epoch.
        losses: The loss of every step, ``(steps,)``.
        held_out: The loss on held-out data after every epoch, ``(epochs,)``, or empty.
        best_epoch: The epoch of `params`, from 0.
    """

    params: dict[str, Any]
    state: Any
    losses: jax.Array
    held_out: np.ndarray
    best_epoch: int


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

    Args:
        svi: NumPyro's SVI object.
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
        ValueError: If `patience` or `held_out_kwargs` is given without `held_out`, if
            the loss on `held_out` is finite after no epoch, if the model has
            ``mutable`` sites and the loss several particles, if the run at `path` was
            begun with something else or is damaged, or if `path` is given where JAX
            runs in several processes.

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
    start = strong(svi.init(update_key, *first, init_params=init_params, **kwargs))
    check_keeps_state(svi, start)
    ordered = order_sites(svi, start, first, kwargs)
    update = ordered.stable_update if stable_update else ordered.update
    total = num_epochs * loader.steps_per_epoch
    loss = jax.eval_shape(lambda s, b: update(s, *b, **kwargs)[1], start, first)
    size = min(segment or loader.steps_per_epoch, total)
    kwargs_held_out = {**kwargs, **(held_out_kwargs or {})}

    def step(state: Any, batch: Any) -> Any:
        return update(state, *batch, **kwargs)

    def evaluate(state: Any, batch: Any) -> Any:
        def once(key: Any) -> Any:
            at_key = state._replace(rng_key=key)
            return evaluate_with_state(ordered, at_key, *batch, **kwargs_held_out)

        # The least loss by a single draw would be one that fits by chance.
        return jax.lax.map(once, jax.random.split(evaluate_key, 16)).mean()

    def fingerprint() -> Fingerprint:
        evaluation = None
        if held_out is not None:
            evaluation = evaluate, (start, next(held_out_batches(held_out)))
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
            step=(step, (start, first)),
            start=start,
            evaluation=evaluation,
        )

    epochs = _Epochs(
        loader=loader,
        held_out=held_out,
        patience=patience,
        total=total,
        size=size,
        update=jax.jit(step),
        evaluate=jax.jit(evaluate),
    )
    run = Run(
        start=(start, start),
        progress={"steps": 0, "held_out": [], "best_epoch": 0, "stopped": False},
        total=total,
        rows={"loss": jax.ShapeDtypeStruct((total,), loss.dtype)},
        axis=0,
        block=size,
        segment=epochs.segment,
    )
    (last, best), progress, rows = complete(
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
    state = last if held_out is None else best
    return MinibatchResult(
        svi.get_params(state),
        state,
        rows["loss"],
        np.array(progress["held_out"]),
        progress["best_epoch"],
    )


@dataclasses.dataclass
class _Epochs:
    """Steps over batches, and the end of each epoch.

    The state is a pair: after the last step, and after the best epoch.
    """

    loader: MinibatchLoader
    held_out: Any
    patience: int | None
    total: int
    size: int
    update: Callable
    evaluate: Callable
    # Kept between segments: the loader shuffles anew for each iterator.
    batches: Iterator[Any] | None = None

    def segment(self, state: Any, progress: dict[str, Any], bar: tqdm) -> Segment:
        """Steps up to the next multiple of the size of a segment, or the last."""
        progress = {**progress, "held_out": list(progress["held_out"])}
        losses: list[Any] = []
        last, best = state
        if self.batches is None:
            self.batches = self._batches(progress["steps"])
        for batch in self.batches:
            last, loss = self.update(last, batch)
            losses.append(loss)
            progress["steps"] += 1
            bar.update(1)
            if progress["steps"] % self.loader.steps_per_epoch == 0:
                best = self._end_epoch(last, best, progress)
            if progress["steps"] % self.size == 0 or progress["stopped"]:
                break
        rows = np.stack(jax.device_get(losses))
        bar.set_postfix_str(_postfix(rows, progress), refresh=False)
        return Segment((last, best), progress, {"loss": rows})

    def _batches(self, done: int) -> Iterator[Any]:
        """The batches from a step on, to the end of the run."""
        while done < self.total:
            epoch, start = divmod(done, self.loader.steps_per_epoch)
            yield from self.loader.epoch(epoch, start)
            done += self.loader.steps_per_epoch - start

    def _end_epoch(self, state: Any, best: Any, progress: dict[str, Any]) -> Any:
        """Evaluate the held-out loss; the state at which it was least."""
        epoch = progress["steps"] // self.loader.steps_per_epoch - 1
        if self.held_out is None:
            progress["best_epoch"] = epoch
            return best
        batches = held_out_batches(self.held_out)
        loss = float(np.mean([float(self.evaluate(state, b)) for b in batches]))
        least = min(filter(math.isfinite, progress["held_out"]), default=math.inf)
        progress["held_out"].append(loss)
        if math.isfinite(loss) and loss < least:
            progress["best_epoch"], best = epoch, state
        since = epoch - progress["best_epoch"]
        progress["stopped"] = self.patience is not None and since >= self.patience
        return best


def _postfix(losses: np.ndarray, progress: dict[str, Any]) -> str:
    text = f"loss: {float(losses.mean()):.4f}"
    if progress["held_out"]:
        text += f", held out: {progress['held_out'][-1]:.4f}"
    return text
