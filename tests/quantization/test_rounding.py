"""The arithmetic of rounding, held bit for bit against ONNX Runtime."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from edgesmith_quantization.arithmetic.rounding import bias_safe_scale, dequantize, quantize, symmetric_scale

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
SCALES = st.floats(2.0**-60, 2.0**60, width=32)


def onnxruntime_result(op_type, inputs, axis):
    """Return what ONNX Runtime computes for one Q or DQ node, without its own rewrites."""
    types = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int8): TensorProto.INT8}
    types |= {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.int32): TensorProto.INT32}
    names = ["x", "scale", "zero_point"]
    attributes = {} if axis is None else {"axis": axis}
    output = TensorProto.FLOAT if op_type == "DequantizeLinear" else types[inputs[2].dtype]
    graph = helper.make_graph(
        [helper.make_node(op_type, names, ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info(n, types[a.dtype], a.shape) for n, a in zip(names, inputs, strict=True)],
        [helper.make_tensor_value_info("y", output, inputs[0].shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(names, inputs, strict=True)))[0]


@st.composite
def tensors(draw, dtype):
    """Values, scale and zero point, per tensor or along an axis."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=4, max_side=5))
    axis = draw(st.none() | st.integers(0, len(shape) - 1))
    scale_shape = () if axis is None else (shape[axis],)
    limits = np.iinfo(dtype)
    scale = draw(hnp.arrays(np.float32, scale_shape, elements=SCALES))
    zero_point = draw(hnp.arrays(dtype, scale_shape, elements=st.integers(int(limits.min), int(limits.max))))
    # Mostly values that land inside the grid or exactly between two codes, and some far outside.
    steps = draw(hnp.arrays(np.float32, shape, elements=st.integers(-600, 600).map(lambda half: half / 2) | FLOATS))
    spread = [1] * len(shape)
    if axis is not None:
        spread[axis] = -1
    with np.errstate(over="ignore"):
        values = np.clip(steps * np.asarray(scale).reshape(spread if axis is not None else ()), -3e38, 3e38)
    return values.astype(np.float32), np.asarray(scale), np.asarray(zero_point), axis


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_codes_equal_those_of_quantize_linear(dtype, data):
    values, scale, zero_point, axis = data.draw(tensors(dtype))
    with np.errstate(over="ignore"):
        ours = quantize(values, scale, zero_point, axis)
    theirs = onnxruntime_result("QuantizeLinear", (values, scale, zero_point), axis)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_values_equal_those_of_dequantize_linear(dtype, data):
    values, scale, zero_point, axis = data.draw(tensors(dtype))
    with np.errstate(over="ignore"):
        codes = quantize(values, scale, zero_point, axis)
    ours = dequantize(codes, scale, zero_point, axis)
    np.testing.assert_array_equal(ours, onnxruntime_result("DequantizeLinear", (codes, scale, zero_point), axis))


def test_halves_round_to_even_and_outliers_saturate():
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9, 3.4e38], np.float32)
    codes = quantize(values, np.float32(1), np.int8(0))
    np.testing.assert_array_equal(codes, [0, 2, 2, 0, -2, 127, -128, 127])


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=6), elements=FLOATS), st.data())
@settings(max_examples=60, deadline=None)
def test_symmetric_scale_keeps_zero_and_errs_by_half_a_step(values, data):
    axis = data.draw(st.none() | st.integers(0, values.ndim - 1))
    scale = symmetric_scale(values, 127, axis)
    zero_point = np.zeros(scale.shape, np.int8)
    codes = quantize(values, scale, zero_point, axis)
    restored = dequantize(codes, scale, zero_point, axis)
    assert (scale > 0).all()
    assert np.abs(codes.astype(int)).max() <= 127
    assert (restored[values == 0] == 0).all()
    spread = [1] * values.ndim
    if axis is not None:
        spread[axis] = -1
    step = scale.reshape(spread) if axis is not None else scale
    # Channels too small for a normal float32 scale become zero; float32 itself rounds the product.
    bound = np.where(np.abs(values) < 127 * np.finfo(np.float32).tiny, np.abs(values), 0.5 * step * (1 + 1e-4))
    assert (np.abs(values.astype(np.float64) - restored) <= bound).all()


def test_all_zero_channel_gets_scale_one():
    values = np.array([[0, 0], [1, -254]], np.float32)
    np.testing.assert_array_equal(symmetric_scale(values, 127, 0), np.float32([1, 2]))


def test_largest_magnitude_lands_on_the_largest_code():
    values = np.array([[-3.0, 1.0], [0.25, 0.5]], np.float32)
    scale = symmetric_scale(values, 63, 0)
    codes = quantize(values, scale, np.zeros(2, np.int8), 0)
    np.testing.assert_array_equal(np.abs(codes).max(axis=1), [63, 63])


def test_bias_safe_scale_grows_only_where_a_bias_would_overflow():
    scale = np.array([1e-3, 1e-12], np.float32)
    safe = bias_safe_scale(scale, np.float32(1e-2), np.array([5.0, 5.0], np.float32))
    assert safe[0] == scale[0]
    assert safe[1] > scale[1]
    assert abs(5.0 / (float(safe[1]) * 1e-2)) < 2**31
