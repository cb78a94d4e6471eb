"""Weights stored as codes: trained through their quantizer, and codes of the same form afterwards."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from tests.recovery.recovery_models import context_for, perceptron, recover, samples, weights_of
from tests.small_graphs import SIGNED, graph, node

from edgesmith.execution.reference import ReferenceSession
from edgesmith.host.context import Context
from edgesmith.model import Model
from edgesmith_onnxruntime.cpu import DIALECT
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.options.weights import QuantizeWeightsOptions
from edgesmith_quantization.quantize_int8 import QuantizeInt8
from edgesmith_quantization.quantize_weights import QuantizeWeights
from edgesmith_recovery.finding.codes import refreeze, thaw
from edgesmith_recovery.recover import Recover

TRAIN = {"epochs": 15, "batch_size": 16, "learning_rate": 5e-3, "outputs": "mse"}


def plain(options: object, dialect=DIALECT) -> Context:
    context = context_for(None, samples(64))
    return replace(context, options=options, dialect=dialect)


def few_bits(source: Model) -> Model:
    """Return the source with its matrices in signed 3-bit codes, held in int8, one scale per output channel."""
    weights, nodes = {}, []
    arrays = {name: value.const_value.numpy() for name, value in source.graph.initializers.items()}
    for name, axis in (("w1", 0), ("w2", 1), ("w3", 0)):
        other = 1 - axis
        scale = np.abs(arrays[name]).max(axis=other) / 3
        spread = np.expand_dims(scale, other)
        weights[f"{name}_codes"] = np.clip(np.rint(arrays[name] / spread), -4, 3).astype(np.int8)
        weights[f"{name}_scale"] = scale.astype(np.float32)
        nodes.append(node("DequantizeLinear", [f"{name}_codes", f"{name}_scale"], name, axis=axis))
    weights["b1_codes"], weights["b1_scale"] = np.rint(arrays["b1"] / 1e-4).astype(np.int32), np.float32(1e-4)
    nodes += [
        node("DequantizeLinear", ["b1_codes", "b1_scale"], "b1"),
        node("Gemm", ["x", "w1", "b1"], "h1", transB=1),
        node("Relu", ["h1"], "r1"),
        node("MatMul", ["r1", "w2"], "m2"),
        node("Add", ["m2", "b2"], "h2"),
        node("Relu", ["h2"], "r2"),
        node("Gemm", ["r2", "w3", "b3"], "y", transB=1),
    ]
    return graph(nodes, {**weights, "b2": arrays["b2"], "b3": arrays["b3"]}, {"x": ["batch", 16]})


def gap(model: Model, source: Model) -> float:
    data = samples(200, seed=9)
    found, wanted = (ReferenceSession(each.ir).run(data)["y"] for each in (model, source))
    return float(np.square(found - wanted).mean())


@pytest.mark.parametrize("bits", [4, 8])
def test_thawing_and_freezing_again_changes_nothing(bits: int) -> None:
    model = QuantizeWeights().apply(perceptron(), plain(QuantizeWeightsOptions(bits=bits)))
    thawed = thaw(model.ir)
    data = samples(20)
    before, after = (ReferenceSession(each).run(data)["y"] for each in (model.ir, thawed.model))
    np.testing.assert_array_equal(before, after)
    assert thawed.rounded
    again = model.with_ir(refreeze(model.ir, thawed.model, thawed))
    assert again.digest() == model.digest()


def test_thawing_reads_32_bit_biases() -> None:
    model = few_bits(perceptron())
    thawed = thaw(model.ir)
    assert set(thawed.rounded) == {"w1_codes", "w2_codes", "w3_codes"} and set(thawed.biases) == {"b1_codes"}
    assert model.with_ir(refreeze(model.ir, thawed.model, thawed)).digest() == model.digest()


def test_a_graph_quantized_for_tensorrt_thaws_as_well() -> None:
    context = plain(QuantizeInt8Options(), SIGNED)
    model = QuantizeInt8().apply(perceptron(), context)
    thawed = thaw(model.ir)
    assert len(thawed.rounded) == 3
    assert model.with_ir(refreeze(model.ir, thawed.model, thawed)).digest() == model.digest()


@pytest.mark.parametrize("parameters", ["all", "low-rank"])
def test_codes_learn_and_keep_their_form(parameters: str) -> None:
    source = perceptron()
    damaged = few_bits(source)
    # Codes jump, so scores of few held-out samples choose the state by luck: a tenth of 384 are 38.
    result = recover(damaged, context_for(source, samples(384), parameters=parameters, **TRAIN))
    assert gap(result, source) < 0.8 * gap(damaged, source)
    assert [(each.op_type, each.name) for each in result.graph] == [(each.op_type, each.name) for each in damaged.graph]
    changed = {name for name, data in weights_of(result).items() if data != weights_of(damaged)[name]}
    assert {"w1_codes", "w2_codes", "w3_codes"} <= changed
    assert not changed & {"w1_scale", "w2_scale", "w3_scale", "b1_scale"}
    for name in ("w1_codes", "w2_codes", "w3_codes"):
        before, after = (each.graph.initializers[name].const_value for each in (damaged, result))
        assert after.dtype == ir.DataType.INT8
        # Codes that were zero stay zero, as every zero does.
        assert not after.numpy()[before.numpy() == 0].any()


def test_codes_stay_where_that_is_asked() -> None:
    source = perceptron()
    damaged = few_bits(source)
    context = context_for(source, samples(256), train_codes=False, **TRAIN)
    result = recover(damaged, context)
    same = {name for name, data in weights_of(result).items() if data == weights_of(damaged)[name]}
    assert {"w1_codes", "w2_codes", "w3_codes", "b1_codes"} <= same and "b2" not in same
    assert "stored as INT8 codes" in context.notes.skipped["node_m2"]


def test_codes_that_several_nodes_read_stay() -> None:
    source = graph(
        [
            node("DequantizeLinear", ["c", "s"], "a"),
            node("DequantizeLinear", ["c", "t"], "b"),
            node("MatMul", ["x", "a"], "h"),
            node("MatMul", ["h", "b"], "y"),
        ],
        {"c": np.arange(16, dtype=np.int8).reshape(4, 4), "s": np.float32(0.1), "t": np.float32(0.2)},
        {"x": ["batch", 4]},
    )
    assert not thaw(source.ir).rounded
    damaged = source.clone()
    damaged.graph.initializers["s"].const_value = ir.tensor(np.float32(0.11), name="s")
    context = context_for(source, {"x": np.ones((4, 4), np.float32)})
    assert Recover().check(damaged, context).status == "skip"


def test_float_weights_in_front_of_a_quantizer_learn_through_it() -> None:
    source = perceptron()
    frozen = few_bits(source)
    damaged = frozen.with_ir(thaw(frozen.ir).model)
    result = recover(damaged, context_for(source, samples(256), **TRAIN))
    assert gap(result, source) < 0.8 * gap(damaged, source)
    assert [each.op_type for each in result.graph] == [each.op_type for each in damaged.graph]


def test_closed_forms_see_what_rounding_leaves() -> None:
    source = perceptron()
    damaged = few_bits(source)
    result = recover(damaged, context_for(source, samples(256), how="closed-form"))
    assert gap(result, source) <= gap(damaged, source)
