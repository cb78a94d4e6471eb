"""Convolutions between Q/DQ pairs become QLinearConv, code for code what ONNX Runtime makes of them itself."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.graph.edit import constant_scalar, set_initializer
from edgesmith_onnxruntime.integer_convolutions import join_integer_convolutions
from small_graphs import executed_operators, graph, node, operators, quantize, run


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def joined(model):
    copy = model.clone()
    return copy, join_integer_convolutions(copy.graph)


def convolution(bounds=None, *, bias=True, group=1, size=(8, 8), kernel=(3, 3), **attributes):
    """Return a quantized model of one convolution, and inputs. `bounds` are those of a Clip; () makes a Relu."""
    weights = {"w": normal(8, 4 // group, *kernel)} | ({"b": normal(8, seed=1)} if bias else {})
    output = "y" if bounds is None else "c"
    nodes = [node("Conv", ["x", *weights], output, group=group, **attributes)]
    if bounds is not None:
        weights |= {f"bound{i}": np.float32(bound) for i, bound in enumerate(bounds)}
        nodes.append(node("Clip" if bounds else "Relu", ["c", *(f"bound{i}" for i in range(len(bounds)))], "y"))
    model = graph(nodes, weights, {"x": ["n", 4, *size]})
    return quantize(model, {"x": normal(8, 4, *size)}, range_estimator="min-max"), {"x": 2 * normal(3, 4, *size)}


def assert_same_codes(model, result, inputs):
    """Hold the written graph, run as it stands, against what the runtime joins itself: both run the same kernel."""
    np.testing.assert_array_equal(run(result, inputs, "basic")["y"], run(model, inputs, "all")["y"])


@settings(max_examples=25, deadline=None)
@given(
    group=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    stride=st.integers(1, 2),
    pad=st.integers(0, 2),
    dilation=st.integers(1, 2),
    bounds=st.sampled_from([None, (), (0,), (0, 6), (-100, 100)]),
)
def test_all_forms_give_the_codes_of_the_runtime(group, bias, stride, pad, dilation, bounds):
    attributes = {"strides": [stride] * 2, "pads": [pad] * 4, "dilations": [dilation] * 2}
    model, inputs = convolution(bounds, group=group, bias=bias, **attributes)
    result, count = joined(model)
    assert (count, operators(result)["Conv"], operators(result)["QLinearConv"]) == (1, 0, 1)
    assert not operators(result)["Clip"] + operators(result)["Relu"]
    assert_same_codes(model, result, inputs)


@pytest.mark.parametrize(("size", "kernel"), [((9,), (3,)), ((5, 5, 5), (3, 3, 3)), ((8, 6), (1, 1))])
def test_other_ranks(size, kernel):
    model, inputs = convolution(size=size, kernel=kernel)
    result, count = joined(model)
    assert count == 1
    assert_same_codes(model, result, inputs)


def test_padding_by_name():
    model, inputs = convolution(auto_pad="SAME_UPPER", strides=[2, 2])
    result, count = joined(model)
    assert count == 1
    assert_same_codes(model, result, inputs)


def test_bounds_inside_the_range_of_codes_stay():
    """A Clip at 6 whose codes reach further changes codes, so it may not go."""
    model, inputs = convolution((0, 6))
    scale = next(v for v in model.graph.initializers.values() if v.name == "y_scale")
    set_initializer(scale, np.asarray(2 * constant_scalar(scale), np.float32))
    result, count = joined(model)
    assert (count, operators(result)["Clip"]) == (0, 1)
    np.testing.assert_array_equal(run(result, inputs)["y"], run(model, inputs)["y"])


def test_bound_that_is_computed_stays():
    nodes = [node("ReduceMax", ["x"], "high", keepdims=0), node("Conv", ["x", "w"], "c")]
    nodes += [node("Clip", ["c", "low", "high"], "r"), node("Conv", ["r", "v"], "y")]
    weights = {"w": normal(4, 3, 3, 3), "v": normal(4, 4, 1, 1), "low": np.float32(0)}
    quantized = quantize(graph(nodes, weights, {"x": ["n", 3, 8, 8]}), {"x": normal(4, 3, 8, 8)})
    result, _ = joined(quantized)
    assert operators(result)["Clip"] == 1
    inputs = {"x": normal(2, 3, 8, 8, seed=1)}
    np.testing.assert_array_equal(run(result, inputs)["y"], run(quantized, inputs, "all")["y"])


def test_output_that_something_else_reads_in_float_stays():
    nodes = [node("Conv", ["x", "w"], "c"), node("Relu", ["c"], "r"), node("Conv", ["r", "v"], "d")]
    nodes += [node("Add", ["c", "d"], "y")]
    model = graph(nodes, {"w": normal(4, 4, 1, 1), "v": normal(4, 4, 1, 1)}, {"x": ["n", 4, 6, 6]})
    quantized = quantize(model, {"x": normal(4, 4, 6, 6)})
    result, _ = joined(quantized)
    inputs = {"x": normal(2, 4, 6, 6, seed=1)}
    # A code of the result is one step of its scale at most; rounding may go the other way in the float kernel.
    step = max(
        constant_scalar(v)
        for v in quantized.graph.initializers.values()
        if v.name.endswith("_scale") and v.const_value.size == 1
    )
    assert np.abs(run(result, inputs)["y"] - run(quantized, inputs)["y"]).max() <= 2 * step


def test_float_and_weight_only_convolutions_stay():
    model = graph([node("Conv", ["x", "w"], "y")], {"w": normal(4, 3, 3, 3)}, {"x": ["n", 3, 8, 8]})
    assert joined(model)[1] == 0


def test_runtime_agrees_at_all_levels():
    model, inputs = convolution((0, 6))
    result, _ = joined(model)
    assert executed_operators(result)["QLinearConv"] == 1
    np.testing.assert_array_equal(run(result, inputs, "basic")["y"], run(result, inputs, "all")["y"])
    assert not [each for each in result.graph.all_nodes() if each.domain == "com.microsoft"]
    ir.to_proto(result.ir)
