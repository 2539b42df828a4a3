"""The argument checks that the scores share."""

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

_ROUNDING = 1e-6  # of a mean of probabilities in single precision


def real_array(name: str, values: ArrayLike) -> np.ndarray:
    """The values as a NumPy array of real numbers, in the precision they came in."""
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(
            f"{name} are a masked array, and its mask would be lost: pass only the "
            "rows that are observed."
        )
    array = np.asarray(values)
    is_real = jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool
    if not is_real or np.iscomplexobj(array):
        raise ValueError(f"{name} must be real numbers, got {array.dtype}.")
    if array.size == 0:
        raise ValueError(f"{name} are empty, of shape {array.shape}: pass some rows.")
    return array


def finite_array(name: str, values: ArrayLike) -> np.ndarray:
    """The values in double precision, none of them NaN or infinite."""
    array = real_array(name, values)
    check_finite(name, array)
    return array.astype(np.float64)


def check_finite(name: str, array: np.ndarray) -> None:
    """Refuse NaN and infinity."""
    broken = array.size - np.count_nonzero(np.isfinite(array))
    if broken:
        raise ValueError(
            f"{name} are NaN or infinite for {broken} of {array.size} values: leave "
            "out the rows that are missing, and find out where predictions break down."
        )


def same_shape(**arrays: np.ndarray) -> None:
    """Refuse arrays of different shapes: broadcasting would pair wrong rows."""
    if len({array.shape for array in arrays.values()}) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"the shapes must be the same, got {shapes}.")


def observations_and_draws(
    observations: ArrayLike, draws: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Observations in double precision, and draws of the same shape for each."""
    observed = finite_array("observations", observations)
    drawn = real_array("draws", draws)
    if drawn.shape[1:] != observed.shape or drawn.ndim == 0:
        raise ValueError(
            f"for observations of shape {observed.shape}, draws must have the shape "
            f"{_shape('draws', *observed.shape)}; got {drawn.shape}."
        )
    return observed, drawn


def draw_weights(weights: ArrayLike | None, number: int) -> np.ndarray:
    """The weights of the draws, normalised; equal if None."""
    if weights is None:
        return np.full(number, 1 / number)
    array = finite_array("weights", weights)
    if array.shape != (number,):
        raise ValueError(
            f"weights need one value for every draw, so the shape ({number},); got "
            f"{array.shape}."
        )
    if (array < 0).any() or not array.sum() > 0:
        raise ValueError(
            "weights must be non-negative and have a positive sum, got values from "
            f"{array.min():g} to {array.max():g}. Exponentiate log weights first: "
            "`np.exp(w - w.max())`."
        )
    return array / array.sum()


def check_level(level: float) -> None:
    """Refuse a level that is not strictly between 0 and 1."""
    if isinstance(level, str) or np.ndim(level) or not 0.0 < level < 1.0:
        raise ValueError(
            f"level must be a probability between 0 and 1, such as 0.9; got {level}."
        )


def check_bounds(lower: np.ndarray, upper: np.ndarray) -> None:
    """Refuse bounds that are NaN or crossed."""
    if np.isnan(lower).any() or np.isnan(upper).any():
        raise ValueError("lower or upper is NaN: leave out the rows that are missing.")
    if (lower > upper).any():
        raise ValueError(
            f"lower exceeds upper in {np.count_nonzero(lower > upper)} of {lower.size} "
            "rows: the arguments are (observations, lower, upper)."
        )


def class_probabilities(name: str, values: ArrayLike) -> np.ndarray:
    """Probabilities of classes along the last axis, in double precision."""
    array = real_array(name, values)
    if array.ndim == 0 or array.shape[-1] < 2:
        raise ValueError(
            f"{name} need at least two classes along the last axis, got the shape "
            f"{array.shape}; for a binary outcome with probability p, pass "
            "`np.stack([1 - p, p], axis=-1)`."
        )
    return probabilities_in_range(
        name, array.astype(np.float64), tolerance(array.dtype)
    )


def tolerance(dtype: np.dtype) -> float:
    """How far from 1 the sum of probabilities of this precision may be."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return 0.0
    return max(1e-4, float(jnp.finfo(dtype).eps) ** 0.5)


def probabilities_in_range(name: str, array: np.ndarray, slack: float) -> np.ndarray:
    """The probabilities if they lie in [0, 1] and sum to 1 along the last axis."""
    array = unit_range(name, array)
    sums = array @ np.ones(array.shape[-1])
    worst = sums.flat[np.abs(sums - 1).argmax()]
    if abs(worst - 1) > slack:
        raise ValueError(
            f"{name} must sum to 1 over the last axis, the classes, but those of one "
            f"row sum to {worst:.6g}: check the order of the axes, or normalise."
        )
    return array


def unit_range(name: str, array: np.ndarray) -> np.ndarray:
    """The values if they lie in [0, 1], those that miss it by rounding clipped."""
    lowest, highest = array.min(), array.max()
    if np.isnan(lowest):
        raise ValueError(
            f"{name} are NaN for {np.isnan(array).sum()} of {array.size} values: leave "
            "out the rows that are missing, and find out where predictions break down."
        )
    if lowest < -_ROUNDING or highest > 1 + _ROUNDING:
        raise ValueError(
            f"{name} must lie in [0, 1], got values from {lowest:g} to {highest:g}: "
            "turn logits into probabilities with a softmax or a sigmoid."
        )
    return array if lowest >= 0 and highest <= 1 else np.clip(array, 0, 1)


def labels_and_probabilities(
    labels: ArrayLike, probabilities: ArrayLike
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Class numbers, probabilities of all classes, and whether the outcome is binary.

    It is if the probabilities have no axis of classes: they are those of label 1.
    """
    array = real_array("probabilities", probabilities)
    shape = real_array("labels", labels).shape
    is_binary = array.shape == shape
    if is_binary:
        event = unit_range("probabilities", array.astype(np.float64))
        numbers = class_numbers(labels, shape, 2)
        _refuse_one_hot(numbers, event)
        return numbers, np.stack([1 - event, event], axis=-1), True
    if array.shape[:-1] != shape or array.ndim == 0:
        raise ValueError(
            f"labels of shape {shape} need probabilities of shape "
            f"{_shape(*shape, 'classes')}, or {shape} for a binary outcome; got "
            f"{array.shape}. Average class probabilities over the draws first."
        )
    p = class_probabilities("probabilities", array)
    return class_numbers(labels, shape, array.shape[-1]), p, False


def class_numbers(
    labels: ArrayLike, shape: tuple[int, ...], classes: int
) -> np.ndarray:
    """Labels as integers from 0 to `classes` - 1, one for every row."""
    array = real_array("labels", labels)
    if array.shape != shape:
        raise ValueError(
            f"labels need one value for every row, so the shape {shape}; got "
            f"{array.shape}."
        )
    check_finite("labels", array)
    numbers = array.astype(np.int64)
    if (numbers != array).any():
        raise ValueError(
            "labels must be class numbers, which are whole; got "
            f"{array[numbers != array][0]}."
        )
    if numbers.min() < 0 or numbers.max() >= classes:
        raise ValueError(
            f"labels must run from 0 to {classes - 1} for {classes} classes, got "
            f"{numbers.min()} to {numbers.max()}: count classes from 0."
        )
    return numbers


def need_class_axis(labels: ArrayLike, probabilities: ArrayLike | None) -> None:
    """Refuse probabilities of label 1 alone, which have the shape of the labels."""
    if probabilities is not None and np.shape(probabilities) == np.shape(labels):
        raise ValueError(
            "probabilities need a last axis of classes here, got the shape "
            f"{np.shape(probabilities)}; for a binary outcome with probability p, pass "
            "`np.stack([1 - p, p], axis=-1)`."
        )


def _refuse_one_hot(labels: np.ndarray, event: np.ndarray) -> None:
    """Refuse one-hot labels, which would be scored as separate binary outcomes."""
    if labels.ndim < 2 or labels.shape[-1] < 2:
        return
    sums = event.sum(-1)
    if (labels.sum(-1) == 1).all() and np.allclose(sums, 1, atol=1e-4):
        raise ValueError(
            f"labels of shape {labels.shape} are one-hot: pass class numbers, "
            "`labels.argmax(-1)`."
        )


def _shape(*sizes: int | str) -> str:
    return f"({', '.join(map(str, sizes))})"
