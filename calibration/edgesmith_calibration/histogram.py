"""A histogram whose bins are spaced like floating-point numbers, so that it needs no range in advance.

A bin is the sign, the exponent and the leading bits of the fraction of a float32, which is an integer shift of its
bits. Bins are `2**-9` of their octave wide, so an outlier a thousand times larger than the rest costs the rest no
resolution. When a larger value arrives, the octaves that have become negligible beside it fold into the bin around
zero: counts stay exact, and the result does not depend on the order or the size of batches.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.observer import Array, Float64, Observer, by_channel, extremes

OCTAVES = 16
"""Octaves kept below the largest magnitude: one more than the finest supported grid, 16 bits, can resolve."""
BINS_PER_OCTAVE_LOG2 = 9

_FRACTION_BITS = 23
_SHIFT = _FRACTION_BITS - BINS_PER_OCTAVE_LOG2
_BINS_PER_OCTAVE = 1 << BINS_PER_OCTAVE_LOG2
_BINS = OCTAVES * _BINS_PER_OCTAVE + 1
"""Bins of one sign: the one at zero, then the octaves."""
_LOWEST_TOP = OCTAVES + 1
"""Keeps the lowest octave above the subnormal numbers, whose spacing is another."""
_VALUES_PER_BLOCK = 1 << 16
"""Values digested at a time, so that scratch arrays stay in the processor's second-level cache."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of values between ascending edges. Bins without values at either end are left out."""

    edges: Float64
    """[bins + 1]. The first is the smallest value seen, the last the largest. A bin of width 0 is a single value."""
    counts: NDArray[np.int64] | Float64
    """[bins]. Whole numbers as observed; fractions after a change of edges."""

    @property
    def low(self) -> float:
        """Smallest value seen."""
        return float(self.edges[0])

    @property
    def high(self) -> float:
        """Largest value seen."""
        return float(self.edges[-1])


def with_edges(histogram: Histogram, edges: Float64) -> Histogram:
    """Return the histogram over other ascending edges, taking values as spread evenly within each bin.

    What lies outside `edges` goes into the first or last bin, so that the total count is kept.
    """
    cumulated = _cumulated(histogram.edges, histogram.counts, edges)
    cumulated[0], cumulated[-1] = 0, histogram.counts.sum()
    return Histogram(edges, np.diff(cumulated))


def magnitudes(histogram: Histogram) -> Histogram:
    """Return the histogram of absolute values."""
    edges, counts = histogram.edges, histogram.counts
    smallest = max(edges[0], -edges[-1], 0.0)
    ends = np.unique(np.append(np.abs(edges), smallest))
    if ends.size == 1:
        ends = np.repeat(ends, 2)
    # |x| <= t leaves out what is above t and what is below -t.
    above = counts.sum() - _cumulated(edges, counts, ends)
    below = counts.sum() - _cumulated(-edges[::-1], counts[::-1], ends)
    cumulated = counts.sum() - above - below
    cumulated[0], cumulated[-1] = 0, counts.sum()
    return Histogram(ends, np.diff(cumulated))


def _cumulated(edges: Float64, counts: NDArray[np.int64] | Float64, points: Float64) -> Float64:
    """Return how many values are at most each of the ascending `points`. A bin of width 0 makes a step."""
    return np.asarray(np.interp(points, edges, np.concatenate([[0], np.cumsum(counts)])), np.float64)


class HistogramObserver(Observer):
    """Exact counts of values in bins at most 0.2 % of the value wide.

    Values of other dtypes are counted as the nearest float32. Magnitudes below 2**-15 of the largest power of two seen
    share one bin per sign. The state takes 128 KiB.

    Args:
        name: The tensor's name, used in errors.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self._counts = np.zeros((2, _BINS), np.int64)
        """Row 0 holds values with a clear sign bit, row 1 those with a set one; both by ascending magnitude."""
        self._top = _LOWEST_TOP
        """Biased float32 exponent just above the octaves that are kept."""
        self._low = np.inf
        self._high = -np.inf

    def update(self, array: Array) -> None:
        """Add one batch of values."""
        if array.size == 0:
            return
        values = by_channel(array, None, self.subject)
        low, high = (float(np.float32(end)) for end in _float32_extremes(values, self.subject))
        self._grow(_exponent(max(-low, high)) + 1)
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._counts += _count(np.ascontiguousarray(values, np.float32).view(np.int32), self._top)
        self.count += values.size

    def merge(self, other: Self) -> None:
        """Add what another observer of the same tensor has seen."""
        self._grow(other._top)
        self._low, self._high = min(self._low, other._low), max(self._high, other._high)
        self._counts += _fold(other._counts, self._top - other._top)
        self.count += other.count

    @property
    def low(self) -> float:
        """Smallest value seen."""
        self.require_values()
        return self._low

    @property
    def high(self) -> float:
        """Largest value seen."""
        self.require_values()
        return self._high

    def histogram(self) -> Histogram:
        """Return what was counted, from the smallest to the largest value seen.

        Raises:
            DataError: No value was observed.
        """
        self.require_values()
        bits = ((self._top - OCTAVES) << _FRACTION_BITS) + (np.arange(_BINS, dtype=np.int32) << _SHIFT)
        magnitudes = np.concatenate([[0.0], bits.view(np.float32)])
        edges = np.concatenate([-magnitudes[:0:-1], magnitudes])
        counts = np.concatenate([self._counts[1, ::-1], self._counts[0]])
        filled = np.flatnonzero(counts)
        first, last = int(filled[0]), int(filled[-1])
        return Histogram(
            edges=edges[first : last + 2].clip(self._low, self._high),
            counts=counts[first : last + 1],
        )

    def _grow(self, top: int) -> None:
        if top > self._top:
            self._counts = _fold(self._counts, top - self._top)
            self._top = top


def _float32_extremes(values: Array, subject: str) -> tuple[Float64, Float64]:
    low, high = extremes(values, subject)
    limit = float(np.finfo(np.float32).max)
    if max(-low, high) > limit:
        raise DataError(
            f"{subject} holds values from {low:g} to {high:g}",
            expected=f"magnitudes up to {limit:g}, the largest float32",
            why="the model computes in float32 or less, where such a value is infinite",
            fix="check the data for sentinel values, and scale it as the model expects",
        )
    return low, high


def _exponent(magnitude: float) -> int:
    """Return the biased exponent of a non-negative float32: 0 for zero and subnormal numbers."""
    return int(np.float32(magnitude).view(np.int32)) >> _FRACTION_BITS


def _count(bits: NDArray[np.int32], top: int) -> NDArray[np.int64]:
    """Return the counts [2, bins] of float32 bit patterns whose exponents are all below `top`."""
    # The bits of a float32 without its sign ascend with its magnitude, so bins are runs of equal leading bits.
    offset = ((top - OCTAVES) << _FRACTION_BITS) - (1 << _SHIFT)
    counts = np.zeros(2 * _BINS, np.int64)
    size = min(bits.size, _VALUES_PER_BLOCK)
    bins, signs, indices = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.intp)
    for start in range(0, bits.size, size):
        block = bits[start : start + size]
        if block.size < size:
            bins, signs, indices = bins[: block.size], signs[: block.size], indices[: block.size]
        np.bitwise_and(block, 0x7FFFFFFF, out=bins)
        np.subtract(bins, offset, out=bins)
        np.maximum(bins, 0, out=bins)
        np.right_shift(bins, _SHIFT, out=bins)
        np.right_shift(block, 31, out=signs)
        np.bitwise_and(signs, _BINS, out=signs)
        np.add(bins, signs, out=indices, casting="unsafe")
        counts += np.bincount(indices, minlength=2 * _BINS)
    return counts.reshape(2, _BINS)


def _fold(counts: NDArray[np.int64], octaves: int) -> NDArray[np.int64]:
    """Return `counts` with the lowest `octaves` in the bin at zero and as many empty ones at the top."""
    shift = min(octaves * _BINS_PER_OCTAVE, _BINS - 1)
    folded = np.zeros_like(counts)
    folded[:, 0] = counts[:, : shift + 1].sum(axis=1)
    folded[:, 1 : _BINS - shift] = counts[:, shift + 1 :]
    return folded
