"""Rounds the rows of a matrix in blocks, each with a scale (and a zero point) of its own. Pure arithmetic.

`w ~ (q - zero_point) * scale` with `q = saturate(round_half_even(w / scale) + zero_point)`, bit for bit as ONNX
QuantizeLinear with `block_size` computes it. Such a grid contains 0.0 exactly, so zeros stay zero. A zero point that
need not be an integer spends no codes on 0.0: it fits blocks whose values were on a grid of scale and offset before.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.grid import normal_scale
from edgesmith_quantization.arithmetic.rounding import Float, half_scale
from edgesmith_quantization.arithmetic.tiles import block_extremes, tiles, widened

Codes = NDArray[Any]
Weights = NDArray[np.float16] | NDArray[np.float32]
Clip = Literal["none", "mse"]

_SHRINKS = np.linspace(1.0, 0.3, 15)
"""Parts of the full range that the fit tries. Two bits want about half of the range of a block of 32."""
_REFINEMENTS = 4


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """The integer grids of a matrix [rows, inputs]: one per row and block of inputs."""

    scale: Float
    """[rows, blocks], positive."""
    zero_point: Codes | None
    """[rows, blocks]: uint8, float32 where it need not be a code, or None for signed codes around 0."""
    bits: int
    block_size: int
    """Inputs that share a scale; the last block of a row may be shorter."""

    @property
    def offset(self) -> Float:
        """The zero points as floats, 0 where there are none."""
        return np.zeros_like(self.scale) if self.zero_point is None else self.zero_point.astype(np.float32)

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest code."""
        return code_limits(self.bits, symmetric=self.zero_point is None)

    def round(self, quotient: Float, offset: Float) -> Float:
        """Return the codes of weights that were divided by their scale; `offset` holds their zero points."""
        if self.zero_point is not None and self.zero_point.dtype == np.float32:
            return np.asarray(np.clip(np.rint(quotient + offset), *self.limits))
        return np.asarray(np.clip(np.rint(quotient) + offset, *self.limits))


@dataclass(frozen=True, slots=True)
class BlockCodes:
    """A rounded matrix: codes and the grids that they count on."""

    codes: Codes
    """[rows, inputs], int8 around 0 or uint8 with zero points, one code a byte whatever its bits."""
    scale: Float
    """[rows, blocks]."""
    zero_point: Codes | None
    """[rows, blocks] uint8 or float32, or None."""
    bits: int
    block_size: int

    @property
    def grid(self) -> BlockGrid:
        """The grids without the codes."""
        return BlockGrid(self.scale, self.zero_point, self.bits, self.block_size)


def code_limits(bits: int, *, symmetric: bool) -> tuple[int, int]:
    """Return the smallest and largest code: signed around 0 if symmetric, unsigned otherwise."""
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if symmetric else (0, (1 << bits) - 1)


def round_blocks(
    values: Weights, bits: int, block_size: int | None, symmetric: bool, clip: Clip = "none"
) -> BlockCodes:
    """Return `values` rounded to the nearest points of grids that are fitted to each block.

    Args:
        values: float32 or float16 [rows, inputs], finite, row by row in memory or transposed; the codes lie likewise.
            float16 values get scales that float16 holds, since a graph stores scales in the type of the weight.
        bits: Bits of a code, 2 to 8.
        block_size: Inputs that share a grid; None for one grid a row.
        symmetric: Whether 0.0 has code 0; otherwise each block gets a zero point.
        clip: "none": the grid covers the whole block. "mse": it minimises the squared rounding error.
    """
    codes = np.empty_like(values, np.int8 if symmetric else np.uint8)
    grid = _fit(values, bits, block_size, symmetric, clip, codes)
    return BlockCodes(codes, grid.scale, grid.zero_point, bits, grid.block_size)


def fit_blocks(values: Weights, bits: int, block_size: int | None, symmetric: bool, clip: Clip = "none") -> BlockGrid:
    """Return the grids of `values`. Arguments as in `round_blocks`."""
    return _fit(values, bits, block_size, symmetric, clip, None)


def signed_scales(values: Weights, limits: tuple[int, int], clip: Clip) -> Float:
    """Return one scale a row, [rows, 1], for codes around 0 with limits that need not be those of a type.

    Args:
        values: As in `round_blocks`.
        limits: Smallest and largest code.
        clip: As in `round_blocks`.
    """
    scale = np.ones((len(values), 1), np.float32)
    for tile in tiles(values, max(values.shape[1], 1)):
        cut = widened(values[tile.rows, tile.inputs])[:, None]
        scale[tile.rows], _offset = _fitted(cut, limits, True, clip)
    return half_scale(scale).astype(np.float32) if values.dtype == np.float16 else scale


def half_grid(grid: BlockGrid) -> BlockGrid:
    """Return the grid with scales, and offsets in float, that float16 holds; it covers what `grid` covers."""
    scale, zero_point = half_scale(grid.scale).astype(np.float32), grid.zero_point
    if zero_point is not None and zero_point.dtype == np.float32:
        zero_point = (zero_point * grid.scale).astype(np.float16).astype(np.float32) / scale
    return replace(grid, scale=scale, zero_point=zero_point)


def _fit(
    values: Weights, bits: int, block_size: int | None, symmetric: bool, clip: Clip, codes: Codes | None
) -> BlockGrid:
    """Return the grids of `values`, and write its codes on them into `codes` if given, in the same pass."""
    rows, inputs = values.shape
    size = block_size or max(inputs, 1)
    limits = code_limits(bits, symmetric=symmetric)
    scale = np.ones((rows, -(-inputs // size)), np.float32)
    zero_point = None if symmetric else np.zeros(scale.shape, np.uint8)
    for tile in tiles(values, size):
        cut = _blocked(widened(values[tile.rows, tile.inputs]), size)
        steps, zeros = _fitted(cut, limits, symmetric, clip)
        if values.dtype == np.float16:
            steps = half_scale(steps).astype(np.float32)
        scale[tile.rows, tile.blocks] = steps
        if zero_point is not None:
            zero_point[tile.rows, tile.blocks] = zeros
        if codes is not None:
            offset = None if symmetric else zeros[..., None]
            rounded = _round(cut, steps[..., None], offset, limits, out=cut)
            part = codes[tile.rows, tile.inputs]
            part[:] = rounded.reshape(len(rounded), -1)[:, : part.shape[1]]
    return BlockGrid(scale, zero_point, bits, size)


def round_to_grid(values: Weights, grid: BlockGrid) -> Codes:
    """Return the codes of `values` [rows, inputs] on given grids: int8, or uint8 where there are zero points."""
    codes = np.empty_like(values, np.int8 if grid.zero_point is None else np.uint8)
    scale, offset = grid.scale[..., None], grid.offset[..., None]
    for tile in tiles(values, grid.block_size):
        cut = _blocked(widened(values[tile.rows, tile.inputs]), grid.block_size)
        place = tile.rows, tile.blocks
        rounded = grid.round(cut / scale[place], offset[place])
        part = codes[tile.rows, tile.inputs]
        part[:] = rounded.reshape(len(rounded), -1)[:, : part.shape[1]]
    return codes


def dequantize_blocks(rounded: BlockCodes) -> Float:
    """Return the float32 values [rows, inputs] that the codes stand for."""
    result = np.empty_like(rounded.codes, np.float32)
    scale, offset = rounded.scale[..., None], rounded.grid.offset[..., None]
    for tile in tiles(rounded.codes, rounded.block_size):
        cut = _blocked(rounded.codes[tile.rows, tile.inputs].astype(np.float32), rounded.block_size)
        place = tile.rows, tile.blocks
        values: Float = (cut - offset[place]) * scale[place]
        part = result[tile.rows, tile.inputs]
        part[:] = values.reshape(len(values), -1)[:, : part.shape[1]]
    return result


def _blocked(values: Float, size: int) -> Float:
    """Return [rows, blocks, size]; a shorter last block is filled with zeros, which every grid holds exactly."""
    rows, inputs = values.shape[0], values.shape[1]
    rest = -inputs % size
    padded = np.pad(values, ((0, 0), (0, rest))) if rest else values
    return padded.reshape(rows, -1, size)


def _cover(cut: Float, limits: tuple[int, int], part: float, symmetric: bool) -> tuple[Float, Float]:
    """Return scale and zero point [rows, blocks] of the grids that hold `part` of each block's range."""
    lowest, highest = limits
    bottom, top = block_extremes(cut)
    low, high = np.minimum(bottom, 0) * part, np.maximum(top, 0) * part
    if symmetric:
        return normal_scale(np.maximum(low / lowest, high / highest)), np.zeros_like(low)
    scale = normal_scale((high.astype(np.float64) - low) / (highest - lowest))
    return scale, np.clip(np.rint(lowest - low / scale), lowest, highest)


def _fitted(cut: Float, limits: tuple[int, int], symmetric: bool, clip: Clip) -> tuple[Float, Float]:
    """Return scale and zero point [rows, blocks] as `clip` says."""
    covering = _cover(cut, limits, 1.0, symmetric)
    return covering if clip == "none" else _least_error(cut, limits, symmetric, covering)


def _round(cut: Float, scale: Float, offset: Float | None, limits: tuple[int, int], out: Float | None = None) -> Float:
    codes = np.divide(cut, scale, out=out)
    np.rint(codes, out=codes)
    if offset is not None:
        codes += offset
    return np.clip(codes, *limits, out=codes)


def _least_error(
    cut: Float, limits: tuple[int, int], symmetric: bool, fitted: tuple[Float, Float]
) -> tuple[Float, Float]:
    """Return the grids of least squared error among shrunken ranges, refined by alternating least squares.

    Given codes, the best scale is a quotient of sums and the best zero point a mean; given both, the best codes are
    the nearest ones. No step is kept that raises the error.
    """
    scale, offset = fitted
    error = _squared_error(cut, _round(cut, scale[..., None], offset[..., None], limits), scale, offset)
    best = scale, offset, error
    for part in _SHRINKS[1:]:
        best = _better(cut, limits, best, *_cover(cut, limits, float(part), symmetric))
    for _ in range(_REFINEMENTS):
        scale, offset, _error = best
        codes = _round(cut, scale[..., None], offset[..., None], limits)
        if not symmetric:
            shift = (codes - cut / scale[..., None]).mean(axis=2)
            offset = np.clip(np.rint(shift), *limits).astype(np.float32)
        centred = codes - offset[..., None]
        products, squares = (centred * cut).sum(axis=2), np.square(centred).sum(axis=2)
        quotient = np.divide(products, squares, out=scale.copy(), where=squares > 0)
        best = _better(cut, limits, best, np.where(quotient > 0, normal_scale(quotient), scale), offset)
    return best[0], best[1]


def _better(
    cut: Float, limits: tuple[int, int], best: tuple[Float, Float, Float], scale: Float, offset: Float
) -> tuple[Float, Float, Float]:
    error = _squared_error(cut, _round(cut, scale[..., None], offset[..., None], limits), scale, offset)
    lower = error < best[2]
    return tuple(np.where(lower, new, old) for new, old in zip((scale, offset, error), best, strict=True))  # type: ignore[return-value]


def _squared_error(cut: Float, codes: Float, scale: Float, offset: Float) -> Float:
    """Return the squared error of each block [rows, blocks]; overwrites `codes`."""
    codes -= offset[..., None]
    codes *= scale[..., None]
    codes -= cut
    np.square(codes, out=codes)
    return np.asarray(codes.sum(axis=2))
