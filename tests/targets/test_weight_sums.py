"""Weights stored as sums of parts: one product, added up while ONNX Runtime loads the graph."""

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from edgesmith_onnxruntime.weight_sums import lower_weight_sums
from edgesmith_quantization.options.split import QuantizeSplitOptions
from edgesmith_quantization.quantize_split import QuantizeSplit
from small_graphs import context, executed_operators, graph, lower, node, operators, run


def laplace(*shape, seed=0):
    return np.random.default_rng(seed).laplace(0, 0.05, shape).astype(np.float32)


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def split(model, **options):
    return QuantizeSplit().apply(model, context(QuantizeSplitOptions(**{"least_gain_db": 0.0, "bits": 4, **options})))


def joined(model):
    copy = model.clone()
    return copy, lower_weight_sums(copy.graph)


def two_products():
    nodes = [node("MatMul", ["x", "w"], "h"), node("Gemm", ["h", "v", "b"], "y", transB=1, alpha=0.5, beta=2.0)]
    weights = {"w": laplace(32, 48), "v": laplace(40, 48, seed=2), "b": normal(40)}
    return graph(nodes, weights, {"x": ["n", 32]})


def two_convolutions():
    nodes = [
        node("Conv", ["x", "w", "b"], "h", group=2, strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Conv", ["h", "v"], "y"),
    ]
    weights = {"w": laplace(16, 4, 3, 3), "b": normal(16), "v": laplace(64, 16, 1, 1, seed=2)}
    return graph(nodes, weights, {"x": ["n", 8, 10, 10]})


MODELS = {"products": (two_products, (4, 32)), "convolutions": (two_convolutions, (2, 8, 10, 10))}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "options", [{"bits": 2}, {"bits": 4, "block_size": 16}, {"bits": 8, "form": "merged"}], ids=str
)
def test_one_product_is_left_and_computes_the_same(name, options):
    make, shape = MODELS[name]
    model, x = split(make(), **options), normal(*shape)
    result, count = joined(model)
    assert count == 2
    assert operators(result)["DequantizeLinear"] == 0
    assert sum(operators(result)[kind] for kind in ("MatMul", "Gemm", "Conv")) == 2
    expected, actual = run(model, {"x": x})["y"], run(result, {"x": x})["y"]
    # Two products in a row, whose terms are added in another order.
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", MODELS)
def test_onnx_runtime_adds_the_parts_once(name):
    make, _ = MODELS[name]
    result, _ = joined(split(make(), bits=2))
    left = executed_operators(result)
    assert not {"Cast", "Sub", "Mul", "Sum", "DequantizeLinear"} & set(left)


def test_the_file_keeps_the_codes():
    model = split(two_products(), bits=2)
    result, _ = joined(model)
    stored = {value.const_value.dtype for value in result.graph.initializers.values()}
    assert ir.DataType.UINT2 in stored
    sizes = [sum(v.const_value.nbytes for v in each.graph.initializers.values()) for each in (model, result)]
    # Scales and zero points become floats in a shape that goes with the codes; zero points had 2 bits.
    assert sizes[1] <= sizes[0] + 4 * 3 * (48 + 40)


def test_merged_weights_are_equal_bit_for_bit():
    model = graph([node("MatMul", ["x", "w"], "y")], {"w": laplace(48, 64)}, {"x": ["n", 48]})
    merged = split(model, form="merged")
    identity = np.eye(48, dtype=np.float32)
    result, _ = joined(merged)
    assert np.array_equal(run(merged, {"x": identity})["y"], run(result, {"x": identity})["y"])


def test_shared_parts_are_added_once():
    nodes = [node("MatMul", ["x", "w"], "h"), node("MatMul", ["h", "w"], "y")]
    model = split(graph(nodes, {"w": laplace(32, 32)}, {"x": ["n", 32]}))
    result, count = joined(model)
    assert count == 1
    assert operators(result)["Sum"] == 1
    x = normal(3, 32)
    expected = run(model, {"x": x})["y"]
    assert np.abs(run(result, {"x": x})["y"] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_weight_behind_a_transpose_is_joined_too():
    nodes = [node("Transpose", ["w"], "t", perm=[1, 0]), node("MatMul", ["x", "t"], "y")]
    model = split(graph(nodes, {"w": laplace(40, 32)}, {"x": ["n", 32]}))
    result, count = joined(model)
    assert count == 1
    x = normal(3, 32)
    expected = run(model, {"x": x})["y"]
    assert np.abs(run(result, {"x": x})["y"] - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "nodes",
    [
        [node("MatMul", ["x", "w"], "a"), node("MatMul", ["z", "v"], "b"), node("Sum", ["a", "b"], "y")],
        [node("MatMul", ["x", "w"], "a"), node("Relu", ["a"], "b"), node("Sum", ["a", "b"], "y")],
        [node("MatMul", ["x", "w"], "a"), node("MatMul", ["x", "v"], "b"), node("Sum", ["a", "b"], "y")],
    ],
    ids=["two inputs", "no product", "float weights"],
)
def test_other_sums_stay(nodes):
    model = graph(nodes, {"w": laplace(8, 8), "v": laplace(8, 8, seed=1)}, {"x": ["n", 8], "z": ["n", 8]})
    result, count = joined(model)
    assert count == 0
    assert operators(result) == operators(model)


@pytest.mark.parametrize("name", MODELS)
def test_split_biases_are_added_and_products_joined(name):
    make, shape = MODELS[name]
    model, x = split(make(), bits=2, bias="split"), normal(*shape)
    assert sum("b_part" in value for value in model.graph.initializers) == 3
    whole = joined(split(make(), bits=2))[0]
    result, count = joined(model)
    common_passes.RemoveUnusedNodesPass()(result.ir)
    assert count == 2
    assert operators(result) == operators(whole)
    assert not any("b_part" in value for value in result.graph.initializers)
    # Each value of the bias lies in one part, beside zeros, so that their sum is the bias itself.
    np.testing.assert_array_equal(run(result, {"x": x})["y"], run(whole, {"x": x})["y"])
    expected = run(model, {"x": x})["y"]
    assert np.abs(run(result, {"x": x})["y"] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_branches_with_two_computed_biases_or_unlike_attributes_stay_apart():
    nodes = [
        *(node("DequantizeLinear", [f"q{place}", "s"], f"w{place}") for place in range(2)),
        node("Gemm", ["x", "w0", "c"], "a"),
        node("Gemm", ["x", "w1", "c"], "b"),
        node("Sum", ["a", "b"], "y"),
    ]
    codes = {f"q{place}": np.full((8, 8), place, np.int8) for place in range(2)}
    weights = {**codes, "s": np.float32(0.5)}
    two_biases = graph(nodes, weights, {"x": ["n", 8], "c": [8]})
    assert operators(joined(two_biases)[0])["Gemm"] == 2
    nodes[2], nodes[3] = node("Gemm", ["x", "w0"], "a"), node("Gemm", ["x", "w1"], "b", alpha=0.5)
    assert operators(joined(graph(nodes, weights, {"x": ["n", 8]}))[0])["Gemm"] == 2


def test_half_precision_stays_as_it_is():
    half = {"x": TensorProto.FLOAT16, "y": TensorProto.FLOAT16}
    weights = {"w": laplace(32, 32).astype(np.float16)}
    model = split(graph([node("MatMul", ["x", "w"], "y")], weights, {"x": ["n", 32]}, types=half))
    assert joined(model)[1] == 0


def test_the_target_lowers_split_graphs():
    model, x = split(two_products(), bits=2), normal(4, 32)
    lowered = lower(model)
    assert operators(lowered)["DequantizeLinear"] == 0
    expected = run(model, {"x": x})["y"]
    assert np.abs(run(lowered, {"x": x}, "all")["y"] - expected).max() <= 1e-5 * np.abs(expected).max()


@settings(max_examples=20, deadline=None)
@given(
    st.integers(2, 40),
    st.integers(3, 40),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([2, 3, 4]),
    st.booleans(),
    st.sampled_from(["branches", "merged"]),
)
def test_any_shape(inputs, outputs, bits, parts, transposed, form):
    weight = laplace(outputs, inputs) if transposed else laplace(inputs, outputs)
    nodes = [node("Gemm", ["x", "w", "b"], "h", transB=int(transposed)), node("MatMul", ["h", "v"], "y")]
    weights = {"w": weight, "b": normal(outputs), "v": np.eye(outputs, dtype=np.float32)}
    model = split(graph(nodes, weights, {"x": ["n", inputs]}), bits=bits, parts=parts, form=form, only=("node_h",))
    result, count = joined(model)
    # A weight of few distinct values is one part, which is no sum.
    assert count == (operators(model)["Sum"] > 0)
    x = normal(3, inputs)
    expected, actual = run(model, {"x": x})["y"], run(result, {"x": x})["y"]
    bound = np.abs(x) @ np.abs(weight.T if transposed else weight) + np.abs(weights["b"])
    assert (np.abs(actual - expected) <= 1e-5 * (bound + 1)).all()
