"""Splits a weight into parts that add up to it, so that few bits per part hold it more finely. Pure arithmetic.

Three ways to split (arXiv 2501.12428, section 3, for the first; the second for grids around zero; the third is ours):

* by value: clusters of low, middle and high values. Each part holds its own members and zeros elsewhere;
* by magnitude: the same with clusters of absolute values, whose members lie on both sides of zero;
* by digits: the parts are the digits of one finer code, so k parts of b bits round as finely as one of k b bits. Signed
  digits, for grids around zero, reach twice as far below zero as above or nearly so, which costs part of the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgesmith_quantization.arithmetic.blocks import (
    BlockCodes,
    Clip,
    Weights,
    dequantize_blocks,
    round_blocks,
    signed_scales,
)
from edgesmith_quantization.arithmetic.clustering import cluster_of, optimal_edges
from edgesmith_quantization.arithmetic.rounding import Float, half_scale

By = Literal["value", "magnitude", "digits"]
Owners = NDArray[np.uint8]

_REFITS = 6
"""Times that scales are refitted to the values that their part has won; gains vanish after that."""
_VALUES_PER_STEP = 1 << 15
"""Groups are refitted together up to about so many values, so that all arrays stay in the processor's cache."""


@dataclass(frozen=True, slots=True)
class SplitScheme:
    """How a weight is split and its parts are rounded."""

    bits: int
    """Bits of a code in each part."""
    parts: int = 3
    by: By = "value"
    symmetric: bool = False
    """Whether zero has code 0 in every part; otherwise each scale comes with a zero point."""
    clusters_per_row: bool = False
    """Whether each row is clustered by itself instead of the whole weight."""
    block_size: int | None = None
    """Inputs that share a scale; None for one scale a row."""
    whole: bool = False
    """Whether the whole weight shares one scale a part. Excludes `block_size`."""
    clip: Clip = "none"
    assignment: Literal["clusters", "nearest"] = "clusters"
    """Which part holds a value: that of its cluster, or the one whose grid has the nearest point.

    Digits have no clusters: neither this nor `clusters_per_row` changes them.
    """


@dataclass(frozen=True, slots=True)
class SplitWeight:
    """A weight as the sum of rounded parts."""

    parts: tuple[BlockCodes, ...]
    edges: Float | None
    """Largest value (or magnitude) of every cluster but the last, [1 or rows, parts - 1]; None for digits."""

    def dequantized(self) -> Float:
        """Return the float32 sum of the parts, [rows, inputs]."""
        first, *others = (dequantize_blocks(part) for part in self.parts)
        for other in others:
            first += other
        return first

    def error(self, rows: Weights) -> float:
        """Return the sum of squared differences to `rows`."""
        return float(np.square(self.dequantized() - rows, dtype=np.float64).sum())


def split_weight(rows: Weights, scheme: SplitScheme) -> SplitWeight:
    """Return `rows` split and rounded.

    Args:
        rows: Finite float32 or float16 [rows, inputs]. Those of float16 get scales that float16 holds.
        scheme: How to split and round.
    """
    groups = _grouped(rows, scheme)
    if scheme.by == "digits":
        return _ungrouped(_digit_parts(groups, scheme), None, rows.shape, scheme)
    owners, edges = find_owners(rows, scheme.parts, magnitude=scheme.by == "magnitude", per_row=scheme.clusters_per_row)
    owners = _grouped(owners, scheme)
    split = tuple(_round(part, scheme) for part in split_by_owner(groups, owners, scheme.parts))
    if scheme.assignment == "nearest":
        split = _assign_nearest(groups, split)
    return _ungrouped(split, edges, rows.shape, scheme)


def round_unsplit(rows: Weights, scheme: SplitScheme) -> BlockCodes:
    """Return `rows` rounded by the scheme's quantizer without any split: what the split has to beat."""
    return _ungrouped((_round(_grouped(rows, scheme), scheme),), None, rows.shape, scheme).parts[0]


def find_owners(rows: Weights, parts: int, *, magnitude: bool, per_row: bool) -> tuple[Owners, Float]:
    """Return the number of each value's cluster, and the edges of the clusters (see `clustering`).

    Args:
        rows: Finite float32 or float16 [rows, inputs].
        parts: Number of clusters.
        magnitude: Cluster absolute values instead of values.
        per_row: Cluster each row by itself.
    """
    values = np.abs(rows, dtype=np.float32) if magnitude else rows.astype(np.float32, copy=False)
    grouped = values if per_row else values.reshape(1, -1)
    edges = optimal_edges(grouped, parts)
    return cluster_of(grouped, edges).reshape(rows.shape), edges


def split_by_owner(values: Weights, owners: Owners, parts: int) -> tuple[Weights, ...]:
    """Return arrays that add up to `values` bit for bit: each value stands in the part that owns it, zero elsewhere."""
    zero = values.dtype.type(0)
    return tuple(np.where(owners == part, values, zero) for part in range(parts))


def digits_of(codes: NDArray[np.int32], bits: int, count: int, *, signed: bool) -> tuple[NDArray[np.int32], ...]:
    """Return the digits of `codes` to the base `2**bits`, lowest first: `codes == sum(digit[i] * base**i)`.

    Args:
        codes: Integers: from 0 to `base**count - 1`, or within `digit_limits` for signed digits.
        bits: Bits of a digit.
        count: Number of digits.
        signed: Digits from `-base/2` to `base/2 - 1` instead of 0 to `base - 1`.
    """
    base = 1 << bits
    lowest = -(base >> 1) if signed else 0
    digits = []
    for _ in range(count):
        digit = (codes - lowest) % base + lowest
        digits.append(digit)
        codes = (codes - digit) // base
    return tuple(digits)


def digit_limits(bits: int, count: int) -> tuple[int, int]:
    """Return the smallest and largest code that `count` signed digits of `bits` bits can hold."""
    half, ones = 1 << bits - 1, ((1 << bits * count) - 1) // ((1 << bits) - 1)
    return -half * ones, (half - 1) * ones


def signal_to_noise_db(values: Weights, rounded: Float) -> float:
    """Return the ratio of the values' power to that of the rounding error in dB, at most 200."""
    noise = float(np.square(rounded - values, dtype=np.float64).sum())
    signal = float(np.square(values, dtype=np.float64).sum())
    return 200.0 if noise == 0.0 else min(10 * float(np.log10(max(signal, 1e-300) / noise)), 200.0)


def _round(groups: Weights, scheme: SplitScheme) -> BlockCodes:
    return round_blocks(groups, scheme.bits, None, scheme.symmetric, scheme.clip)


def _grouped(rows: NDArray[Any], scheme: SplitScheme) -> NDArray[Any]:
    """Return values that share a scale side by side, [groups, size]; a block cut short is filled with zeros."""
    if scheme.whole:
        return rows.reshape(1, -1)
    if scheme.block_size is None:
        return rows
    rest = -rows.shape[1] % scheme.block_size
    return np.pad(rows, ((0, 0), (0, rest))).reshape(-1, scheme.block_size)


def _ungrouped(
    parts: Sequence[BlockCodes], edges: Float | None, shape: tuple[int, ...], scheme: SplitScheme
) -> SplitWeight:
    """Return parts of groups as parts of rows: codes [rows, inputs], scales [rows, blocks]."""
    rows, inputs = shape

    def spread(values: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(values, rows, axis=0) if scheme.whole else values.reshape(rows, -1)

    size = inputs if scheme.whole else scheme.block_size or inputs
    back = tuple(
        BlockCodes(
            np.ascontiguousarray(part.codes.reshape(rows, -1)[:, :inputs]),
            spread(part.scale),
            None if part.zero_point is None else spread(part.zero_point),
            scheme.bits,
            size,
        )
        for part in parts
    )
    return SplitWeight(back, edges)


def _digit_parts(groups: Weights, scheme: SplitScheme) -> tuple[BlockCodes, ...]:
    """Return the digits of one code of `bits * parts` bits: part i counts in steps of `scale * 2**(bits * i)`."""
    bits, count = scheme.bits, scheme.parts
    if scheme.symmetric:
        limits = digit_limits(bits, count)
        scale = signed_scales(groups, limits, scheme.clip)
        codes = np.clip(np.rint(groups / scale), *limits).astype(np.int32)
        zero_digits: tuple[NDArray[np.int32], ...] = ()
    else:
        fine = round_blocks(groups, bits * count, None, symmetric=False, clip=scheme.clip)
        scale, codes = fine.scale, fine.codes.astype(np.int32)
        zero_points = np.zeros(scale.shape, np.int32) if fine.zero_point is None else fine.zero_point.astype(np.int32)
        zero_digits = digits_of(zero_points, bits, count, signed=False)
    parts = []
    for place, digits in enumerate(digits_of(codes, bits, count, signed=scheme.symmetric)):
        step = (scale * np.float32(1 << bits * place)).astype(np.float32)
        zero_point = None if scheme.symmetric else zero_digits[place].astype(np.uint8)
        stored = digits.astype(np.int8 if scheme.symmetric else np.uint8)
        parts.append(BlockCodes(stored, step, zero_point, bits, groups.shape[1]))
    return tuple(parts)


def _assign_nearest(groups: Weights, parts: Sequence[BlockCodes]) -> tuple[BlockCodes, ...]:
    """Return parts in which each value is held by the part whose grid has the nearest point, with refitted scales.

    Alternates as k-means does: given scales the nearest points are best, given codes the best scale of a part is a
    quotient of sums. Zero points stay. No step raises the error of a group; at the end scales of float16 weights are
    rounded to float16.
    """
    codes = [np.empty_like(part.codes) for part in parts]
    scales = [part.scale.copy() for part in parts]
    height = max(1, _VALUES_PER_STEP // groups.shape[1])
    for top in range(0, len(groups), height):
        some = slice(top, top + height)
        values = groups[some].astype(np.float32, copy=False)
        grids = [_Grid.of(part, some) for part in parts]
        for _ in range(_REFITS):
            grids = [_refitted(values, step, grid) for step, grid in zip(_nearest(values, grids), grids, strict=True)]
        if groups.dtype == np.float16:
            grids = [replace(grid, scale=half_scale(grid.scale).astype(np.float32)) for grid in grids]
        for place, (step, grid) in enumerate(zip(_nearest(values, grids), grids, strict=True)):
            codes[place][some], scales[place][some] = step + grid.offset, grid.scale
    return tuple(replace(part, codes=code, scale=scale) for part, code, scale in zip(parts, codes, scales, strict=True))


@dataclass(frozen=True, slots=True)
class _Grid:
    """The grids of some groups in one part, each array [groups, 1] float32."""

    scale: Float
    offset: Float
    lowest: Float
    """Smallest and largest `code - zero_point`."""
    highest: Float

    @classmethod
    def of(cls, part: BlockCodes, some: slice) -> "_Grid":
        offset = part.grid.offset[some]
        lowest, highest = (np.float32(limit) - offset for limit in part.grid.limits)
        return cls(part.scale[some], offset, lowest, highest)


def _nearest(values: Float, grids: Sequence[_Grid]) -> list[Float]:
    """Return `code - zero_point` of each part [groups, size]: 0 where another part has a nearer point."""
    steps: list[Float] = []
    owner = np.zeros(values.shape, np.uint8)
    nearest = np.full(values.shape, np.inf, np.float32)
    for place, grid in enumerate(grids):
        step = values / grid.scale
        np.rint(step, out=step)
        np.clip(step, grid.lowest, grid.highest, out=step)
        distance = step * grid.scale
        distance -= values
        np.abs(distance, out=distance)
        np.copyto(owner, np.uint8(place), where=distance < nearest)
        np.minimum(nearest, distance, out=nearest)
        steps.append(step)
    for place, step in enumerate(steps):
        step *= owner == place
    return steps


def _refitted(values: Float, step: Float, grid: _Grid) -> _Grid:
    """Return the grid with the scales of least squared error for these steps."""
    products, squares = (step * values).sum(axis=1, keepdims=True), np.square(step).sum(axis=1, keepdims=True)
    quotient = np.divide(products, squares, out=np.zeros_like(products), where=squares > 0)
    scale = np.where(quotient > np.finfo(np.float32).tiny, quotient, grid.scale)
    return replace(grid, scale=scale)
