"""Blockwise rounding: equal to ONNX Runtime bit for bit, exact zeros, least squared error."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.execution.reference import ReferenceSession
from edgesmith_quantization.arithmetic.blocks import (
    BlockCodes,
    code_limits,
    dequantize_blocks,
    fit_blocks,
    round_blocks,
    round_to_grid,
)

FORMS = [(bits, symmetric) for bits in (2, 4, 8) for symmetric in (True, False)]
TYPES = {
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
    (2, True): ir.DataType.INT2,
    (2, False): ir.DataType.UINT2,
}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


@st.composite
def matrices(draw):
    rows, inputs = draw(st.integers(1, 5)), draw(st.integers(1, 70))
    scale = 10.0 ** draw(st.integers(-12, 12))
    values = normal(rows, inputs, seed=draw(st.integers(0, 2**16))) * np.float32(scale)
    values[np.random.default_rng(draw(st.integers(0, 9))).random(values.shape) < draw(st.sampled_from([0, 0.3, 1]))] = 0
    return values


def run_onnx(rounded: BlockCodes, dtype: ir.DataType) -> np.ndarray:
    """Return what ONNX Runtime's DequantizeLinear makes of the codes."""

    def constant(name, array, kind):
        value = ir.Value(name=name, const_value=ir.tensor(array, dtype=kind))
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(kind)
        return value

    packed = dtype.numpy()
    inputs = [constant("codes", rounded.codes.astype(packed), dtype)]
    inputs += [constant("scale", rounded.scale, ir.DataType.FLOAT)]
    if rounded.zero_point is not None:
        inputs += [constant("zero_point", rounded.zero_point.astype(packed), dtype)]
    attributes = ir.convenience.convert_attributes({"axis": 1, "block_size": rounded.block_size})
    node = ir.Node("", "DequantizeLinear", inputs, attributes, name="dequantize")
    node.outputs[0].name, node.outputs[0].type = "values", ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = ir.Shape(rounded.codes.shape)
    graph = ir.Graph((), node.outputs, nodes=[node], initializers=inputs, opset_imports={"": 25}, name="graph")
    return ReferenceSession(ir.Model(graph, ir_version=13)).run({})["values"]


@pytest.mark.parametrize(("bits", "symmetric"), FORMS)
@pytest.mark.parametrize("block_size", [16, 32, 24])
def test_values_equal_those_of_onnx_runtime_bit_for_bit(bits, symmetric, block_size):
    rounded = round_blocks(normal(6, 100), bits, block_size, symmetric)
    np.testing.assert_array_equal(dequantize_blocks(rounded), run_onnx(rounded, TYPES[bits, symmetric]))


@pytest.mark.parametrize("clip", ["none", "mse"])
@pytest.mark.parametrize(("bits", "symmetric"), FORMS)
@given(values=matrices(), block_size=st.sampled_from([None, 1, 16, 32]))
@settings(max_examples=10, deadline=None)
def test_codes_fit_their_bits_and_zeros_stay_zero(bits, symmetric, clip, values, block_size):
    rounded = round_blocks(values, bits, block_size, symmetric, clip)
    lowest, highest = code_limits(bits, symmetric=symmetric)
    assert rounded.codes.min() >= lowest
    assert rounded.codes.max() <= highest
    assert rounded.codes.dtype == (np.int8 if symmetric else np.uint8)
    assert (rounded.scale > 0).all()
    assert (dequantize_blocks(rounded)[values == 0] == 0).all()


@pytest.mark.parametrize(("bits", "symmetric"), FORMS)
@given(values=matrices(), block_size=st.sampled_from([None, 16]))
@settings(max_examples=10, deadline=None)
def test_covering_grids_round_by_at_most_half_a_step(bits, symmetric, values, block_size):
    rounded = round_blocks(values, bits, block_size, symmetric)
    steps = np.repeat(rounded.scale, rounded.block_size, axis=1)[:, : values.shape[1]]
    # Half a step of rounding; the zero point of an asymmetric grid is rounded too, which shifts the range it covers
    # by at most another half. The last term is float32 arithmetic on codes of up to 255.
    most = (0.5 if symmetric else 1.0) + 1e-4
    assert (np.abs(dequantize_blocks(rounded) - values) <= most * steps).all()


@pytest.mark.parametrize(("bits", "symmetric"), FORMS)
@given(values=matrices(), block_size=st.sampled_from([None, 16, 32]))
@settings(max_examples=10, deadline=None)
def test_clipping_never_raises_the_squared_error_of_a_block(bits, symmetric, values, block_size):
    def block_errors(clip):
        rounded = round_blocks(values, bits, block_size, symmetric, clip)
        squares = np.square((dequantize_blocks(rounded) - values).astype(np.float64))
        return np.add.reduceat(squares, np.arange(0, values.shape[1], rounded.block_size), axis=1)

    # Errors are compared in float32 while fitting, hence the slack of a few units in the last place.
    plain = block_errors("none")
    assert (block_errors("mse") <= plain * (1 + 1e-4) + 1e-30).all()


def test_clipping_helps_most_with_few_bits():
    values = normal(64, 512)
    gains = []
    for bits in (8, 4, 2):
        plain, clipped = (
            np.square(dequantize_blocks(round_blocks(values, bits, 32, True, clip)) - values).sum()
            for clip in ("none", "mse")
        )
        gains.append(plain / clipped)
    assert gains == sorted(gains)
    # Four levels -2s..s must spend s on the largest value when they cover it: about twice the best step for a normal.
    assert gains[-1] > 2


@pytest.mark.parametrize("clip", ["none", "mse"])
def test_values_on_a_grid_that_they_fill_are_kept(clip):
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 16, (8, 64)).astype(np.uint8)
    codes[:, [3, 40]], codes[:, [7, 50]] = 0, 15
    made = BlockCodes(codes, np.float32(2.0) ** generator.integers(-6, 3, (8, 2)), np.full((8, 2), 5, np.uint8), 4, 32)
    values = dequantize_blocks(made)
    np.testing.assert_array_equal(dequantize_blocks(round_blocks(values, 4, 32, False, clip)), values)


def test_a_shorter_last_block_has_a_grid_of_its_own():
    values = np.concatenate([normal(2, 32), 100 * normal(2, 3)], axis=1)
    rounded = round_blocks(values, 8, 32, True)
    assert rounded.scale.shape == (2, 2)
    np.testing.assert_array_equal(
        dequantize_blocks(rounded)[:, :32], dequantize_blocks(round_blocks(values[:, :32], 8, 32, True))
    )


def test_long_matrices_are_rounded_in_steps_to_the_same_codes():
    values = normal(5000, 96)
    whole, part = round_blocks(values, 4, 32, False, "mse"), round_blocks(values[4000:], 4, 32, False, "mse")
    np.testing.assert_array_equal(whole.codes[4000:], part.codes)
    np.testing.assert_array_equal(whole.scale[4000:], part.scale)


def test_given_grids_are_kept():
    values = normal(4, 48)
    grid = fit_blocks(values * 3, 4, 16, False)
    codes = round_to_grid(values, grid)
    back = dequantize_blocks(BlockCodes(codes, grid.scale, grid.zero_point, 4, 16))
    # The grid covers three times the values, so none is cut off, and nearest means half a step at most.
    assert (np.abs(back - values) <= 0.5001 * np.repeat(grid.scale, 16, axis=1)).all()
