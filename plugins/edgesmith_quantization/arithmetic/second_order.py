"""Second-order rounding of weights: each column's rounding error is taken up by the columns that follow.

For a layer `y = W x` the squared error of the output over the calibration data is `tr (W - Q) H (W - Q)^T` with the
Gram matrix `H = sum x x^T`. Rounding column after column, the error of each is spread over the rest so that the output
changes least (Frantar et al. 2023, GPTQ, arXiv 2210.17323, section 3, algorithm 1, with Cholesky factor and lazy
updates in blocks; the update is that of Optimal Brain Surgeon). The best scales for given codes then solve a small
linear system for each row.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.damping import damped, inverse_factor
from edgesmith_quantization.arithmetic.blocks import BlockCodes, BlockGrid
from edgesmith_quantization.arithmetic.rounding import Float

Float64 = NDArray[np.float64]
Refit = Callable[[Float], BlockGrid]
"""Returns the grid of one block [outputs, block size] as it stands when its turn comes."""

_COLUMNS_PER_UPDATE = 128


def round_second_order(
    weight: Float,
    gram: Float64,
    grid: BlockGrid,
    *,
    damping: float = 0.01,
    descending: bool = True,
    refit: Refit | None = None,
) -> BlockCodes:
    """Return codes of `weight` whose products with the calibration inputs differ least from those of `weight`.

    Args:
        weight: float32 [outputs, inputs].
        gram: Sum of the outer products of inputs, [inputs, inputs], symmetric.
        grid: The grids to round to; one block a row gives per-channel rounding.
        damping: Part of the mean of the diagonal that is added to it. Inputs that calibration never saw then round to
            nearest.
        descending: Round inputs with the largest second moment first, while many others can still make up for them.
            The grids are then those given.
        refit: Gives each block a new grid when its turn comes, from weights that took up the errors so far. Used in
            ascending order only.
    """
    order = np.argsort(-np.diag(gram), kind="stable") if descending else np.arange(weight.shape[1])
    factor = inverse_factor(gram[np.ix_(order, order)], damping).astype(np.float32)
    remaining = weight[:, order].astype(np.float32)
    codes = np.empty(weight.shape, np.int8 if grid.zero_point is None else np.uint8)
    scale, offset = grid.scale.copy(), grid.offset
    for start in range(0, weight.shape[1], _COLUMNS_PER_UPDATE):
        stop = min(start + _COLUMNS_PER_UPDATE, weight.shape[1])
        errors = np.empty((weight.shape[0], stop - start), np.float32)
        for column in range(start, stop):
            block = int(order[column]) // grid.block_size
            if refit is not None and not descending and column % grid.block_size == 0:
                last = min(column + grid.block_size, weight.shape[1])
                fresh = refit(_upcoming(remaining, errors, factor, start, column, stop, last))
                scale[:, block], offset[:, block] = fresh.scale[:, 0], fresh.offset[:, 0]
            values, step, zero = remaining[:, column], scale[:, block], offset[:, block]
            rounded = grid.round(values / step, zero)
            codes[:, order[column]] = rounded
            error = (values - (rounded - zero) * step) / factor[column, column]
            remaining[:, column + 1 : stop] -= np.outer(error, factor[column, column + 1 : stop])
            errors[:, column - start] = error
        remaining[:, stop:] -= errors @ factor[start:stop, stop:]
    zero_point = None if grid.zero_point is None else offset.astype(grid.zero_point.dtype)
    return BlockCodes(codes, scale, zero_point, grid.bits, grid.block_size)


def refit_scales(weight: Float, gram: Float64, rounded: BlockCodes, *, damping: float = 0.01) -> BlockCodes:
    """Return the same codes with the scales of least output error: a least-squares problem of one row each.

    Rows whose best scales are not all positive keep theirs. Arguments as in `round_second_order`.
    """
    rows, inputs = weight.shape
    size, blocks = rounded.block_size, rounded.scale.shape[1]
    hessian = damped(gram, damping).astype(np.float32)
    centred = rounded.codes.astype(np.float32)
    centred -= np.repeat(rounded.grid.offset, size, axis=1)[:, :inputs]
    starts = np.arange(0, inputs, size)
    target = np.add.reduceat(centred * (weight @ hessian), starts, axis=1).astype(np.float64)
    system = np.empty((rows, blocks, blocks))
    for block, start in enumerate(starts):
        part = slice(start, start + size)
        system[:, block] = np.add.reduceat((centred[:, part] @ hessian[part]) * centred, starts, axis=1)
    # A block of zeros has no scale to find; a unit diagonal keeps the system regular and its scale is kept below.
    diagonal = np.einsum("rbb->rb", system)
    empty = diagonal <= 0
    diagonal[empty] = 1.0
    solved = np.linalg.solve(system, target[..., None])[..., 0]
    solved[empty] = rounded.scale[empty]
    usable = np.isfinite(solved).all(axis=1) & (solved > np.finfo(np.float32).tiny).all(axis=1)
    return replace(rounded, scale=np.where(usable[:, None], solved, rounded.scale).astype(np.float32))


def output_error(weight: Float, approximation: Float, gram: Float64) -> float:
    """Return the squared error of a layer's outputs over the calibration data, relative to the squared outputs."""
    difference = weight.astype(np.float64) - approximation
    error = float(np.einsum("oi,oi->", difference @ gram, difference))
    power = float(np.einsum("oi,oi->", weight.astype(np.float64) @ gram, weight))
    return error / power if power > 0 else 0.0


def _upcoming(remaining: Float, errors: Float, factor: Float, start: int, column: int, stop: int, last: int) -> Float:
    """Return the columns from `column` to `last` with all errors so far taken up, also past the pending update."""
    upcoming: Any = remaining[:, column:last].copy()
    if last > stop and column > start:
        upcoming[:, stop - column :] -= errors[:, : column - start] @ factor[start:column, stop:last]
    return np.asarray(upcoming)
