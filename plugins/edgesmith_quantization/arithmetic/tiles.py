"""Walks a matrix of weights in tiles that stay in the processor's cache, in the order in which it lies in memory.

Rounding makes a few passes over each value. On tiles these passes cost about as much as reading the weight once;
on a whole weight each of them would go to main memory, and need it as float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith_quantization.arithmetic.rounding import Float

_VALUES_PER_TILE = 1 << 17
_ROWS_PER_TILE = 256
"""Fewest rows of a tile where rows are not contiguous: shorter runs would load each cache line several times."""
_LONGEST_HALVED = 64
_HALF_EXPONENT = np.uint16(0x7C00)
"""The exponent bits of float16, which are all set in NaN and infinity."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Where a tile lies in a matrix [rows, inputs], and in its scales [rows, blocks]. It holds whole blocks."""

    rows: slice
    inputs: slice
    blocks: slice


def tiles(values: NDArray[Any], block_size: int) -> Iterator[Tile]:
    """Yield tiles that cover `values` [rows, inputs] once.

    Args:
        values: The matrix, row by row in memory or transposed.
        block_size: Inputs that share a scale.
    """
    rows, inputs = values.shape
    if values.strides[0] >= values.strides[1]:
        height, width = max(1, _VALUES_PER_TILE // max(inputs, 1)), inputs
    else:
        height = max(_ROWS_PER_TILE, _VALUES_PER_TILE // block_size)
        width = max(1, _VALUES_PER_TILE // (min(height, rows) * block_size)) * block_size
    for top in range(0, rows, height):
        for left in range(0, inputs, max(width, 1)):
            right = min(left + width, inputs)
            blocks = slice(left // block_size, -(-right // block_size))
            yield Tile(slice(top, min(top + height, rows)), slice(left, right), blocks)


def widened(values: NDArray[Any]) -> Float:
    """Return a float32 copy of finite `values`, float16 or float32, in the same order in memory.

    float16 is widened by moving its bits to where float32 has exponent and mantissa, and multiplying by 2^112, the
    difference of the exponent biases. That is exact for every finite number and several times as fast as a cast.
    """
    if values.dtype != np.float16:
        return values.astype(np.float32)
    bits = values.view(np.int16).astype(np.int32)
    bits <<= 13
    # Widening the signed integer has filled three bits below the sign with copies of it.
    bits &= np.int32(~0x7000_0000)
    wide = bits.view(np.float32)
    wide *= np.float32(2.0**112)
    return wide


def all_finite(values: NDArray[Any]) -> bool:
    """Return whether a matrix of float32 or float16 holds neither NaN nor infinity; `widened` makes numbers of them."""
    return all(_is_finite(values[tile.rows, tile.inputs]) for tile in tiles(values, 1))


def block_extremes(cut: Float) -> tuple[Float, Float]:
    """Return the smallest and the largest value of each block, [rows, blocks], of `cut` [rows, blocks, size]."""
    low = high = cut
    # NumPy reduces short runs slowly. Halving all of them at once takes one long loop for each halving.
    contiguous = cut.strides[2] == cut.itemsize and cut.shape[2] <= _LONGEST_HALVED
    while contiguous and low.shape[2] % 2 == 0:
        low, high = np.minimum(low[..., ::2], low[..., 1::2]), np.maximum(high[..., ::2], high[..., 1::2])
    return low.min(axis=2), high.max(axis=2)


def _is_finite(values: NDArray[Any]) -> bool:
    if values.dtype != np.float16:
        return bool(np.isfinite(values).all())
    # Several times as fast as the conversions behind np.isfinite.
    return not bool((values.view(np.uint16) & _HALF_EXPONENT == _HALF_EXPONENT).any())
