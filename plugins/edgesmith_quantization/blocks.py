"""Rounds the rows of a matrix in blocks, each with a scale (and a zero point) of its own. Pure arithmetic.

`w ~ (q - zero_point) * scale` with `q = saturate(round_half_even(w / scale) + zero_point)`, bit for bit as ONNX
QuantizeLinear with `block_size` computes it. Every grid contains 0.0 exactly, so zeros stay zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.grid import normal_scale
from edgesmith_quantization.rounding import Float

Codes = NDArray[Any]
Clip = Literal["none", "mse"]

_VALUES_PER_STEP = 1 << 18
"""Rows are taken in steps of about so many values, so that intermediates stay in the processor's cache."""

_SHRINKS = np.linspace(1.0, 0.3, 15)
"""Parts of the full range that the fit tries. Two bits want about half of the range of a block of 32."""
_REFINEMENTS = 4


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """The integer grids of a matrix [rows, inputs]: one per row and block of inputs."""

    scale: Float
    """[rows, blocks], positive."""
    zero_point: Codes | None
    """[rows, blocks] uint8, or None for signed codes around 0."""
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


@dataclass(frozen=True, slots=True)
class BlockCodes:
    """A rounded matrix: codes and the grids that they count on."""

    codes: Codes
    """[rows, inputs], int8 around 0 or uint8 with zero points, one code a byte whatever its bits."""
    scale: Float
    """[rows, blocks]."""
    zero_point: Codes | None
    """[rows, blocks] uint8, or None."""
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
    values: Float,
    bits: int,
    block_size: int | None,
    symmetric: bool,
    clip: Clip = "none",
    importance: Float | None = None,
) -> BlockCodes:
    """Return `values` rounded to the nearest points of grids that are fitted to each block.

    Args:
        values: float32 [rows, inputs].
        bits: Bits of a code, 2 to 8.
        block_size: Inputs that share a grid; None for one grid a row.
        symmetric: Whether 0.0 has code 0; otherwise each block gets a zero point.
        clip: "none": the grid covers the whole block. "mse": it minimises the squared rounding error.
        importance: [inputs] weight of each input's squared error in the fit, at least 0; None for equal weights.
    """
    grid = fit_blocks(values, bits, block_size, symmetric, clip, importance)
    return BlockCodes(round_to_grid(values, grid), grid.scale, grid.zero_point, bits, grid.block_size)


def fit_blocks(
    values: Float,
    bits: int,
    block_size: int | None,
    symmetric: bool,
    clip: Clip = "none",
    importance: Float | None = None,
) -> BlockGrid:
    """Return the grids of `values`. Arguments as in `round_blocks`."""
    rows, inputs = values.shape
    size = block_size or max(inputs, 1)
    blocks = -(-inputs // size)
    limits = code_limits(bits, symmetric=symmetric)
    scale = np.ones((rows, blocks), np.float32)
    offset = np.zeros((rows, blocks), np.float32)
    weights = None if importance is None else _blocked(importance[None, :].astype(np.float32), size)
    for part in _row_steps(values):
        cut = _blocked(values[part], size)
        fitted = _cover(cut, limits, 1.0, symmetric)
        if clip == "mse":
            fitted = _least_error(cut, limits, symmetric, fitted, weights)
        scale[part], offset[part] = fitted
    return BlockGrid(scale, None if symmetric else offset.astype(np.uint8), bits, size)


def round_to_grid(values: Float, grid: BlockGrid) -> Codes:
    """Return the codes of `values` [rows, inputs] on given grids: int8, or uint8 where there are zero points."""
    codes = np.empty(values.shape, np.int8 if grid.zero_point is None else np.uint8)
    scale, offset = grid.scale[..., None], grid.offset[..., None]
    for part in _row_steps(values):
        rounded = _round(_blocked(values[part], grid.block_size), scale[part], offset[part], grid.limits)
        codes[part] = rounded.reshape(rounded.shape[0], -1)[:, : values.shape[1]]
    return codes


def dequantize_blocks(rounded: BlockCodes) -> Float:
    """Return the float32 values [rows, inputs] that the codes stand for."""
    result = np.empty(rounded.codes.shape, np.float32)
    scale, offset = rounded.scale[..., None], rounded.grid.offset[..., None]
    for part in _row_steps(rounded.codes):
        cut = _blocked(rounded.codes[part].astype(np.float32), rounded.block_size)
        values: Float = (cut - offset[part]) * scale[part]
        result[part] = values.reshape(len(values), -1)[:, : rounded.codes.shape[1]]
    return result


def _row_steps(values: Codes) -> Iterator[slice]:
    step = max(1, _VALUES_PER_STEP // max(values.shape[1], 1))
    return (slice(start, start + step) for start in range(0, values.shape[0], step))


def _blocked(values: Float, size: int) -> Float:
    """Return [rows, blocks, size]; a shorter last block is filled with zeros, which every grid holds exactly."""
    rows, inputs = values.shape[0], values.shape[1]
    rest = -inputs % size
    padded = np.pad(values, ((0, 0), (0, rest))) if rest else values
    return padded.reshape(rows, -1, size)


def _cover(cut: Float, limits: tuple[int, int], part: float, symmetric: bool) -> tuple[Float, Float]:
    """Return scale and zero point [rows, blocks] of the grids that hold `part` of each block's range."""
    lowest, highest = limits
    low, high = np.minimum(cut.min(axis=2), 0) * part, np.maximum(cut.max(axis=2), 0) * part
    if symmetric:
        return normal_scale(np.maximum(low / lowest, high / highest)), np.zeros_like(low)
    scale = normal_scale((high.astype(np.float64) - low) / (highest - lowest))
    return scale, np.clip(np.rint(lowest - low / scale), lowest, highest)


def _round(cut: Float, scale: Float, offset: Float, limits: tuple[int, int]) -> Float:
    codes = cut / scale
    np.rint(codes, out=codes)
    codes += offset
    return np.clip(codes, *limits, out=codes)


def _least_error(
    cut: Float, limits: tuple[int, int], symmetric: bool, fitted: tuple[Float, Float], weights: Float | None
) -> tuple[Float, Float]:
    """Return the grids of least (weighted) squared error among shrunken ranges, refined by alternating least squares.

    Given codes, the best scale is a quotient of sums and the best zero point a mean; given both, the best codes are
    the nearest ones. No step is kept that raises the error.
    """
    scale, offset = fitted
    error = _squared_error(cut, _round(cut, scale[..., None], offset[..., None], limits), scale, offset, weights)
    best = scale, offset, error
    for part in _SHRINKS[1:]:
        best = _better(cut, limits, best, *_cover(cut, limits, float(part), symmetric), weights)
    for _ in range(_REFINEMENTS):
        scale, offset, _error = best
        codes = _round(cut, scale[..., None], offset[..., None], limits)
        if not symmetric:
            shift = _mean(codes - cut / scale[..., None], weights)
            offset = np.clip(np.rint(shift), *limits).astype(np.float32)
        centred = codes - offset[..., None]
        weighted = centred if weights is None else centred * weights
        products, squares = (weighted * cut).sum(axis=2), (weighted * centred).sum(axis=2)
        quotient = np.divide(products, squares, out=scale.copy(), where=squares > 0)
        best = _better(cut, limits, best, np.where(quotient > 0, normal_scale(quotient), scale), offset, weights)
    return best[0], best[1]


def _better(
    cut: Float,
    limits: tuple[int, int],
    best: tuple[Float, Float, Float],
    scale: Float,
    offset: Float,
    weights: Float | None,
) -> tuple[Float, Float, Float]:
    error = _squared_error(cut, _round(cut, scale[..., None], offset[..., None], limits), scale, offset, weights)
    lower = error < best[2]
    return tuple(np.where(lower, new, old) for new, old in zip((scale, offset, error), best, strict=True))  # type: ignore[return-value]


def _squared_error(cut: Float, codes: Float, scale: Float, offset: Float, weights: Float | None) -> Float:
    """Return the (weighted) squared error of each block [rows, blocks]; overwrites `codes`."""
    codes -= offset[..., None]
    codes *= scale[..., None]
    codes -= cut
    np.square(codes, out=codes)
    if weights is not None:
        codes *= weights
    return np.asarray(codes.sum(axis=2))


def _mean(values: Float, weights: Float | None) -> Float:
    if weights is None:
        return np.asarray(values.mean(axis=2))
    total = weights.sum(axis=2)
    return np.asarray((values * weights).sum(axis=2) / np.where(total > 0, total, np.float32(1)))
