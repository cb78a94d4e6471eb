"""Keeps an even sample of the rows of an activation, of bounded size whatever the amount of data."""

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.observer import Array, Observer, by_channel, extremes


class RowObserver(Observer):
    """Keeps every n-th row along the last axis, with n doubled whenever more than `limit` are kept.

    Which rows are kept depends on their number alone, not on how the data was cut into batches.

    Args:
        name: The tensor's name, used in errors.
        limit: Largest number of rows to keep.
    """

    def __init__(self, name: str = "", limit: int = 256) -> None:
        super().__init__(name)
        self._limit = limit
        self._stride = 1
        self._kept: list[NDArray[np.float32]] = []

    def update(self, array: Array) -> None:
        """Add one batch of rows.

        Raises:
            DataError: A value is NaN or infinite.
        """
        if array.size == 0:
            return
        extremes(by_channel(array, None, self.subject), self.subject)
        rows = array.reshape(-1, array.shape[-1] if array.ndim else 1)
        first = -self.count % self._stride
        self._kept += [row.copy() for row in rows[first :: self._stride]]
        self.count += len(rows)
        while len(self._kept) > self._limit:
            self._kept, self._stride = self._kept[::2], self._stride * 2

    @property
    def rows(self) -> NDArray[np.float32]:
        """The kept rows, [rows, channels].

        Raises:
            DataError: No row was observed.
        """
        self.require_values()
        return np.stack(self._kept)
