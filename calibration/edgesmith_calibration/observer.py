"""What every observer shares: the interface, and the checks of the arrays it is given."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.errors import DataError

Array = NDArray[Any]
Float64 = NDArray[np.float64]


class Observer(ABC):
    """Accumulates a statistic of one tensor.

    Args:
        name: The tensor's name, used in errors.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.count = 0
        """Values seen so far: of the tensor, of each channel where there is a channel axis, rows for a Gram matrix."""

    @abstractmethod
    def update(self, array: Array) -> None:
        """Add one batch of values. An empty array changes nothing.

        Args:
            array: Any shape; floating point, integer or boolean.

        Raises:
            DataError: The array holds NaN or infinity, is not numeric, or does not fit the arrays seen before.
        """

    @property
    def subject(self) -> str:
        """What to call the tensor in an error."""
        return f"tensor '{self.name}'" if self.name else "a tensor without a name"

    def require_values(self) -> None:
        """Refuse to give a statistic of nothing.

        Raises:
            DataError: No value was observed.
        """
        if self.count == 0:
            raise DataError(
                f"no values were observed for {self.subject}",
                expected="at least one batch that is not empty",
                why="a statistic of nothing is undefined",
                fix="pass calibration data that is not empty, and check that the tensor is computed at all",
            )

    def require_channels(self, new: Array, old: Array) -> None:
        """Refuse to combine statistics of different widths.

        Raises:
            DataError: The shapes of the statistics `new` and `old` differ.
        """
        if new.shape != old.shape:
            widths = [array.shape[-1] if array.ndim else 1 for array in (old, new)]
            raise DataError(
                f"{self.subject} changed its number of channels from {widths[0]} to {widths[1]}",
                expected="the same number of channels in every batch",
                why="statistics per channel cannot be combined otherwise",
                fix="choose an axis of fixed length, or observe the tensor as a whole",
            )


def by_channel(array: Array, axis: int | None, subject: str) -> Array:
    """Return the values as [count], or as [channels, count] along `axis`. A view where that is possible.

    Raises:
        DataError: The array is not numeric or has no such axis.
    """
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"{subject} has dtype {array.dtype}",
            expected="floating-point, integer or boolean values",
            why="only real numbers have a range",
            fix="observe a numeric tensor",
        )
    if axis is None:
        return array.reshape(-1)
    if not -array.ndim <= axis < array.ndim:
        raise DataError(
            f"{subject} of shape {list(array.shape)} has no axis {axis}",
            expected=f"an axis of an array with {array.ndim} dimensions",
            why="statistics per channel need to know which dimension holds the channels",
            fix="name another axis, or observe the tensor as a whole",
        )
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def extremes(rows: Array, subject: str) -> tuple[Float64, Float64]:
    """Return the smallest and largest value along the last dimension, which must not be empty.

    Raises:
        DataError: A value is NaN or infinite.
    """
    low, high = rows.min(axis=-1), rows.max(axis=-1)
    # NaN propagates through min and max, so two small arrays tell whether every value is finite.
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise not_finite(rows, subject)
    return np.asarray(low, np.float64), np.asarray(high, np.float64)


def not_finite(array: Array, subject: str) -> DataError:
    """Return the error for an array with NaN or infinity."""
    count = int(array.size - np.isfinite(array).sum())
    value = "NaN" if np.isnan(array).any() else "infinity"
    return DataError(
        f"{subject} holds {value}: {count} of {array.size} values in a batch are not finite",
        expected="finite values",
        why="a range or a moment that includes them is meaningless",
        fix="check the data for NaN and infinity, and that the float model itself does not overflow on it",
    )
