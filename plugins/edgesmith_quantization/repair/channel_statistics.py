"""One streaming pass that sees range, mean and power of every channel of an activation."""

import numpy as np

from edgesmith_calibration.observer import Array, by_channel, extremes
from edgesmith_calibration.observers import Observer
from edgesmith_quantization.repair.smoothing import ChannelSummary, Float64


class ChannelObserver(Observer):
    """Smallest, largest, summed and summed squared value of each channel.

    Args:
        name: The tensor's name, used in errors.
        axis: Channel axis.
    """

    def __init__(self, name: str = "", axis: int = -1) -> None:
        super().__init__(name)
        self.axis = axis
        self._low: Float64 = np.zeros(0)
        self._high: Float64 = np.zeros(0)
        self._sum: Float64 = np.zeros(0)
        self._squares: Float64 = np.zeros(0)

    def update(self, array: Array) -> None:
        """Add one batch of values.

        Raises:
            DataError: A value is NaN or infinite, or the number of channels changed.
        """
        if array.size == 0:
            return
        if self.axis in (-1, array.ndim - 1):
            rows = array.reshape(-1, array.shape[-1])
            low, high = extremes(rows.T, self.subject)
        else:
            by_axis = by_channel(array, self.axis, self.subject)
            low, high = extremes(by_axis, self.subject)
            rows = by_axis.T
        total = rows.sum(axis=0, dtype=np.float64)
        squares = np.einsum("rc,rc->c", rows, rows, dtype=np.float64)
        if self.count == 0:
            self._low, self._high, self._sum, self._squares = low, high, total, squares
        else:
            self.require_channels(low, self._low)
            self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
            self._sum, self._squares = self._sum + total, self._squares + squares
        self.count += rows.shape[0]

    def summary(self) -> ChannelSummary:
        """Return what was seen.

        Raises:
            DataError: No value was observed.
        """
        self.require_values()
        return ChannelSummary(self._low, self._high, self._sum / self.count, self._squares / self.count)
