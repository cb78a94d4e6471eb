"""Integer convolutions and what stands between them work with channels last, code for code as before."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.execution.sample import sample_inputs
from edgesmith_onnxruntime.channels_last import keep_channels_last
from edgesmith_onnxruntime.integer_convolutions import join_integer_convolutions
from edgesmith_onnxruntime.integer_operators import join_integer_operators
from small_graphs import executed_operators, graph, node, operators, quantize, run, sqnr


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def integer_graph(nodes, weights, size=(8, 8), outputs=("y",)):
    """Return a quantized graph over images of 4 channels, written with integer operators and channels first."""
    model = graph(nodes, weights, {"x": ["n", 4, *size]}, outputs)
    quantized = quantize(model, {"x": normal(8, 4, *size)}, range_estimator="min-max")
    join_integer_convolutions(quantized.graph)
    join_integer_operators(quantized.graph)
    return quantized


def assert_equal_with_channels_last(model, *, transposes, size=(8, 8)):
    result = model.clone()
    converted = keep_channels_last(result.graph)
    inputs = {"x": normal(3, 4, *size, seed=1)}
    found = run(result, inputs)
    for name, expected in run(model, inputs).items():
        np.testing.assert_array_equal(found[name], expected)
    assert operators(result)["Transpose"] == transposes
    assert all(value.name for each in result.graph for value in each.outputs)
    return result, converted


def weights(*names, outputs=4):
    return {name: normal(outputs, 4, 1, 1, seed=i) for i, name in enumerate(names)}


def test_chain_is_transposed_once_at_each_end():
    nodes = [node("Conv", ["x", "a"], "c"), node("Relu", ["c"], "r"), node("Conv", ["r", "b"], "y")]
    result, converted = assert_equal_with_channels_last(integer_graph(nodes, weights("a", "b")), transposes=2)
    assert converted == 2
    assert {each.domain for each in result.graph if each.op_type == "QLinearConv"} == {"com.microsoft"}
    assert [value.name for value in result.graph.outputs] == ["y"]


def test_residual_sum_follows():
    nodes = [node("Conv", ["x", "a"], "p"), node("Conv", ["p", "b"], "q"), node("Add", ["p", "q"], "s")]
    nodes += [node("Conv", ["s", "c"], "y")]
    model = integer_graph(nodes, weights("a", "b", "c"))
    _, converted = assert_equal_with_channels_last(model, transposes=2)
    assert converted == 4


def test_sum_with_an_image_that_no_convolution_made_stays():
    nodes = [node("Transpose", ["x"], "t", perm=[0, 1, 3, 2]), node("Conv", ["t", "a"], "p")]
    nodes += [node("Conv", ["x", "b"], "q"), node("Add", ["p", "q"], "s"), node("Conv", ["s", "c"], "y")]
    model = integer_graph(nodes, weights("a", "b", "c"))
    assert_equal_with_channels_last(model, transposes=1 + 3)


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_images_side_by_side(axis):
    nodes = [node("Conv", ["x", "a"], "p"), node("Conv", ["x", "b"], "q"), node("Concat", ["p", "q"], "s", axis=axis)]
    shape = {"c": normal(2, 8 if axis == 1 else 4, 1, 1)}
    model = integer_graph([*nodes, node("Conv", ["s", "c"], "y")], weights("a", "b") | shape)
    _, converted = assert_equal_with_channels_last(model, transposes=2)
    assert converted == 4


@pytest.mark.parametrize(
    ("op_type", "attributes", "counterpart"),
    [
        ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}, "NhwcMaxPool"),
        ("MaxPool", {"kernel_shape": [2, 2], "ceil_mode": 1, "strides": [2, 2]}, "NhwcMaxPool"),
        ("AveragePool", {"kernel_shape": [2, 3], "strides": [2, 2]}, "QLinearAveragePool"),
        ("GlobalAveragePool", {}, "QLinearGlobalAveragePool"),
    ],
)
def test_pools_follow(op_type, attributes, counterpart):
    nodes = [node("Conv", ["x", "a"], "p"), node(op_type, ["p"], "q", **attributes), node("Conv", ["q", "b"], "y")]
    result, converted = assert_equal_with_channels_last(
        integer_graph(nodes, weights("a", "b"), (7, 9)), transposes=2, size=(7, 9)
    )
    assert (converted, operators(result)[counterpart]) == (3, 1)


def pooled_head(*join, shape=None):
    nodes = [
        node("Conv", ["x", "a"], "p"),
        node("GlobalAveragePool", ["p"], "g"),
        *join,
        node("MatMul", ["f", "w"], "y"),
    ]
    constants = {"a": normal(64, 4, 1, 1), "w": normal(64, 5)} | ({} if shape is None else {"shape": np.int64(shape)})
    return integer_graph(nodes, constants)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: pooled_head(node("Flatten", ["g"], "f")), id="flatten"),
        pytest.param(lambda: pooled_head(node("Reshape", ["g", "shape"], "f"), shape=[0, -1]), id="reshape"),
        pytest.param(lambda: pooled_head(node("Reshape", ["g", "shape"], "f"), shape=[-1, 64]), id="reshape-known"),
        pytest.param(lambda: pooled_head(node("Squeeze", ["g", "shape"], "f"), shape=[-1, 2]), id="squeeze"),
    ],
)
def test_head_reads_points_without_a_transpose(model):
    assert_equal_with_channels_last(model(), transposes=1)


def test_reshape_that_keeps_the_axis_of_channels_reads_channels_first():
    model = pooled_head(node("Reshape", ["g", "shape"], "f"), shape=[-1, 0])
    assert_equal_with_channels_last(model, transposes=2)


def test_squeeze_and_excitation_follows():
    nodes = [node("Conv", ["x", "a"], "p"), node("GlobalAveragePool", ["p"], "g"), node("Conv", ["g", "b"], "h")]
    nodes += [node("Relu", ["h"], "r"), node("Conv", ["r", "c"], "e"), node("Sigmoid", ["e"], "f")]
    nodes += [node("Mul", ["p", "f"], "m"), node("Conv", ["m", "d"], "y")]
    model = integer_graph(nodes, weights(*"abcd"))
    result, _ = assert_equal_with_channels_last(model, transposes=2)
    assert set(operators(result)) & {"Conv", "Mul", "Sigmoid", "GlobalAveragePool"} == set()


def test_convolutions_over_sequences_and_volumes_stay():
    for size in ((9,), (4, 4, 4)):
        model = integer_graph([node("Conv", ["x", "a"], "y")], {"a": normal(4, 4, *[1] * len(size))}, size)
        assert keep_channels_last(model.graph) == 0


def test_float_graph_stays():
    model = graph([node("Conv", ["x", "a"], "y")], weights("a"), {"x": ["n", 4, 8, 8]})
    assert keep_channels_last(model.graph) == 0


def test_output_in_the_middle_keeps_its_layout():
    nodes = [node("Conv", ["x", "a"], "p"), node("Conv", ["p", "b"], "y")]
    model = integer_graph(nodes, weights("a", "b"), outputs=("p", "y"))
    result, _ = assert_equal_with_channels_last(model, transposes=3)
    assert [value.name for value in result.graph.outputs] == ["p", "y"]


def test_runtime_adds_no_transposes():
    nodes = [node("Conv", ["x", "a"], "p"), node("Relu", ["p"], "r"), node("Conv", ["r", "b"], "y")]
    model = integer_graph(nodes, weights("a", "b"))
    keep_channels_last(model.graph)
    assert executed_operators(model)["Transpose"] == 2


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(["conv", "relu", "pool", "add", "sigmoid"]), min_size=1, max_size=6), st.integers(0, 9))
def test_random_chains(parts, seed):
    """Each part reads the newest image, sums also an older one of the same size: all codes stay as they were."""
    nodes, constants, value, older = [node("Conv", ["x", "w"], "v0")], {"w": normal(4, 4, 1, 1, seed=seed)}, "v0", "v0"
    for index, part in enumerate(parts, start=1):
        new = f"v{index}"
        if part == "conv":
            constants[f"w{index}"] = normal(4, 4, 3, 3, seed=seed + index)
            nodes.append(node("Conv", [value, f"w{index}"], new, pads=[1] * 4))
        elif part == "pool":
            nodes.append(node("MaxPool", [value], new, kernel_shape=[3, 3], pads=[1] * 4))
        elif part == "add":
            nodes.append(node("Add", [value, older], new))
        else:
            nodes.append(node({"relu": "Relu", "sigmoid": "Sigmoid"}[part], [value], new))
        value, older = new, value
    model = integer_graph([*nodes, node("Conv", [value, "w"], "y")], constants)
    result = model.clone()
    keep_channels_last(result.graph)
    inputs = {"x": normal(2, 4, 8, 8, seed=seed)}
    np.testing.assert_array_equal(run(result, inputs)["y"], run(model, inputs)["y"])


def test_whole_network_needs_two_transposes_and_one_pair(tiny_cnn):
    model = tiny_cnn
    inputs = sample_inputs(model.ir)
    quantized = quantize(model, inputs)
    join_integer_convolutions(quantized.graph)
    join_integer_operators(quantized.graph)
    result = quantized.clone()
    keep_channels_last(result.graph)
    for name, expected in run(quantized, inputs).items():
        np.testing.assert_array_equal(run(result, inputs)[name], expected)
        assert sqnr(run(model, inputs)[name], expected) > 25
    assert operators(result)["Transpose"] <= 2
    ir.to_proto(result.ir)
