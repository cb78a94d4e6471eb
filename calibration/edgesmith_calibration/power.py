"""The mean square of a tensor, beside another statistic of it."""

import numpy as np

from edgesmith_calibration.observer import Array, Observer, by_channel


class PowerObserver(Observer):
    """Mean square of all values of a tensor, in the same pass as another observer of it.

    Args:
        beside: Observer that gets every array too, and refuses what is not finite.
    """

    def __init__(self, beside: Observer) -> None:
        super().__init__(beside.name)
        self.beside = beside
        self._energy = 0.0

    def update(self, array: Array) -> None:
        """Add one batch of values to both."""
        self.beside.update(array)
        values = by_channel(array, None, self.subject).astype(np.float32, copy=False)
        self._energy += float(np.vdot(values, values))
        self.count += values.size

    @property
    def mean_square(self) -> float:
        """Mean square of the values; sums within one array are in float32.

        Raises:
            DataError: Nothing was observed.
        """
        self.require_values()
        return self._energy / self.count
