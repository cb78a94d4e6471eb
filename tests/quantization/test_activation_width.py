"""Activations of 16 bits beside weights of 8: what is written, when it is chosen, and who refuses it."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.sample import sample_inputs
from edgesmith.execution.torch_graph import TorchGraph
from edgesmith.frontends.fixed_dimensions import fix_dimensions
from edgesmith.host.dialect import TensorFormat
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from edgesmith_onnxruntime.qnn.target import AndroidQnn
from edgesmith_quantization.finding.activation_width import multiplies_activations
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.quantize_int8 import QuantizeInt8
from edgesmith_quantization.repair.smoothing import ChannelSummary, expected_noise
from edgesmith_quantization.statistics.activation_ranges import HEADROOM_DB, ObservedRange, with_headroom
from small_graphs import SIGNED, context, graph, node, quantize, run, sqnr

QUALCOMM = AndroidQnn().dialect
PLAIN = {"smoothing": False, "outlier_channels": 0, "bias_correction": False}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def product():
    return graph([node("MatMul", ["x", "w"], "y")], {"w": normal(32, 8)}, {"x": ["n", 32]})


DATA = {"x": normal(64, 32, seed=1)}


def pair_of(model, name):
    """Return scale and zero point of the pair on a value."""
    (quantizer,) = [each for each in model.graph if each.op_type == "QuantizeLinear" and each.inputs[0].name == name]
    return tuple(value.const_value.numpy() for value in quantizer.inputs[1:3])


def test_the_graph_computes_with_the_codes_of_the_formula_bit_for_bit():
    model = quantize(product(), DATA, QUALCOMM, activation_bits=16, **PLAIN)
    assert model.graph.opset_imports[""] == 21
    quantizer = next(each for each in model.graph if each.op_type == "QuantizeLinear")
    codes, back = quantizer.outputs[0], next(iter(quantizer.outputs[0].uses())).node.outputs[0]
    scale, zero_point = pair_of(model, "x")
    assert zero_point.dtype == np.uint16 and scale.dtype == np.float32
    model.graph.outputs.extend([codes, back])
    x = normal(50, 32, seed=2) * 3  # reaches beyond what calibration saw: some codes saturate
    found = run(model, {"x": x})
    expected = np.clip(np.rint(x / scale) + int(zero_point), 0, 65535).astype(np.uint16)
    np.testing.assert_array_equal(found[codes.name], expected)
    rounded = (expected.astype(np.int32) - np.int32(zero_point)).astype(np.float32) * scale
    np.testing.assert_array_equal(found[back.name], rounded)
    assert {expected.min(), expected.max()} == {0, 65535}


def test_weights_keep_8_bits_and_biases_the_scale_of_the_products():
    model = graph([node("Gemm", ["x", "w", "b"], "y")], {"w": normal(32, 8), "b": normal(8)}, {"x": ["n", 32]})
    result = quantize(model, DATA, QUALCOMM, activation_bits=16, **PLAIN)
    codes = {name: value.const_value.numpy() for name, value in result.graph.initializers.items()}
    assert codes["w_quantized"].dtype == np.int8
    (bias,) = [name.removesuffix("_quantized") for name, each in codes.items() if each.dtype == np.int32 and each.any()]
    scale = codes[f"{bias}_scale"]
    np.testing.assert_array_equal(scale, codes["w_scale"] * pair_of(result, "x")[0])
    np.testing.assert_allclose(codes[f"{bias}_quantized"] * scale, normal(8), atol=0.51 * scale.max())
    # Rounded weights alone keep 40 dB here, and 15 bits of activation take nothing from that.
    assert sqnr(run(model, DATA)["y"], run(result, DATA)["y"]) > 38


def block_with_an_outlier_channel(factor=200.0):
    """One block of a transformer whose normalization raises a channel that the weights behind it leave out."""
    gain, weights = np.ones(32, np.float32), {name: normal(32, 32, seed=seed) / 6 for seed, name in enumerate("qkvo")}
    gain[3] = factor
    for name in "qkv":
        weights[name][3] = 0
    nodes = [
        node("LayerNormalization", ["x", "gain"], "n"),
        node("MatMul", ["n", "q"], "queries"),
        node("MatMul", ["n", "k"], "keys"),
        node("MatMul", ["n", "v"], "values"),
        node("Transpose", ["keys"], "turned", perm=[0, 2, 1]),
        node("MatMul", ["queries", "turned"], "scores"),
        node("Mul", ["scores", "size"], "scaled"),
        node("Softmax", ["scaled"], "shares"),
        node("MatMul", ["shares", "values"], "mixed"),
        node("MatMul", ["mixed", "o"], "made"),
        node("Add", ["x", "made"], "y"),
    ]
    return graph(nodes, {**weights, "gain": gain, "size": np.float32(32**-0.5)}, {"x": [1, 6, 32]})


def test_attention_with_an_outlier_channel_keeps_with_16_bits_what_8_lose():
    model = block_with_an_outlier_channel()
    unseen = {"x": normal(1, 6, 32, seed=9)}
    expected = run(model, unseen)["y"] - unseen["x"]
    decibels = {}
    for bits in (8, 16):
        result = quantize(model, {"x": normal(16, 6, 32, seed=8)}, QUALCOMM, activation_bits=bits, **PLAIN)
        decibels[bits] = sqnr(expected, run(result, unseen)["y"] - unseen["x"])
    # A step of 8 bits is as large as what the other channels hold; weights of 8 bits keep about 40 dB.
    assert decibels[8] < 10 and decibels[16] > 30, decibels


def test_16_bits_are_chosen_for_attention_where_the_target_has_them(tiny_bert, tiny_cnn):
    for model, bits in ((tiny_bert, 16), (tiny_cnn, 8)):
        fixed = fix_dimensions(model, {"batch": 1} | ({"sequence": 8} if model is tiny_bert else {}))
        data = sample_inputs(fixed.ir)
        used = context(QuantizeInt8Options(), data, QUALCOMM)
        result = QuantizeInt8().apply(fixed, used)
        types = {each.inputs[2].dtype for each in result.graph if each.op_type == "QuantizeLinear"}
        assert types == {ir.DataType.UINT16 if bits == 16 else ir.DataType.UINT8}
        assert any("activation_bits" in remark for remark in used.notes.remarks) == (bits == 16)
        assert any("activations of 16" in remark for remark in used.notes.remarks) == (bits == 16)
    narrow = quantize(tiny_bert, sample_inputs(tiny_bert.ir), SIGNED)
    assert {each.inputs[2].dtype for each in narrow.graph if each.op_type == "QuantizeLinear"} == {ir.DataType.INT8}


def test_a_product_with_a_computed_constant_is_no_product_of_activations():
    nodes = [node("Transpose", ["w"], "t"), node("MatMul", ["x", "t"], "y")]
    assert not multiplies_activations(graph(nodes, {"w": normal(8, 32)}, {"x": ["n", 32]}).graph)
    nodes = [node("Transpose", ["x"], "t"), node("MatMul", ["x", "t"], "y")]
    assert multiplies_activations(graph(nodes, {}, {"x": [4, 32]}).graph)


@pytest.mark.parametrize("name", ["onnx-cpu", "android-cpu", "jetson-orin-nano", "h100"])
def test_targets_without_such_products_refuse_and_say_what_works(name):
    _, target = find_target(load_registry(), name)
    verdict = QuantizeInt8().check(product(), context(QuantizeInt8Options(activation_bits=16), DATA, target.dialect))
    assert verdict.status == "refuse"
    assert "8 bits in integers" in verdict.reason and "activation_bits to 8" in verdict.reason
    assert QuantizeInt8().check(product(), context(QuantizeInt8Options(activation_bits=8), DATA, target.dialect)).nodes


def test_old_opsets_and_run_time_ranges_refuse_16_bits():
    asked = QuantizeInt8Options(activation_bits=16)
    verdict = QuantizeInt8().check(product(), context(asked, DATA, replace(QUALCOMM, opset=20)))
    assert verdict.status == "refuse" and "21" in verdict.reason
    dynamic = QuantizeInt8Options(activation_bits=16, mode="dynamic")
    verdict = QuantizeInt8().check(product(), context(dynamic, DATA, replace(QUALCOMM, dynamic=True)))
    assert verdict.status == "refuse" and "mode to static" in verdict.reason


def test_what_passes_values_on_shares_its_code():
    nodes = [
        node("MatMul", ["x", "w"], "m"),
        node("Transpose", ["m"], "t", perm=[0, 2, 1]),
        node("MatMul", ["t", "v"], "y"),
    ]
    model = graph(nodes, {"w": normal(32, 8), "v": normal(6, 5)}, {"x": ["n", 6, 32]})
    result = quantize(model, {"x": normal(16, 6, 32, seed=1)}, QUALCOMM, activation_bits=16, **PLAIN)
    assert pair_of(result, "m") == pair_of(result, "t")


def test_a_region_with_8_bits_stays_as_it_is():
    nodes = [node("MatMul", ["x", "w"], "m"), node("Tanh", ["m"], "r"), node("MatMul", ["r", "v"], "y")]
    model = graph(nodes, {"w": normal(32, 16), "v": normal(16, 5)}, {"x": ["n", 32]})
    first = quantize(model, DATA, QUALCOMM, activation_bits=8, only=("node_m",), **PLAIN)
    kept = pair_of(first, "x")
    used = context(QuantizeInt8Options(activation_bits=16, **PLAIN), DATA, QUALCOMM)
    both = QuantizeInt8().apply(first, used)
    assert pair_of(both, "x") == kept and kept[1].dtype == np.uint8
    assert "already quantized (uint8 x int8)" in used.notes.skipped["node_m"]
    wide = [each for each in both.graph if each.op_type == "QuantizeLinear" and each.inputs[2].dtype.bitwidth == 16]
    assert len(wide) == 2  # input and output of the other product
    verdict = QuantizeInt8().check(both, used)
    assert verdict.status == "skip" and "uint16 x int8" in verdict.reason
    assert sqnr(run(model, DATA)["y"], run(both, DATA)["y"]) > 30


def test_ranges_have_room_for_what_calibration_did_not_see():
    free = ir.Value(name="x")
    even = ObservedRange(-1.0, 3.0, 1000, 1.0)
    assert with_headroom(free, even, 16) == replace(even, low=-2.0, high=6.0)
    step = 4 / 65535
    coarse = replace(even, mean_square=step**2 / 12 * 10 ** (HEADROOM_DB / 10))
    assert with_headroom(free, coarse, 16).high == pytest.approx(3.0)
    assert with_headroom(free, ObservedRange(0.0, 0.0, 5, 0.0), 16).high == 0


def test_behind_a_clip_codes_end_where_it_does():
    nodes = [
        node("Conv", ["x", "w"], "c"),
        node("Clip", ["c", "low", "high"], "r"),
        node("Conv", ["r", "v"], "y"),
    ]
    weights = {"w": normal(4, 3, 1, 1), "v": normal(5, 4, 1, 1), "low": np.float32(0), "high": np.float32(1)}
    model = graph(nodes, weights, {"x": ["n", 3, 8, 8]})
    result = quantize(model, {"x": normal(4, 3, 8, 8)}, QUALCOMM, activation_bits=16, **PLAIN)
    scale, zero_point = pair_of(result, "r")
    assert zero_point == 0 and scale == np.float32(1 / 65535)


def test_torch_computes_what_the_runtime_does():
    model = quantize(product(), DATA, QUALCOMM, activation_bits=16, **PLAIN)
    import torch

    actual = TorchGraph(model.ir)({"x": torch.from_numpy(DATA["x"])})["y"].detach().numpy()
    step = float(next(each.inputs[1].const_value.numpy() for each in model.graph if each.outputs[0].name == "y"))
    # Sums are ordered differently, which may move a code by one.
    assert np.abs(actual - ReferenceSession(model.ir).run(DATA)["y"]).max() <= 1.01 * step


def test_expected_noise_with_16_bits_is_that_of_the_weights():
    seen = ChannelSummary(-np.ones(32), np.ones(32), np.zeros(32), np.full(32, 1 / 3))
    weights, ones = [normal(32, 8)], np.ones(32)
    steps = np.abs(weights[0]).max(axis=0) / 127
    of_weights = float(np.square(steps).sum()) / 12 * 32 / 3
    assert expected_noise(seen, weights, ones, 16) == pytest.approx(of_weights, rel=1e-3)
    assert expected_noise(seen, weights, ones) > 1.4 * of_weights


def test_formats_know_their_bits():
    bits = {dtype: TensorFormat(dtype, symmetric=False).bits for dtype in ("int8", "uint8", "int16", "uint16")}
    assert bits == {"int8": 8, "uint8": 8, "int16": 16, "uint16": 16}
