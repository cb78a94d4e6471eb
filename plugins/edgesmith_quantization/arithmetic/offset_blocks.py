"""Grids with a scale and an offset for each block, both free: `w ~ q * scale + offset`. Pure arithmetic.

An integer zero point ties the grid to 0.0; here its place is free too, which follows weights that were rounded on such
a grid before (as GGUF's Q4_1 blocks are) without loss, and other weights a little closer. The price is that 0.0 need
not lie on the grid. Given codes, scale and offset are a linear regression; given both, the best codes are the nearest
ones (alternating least squares; in the spirit of Badri and Shaji 2023, HQQ, which solves for the zero point so).
"""

import numpy as np

from edgesmith_calibration.grid import normal_scale
from edgesmith_quantization.arithmetic.blocks import BlockGrid
from edgesmith_quantization.arithmetic.rounding import Float

_SHRINKS = np.linspace(1.0, 0.4, 13)
"""Parts of a block's range that the fit tries, around its middle."""
_REFINEMENTS = 4
_VALUES_PER_STEP = 1 << 18


def fit_offset_blocks(values: Float, bits: int, block_size: int) -> BlockGrid:
    """Return grids of least squared error among shrunken ranges, refined; their zero points are float32.

    Args:
        values: float32 [rows, inputs]; `inputs` is a multiple of `block_size`.
        bits: Bits of a code, 2 to 8.
        block_size: Inputs that share a grid.
    """
    rows, inputs = values.shape
    highest = (1 << bits) - 1
    scale = np.ones((rows, inputs // block_size), np.float32)
    offset = np.zeros_like(scale)
    step = max(1, _VALUES_PER_STEP // max(inputs, 1))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        cut = values[part].reshape(-1, inputs // block_size, block_size)
        scale[part], offset[part] = _fit(cut, highest)
    return BlockGrid(scale, -offset / scale, bits, block_size)


def _fit(cut: Float, highest: int) -> tuple[Float, Float]:
    """Return scale and offset [rows, blocks] of blocks [rows, blocks, size]."""
    low, high = cut.min(axis=2), cut.max(axis=2)
    best = _candidate(cut, normal_scale((high - low) / np.float32(highest)), low, highest)
    for shrink in _SHRINKS[1:]:
        margin = (high - low) * np.float32((1 - shrink) / 2)
        scale = normal_scale((high - low - 2 * margin) / np.float32(highest))
        best = _lower(best, _candidate(cut, scale, low + margin, highest))
    for _ in range(_REFINEMENTS):
        best = _lower(best, _candidate(cut, *_regression(cut, best[0], best[1], highest), highest))
    return best[0], best[1]


def _regression(cut: Float, scale: Float, offset: Float, highest: int) -> tuple[Float, Float]:
    """Return scale and offset of least squared error for the codes that the given ones make."""
    codes = _codes(cut, scale, offset, highest)
    centred = codes - codes.mean(axis=2, keepdims=True)
    squares = np.square(centred).sum(axis=2)
    slope = np.divide((centred * cut).sum(axis=2), squares, out=scale.copy(), where=squares > 0)
    slope = np.where(slope > 0, normal_scale(slope), scale)
    return slope, cut.mean(axis=2) - slope * codes.mean(axis=2)


def _candidate(cut: Float, scale: Float, offset: Float, highest: int) -> tuple[Float, Float, Float]:
    """Return a scale and an offset with their squared error, each [rows, blocks]."""
    approximation = _codes(cut, scale, offset, highest) * scale[..., None] + offset[..., None]
    return scale, offset, np.square(approximation - cut).sum(axis=2)


def _lower(best: tuple[Float, Float, Float], other: tuple[Float, Float, Float]) -> tuple[Float, Float, Float]:
    lower = other[2] < best[2]
    scale, offset, error = (np.where(lower, new, old) for new, old in zip(other, best, strict=True))
    return scale, offset, error


def _codes(cut: Float, scale: Float, offset: Float, highest: int) -> Float:
    return np.asarray(np.clip(np.rint((cut - offset[..., None]) / scale[..., None]), 0, highest))
