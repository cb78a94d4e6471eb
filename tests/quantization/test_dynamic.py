"""Dynamic quantization: ranges computed at run time, no data."""

import numpy as np
import pytest

from edgesmith.execution.sample import sample_inputs
from small_graphs import executed_operators, graph, lower, node, operators, quantize, run, sqnr


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def close(model, result, inputs, decibels=30):
    expected, actual = run(model, inputs), run(result, inputs)
    assert list(expected) == list(actual)
    return all(sqnr(expected[name], actual[name]) > decibels for name in expected)


def test_products_of_one_activation_share_its_quantization():
    nodes = [node("MatMul", ["x", f"w{i}"], f"p{i}") for i in range(3)]
    model = graph(nodes, {f"w{i}": normal(8, 8, seed=i) for i in range(3)}, {"x": ["n", 8]}, ["p0", "p1", "p2"])
    result = quantize(model, None, mode="dynamic")
    assert operators(result)["DynamicQuantizeLinear"] == 1
    assert close(model, result, {"x": normal(5, 8)})


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_gemm(transposed, per_channel, bias):
    weight = normal(6, 8) if transposed else normal(8, 6)
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    weights = {"w": weight, "b": normal(6)} if bias else {"w": weight}
    model = graph([node("Gemm", inputs, "y", transB=transposed)], weights, {"x": ["n", 8]})
    result = quantize(model, None, mode="dynamic", per_channel=per_channel)
    assert close(model, result, {"x": normal(5, 8)})
    assert executed_operators(result)["DynamicQuantizeMatMul"] == 1


@pytest.mark.parametrize("group", [1, 8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_convolution(group, per_channel):
    attributes = {"pads": [1, 1, 1, 1], "strides": [2, 1], "group": group}
    weights = {"w": normal(8, 8 // group, 3, 3), "b": normal(8)}
    model = graph([node("Conv", ["x", "w", "b"], "y", **attributes)], weights, {"x": ["n", 8, 7, 7]})
    result = quantize(model, None, mode="dynamic", per_channel=per_channel)
    assert operators(result)["ConvInteger"] == 1
    assert close(model, result, {"x": normal(3, 8, 7, 7)})


def test_one_dimensional_convolution():
    model = graph([node("Conv", ["x", "w"], "y")], {"w": normal(4, 3, 5)}, {"x": ["n", 3, 20]})
    assert close(model, quantize(model, None, mode="dynamic"), {"x": normal(2, 3, 20)})


def test_zero_activations_and_weights():
    model = graph([node("MatMul", ["x", "w"], "y")], {"w": np.zeros((8, 4), np.float32)}, {"x": ["n", 8]})
    inputs = {"x": np.zeros((3, 8), np.float32)}
    np.testing.assert_array_equal(run(quantize(model, None, mode="dynamic"), inputs)["y"], np.zeros((3, 4)))


def test_inner_values_keep_their_names():
    nodes = [node("MatMul", ["x", "a"], "h"), node("Relu", ["h"], "r"), node("MatMul", ["r", "b"], "y")]
    model = graph(nodes, {"a": normal(8, 8), "b": normal(8, 4)}, {"x": ["n", 8]})
    names = {value.name for each in quantize(model, None, mode="dynamic").graph for value in each.outputs}
    assert {"h", "r", "y"} <= names


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_distilbert", "tiny_vit", "tiny_llama", "tiny_cnn"])
def test_whole_models(fixture, request):
    model = request.getfixturevalue(fixture)
    inputs = sample_inputs(model.ir)
    result = quantize(model, None, mode="dynamic")
    assert close(model, result, inputs)
    executed = executed_operators(lower(result))
    kernels = executed["MatMulIntegerToFloat"] + executed["DynamicQuantizeMatMul"] + executed["ConvInteger"]
    assert kernels == operators(result)["MatMulInteger"] + operators(result)["ConvInteger"]
