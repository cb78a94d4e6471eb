"""Removal in one sweep over the columns, as in SparseGPT: masks in blocks, errors taken up by the columns that follow.

Frantar and Alistarh 2023, SparseGPT, arXiv 2301.00774, section 3, algorithm 1. All rows share the order of columns and
so one triangle of the inverse, which makes the sweep cheap. In return a column that was passed changes no more.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.damping import inverse_factor
from edgesmith_pruning.sparsity.masks import Mask, Pattern, remove_lowest, removed_count

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_COLUMNS = 128
"""Columns whose mask is chosen together, and whose errors reach later blocks as one product."""


def sweep(
    weight: NDArray[Any],
    hessian: Float64,
    sparsity: float,
    *,
    pattern: Pattern | None = None,
    whole: bool = False,
    removed: Mask | None = None,
    stays: Mask | None = None,
) -> tuple[Float64, Mask]:
    """Return the weights after removal, and the mask of those removed.

    Args:
        weight: [outputs, inputs].
        hessian: Gram matrix of the inputs, damped so that it can be inverted, [inputs, inputs].
        sparsity: Share of weights to remove where there is no pattern.
        pattern: Removes in each group of inputs as many as it says. Groups must cover the inputs.
        whole: Choose over all rows of a block together, as published; otherwise each row loses as many as any other.
        removed: Weights that go first whatever they cost.
        stays: Weights that are never removed.
    """
    outputs, inputs = weight.shape
    factor = inverse_factor(hessian, 0.0).astype(np.float32)
    values, mask = weight.astype(np.float32), np.zeros(weight.shape, bool)
    block = _COLUMNS if pattern is None else max(1, _COLUMNS // pattern.group) * pattern.group
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        part, diagonal = slice(start, stop), np.diag(factor)[start:stop]
        cost = np.square(values[:, part] / diagonal).astype(np.float64)
        if stays is not None:
            cost[stays[:, part]] = np.inf
        first = None if removed is None else removed[:, part]
        if pattern is None:
            mask[:, part] = _lowest(cost, start, stop, sparsity, first, whole)
        errors = np.zeros((outputs, stop - start), np.float32)
        for column in range(start, stop):
            if pattern is not None and (column - start) % pattern.group == 0:
                group = slice(column, column + pattern.group)
                mask[:, group] = _lowest_of_group(values, factor, group, pattern, removed, stays)
            error = np.where(mask[:, column], values[:, column], 0) / factor[column, column]
            values[:, column:stop] -= np.outer(error, factor[column, column:stop])
            errors[:, column - start] = error
        values[:, stop:] -= errors @ factor[part, stop:]
        values[mask] = 0
    return values.astype(np.float64), mask


def _lowest(cost: Float64, start: int, stop: int, sparsity: float, removed: Mask | None, whole: bool) -> Mask:
    """Return the mask of one block, so that the counts of all blocks add up to that of the matrix."""
    rows = cost.shape[0] if whole else 1
    count = removed_count(stop * rows, sparsity) - removed_count(start * rows, sparsity)
    shape = (-1, rows * (stop - start))
    first = None if removed is None else removed.reshape(shape)
    return remove_lowest(cost.reshape(shape), count, removed=first).reshape(cost.shape)


def _lowest_of_group(
    values: Float32, factor: Float32, group: slice, pattern: Pattern, removed: Mask | None, stays: Mask | None
) -> Mask:
    """Return the mask of one group, by the weights that took up the errors so far."""
    cost = np.square(values[:, group] / np.diag(factor)[group]).astype(np.float64)
    if stays is not None:
        cost[stays[:, group]] = np.inf
    first = None if removed is None else removed[:, group]
    return remove_lowest(cost, pattern.group - pattern.kept, removed=first)
