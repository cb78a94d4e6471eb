"""Our Q/DQ arithmetic on integers of 8, 4 and 2 bits, code by code against ONNX Runtime."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from edgesmith.execution.reference import ReferenceSession
from edgesmith_quantization.arithmetic.blocks import BlockGrid, dequantize_blocks, round_blocks, round_to_grid
from edgesmith_quantization.arithmetic.rounding import dequantize, quantize

TYPES = {
    "int8": (np.int8, -128, 127, 21),
    "uint8": (np.uint8, 0, 255, 21),
    "int4": (ml_dtypes.int4, -8, 7, 21),
    "uint4": (ml_dtypes.uint4, 0, 15, 21),
    "int2": (ml_dtypes.int2, -2, 1, 25),
    "uint2": (ml_dtypes.uint2, 0, 3, 25),
}
EVERY_TYPE = pytest.mark.parametrize("name", list(TYPES))


def run_node(op_type, arrays, opset, **attributes):
    """Return what ONNX Runtime computes for one node whose inputs are all constants, as they cannot be fed."""
    values = []
    for index, array in enumerate(arrays):
        value = ir.Value(name=f"v{index}", const_value=ir.tensor(array))
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
        values.append(value)
    made = ir.Node("", op_type, values, ir.convenience.convert_attributes(attributes))
    like = arrays[1 if op_type == "DequantizeLinear" else 2]
    made.outputs[0].name, made.outputs[0].shape = "y", ir.Shape(arrays[0].shape)
    made.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(like.dtype))
    graph = ir.Graph([], [made.outputs[0]], nodes=[made], initializers=values, opset_imports={"": opset}, name="one")
    model = ir.Model(graph, ir_version=10 if opset < 25 else 13)
    return ReferenceSession(model, optimization="disabled").run({})["y"]


@EVERY_TYPE
def test_every_code_dequantizes_to_the_same_bits(name):
    dtype, low, high, opset = TYPES[name]
    codes = np.arange(low, high + 1).astype(dtype)
    for scale in np.float32([1, 0.0123, 3e-38, 1e30]):
        for zero in {low, 0 if low < 0 else high // 2, high}:
            zero_point = np.asarray(zero, dtype)
            theirs = run_node("DequantizeLinear", (codes, np.asarray(scale), zero_point), opset)
            ours = dequantize(codes.astype(np.int32), np.asarray(scale), zero_point.astype(np.int32))
            np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@EVERY_TYPE
def test_every_border_between_codes_quantizes_to_the_same_code(name):
    dtype, low, high, opset = TYPES[name]
    middles = np.arange(low - 3, high + 4, 0.5, dtype=np.float32)
    near = [np.nextafter(middles, np.float32(side)) for side in (np.inf, -np.inf)]
    # Quotients beyond int32 wrap around in ONNX Runtime's kernel for 2 bits, where ours saturate.
    far = np.float32([1e9, -1e9] if high - low < 4 else [1e9, -1e9, 1e30, -1e30])
    values = np.concatenate([middles, *near, far])
    bits = (high - low + 1).bit_length() - 1
    for scale in np.float32([1, 0.37, 1e-3]):
        for zero in {0} if low < 0 else {0, high // 2, high}:
            zero_point = np.asarray(zero, dtype)
            spread = values * scale
            theirs = run_node("QuantizeLinear", (spread, np.asarray(scale), zero_point), opset)
            offset = None if low < 0 else np.full((1, 1), zero, np.uint8)
            grid = BlockGrid(np.full((1, 1), scale), offset, bits, spread.size)
            np.testing.assert_array_equal(round_to_grid(spread[None], grid)[0], theirs.astype(np.int32))
            if bits == 8:
                np.testing.assert_array_equal(quantize(spread, np.asarray(scale), zero_point), theirs)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("symmetric", [True, False])
def test_blocks_dequantize_and_quantize_to_the_same_bits(bits, symmetric):
    values = np.random.default_rng(bits).normal(0, 1, (6, 64)).astype(np.float32)
    values[0] = 0
    blocks = round_blocks(values, bits, 16, symmetric, "none")
    name = f"{'' if symmetric else 'u'}int{bits}"
    dtype, _, _, opset = TYPES[name]
    grid = blocks.grid
    zero_point = np.zeros(grid.scale.shape, dtype) if grid.zero_point is None else grid.zero_point.astype(dtype)
    axis = {"axis": 1, "block_size": 16}
    back = run_node("DequantizeLinear", (blocks.codes.astype(dtype), grid.scale, zero_point), opset, **axis)
    np.testing.assert_array_equal(dequantize_blocks(blocks).view(np.uint32), back.view(np.uint32))
    codes = run_node("QuantizeLinear", (values, grid.scale, zero_point), opset, **axis)
    np.testing.assert_array_equal(blocks.codes.astype(np.int32), codes.astype(np.int32))
