"""Fast rounding is the plain formula, bit for bit, in whatever order the weight lies in memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith_quantization.arithmetic import tiles as tiling
from edgesmith_quantization.arithmetic.blocks import (
    code_limits,
    dequantize_blocks,
    fit_blocks,
    round_blocks,
    round_to_grid,
)
from edgesmith_quantization.arithmetic.tiles import block_extremes, tiles, widened


def plain_rounding(values, bits, block_size, symmetric):
    """The formula of ONNX QuantizeLinear with blocks, one block after the other, with nothing shared or reused."""
    lowest, highest = code_limits(bits, symmetric=symmetric)
    wide = values.astype(np.float32)
    codes = np.zeros(values.shape, np.int8 if symmetric else np.uint8)
    scales, zero_points = [], []
    for start in range(0, values.shape[1], block_size):
        block = wide[:, start : start + block_size]
        low, high = np.minimum(block.min(axis=1), 0), np.maximum(block.max(axis=1), 0)
        if symmetric:
            scale = np.maximum(low / np.float32(lowest), high / np.float32(highest))
        else:
            scale = ((high.astype(np.float64) - low) / (highest - lowest)).astype(np.float32)
        scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
        offset = np.zeros_like(low) if symmetric else np.clip(np.rint(lowest - low / scale), lowest, highest)
        if values.dtype == np.float16:
            # Scales of float16 weights are stored in float16, so codes are chosen on the next one that is not smaller.
            half = np.maximum(scale, np.finfo(np.float16).smallest_subnormal).astype(np.float16)
            half[half.astype(np.float32) < scale] += np.spacing(half[half.astype(np.float32) < scale])
            scale = half.astype(np.float32)
        rounded = np.rint(block / scale[:, None]) + offset[:, None]
        codes[:, start : start + block_size] = np.clip(rounded, lowest, highest)
        scales.append(scale)
        zero_points.append(offset)
    return codes, np.stack(scales, axis=1), np.stack(zero_points, axis=1)


@st.composite
def weights(draw):
    rows, inputs = draw(st.integers(1, 40)), draw(st.integers(1, 200))
    values = np.random.default_rng(draw(st.integers(0, 2**16))).normal(0, 0.02, (rows, inputs))
    values *= 10.0 ** draw(st.integers(-6, 4))
    values[np.abs(values) < draw(st.sampled_from([0, 0.01]))] = 0
    values = values.astype(draw(st.sampled_from([np.float16, np.float32])))
    return np.asfortranarray(values) if draw(st.booleans()) else values


@given(
    values=weights(),
    bits=st.sampled_from([2, 4, 8]),
    block_size=st.sampled_from([1, 16, 24, 32, 128]),
    symmetric=st.booleans(),
    tile=st.sampled_from([64, 1 << 17]),
)
@settings(max_examples=150, deadline=None)
def test_rounding_equals_the_plain_formula_bit_for_bit(values, bits, block_size, symmetric, tile):
    with pytest.MonkeyPatch.context() as patch:
        # Small tiles, so that small matrices are cut too.
        patch.setattr(tiling, "_VALUES_PER_TILE", tile)
        patch.setattr(tiling, "_ROWS_PER_TILE", 4)
        rounded = round_blocks(values, bits, block_size, symmetric)
        grid = fit_blocks(values, bits, block_size, symmetric)
        again = round_to_grid(values, grid)
        restored = dequantize_blocks(rounded)
    codes, scale, zero_point = plain_rounding(values, bits, block_size, symmetric)
    np.testing.assert_array_equal(rounded.codes, codes)
    np.testing.assert_array_equal(rounded.scale, scale)
    if symmetric:
        assert rounded.zero_point is None
    else:
        np.testing.assert_array_equal(rounded.zero_point, zero_point)
    np.testing.assert_array_equal(again, codes)
    np.testing.assert_array_equal(grid.scale, scale)
    each = np.repeat(np.arange(scale.shape[1]), block_size)[: values.shape[1]]
    np.testing.assert_array_equal(restored, (codes.astype(np.float32) - zero_point[:, each]) * scale[:, each])


def test_rounding_leaves_the_weight_as_it_is():
    for order in "CF":
        values = np.asarray(np.random.default_rng(0).normal(size=(64, 64)), np.float32, order=order)
        before = values.copy()
        rounded = round_blocks(values, 4, 32, True)
        np.testing.assert_array_equal(values, before)
        assert rounded.codes.flags[f"{order}_CONTIGUOUS"], "codes of a transposed weight must be stored transposed"


def test_widening_is_exact_for_every_finite_half():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    np.testing.assert_array_equal(widened(halves).view(np.uint32), halves.astype(np.float32).view(np.uint32))
    table = halves[: 2**14].reshape(128, 128)[::2, 1::3]
    np.testing.assert_array_equal(widened(table), table.astype(np.float32))
    np.testing.assert_array_equal(widened(table.T), table.T.astype(np.float32))


@given(
    rows=st.integers(1, 700),
    inputs=st.integers(1, 700),
    block_size=st.integers(1, 300),
    transposed=st.booleans(),
    size=st.sampled_from([256, 4096, 1 << 17]),
)
@settings(max_examples=100, deadline=None)
def test_tiles_cover_every_value_once_and_cut_no_block(rows, inputs, block_size, transposed, size):
    values = np.zeros((inputs, rows), np.uint8).T if transposed else np.zeros((rows, inputs), np.uint8)
    scales = np.zeros((rows, -(-inputs // block_size)), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "_VALUES_PER_TILE", size)
        for tile in tiles(values, block_size):
            values[tile.rows, tile.inputs] += 1
            scales[tile.rows, tile.blocks] += 1
            assert tile.inputs.start == tile.blocks.start * block_size
            assert tile.inputs.stop == min(tile.blocks.stop * block_size, inputs)
    assert (values == 1).all()
    assert (scales == 1).all()


@given(
    seed=st.integers(0, 99),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 3, 12, 16, 24, 64, 100])),
    transposed=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_extremes_of_blocks_are_those_of_numpy(seed, shape, transposed):
    cut = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    if transposed:
        cut = np.asfortranarray(cut)
    low, high = block_extremes(cut)
    np.testing.assert_array_equal(low, cut.min(axis=2))
    np.testing.assert_array_equal(high, cut.max(axis=2))
