"""One streaming pass that sees range, mean and power of every channel of an activation."""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from edgesmith.execution.observe import observe
from edgesmith.host.context import Context
from edgesmith_calibration.observer import Array, by_channel, extremes
from edgesmith_calibration.observers import Observer
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.repair.smoothing import ChannelSummary, Float64
from edgesmith_quantization.statistics.activation_ranges import calibration


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


def observe_channels(
    model: ir.Model, names: Iterable[str], context: Context[QuantizeInt8Options], *, axis: int, samples: int
) -> dict[str, ChannelSummary]:
    """Return what a few calibration samples put into the channels of each named value.

    Args:
        model: A graph that computes the values.
        names: Their names.
        context: Options and data.
        axis: Channel axis of all of them.
        samples: How many to look at. Channels show their means and peaks on a few; ranges come from all of them later.

    Raises:
        DataError: There is no data, or it makes a value NaN or infinite.
    """
    observers = observe(
        model,
        list(names),
        calibration(context).take(samples),
        lambda name: ChannelObserver(name, axis=axis),
        batch_size=context.options.batch_size,
        threads=context.threads,
        progress=context.progress,
    )
    return {name: observer.summary() for name, observer in observers.items()}
