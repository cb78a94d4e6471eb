"""Streaming statistics of tensors: each update sees one batch, and only a small state stays.

Every observer takes arrays of any shape and refuses what is not finite. Except for `MovingAverageObserver`, the
result does not depend on how the data was cut into batches.
"""

from typing import Self

import numpy as np

from edgesmith_calibration.histogram import Histogram, HistogramObserver
from edgesmith_calibration.observer import Array, Float64, Observer, by_channel, extremes

__all__ = [
    "GramObserver",
    "Histogram",
    "HistogramObserver",
    "MeanVarianceObserver",
    "MinMaxObserver",
    "MovingAverageObserver",
    "Observer",
]

_VALUES_PER_BLOCK = 1 << 20
_ROWS_PER_BLOCK = 4096


class MinMaxObserver(Observer):
    """Smallest and largest value.

    Args:
        name: The tensor's name, used in errors.
        axis: Channel axis; None observes the tensor as a whole.
    """

    def __init__(self, name: str = "", axis: int | None = None) -> None:
        super().__init__(name)
        self.axis = axis
        self._low: Float64 = np.zeros(())
        self._high: Float64 = np.zeros(())

    def update(self, array: Array) -> None:
        """Add one batch of values."""
        if array.size:
            rows = by_channel(array, self.axis, self.subject)
            self._combine(rows.shape[-1], *extremes(rows, self.subject))

    def merge(self, other: Self) -> None:
        """Add what another observer of the same tensor has seen."""
        if other.count:
            self._combine(other.count, other._low, other._high)

    def _combine(self, count: int, low: Float64, high: Float64) -> None:
        if self.count == 0:
            self._low, self._high = low, high
        else:
            self.require_channels(low, self._low)
            self._low, self._high = self._join(low, high)
        self.count += count

    def _join(self, low: Float64, high: Float64) -> tuple[Float64, Float64]:
        return np.minimum(self._low, low), np.maximum(self._high, high)

    @property
    def low(self) -> Float64:
        """Smallest value, float64: [] for a tensor, [channels] along an axis."""
        self.require_values()
        return self._low.copy()

    @property
    def high(self) -> Float64:
        """Largest value, shaped as `low`."""
        self.require_values()
        return self._high.copy()


class MovingAverageObserver(MinMaxObserver):
    """Exponential moving average of the smallest and largest value of each batch.

    A single extreme batch moves it little. The result depends on the order and size of the batches.
    Source: Jacob et al. 2018, arXiv 1712.05877, section 3.1.

    Args:
        name: The tensor's name, used in errors.
        axis: Channel axis; None observes the tensor as a whole.
        momentum: Weight of the past, at least 0 and below 1.
    """

    def __init__(self, name: str = "", axis: int | None = None, momentum: float = 0.9) -> None:
        super().__init__(name, axis)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, not {momentum}")
        self.momentum = momentum

    def merge(self, other: Self) -> None:
        """Refuse: averages over time cannot be combined without knowing the order of their batches."""
        raise TypeError("a moving average depends on the order of batches and cannot be merged")

    def _join(self, low: Float64, high: Float64) -> tuple[Float64, Float64]:
        past, present = self.momentum, 1 - self.momentum
        return past * self._low + present * low, past * self._high + present * high


class MeanVarianceObserver(Observer):
    """Mean and variance, numerically stable: the moments of blocks are combined, never sums of squares.

    Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    Args:
        name: The tensor's name, used in errors.
        axis: Channel axis; None observes the tensor as a whole.
    """

    def __init__(self, name: str = "", axis: int | None = None) -> None:
        super().__init__(name)
        self.axis = axis
        self._mean: Float64 = np.zeros(())
        self._squares: Float64 = np.zeros(())

    def update(self, array: Array) -> None:
        """Add one batch of values."""
        if array.size == 0:
            return
        rows = by_channel(array, self.axis, self.subject)
        extremes(rows, self.subject)
        step = max(1, _VALUES_PER_BLOCK * rows.shape[-1] // rows.size)
        for start in range(0, rows.shape[-1], step):
            block = rows[..., start : start + step].astype(np.float64)
            mean = block.mean(axis=-1, keepdims=True)
            self._combine(block.shape[-1], mean[..., 0], np.square(block - mean).sum(axis=-1))

    def merge(self, other: Self) -> None:
        """Add what another observer of the same tensor has seen."""
        if other.count:
            self._combine(other.count, other._mean, other._squares)

    def _combine(self, count: int, mean: Float64, squares: Float64) -> None:
        if self.count == 0:
            self.count, self._mean, self._squares = count, mean, squares
            return
        self.require_channels(mean, self._mean)
        total = self.count + count
        difference = mean - self._mean
        self._squares = self._squares + squares + np.square(difference) * (self.count * count / total)
        self._mean = self._mean + difference * (count / total)
        self.count = total

    @property
    def mean(self) -> Float64:
        """Mean, float64: [] for a tensor, [channels] along an axis."""
        self.require_values()
        return self._mean.copy()

    @property
    def variance(self) -> Float64:
        """Population variance (divided by the count), shaped as `mean`."""
        self.require_values()
        return self._squares / self.count


class GramObserver(Observer):
    """Gram matrix X^T X of the rows along the last axis, summed in float64. `count` is the number of rows.

    Layer-wise methods minimise against it: the Hessian of ||X W - X W'||^2 in W' is 2 X^T X.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self._matrix: Float64 = np.zeros((0, 0))

    def update(self, array: Array) -> None:
        """Add the rows of an array of shape [..., width]."""
        if array.size == 0:
            return
        extremes(by_channel(array, None, self.subject), self.subject)
        rows = array.reshape(-1, array.shape[-1] if array.ndim else 1)
        matrix = np.zeros((rows.shape[1], rows.shape[1]))
        for start in range(0, rows.shape[0], _ROWS_PER_BLOCK):
            block = rows[start : start + _ROWS_PER_BLOCK].astype(np.float64)
            matrix += block.T @ block
        self._combine(rows.shape[0], matrix)

    def merge(self, other: Self) -> None:
        """Add what another observer of the same tensor has seen."""
        if other.count:
            self._combine(other.count, other._matrix)

    def _combine(self, count: int, matrix: Float64) -> None:
        if self.count == 0:
            self._matrix = matrix.copy()
        else:
            self.require_channels(matrix, self._matrix)
            self._matrix += matrix
        self.count += count

    @property
    def matrix(self) -> Float64:
        """Sum of the outer products of all rows, float64 [width, width]."""
        self.require_values()
        return self._matrix.copy()
