"""Scale and zero point: what ONNX Runtime computes with them stays within half a step."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.grid import INTEGER_LIMITS, quantization_parameters

ENDS = st.floats(-(2.0**100), 2.0**100, width=32)
DTYPES = st.sampled_from(sorted(INTEGER_LIMITS))


def round_trip(values, scale, zero_point, dtype):
    """Quantize and dequantize as the ONNX operator specification says."""
    smallest, largest = INTEGER_LIMITS[dtype]
    codes = np.clip(np.rint(values / scale.astype(np.float64)) + zero_point, smallest, largest)
    return (codes - zero_point) * scale.astype(np.float64)


@settings(deadline=None, max_examples=300)
@given(ENDS, ENDS, DTYPES, st.booleans())
@example(0.0, 0.0, "int8", True)
@example(0.0, 1e-45, "uint8", False)
@example(-1e-38, 1e-38, "int16", True)
@example(-3.4e38, 3.4e38, "uint8", False)
def test_round_trip_is_within_half_a_step(first, second, dtype, symmetric):
    low, high = min(first, second), max(first, second)
    scale, zero_point = quantization_parameters(low, high, dtype, symmetric)
    assert scale.dtype == np.float32
    assert np.finfo(np.float32).tiny <= scale < np.inf
    smallest, largest = INTEGER_LIMITS[dtype]
    assert smallest <= zero_point <= largest
    values = np.linspace(min(low, 0.0), max(high, 0.0), 501)
    error = np.abs(round_trip(values, scale, zero_point, dtype) - values)
    # The scale is rounded to float32, which shifts the last code by that relative error.
    slack = np.finfo(np.float32).eps * np.abs(values)
    assert (error <= float(scale) / 2 * (1 + 1e-6) + slack).all()


@settings(deadline=None, max_examples=100)
@given(ENDS, ENDS, DTYPES, st.booleans())
def test_zero_is_represented_exactly(first, second, dtype, symmetric):
    scale, zero_point = quantization_parameters(min(first, second), max(first, second), dtype, symmetric)
    assert round_trip(np.zeros(1), scale, zero_point, dtype)[0] == 0.0


@pytest.mark.parametrize(
    ("dtype", "zero_point"), [("int8", 0), ("int16", 0), ("int4", 0), ("uint8", 128), ("uint16", 32768)]
)
def test_symmetric_zero_points(dtype, zero_point):
    parameters = quantization_parameters(-1.0, 3.0, dtype, symmetric=True)
    assert parameters.zero_point == zero_point
    largest = INTEGER_LIMITS[dtype][1] - zero_point
    assert parameters.scale == np.float32(3.0 / largest)


def test_asymmetric_ends_take_the_outermost_codes():
    scale, zero_point = quantization_parameters(-1.0, 1.55, "uint8", symmetric=False)
    assert scale == np.float32(2.55 / 255)
    assert zero_point == 100
    assert zero_point.dtype == np.uint8


def test_a_range_that_misses_zero_is_widened():
    assert quantization_parameters(2.0, 5.1, "uint8", symmetric=False) == quantization_parameters(
        0.0, 5.1, "uint8", False
    )
    assert quantization_parameters(-5.1, -2.0, "int8", symmetric=False).zero_point == 127


def test_channels_are_computed_together():
    low, high = np.array([-1.0, 0.0, -2.0]), np.array([1.0, 0.0, 0.5])
    scale, zero_point = quantization_parameters(low, high, "int8", symmetric=False)
    for channel in range(3):
        alone = quantization_parameters(low[channel], high[channel], "int8", symmetric=False)
        assert (scale[channel], zero_point[channel]) == (alone.scale, alone.zero_point)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(["int8", "uint8"]), st.booleans(), ENDS.filter(lambda end: abs(end) > 1e-30), st.integers(0, 99))
def test_onnx_runtime_agrees(dtype, symmetric, end, seed):
    values = (np.random.default_rng(seed).uniform(-1, 1, 257) * abs(end)).astype(np.float32)
    scale, zero_point = quantization_parameters(values.min(), values.max(), dtype, symmetric)
    output = _session(dtype).run(None, {"x": values, "scale": scale, "zero_point": zero_point})[0]
    assert np.abs(output.astype(np.float64) - values).max() <= float(scale) * (0.5 + 1e-4)


_SESSIONS = {}


def _session(dtype):
    if dtype not in _SESSIONS:
        kind = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}[dtype]
        graph = helper.make_graph(
            [
                helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"]),
                helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"]),
            ],
            "round-trip",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
                helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
                helper.make_tensor_value_info("zero_point", kind, []),
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        _SESSIONS[dtype] = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return _SESSIONS[dtype]


@pytest.mark.parametrize(("low", "high"), [(np.nan, 1.0), (0.0, np.inf), (1.0, -1.0), ([0.0, 0.0], 1.0)])
def test_impossible_ranges_are_refused(low, high):
    with pytest.raises(DataError, match="no range from"):
        quantization_parameters(low, high, "int8", symmetric=True)


def test_unknown_types_are_refused():
    with pytest.raises(DataError, match="'float8' is not an integer type"):
        quantization_parameters(0, 1, "float8", symmetric=True)
