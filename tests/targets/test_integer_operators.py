"""Operators between Q/DQ pairs run on codes, within one code of what they give in float."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.graph.edit import constant_scalar, set_initializer
from edgesmith_onnxruntime.integer_convolutions import join_integer_convolutions
from edgesmith_onnxruntime.integer_operators import join_integer_operators
from small_graphs import executed_operators, graph, node, operators, quantize, run, sqnr

IMAGE = {"x": ["n", 4, 6, 6]}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def paired(op_type, inputs=("x",), constants=None, *, scales=(0.05, 0.05), zero_points=(128, 128), **attributes):
    """Return a graph of one operator whose inputs (first scale) and output (last scale) have Q/DQ pairs."""
    constants, nodes = constants or {}, []
    weights = dict(constants)
    for index, value in enumerate((*inputs, "r")):
        end = int(value == "r")
        weights |= {f"s{index}": np.float32(scales[end]), f"z{index}": np.uint8(zero_points[end])}
        parameters = [f"s{index}", f"z{index}"]
        if value == "r":
            nodes.append(node(op_type, [*(f"{name}d" for name in inputs), *constants], "r", **attributes))
        nodes.append(node("QuantizeLinear", [value, *parameters], f"{value}q"))
        nodes.append(node("DequantizeLinear", [f"{value}q", *parameters], "y" if value == "r" else f"{value}d"))
    return graph(nodes, weights, dict.fromkeys(inputs, IMAGE["x"]))


def joined(model):
    copy = model.clone()
    return copy, join_integer_operators(copy.graph)


def assert_within_one_code(model, result, inputs, scale):
    """Kernels round products of float32 scales at other places: values near the middle may take the next code."""
    expected, found = run(model, inputs)["y"], run(result, inputs)["y"]
    codes = np.rint((found - expected) / scale)
    assert expected.shape == found.shape
    assert np.abs(codes).max() <= 1
    # Such values are rare: within float32 rounding of the middle between two codes, at most 2**-15 of a code wide.
    assert np.count_nonzero(codes) <= 2 + codes.size // 50


@settings(max_examples=20, deadline=None)
@given(
    op_type=st.sampled_from(["Add", "Mul"]),
    scale=st.floats(0.01, 0.2),
    zero_point=st.integers(0, 255),
    seed=st.integers(0, 100),
)
def test_two_images(op_type, scale, zero_point, seed):
    model = paired(op_type, ("x", "z"), scales=(0.02, scale), zero_points=(100, zero_point))
    result, count = joined(model)
    assert (count, operators(result)[op_type], operators(result)[f"QLinear{op_type}"]) == (1, 0, 1)
    inputs = {"x": normal(2, 4, 6, 6, seed=seed), "z": normal(2, 4, 6, 6, seed=seed + 1)}
    assert_within_one_code(model, result, inputs, np.float32(scale))


@pytest.mark.parametrize(
    ("op_type", "attributes", "counterpart"),
    [
        ("Sigmoid", {}, "QLinearSigmoid"),
        ("LeakyRelu", {"alpha": 0.1}, "QLinearLeakyRelu"),
        ("GlobalAveragePool", {}, "QLinearGlobalAveragePool"),
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}, "QLinearAveragePool"),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}, "QLinearAveragePool"),
    ],
)
def test_one_image(op_type, attributes, counterpart):
    # Scales whose ratio is no simple fraction: means of codes then seldom fall on the middle between two.
    model = paired(op_type, scales=(0.0307, 0.0101), zero_points=(128, 77), **attributes)
    result, count = joined(model)
    assert (count, operators(result)[op_type], operators(result)[counterpart]) == (1, 0, 1)
    assert_within_one_code(model, result, {"x": normal(3, 4, 6, 6)}, np.float32(0.0101))


@pytest.mark.parametrize("axes", [(2, 3), (-1, -2)])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_mean_over_the_image_is_a_pool(axes, keepdims):
    model = paired("ReduceMean", constants={"axes": np.int64(axes)}, scales=(0.0307, 0.0101), keepdims=keepdims)
    result, count = joined(model)
    assert (count, operators(result)["QLinearGlobalAveragePool"], operators(result)["Squeeze"]) == (1, 1, 1 - keepdims)
    assert_within_one_code(model, result, {"x": normal(3, 4, 6, 6)}, np.float32(0.0101))


@pytest.mark.parametrize("axes", [(1, 2), (3,), (1, 2, 3)])
def test_other_means_stay(axes):
    model = paired("ReduceMean", constants={"axes": np.int64(axes)})
    assert joined(model)[1] == 0


def test_average_over_spread_patches_stays():
    model = paired("AveragePool", kernel_shape=[2, 2], dilations=[2, 2])
    assert joined(model)[1] == 0


@pytest.mark.parametrize("axis", [1, -1, 0])
def test_images_side_by_side(axis):
    model = paired("Concat", ("x", "z"), axis=axis, scales=(0.02, 0.03), zero_points=(100, 128))
    result, count = joined(model)
    assert (count, operators(result)["QLinearConcat"]) == (1, 1)
    inputs = {"x": normal(2, 4, 6, 6), "z": normal(2, 4, 6, 6, seed=1)}
    assert_within_one_code(model, result, inputs, np.float32(0.03))


MOVES = [
    ("MaxPool", None, {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("MaxPool", None, {"kernel_shape": [3, 3], "pads": [1] * 4}),
    ("Reshape", {"shape": np.int64([0, -1])}, {}),
    ("Flatten", None, {"axis": 1}),
    ("Transpose", None, {"perm": [0, 2, 3, 1]}),
    ("Unsqueeze", {"axes": np.int64([0])}, {}),
]


@pytest.mark.parametrize(("op_type", "constants", "attributes"), MOVES)
def test_what_moves_values_moves_codes(op_type, constants, attributes):
    model = paired(op_type, constants=constants, **attributes)
    result, count = joined(model)
    assert count == 1
    assert (operators(result)["QuantizeLinear"], operators(result)["DequantizeLinear"]) == (1, 1)
    inputs = {"x": normal(2, 4, 6, 6)}
    np.testing.assert_array_equal(run(result, inputs)["y"], run(model, inputs)["y"])


@pytest.mark.parametrize(("scales", "zero_points"), [((0.05, 0.04), (128, 128)), ((0.05, 0.05), (128, 127))])
def test_codes_of_another_grid_are_not_moved(scales, zero_points):
    model = paired("MaxPool", kernel_shape=[2, 2], scales=scales, zero_points=zero_points)
    assert joined(model)[1] == 0


def test_value_that_is_read_in_float_too_stays():
    model = paired("Add", ("x", "z"))
    inner = next(each for each in model.graph if each.op_type == "Add").outputs[0]
    model.graph.outputs.append(inner)
    assert joined(model)[1] == 0


def test_input_without_a_pair_stays():
    model = paired("Add", ("x", "z"))
    add = next(each for each in model.graph if each.op_type == "Add")
    add.replace_input_with(1, model.graph.inputs[1])
    assert joined(model)[1] == 0


def test_scales_per_channel_stay():
    model = paired("Add", ("x", "z"))
    for name, array in (("s0", np.full(4, 0.05, np.float32)), ("z0", np.full(4, 128, np.uint8))):
        set_initializer(model.graph.initializers[name], array)
    assert joined(model)[1] == 0


def test_runtime_joins_the_same():
    """Where the runtime joins a sum itself, it runs the same kernel: codes are equal bit for bit."""
    model = paired("Add", ("x", "z"), scales=(0.02, 0.04))
    assert executed_operators(model)["QLinearAdd"] == 1
    result, _ = joined(model)
    inputs = {"x": normal(2, 4, 6, 6), "z": normal(2, 4, 6, 6, seed=1)}
    np.testing.assert_array_equal(run(result, inputs)["y"], run(model, inputs, "all")["y"])
    assert join_integer_convolutions(result.graph) == 0
    assert constant_scalar(result.graph.initializers["s2"]) == np.float32(0.04)


def test_bound_behind_a_sum_is_absorbed_where_codes_saturate_alike():
    nodes = [node("Conv", ["x", "a"], "c"), node("Conv", ["c", "b"], "d"), node("Add", ["c", "d"], "s")]
    nodes += [node("Relu", ["s"], "r"), node("Conv", ["r", "a"], "e"), node("Add", ["r", "e"], "t")]
    nodes += [node("Relu", ["t"], "u"), node("Conv", ["u", "b"], "y")]
    weights = {"a": normal(4, 4, 1, 1), "b": normal(4, 4, 1, 1, seed=1)}
    model = graph(nodes, weights, IMAGE)
    quantized = quantize(model, {"x": normal(8, 4, 6, 6)})
    join_integer_convolutions(quantized.graph)
    result, count = joined(quantized)
    assert (count, operators(result)["Relu"], operators(result)["QLinearAdd"]) == (2, 0, 2)
    assert (operators(result)["QuantizeLinear"], operators(result)["DequantizeLinear"]) == (1, 1)
    inputs = {"x": normal(3, 4, 6, 6, seed=1)}
    assert sqnr(run(model, inputs)["y"], run(result, inputs)["y"]) > 25
