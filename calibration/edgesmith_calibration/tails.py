"""The outer ends of a distribution, exactly, at little more than the cost of its minimum and maximum.

A percentile close to 100 depends on a few outermost values only. Once enough of them are known, almost every new value
lies between them, and one comparison per value is all that is left to do.
"""

from math import ceil

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.observer import Array, Observer, by_channel, extremes

Float32 = NDArray[np.float32]


class TailObserver(Observer):
    """The smallest and the largest values of a tensor, enough of them for a percentile.

    Args:
        name: The tensor's name, used in errors.
        percentile: Smallest percentile that will be asked for, above 50 and at most 100.
        updates: Number of updates to come. Arrays are taken to be about as large as the first; if they turn out
            larger, ranges keep more values than was asked for, never fewer.
    """

    def __init__(self, name: str = "", *, percentile: float = 99.999, updates: int = 1) -> None:
        super().__init__(name)
        if not 50 < percentile <= 100:
            raise DataError(
                f"percentile {percentile} for {self.subject}",
                expected="a number above 50 and at most 100",
                why="tails on both sides of the middle are kept",
                fix="use 99.99 or 99.999",
            )
        self._percentile = percentile
        self._updates = updates
        self._kept = 0
        self._highs = np.empty(0, np.float32)
        self._negated = np.empty(0, np.float32)
        """The smallest values with their sign changed, so that both tails are kept by the same code."""

    def update(self, array: Array) -> None:
        """Add one batch of values."""
        if array.size == 0:
            return
        values = by_channel(array, None, self.subject)
        low, high = extremes(values, self.subject)
        if self.count == 0:
            self._kept = ceil(values.size * self._updates * (1 - self._percentile / 100)) + 2
        self._highs = _largest(self._highs, values, float(high), self._kept)
        if self._negated.size < self._kept or -float(low) > self._negated.min():
            self._negated = _largest(self._negated, np.negative(values, dtype=np.float32), -float(low), self._kept)
        self.count += values.size

    def range(self, percentile: float, *, symmetric: bool) -> tuple[float, float]:
        """Return the ends between which `percentile` percent of the values lie, interpolated between values.

        Symmetric ranges cut the largest magnitudes; others cut half of the rest at each end.

        Raises:
            DataError: Nothing was observed, or the percentile is below the one that values were kept for.
        """
        self.require_values()
        if not self._percentile <= percentile <= 100:
            raise DataError(
                f"percentile {percentile} of {self.subject}",
                expected=f"at least {self._percentile} and at most 100",
                why="values further inside were not kept",
                fix="observe with the smallest percentile that is needed",
            )
        share = 1 - percentile / 100
        if symmetric:
            # A full tail knows nothing below its smallest value; magnitudes are complete from the larger of these.
            known = max((tail.min() for tail in (self._negated, self._highs) if tail.size >= self._kept), default=0)
            ends = np.concatenate([self._negated[self._negated > 0], self._highs[self._highs >= 0]])
            end = _from_top(ends[ends >= known], share, self.count)
            return -end, end
        return -_from_top(self._negated, share / 2, self.count), _from_top(self._highs, share / 2, self.count)


def _largest(kept: Float32, values: Array, high: float, count: int) -> Float32:
    """Return the `count` largest of the values kept so far and the new ones, in any order."""
    if kept.size >= count:
        limit = kept.min()
        if high <= limit:
            return kept
        values = values[values > limit]
    merged = np.concatenate([kept, values.astype(np.float32, copy=False)])
    if merged.size <= count:
        return merged
    return np.partition(merged, merged.size - count)[merged.size - count :].copy()


def _from_top(values: Float32, share: float, count: int) -> float:
    """Return the value that `share` of all `count` values lie above; `values` are the largest of them."""
    ascending = np.sort(values)
    position = ascending.size - 1 - share * (count - 1)
    return float(np.interp(position, np.arange(ascending.size), ascending))
