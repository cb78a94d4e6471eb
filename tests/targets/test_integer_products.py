"""Q/DQ products become ONNX Runtime's integer operators, with equal outputs."""

import numpy as np
import onnx_ir as ir
import pytest

from edgesmith_onnxruntime.integer_products import join_integer_products
from small_graphs import executed_operators, graph, node, operators, quantize, run


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def joined(model):
    copy = model.clone()
    return copy, join_integer_products(copy.graph)


def assert_equal(model, result, inputs):
    np.testing.assert_allclose(run(result, inputs)["y"], run(model, inputs)["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("shape", [(12, 8), (3, 4, 8), (2, 2, 3, 8)])
def test_matmul_takes_its_bias_in(shape, per_channel):
    nodes = [node("MatMul", ["x", "w"], "m"), node("Add", ["b", "m"], "y")]
    model = graph(nodes, {"w": normal(8, 6), "b": normal(6)}, {"x": list(shape)})
    quantized = quantize(model, {"x": normal(*shape)}, per_channel=per_channel)
    result, count = joined(quantized)
    assert (count, operators(result)["Add"]) == (1, 0)
    assert operators(result)["MatMulIntegerToFloat"] == 1
    assert_equal(quantized, result, {"x": normal(*shape, seed=1)})


def test_bias_of_another_form_stays_outside():
    nodes = [node("MatMul", ["x", "w"], "m"), node("Add", ["m", "b"], "y")]
    model = graph(nodes, {"w": normal(8, 6), "b": normal(12, 1)}, {"x": [12, 8]})
    quantized = quantize(model, {"x": normal(12, 8)})
    result, _ = joined(quantized)
    assert operators(result)["Add"] == 1
    assert_equal(quantized, result, {"x": normal(12, 8, seed=1)})


def test_product_that_others_read_before_the_bias_keeps_it_outside():
    nodes = [node("MatMul", ["x", "w"], "m"), node("Add", ["m", "b"], "a"), node("Mul", ["a", "m"], "y")]
    model = graph(nodes, {"w": normal(8, 6), "b": normal(6)}, {"x": [12, 8]})
    quantized = quantize(model, {"x": normal(12, 8)})
    result, _ = joined(quantized)
    assert operators(result)["Add"] == 1
    assert_equal(quantized, result, {"x": normal(12, 8, seed=1)})


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_gemm(transposed, bias, per_channel):
    weight = normal(6, 8) if transposed else normal(8, 6)
    nodes = [node("Gemm", ["x", "w", "b"] if bias else ["x", "w"], "y", transB=transposed)]
    model = graph(nodes, {"w": weight, "b": normal(6)} if bias else {"w": weight}, {"x": ["n", 8]})
    quantized = quantize(model, {"x": normal(12, 8)}, per_channel=per_channel)
    result, count = joined(quantized)
    assert (count, operators(result)["QGemm"], operators(result)["Gemm"]) == (1, 1, 0)
    assert_equal(quantized, result, {"x": normal(12, 8, seed=1)})


def test_gemm_read_quantized_and_not_runs_in_integers():
    nodes = [node("Gemm", ["x", "w"], "g"), node("Gemm", ["g", "w"], "h"), node("Add", ["g", "h"], "y")]
    model = graph(nodes, {"w": normal(8, 8)}, {"x": ["n", 8]})
    quantized = quantize(model, {"x": normal(12, 8)})
    assert executed_operators(quantized)["QGemm"] == 1  # what ONNX Runtime does alone
    result, _ = joined(quantized)
    assert executed_operators(result)["QGemm"] == 2


def test_bias_of_a_foreign_scale_is_left_to_the_runtime():
    model = graph([node("Gemm", ["x", "w", "b"], "y")], {"w": normal(8, 6), "b": normal(6)}, {"x": ["n", 8]})
    quantized = quantize(model, {"x": normal(12, 8)})
    scale = next(v for v in quantized.graph.initializers.values() if v.name.endswith("bias_scale"))
    scale.const_value = ir.tensor(scale.const_value.numpy() * np.float32(2))
    result, count = joined(quantized)
    assert count == 0
    assert_equal(quantized, result, {"x": normal(12, 8)})


def test_float_graph_is_left_alone():
    model = graph([node("MatMul", ["x", "w"], "y")], {"w": normal(8, 6)}, {"x": ["n", 8]})
    result, count = joined(model)
    assert (count, operators(result)) == (0, operators(model))
    assert "com.microsoft" not in result.graph.opset_imports
