"""Optimal clusters of numbers on a line: k-means in one dimension, exact and without iterations or seeds.

On sorted values clusters are intervals, and a partition is a list of split positions. Minimizing the squared distance
to the centres is maximizing the gain `sum_t (sum of cluster t)^2 / (size of cluster t)`, which prefix sums give at once
(Fisher 1958; Wang and Song 2011, `Ckmeans.1d.dp`). Instead of dynamic programming over all positions, ranges of
positions are halved, and those whose upper bound lies below a gain already found are dropped. What is exact: no
partition has a larger gain than the one returned, up to the rounding of the gain itself in float64 (1e-12).
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Double = NDArray[np.float64]
Index = NDArray[np.int64]

_SLACK = 1e-12
"""Share of the total gain below which two partitions count as equally good: the rounding of prefix sums."""
_CHUNK_VALUES = 1 << 17
"""Rows are searched together up to this many values, so that memory stays a small multiple of one chunk."""


def optimal_edges(rows: Float, clusters: int) -> Float:
    """Return where the optimal clusters of each row end: the largest value of every cluster but the last.

    A value belongs to the first cluster whose edge it does not exceed, or to the last (`cluster_of`). A row with
    fewer distinct values than clusters leaves some clusters empty.

    Args:
        rows: Finite float32 array [rows, values], at least one value per row.
        clusters: Number of clusters, from 1; 2 to 4 are fast.

    Returns:
        float32 array [rows, clusters - 1], ascending in each row.
    """
    count, length = rows.shape
    edges = np.empty((count, clusters - 1), np.float32)
    step = max(1, _CHUNK_VALUES // length)
    for start in range(0, count, step):
        ordered = np.sort(rows[start : start + step], axis=1)
        if length < clusters:
            ordered = np.pad(ordered, ((0, 0), (0, clusters - length)), mode="edge")
        splits = _Search(ordered, clusters).run()
        edges[start : start + step] = np.take_along_axis(ordered, splits.T - 1, axis=1)
    return edges


def cluster_of(rows: Float, edges: Float) -> NDArray[np.uint8]:
    """Return the number of each value's cluster, 0 for the lowest: [rows, values] like `rows`."""
    found = np.zeros(rows.shape, np.uint8)
    for edge in edges.T:
        found += rows > edge[:, None]
    return found


@dataclass(frozen=True, slots=True)
class _Boxes:
    """Sets of partitions: split t of a box lies anywhere in `low[t]` to `high[t]`, both included: [splits, boxes]."""

    row: Index
    low: Index
    high: Index

    def take(self, chosen: Any) -> "_Boxes":
        """Return the boxes where the array of truth values `chosen` holds."""
        place = np.flatnonzero(chosen)
        return _Boxes(self.row[place], self.low[:, place], self.high[:, place])

    def halves(self) -> "_Boxes":
        """Return the boxes with every range halved that hold at least one ascending partition, in order of rows."""
        middle = (self.low + self.high) // 2
        parts = []
        for upper in product((False, True), repeat=len(self.low)):
            low = np.where(np.array(upper)[:, None], middle + 1, self.low)
            high = np.where(np.array(upper)[:, None], self.high, middle)
            # Ranges of one level are equal or disjoint, so comparing their lower ends orders them.
            ascending = (low[:-1] <= low[1:]) & (low[:-1] < high[1:])
            parts.append(_Boxes(self.row, low, high).take((low <= high).all(0) & ascending.all(0)))
        row = np.concatenate([part.row for part in parts])
        order = np.argsort(row, kind="stable")
        low, high = (np.concatenate([getattr(part, end) for part in parts], 1)[:, order] for end in ("low", "high"))
        return _Boxes(row[order], low, high)


class _Search:
    """Finds the best partition of every row of sorted values by halving boxes of partitions and dropping hopeless ones.

    Args:
        ordered: float32 [rows, values], ascending in each row, at least `clusters` values.
        clusters: Number of clusters.
    """

    def __init__(self, ordered: Float, clusters: int) -> None:
        self._values, self._length = ordered, ordered.shape[1]
        count = len(ordered)
        # Gains of centred values do not cancel, whatever the offset of the data.
        self._centre = ordered.mean(axis=1, dtype=np.float64)
        self._sums = np.zeros((count, self._length + 1))
        np.subtract(ordered, self._centre[:, None], out=self._sums[:, 1:])
        np.cumsum(self._sums[:, 1:], axis=1, out=self._sums[:, 1:])
        self._splits = np.tile(np.arange(1, clusters, dtype=np.int64)[:, None], (1, count))
        self._gain = self._gain_of(np.arange(count), self._splits)

    def run(self) -> Index:
        """Return the best split positions, [clusters - 1, rows]: cluster t starts at split t - 1."""
        shape = self._splits.shape
        boxes = _Boxes(np.arange(shape[1]), np.ones(shape, np.int64), np.full(shape, self._length - 1))
        while len(boxes.row):
            self._improve(boxes)
            hopeful = self._bound(boxes) > self._gain[boxes.row] * (1 - _SLACK)
            boxes = boxes.take(hopeful & (boxes.low < boxes.high).any(0)).halves()
        return self._splits

    def _improve(self, boxes: _Boxes) -> None:
        """Remember the partition in the middle of each box where it is the best of its row so far."""
        middle = (boxes.low + boxes.high) // 2
        proper = np.flatnonzero((middle[:-1] < middle[1:]).all(0))
        row, middle = boxes.row[proper], middle[:, proper]
        if len(row) == 0:
            return
        gain = self._gain_of(row, middle)
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        best = np.maximum.reduceat(gain, starts)
        sizes = np.diff(starts, append=len(row))
        # The first of equals, so that the result does not depend on how rows are searched together.
        at_best = np.flatnonzero(gain == np.repeat(best, sizes))
        at_best = at_best[np.diff(row[at_best], prepend=-1) != 0]
        better = gain[at_best] > self._gain[row[at_best]]
        chosen = at_best[better]
        self._gain[row[chosen]], self._splits[:, row[chosen]] = gain[chosen], middle[:, chosen]

    def _gain_of(self, row: Index, splits: Index) -> Double:
        ends = self._with_ends(splits)
        total, size = self._sum_and_size(row, ends[:-1], ends[1:])
        result: Double = (total * total / size).sum(0)
        return result

    def _bound(self, boxes: _Boxes) -> Double:
        """Return an upper bound of the gain of all partitions in each box.

        With `gain = sum over x of (2 c x - c^2)` at the centres c, members that a cluster has for certain gain at most
        their own `sum^2 / size`. A contested value x gains at most `x^2 - d^2`, d its distance to the nearest place
        that a centre can have. That is convex in x, so a chord bounds the sum over a contested range.
        """
        row, low, high = boxes.row, self._with_ends(boxes.low), self._with_ends(boxes.high)
        total, size = self._sum_and_size(row, high[:-1], low[1:])
        bound: Double = (total * total / size).sum(0)
        # The mean of an interval of sorted values grows with either end.
        smallest = self._mean(row, low[:-1], low[1:], low[:-1])
        largest = self._mean(row, high[:-1], high[1:], high[1:] - 1)
        for split, (start, stop) in enumerate(zip(boxes.low, boxes.high, strict=True)):
            contested = start < stop
            if split:  # two splits in one range contest the same values
                contested &= start != boxes.low[split - 1]
            first, last = self._value(row, start), self._value(row, stop - 1)
            at_first, at_last = (_largest_gain(value, smallest, largest) for value in (first, last))
            total, size = self._sum_and_size(row, start, stop)
            width = last - first
            slope = np.divide(at_last - at_first, width, out=np.zeros_like(width), where=width > 0)
            bound += np.where(contested, size * at_first + slope * (total - size * first), 0.0)
        return bound

    def _with_ends(self, splits: Index) -> Index:
        """Return splits between 0 and the row's length: [splits + 2, ...]."""
        result = np.empty((len(splits) + 2, splits.shape[1]), np.int64)
        result[0], result[1:-1], result[-1] = 0, splits, self._length
        return result

    def _sum_and_size(self, row: Index, start: Index, stop: Index) -> tuple[Double, Index]:
        """Return sum and number of the values from `start` to `stop`; 0 and 1 where there are none."""
        offset = row * (self._length + 1)
        sums = self._sums.ravel()
        size = stop - start
        empty = size <= 0
        total = sums[stop + offset] - sums[start + offset]
        total[empty], size[empty] = 0.0, 1
        return total, size

    def _mean(self, row: Index, start: Index, stop: Index, place: Index) -> Double:
        """Return the mean of values from `start` to `stop`, or the value at `place` where there are none."""
        total, size = self._sum_and_size(row, start, stop)
        return np.where(stop > start, total / size, self._value(row, place))

    def _value(self, row: Index, place: Index) -> Double:
        """Return centred values; a place outside the row reads as its end."""
        inside = np.clip(place, 0, self._length - 1)
        result: Double = self._values.ravel()[inside + row * self._length] - self._centre[row]
        return result


def _largest_gain(value: Double, smallest: Double, largest: Double) -> Double:
    """Return `x^2 - d^2`, d the distance of x to the nearest of the intervals `smallest` to `largest`."""
    distance = np.maximum(np.maximum(smallest - value, value - largest), 0.0).min(0)
    result: Double = value * value - distance * distance
    return result
