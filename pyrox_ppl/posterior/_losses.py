"""Whether the losses of SVI have settled, and at their lowest."""

import numpy as np

from pyrox_ppl.posterior._diagnosis import Check

MORE_STEPS = (
    "more steps: the loss still falls. The scales of a guide that starts narrow "
    "(init_scale) settle last: start them wider, with a learning rate that is large in "
    "the first half of the run and small in the second."
)
TO_OVERFIT_LESS = (
    "fewer trained values (random ones in their place, a smaller network, dropout) or "
    "more rows. More steps would not help: the loss still falls on the rows of the "
    "run, but not on those held out."
)

FEWEST_STEPS = 20
# One nat of evidence is an odds ratio of e: smaller changes do not matter.
NAT = 1.0
# Below this, successive losses cannot tell a swing from noise.
FEWEST_FOR_SWINGS = 40


def check_losses(losses: np.ndarray, kept: tuple[int, int] | None = None) -> Check:
    """Whether the ELBO has stopped rising.

    Args:
        losses: The loss of every step, along the last axis; of several runs the worst
            counts.
        kept: The epoch whose parameters were kept because held-out rows were at their
            best there, from 0, and the number of epochs; None if it was the last.
    """
    losses = np.atleast_2d(np.asarray(losses, np.float64))
    checks = [
        _check_run(run, kept) for run in losses.reshape(-1, losses.shape[-1] or 1)
    ]
    if not checks:
        return Check("ELBO", None, "no steps", "more steps.")
    order = {False: 0, None: 1, True: 2}
    return min(checks, key=lambda check: order[check.passed])


def _check_run(loss: np.ndarray, kept: tuple[int, int] | None) -> Check:
    if not np.isfinite(loss).all():
        first = int(np.flatnonzero(~np.isfinite(loss))[0])
        return Check(
            "ELBO",
            False,
            f"not finite from step {first} on",
            "a smaller learning rate, or a smaller init_scale of the guide.",
        )
    if loss.size < FEWEST_STEPS:
        return Check("ELBO", None, f"only {loss.size} steps", "more steps.")
    if np.ptp(loss) == 0:
        return Check(
            "ELBO",
            False,
            f"{-loss[0]:.1f} nats at all of {loss.size} steps",
            "a larger learning rate, or parameters that change the loss: nothing was "
            "trained.",
        )
    fifth = loss.size // 5
    parts = loss[-5 * fifth :].reshape(5, fifth)
    before, last = parts[-2], parts[-1]
    lowest = min(parts, key=np.mean)
    fall, noise = _change(before, last)
    rise, noise_of_rise = _change(last, lowest)
    finding = (
        f"{-last.mean():.1f} nats over the last fifth of {loss.size} steps, "
        f"{fall:+.2g} ± {noise:.2g} on the fifth before"
    )
    if rise > max(NAT, 3 * noise_of_rise):
        return Check(
            "ELBO",
            False,
            f"{finding}, {rise:.2g} ± {noise_of_rise:.2g} below the best fifth",
            "a smaller learning rate, or one that decays: the loss rises again. (If "
            "the loss itself is annealed, as a KL term may be, diagnose its last phase "
            "only.)",
        )
    if fall > max(NAT, 3 * noise):
        if kept is None:
            return Check("ELBO", False, finding, MORE_STEPS)
        finding += f"; held-out rows chose epoch {kept[0] + 1} of {kept[1]}"
        return Check("ELBO", False, finding, TO_OVERFIT_LESS)
    swing = _swing(last)
    if swing > NAT:
        return Check(
            "ELBO",
            False,
            f"{finding}, and swings by ± {swing:.2g} within the last fifth",
            "a smaller learning rate, or one that decays: the loss moves up and down "
            "by more than the noise of single steps.",
        )
    return Check("ELBO", True, finding)


def _change(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """By how much the mean fell, and the standard error of this difference."""
    noise = np.sqrt((before.var() + after.var()) / after.size)
    return float(before.mean() - after.mean()), float(noise)


def _swing(loss: np.ndarray) -> float:
    """The standard deviation of losses that are not independent noise, else 0.

    For independent noise, half the mean squared difference of successive losses is
    about their variance (von Neumann, 1941). It is far less in a slow swing, and more
    where the losses alternate.
    """
    if loss.size < FEWEST_FOR_SWINGS:
        return 0.0
    ratio = float(np.square(np.diff(loss)).mean()) / 2 / max(float(loss.var()), 1e-30)
    return float(loss.std()) if ratio < 0.5 or ratio > 1.6 else 0.0
