"""Static quantization: the graph that comes out, what it computes, and what ONNX Runtime makes of it."""

import numpy as np
import onnx_ir as ir
import pytest

from edgesmith.errors import DataError
from edgesmith.execution.sample import sample_inputs
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.quantize_int8 import QuantizeInt8
from small_graphs import (
    SIGNED,
    context,
    executed_operators,
    graph,
    lower,
    node,
    operators,
    quantize,
    run,
    sqnr,
    strip_quantization,
)


def normal(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def projections():
    """Query, key and value products of one activation, then a product of two activations."""
    nodes = [node("MatMul", ["x", f"w{i}"], f"p{i}") for i in "qkv"]
    nodes += [node("Transpose", ["pk"], "kt", perm=[0, 2, 1]), node("MatMul", ["pq", "kt"], "scores")]
    nodes += [node("MatMul", ["scores", "pv"], "mixed"), node("MatMul", ["mixed", "wo"], "y")]
    weights = {f"w{name}": normal(16, 16, seed=i, scale=0.25) for i, name in enumerate("qkvo")}
    return graph(nodes, weights, {"x": ["batch", 6, 16]})


def test_shared_activation_has_one_pair_and_attention_products_stay():
    model, used = projections(), context(QuantizeInt8Options(), {"x": normal(4, 6, 16)})
    result = QuantizeInt8().apply(model, used)
    assert operators(result)["QuantizeLinear"] == 2  # x once, mixed once
    assert operators(result)["MatMul"] == 6
    assert used.notes.skipped == {
        "node_scores": "both inputs are activations",
        "node_mixed": "both inputs are activations",
    }
    assert operators(model) == operators(projections())  # the input is not edited


def test_shared_weight_is_stored_once():
    nodes = [node("MatMul", ["x", "w"], "a"), node("Tanh", ["a"], "t"), node("MatMul", ["t", "w"], "y")]
    result = quantize(graph(nodes, {"w": normal(8, 8)}, {"x": ["n", 8]}), {"x": normal(16, 8)})
    stored = [v.const_value for v in result.graph.initializers.values() if v.const_value.dtype == ir.DataType.INT8]
    assert sum(tensor.size == 64 for tensor in stored) == 1
    assert "w" not in result.graph.initializers


def test_weight_that_something_else_reads_stays_in_float_too():
    nodes = [node("Gather", ["w", "ids"], "e"), node("MatMul", ["e", "w"], "y")]
    types = {"ids": ir.DataType.INT64.value}
    model = graph(nodes, {"w": normal(8, 8)}, {"ids": ["n"]}, types=types)
    result = quantize(model, {"ids": np.arange(8)})
    assert "w" in result.graph.initializers
    assert sqnr(run(model, {"ids": np.arange(8)})["y"], run(result, {"ids": np.arange(8)})["y"]) > 30


def test_head_that_reads_the_embedding_transposed_is_quantized():
    nodes = [node("Gather", ["w", "ids"], "e"), node("Tanh", ["e"], "t")]
    nodes += [node("Transpose", ["w"], "wt", perm=[1, 0]), node("MatMul", ["t", "wt"], "y")]
    model = graph(nodes, {"w": normal(10, 8)}, {"ids": ["n"]}, types={"ids": ir.DataType.INT64.value})
    for mode in ("static", "dynamic"):
        result = quantize(model, {"ids": np.arange(10)}, mode=mode)
        assert sqnr(run(model, {"ids": np.arange(10)})["y"], run(result, {"ids": np.arange(10)})["y"]) > 30
        assert "Transpose" not in operators(result)
        scales = [v for v in result.graph.initializers.values() if v.name.startswith("w_scale")]
        assert [tuple(v.shape) for v in scales] == [(10,)]  # one per output channel


def test_exact_zeros_stay_zero():
    weight = normal(32, 16)
    weight[np.random.default_rng(1).random(weight.shape) < 0.5] = 0
    result = quantize(graph([node("MatMul", ["x", "w"], "y")], {"w": weight}, {"x": ["n", 32]}), {"x": normal(8, 32)})
    codes = result.graph.initializers["w_quantized"].const_value.numpy()
    assert (codes[weight == 0] == 0).all()
    assert (result.graph.initializers["w_zero_point"].const_value.numpy() == 0).all()
    np.testing.assert_array_equal(run(result, {"x": np.zeros((2, 32), np.float32)})["y"], np.zeros((2, 16)))


@pytest.mark.parametrize("estimator", ["min-max", "percentile", "mse", "entropy"])
def test_constant_and_zero_activations_and_weights(estimator):
    weights = {"w0": np.zeros((8, 8), np.float32), "w1": np.ones((8, 8), np.float32), "b": np.zeros(8, np.float32)}
    nodes = [node("MatMul", ["x", "w0"], "z"), node("Gemm", ["z", "w1", "b"], "g"), node("Add", ["g", "x"], "y")]
    model = graph(nodes, weights, {"x": ["n", 8]})
    data = {"x": np.full((4, 8), 2.5, np.float32)}
    result = quantize(model, data, range_estimator=estimator)
    np.testing.assert_array_equal(run(result, data)["y"], run(model, data)["y"])


def test_bias_much_larger_than_its_channel_keeps_its_value():
    weight = normal(8, 4)
    weight[:, 1] *= 1e-12
    bias = np.float32([0.1, 50, -0.2, 0])
    model = graph([node("Gemm", ["x", "w", "b"], "y")], {"w": weight, "b": bias}, {"x": ["n", 8]})
    data = {"x": normal(16, 8)}
    result = quantize(model, data)
    np.testing.assert_allclose(run(result, data)["y"][:, 1], 50, rtol=1e-6)
    assert sqnr(run(model, data)["y"][:, [0, 2, 3]], run(result, data)["y"][:, [0, 2, 3]]) > 30


@pytest.mark.parametrize("kind", ["Gemm", "Conv"])
def test_the_bias_of_a_channel_without_weights_is_not_rounded_to_steps_of_the_activation(kind):
    weight, bias = normal(8, 16), np.full(8, 0.011, np.float32)
    weight[3] = 0  # as pruning leaves it, or a normalization that trained to nothing
    if kind == "Conv":
        weight, data = weight[:, :, None, None], {"x": normal(8, 16, 4, 4)}
        model = graph([node("Conv", ["x", "w", "b"], "y")], {"w": weight, "b": bias}, {"x": ["n", 16, 4, 4]})
    else:
        data = {"x": normal(8, 16)}
        model = graph([node("Gemm", ["x", "w", "b"], "y", transB=1)], {"w": weight, "b": bias}, {"x": ["n", 16]})
    result = quantize(model, data, bias_correction=False)
    codes, scale = (
        next(v.const_value.numpy() for v in result.graph.initializers.values() if v.name.endswith(f"bias_{part}"))
        for part in ("quantized", "scale")
    )
    # To the nearest step, that of another channel: 8 / 255 for the activation times 2 / 127 for a weight, or less.
    assert abs(codes[3] * scale[3] - 0.011) <= 0.5 * scale[3] <= 0.5 * 8 / 255 * 2 / 127


def test_graph_output_of_a_convolution_keeps_its_name():
    model = graph([node("Conv", ["x", "w"], "y")], {"w": normal(4, 3, 3, 3)}, {"x": ["n", 3, 8, 8]})
    data = {"x": normal(4, 3, 8, 8)}
    result = quantize(model, data)
    assert [value.name for value in result.graph.outputs] == ["y"]
    assert sqnr(run(model, data)["y"], run(result, data)["y"]) > 25
    assert executed_operators(result)["QLinearConv"] == 1


@pytest.mark.parametrize("bounds", [("Relu", ()), ("Clip", ("zero", "six")), ("Clip", ("minus", "six"))])
def test_convolution_with_a_bounded_output_runs_in_integers(bounds):
    operator, limits = bounds
    nodes = [node("Conv", ["x", "w", "b"], "c", pads=[1, 1, 1, 1]), node(operator, ["c", *limits], "r")]
    nodes += [node("Conv", ["r", "v"], "y", group=8)]
    weights = {"w": normal(8, 3, 3, 3), "b": normal(8), "v": normal(8, 1, 3, 3)}
    weights |= {"zero": np.float32(0), "six": np.float32(6), "minus": np.float32(-1)}
    model = graph(nodes, {k: v for k, v in weights.items() if k in {"w", "b", "v", *limits}}, {"x": ["n", 3, 8, 8]})
    data = {"x": normal(8, 3, 8, 8)}
    result = quantize(model, data, range_estimator="min-max")
    assert executed_operators(result)["QLinearConv"] == 2
    assert sqnr(run(model, data)["y"], run(result, data)["y"]) > 25


def test_residual_addition_between_convolutions_runs_in_integers():
    nodes = [node("Conv", ["x", "a"], "c0"), node("Conv", ["c0", "b"], "c1"), node("Add", ["c0", "c1"], "s")]
    nodes += [node("Conv", ["s", "c"], "y")]
    weights = {"a": normal(8, 3, 1, 1), "b": normal(8, 8, 1, 1), "c": normal(4, 8, 1, 1)}
    model = graph(nodes, weights, {"x": ["n", 3, 6, 6]})
    data = {"x": normal(8, 3, 6, 6)}
    result = quantize(model, data)
    executed = executed_operators(result)
    assert (executed["QLinearConv"], executed["QLinearAdd"], executed["Add"]) == (3, 1, 0)
    assert sqnr(run(model, data)["y"], run(result, data)["y"]) > 25


def test_residual_addition_beside_matrix_products_reads_the_float_value():
    nodes = [node("MatMul", ["x", "a"], "m"), node("Add", ["m", "x"], "s"), node("MatMul", ["s", "b"], "y")]
    model = graph(nodes, {"a": normal(8, 8), "b": normal(8, 8)}, {"x": ["n", 8]})
    result = quantize(model, {"x": normal(16, 8)})
    added = next(each for each in result.graph if each.op_type == "Add")
    assert [value.name for value in added.inputs] == ["m", "x"]


def test_pooling_shares_the_scale_of_its_input():
    nodes = [node("Conv", ["x", "a"], "c"), node("MaxPool", ["c"], "p", kernel_shape=[2, 2], strides=[2, 2])]
    nodes += [node("Conv", ["p", "b"], "y")]
    model = graph(nodes, {"a": normal(8, 3, 1, 1), "b": normal(4, 8, 1, 1)}, {"x": ["n", 3, 8, 8]})
    result = quantize(model, {"x": normal(4, 3, 8, 8)})
    # Their channels were balanced, so both are other values than before and have other names.
    scales = {name: result.graph.initializers[f"{name}_scaled_scale"].const_value.numpy() for name in "cp"}
    assert scales["c"] == scales["p"]
    executed = executed_operators(result)
    assert executed["QLinearConv"] == 2
    assert executed["DequantizeLinear"] == 1  # of the result only


def test_nan_inside_the_model_names_the_tensor():
    nodes = [node("Log", ["x"], "logarithm"), node("MatMul", ["logarithm", "w"], "y")]
    model = graph(nodes, {"w": normal(4, 4)}, {"x": ["n", 4]})
    with pytest.raises(DataError, match=r"logarithm.*NaN"):
        quantize(model, {"x": np.full((2, 4), -1, np.float32)})


def test_nan_in_the_data_names_the_input():
    model = graph([node("MatMul", ["x", "w"], "y")], {"w": normal(4, 4)}, {"x": ["n", 4]})
    with pytest.raises(DataError, match=r"'x'.*NaN"):
        quantize(model, {"x": np.full((2, 4), np.nan, np.float32)})


def test_signed_dialect_has_zero_points_of_zero_and_float_biases():
    nodes = [node("Conv", ["x", "w", "b"], "c"), node("Relu", ["c"], "r"), node("Conv", ["r", "v"], "y")]
    weights = {"w": normal(8, 3, 3, 3), "b": normal(8), "v": normal(8, 8, 3, 3)}
    model = graph(nodes, weights, {"x": ["n", 3, 8, 8]})
    data = {"x": normal(4, 3, 8, 8)}
    result = quantize(model, data, dialect=SIGNED, range_estimator="min-max", smoothing=False, bias_correction=False)
    for value in result.graph.initializers.values():
        if value.name.endswith("_zero_point"):
            assert value.const_value.dtype == ir.DataType.INT8
            assert (value.const_value.numpy() == 0).all()
    assert "b" in result.graph.initializers
    assert operators(result)["QuantizeLinear"] == 2  # inputs only, no outputs
    assert sqnr(run(model, data)["y"], run(result, data)["y"]) > 25


def test_per_tensor_weights_and_reduced_range():
    weight = normal(16, 8)
    model = graph([node("Gemm", ["x", "w", "b"], "y")], {"w": weight, "b": normal(8)}, {"x": ["n", 16]})
    data = {"x": normal(32, 16)}
    result = quantize(model, data, per_channel=False, reduce_range=True)
    codes = result.graph.initializers["w_quantized"].const_value.numpy()
    assert np.abs(codes.astype(int)).max() == 63
    assert result.graph.initializers["w_scale"].const_value.shape.rank() == 0
    assert sqnr(run(model, data)["y"], run(result, data)["y"]) > 25
    assert executed_operators(result)["QGemm"] == 1


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_vit", "tiny_gpt2", "tiny_cnn"])
def test_whole_models_run_in_integers_and_stay_close(fixture, request):
    model = request.getfixturevalue(fixture)
    samples = [sample_inputs(model.ir, seed=seed) for seed in range(4)]
    data = {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}
    result = quantize(model, data)
    products = [each for each in result.graph if each.op_type in ("MatMul", "Gemm", "Conv")]
    quantized = sum(each.inputs[1].name.endswith("dequantize_output") for each in products)
    # Attention multiplies two activations; a patch embedding is left alone, since only floats follow it.
    assert quantized == len(products) - 2 * operators(model)["Softmax"] - (fixture == "tiny_vit")
    executed = executed_operators(lower(result, data))
    kernels = executed["MatMulIntegerToFloat"] + executed["QGemm"] + executed["QLinearConv"]
    assert kernels == quantized
    for name, reference in run(model, samples[0]).items():
        assert sqnr(reference, run(result, samples[0])[name]) > 30


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_cnn"])
def test_without_its_pairs_the_graph_is_the_original(fixture, request):
    model = request.getfixturevalue(fixture)
    inputs = sample_inputs(model.ir)
    stripped = strip_quantization(quantize(model, inputs, smoothing=False, bias_correction=False), model)
    for name, reference in run(model, inputs).items():
        np.testing.assert_allclose(run(stripped, inputs)[name], reference, rtol=1e-5, atol=1e-6)
