"""Optimal Brain Surgeon, row by row: remove the weight that costs least, let the others make up for it, repeat.

Frantar and Alistarh 2022, Optimal Brain Compression, arXiv 2208.11580, section 4, algorithm 1. For the error
`(v - w) H (v - w)^T` of a row, removing weight `p` of those left costs `w_p^2 / [H^-1]_pp`, the others change by
`-w_p / [H^-1]_pp * [H^-1]_p`, and the inverse loses row and column `p` by one step of Gaussian elimination. What is
left is at every moment the least-squares fit on the inputs that are left.

The steps of one row depend on each other. Many rows are taken together, and the elimination of a few steps is applied
to the inverse at once, as a product of matrices, which is what makes the exact rule affordable.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith_pruning.sparsity.masks import Mask, Pattern

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_STEPS_PER_UPDATE = 96
_BATCH_BYTES = 1 << 24
"""Memory for the inverses of the rows that are taken together, in each thread."""


def eliminate(
    weight: NDArray[Any],
    hessian: Float64,
    counts: NDArray[np.int64],
    *,
    pattern: Pattern | None = None,
    removed: Mask | None = None,
    stays: Mask | None = None,
    threads: int = 1,
) -> tuple[Float64, Mask]:
    """Return the weights after removal, and the mask of those removed.

    Args:
        weight: [outputs, inputs].
        hessian: Gram matrix of the inputs, damped so that it can be inverted, [inputs, inputs].
        counts: How many weights to remove in each row, those in `removed` included.
        pattern: At most so many are removed in each group as it says.
        removed: Weights that go first whatever they cost; those of a row stay removed where they are more than its
            count.
        stays: Weights that are never removed.
        threads: Rows are shared out to so many threads.
    """
    outputs, inputs = weight.shape
    # With inputs scaled to one norm, float32 keeps the small entries of the inverse too. Costs do not change.
    scale = np.sqrt(np.diag(hessian))
    inverse = np.linalg.inv(hessian / np.outer(scale, scale)).astype(np.float32)
    first = np.zeros(weight.shape, bool) if removed is None else removed
    never = np.zeros(weight.shape, bool) if stays is None else stays & ~first
    counts = np.maximum(np.minimum(counts, inputs - never.sum(axis=1)), first.sum(axis=1))
    values, mask = weight.astype(np.float64) * scale, np.zeros(weight.shape, bool)
    batch = max(1, min(64, _BATCH_BYTES // (4 * inputs**2)))

    def work(start: int) -> None:
        part = slice(start, start + batch)
        rows = _Rows(values[part].astype(np.float32), inverse, first[part], never[part], pattern)
        rows.run(counts[part])
        values[part], mask[part] = rows.weight, rows.removed

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(0, outputs, batch)))
    return values / scale, mask


class _Rows:
    """Some rows with the inverse of what is left of each."""

    def __init__(self, weight: Float32, inverse: Float32, first: Mask, never: Mask, pattern: Pattern | None) -> None:
        self.weight, self.removed = weight, np.zeros(weight.shape, bool)
        self._inverse = np.repeat(inverse[None], len(weight), axis=0)
        self._diagonal = np.repeat(np.diag(inverse)[None], len(weight), axis=0)
        self._first, self._blocked, self._pattern = first, never.copy(), pattern
        self._index = np.arange(len(weight))

    def run(self, counts: NDArray[np.int64]) -> None:
        """Remove as many weights of each row as `counts` says, as far as the pattern lets."""
        total = int(counts.max(initial=0))
        for start in range(0, total, _STEPS_PER_UPDATE):
            stop = min(start + _STEPS_PER_UPDATE, total)
            columns = np.zeros((len(self.weight), stop - start, self.weight.shape[1]), np.float32)
            for step in range(start, stop):
                self._step(columns, step - start, counts > step)
            if stop < total:
                self._inverse -= columns.transpose(0, 2, 1) @ columns

    def _step(self, columns: Float32, number: int, active: Mask) -> None:
        """Remove the cheapest weight of each active row; `columns` holds the elimination since the last update."""
        cost = np.square(self.weight) / self._diagonal
        cost[self._first] = -1
        cost[self._blocked | self.removed] = np.inf
        place = np.argmin(cost, axis=1)
        active = active & np.isfinite(cost[self._index, place])
        pending = columns[self._index, :number, place]
        column = self._inverse[self._index, place] - (pending[:, None] @ columns[:, :number])[:, 0]
        pivot = np.where(active, self._diagonal[self._index, place], 1)
        column[~active] = 0
        self.weight -= column * (self.weight[self._index, place] / pivot)[:, None]
        columns[:, number] = column / np.sqrt(pivot)[:, None]
        self._diagonal -= np.square(columns[:, number])
        rows = np.flatnonzero(active)
        self.removed[rows, place[rows]] = True
        self.weight[self.removed] = 0
        # What is removed is never read again; 1 keeps the division above defined.
        self._diagonal[self.removed] = 1
        if self._pattern is not None:
            self._close_groups(rows, place[rows], self._pattern)

    def _close_groups(self, rows: NDArray[np.int64], places: NDArray[np.int64], pattern: Pattern) -> None:
        """Let the other weights of a group stay that has lost as many as it may."""
        groups = self.removed.reshape(len(self.removed), -1, pattern.group)
        full = groups[rows, places // pattern.group].sum(axis=1) >= pattern.group - pattern.kept
        for row, place in zip(rows[full], places[full] // pattern.group, strict=True):
            inside = slice(place * pattern.group, (place + 1) * pattern.group)
            self._blocked[row, inside] = ~self._first[row, inside]
