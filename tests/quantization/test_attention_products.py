"""Attention in integers: both products are quantized where the target runs them so, and nothing else changes."""

from dataclasses import replace

import numpy as np
import pytest

from edgesmith.execution.runnable import runnable_inputs
from edgesmith.host.dialect import TensorFormat
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.quantize_int8 import QuantizeInt8
from small_graphs import SIGNED, context, operators, run, sqnr

TENSORRT_LIKE = replace(SIGNED, attention_products=True)


def data(model, samples=8):
    return {name: np.repeat(array[:1], samples, 0) for name, array in runnable_inputs(model.ir).items()}


def apply(model, dialect=TENSORRT_LIKE, **options):
    used = context(QuantizeInt8Options(**options), data(model), dialect)
    return QuantizeInt8().apply(model, used), used.notes


def quantized_matmuls(model):
    """Return the MatMuls of two activations whose inputs both come out of a Q/DQ pair."""

    def through_pair(value):
        dequantize = value.producer()
        quantize = dequantize.inputs[0].producer() if dequantize and dequantize.op_type == "DequantizeLinear" else None
        return quantize is not None and quantize.op_type == "QuantizeLinear"

    return [each for each in model.graph if each.op_type == "MatMul" and all(map(through_pair, each.inputs))]


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_vit", "tiny_llama"])
def test_both_products_of_every_attention_are_quantized(fixture, request):
    model = request.getfixturevalue(fixture)
    plain, _ = apply(model)
    result, notes = apply(model, attention=True)
    assert quantized_matmuls(plain) == []
    found = {each.name for each in quantized_matmuls(result)}
    assert len(found) >= 2
    assert len(found) % 2 == 0
    assert not found & notes.skipped.keys()
    assert operators(result)["Softmax"] == operators(model)["Softmax"]
    name = next(iter(run(model, data(model))))
    assert sqnr(run(model, data(model))[name], run(result, data(model))[name]) > 10


def test_a_skipped_product_stays(tiny_bert):
    result, _ = apply(tiny_bert, attention=True)
    first = quantized_matmuls(result)[0].name
    fewer, _ = apply(tiny_bert, attention=True, skip=(first,))
    assert first not in {each.name for each in quantized_matmuls(fewer)}
    assert len(quantized_matmuls(fewer)) == len(quantized_matmuls(result)) - 1


def test_a_target_without_it_refuses_and_says_what_works(tiny_bert):
    method = QuantizeInt8()
    verdict = method.check(tiny_bert, context(QuantizeInt8Options(attention=True), data(tiny_bert)))
    assert verdict.status == "refuse"
    assert "set attention to false" in verdict.reason
    asymmetric = TensorFormat("uint8", symmetric=False)
    dynamic = replace(TENSORRT_LIKE, activation=asymmetric, dynamic=True)
    options = QuantizeInt8Options(attention=True, mode="dynamic")
    assert "static" in method.check(tiny_bert, context(options, data(tiny_bert), dynamic)).reason


def test_a_graph_without_attention_is_quantized_as_before(tiny_cnn):
    result, notes = apply(tiny_cnn, attention=True)
    assert operators(result)["QuantizeLinear"] == operators(apply(tiny_cnn)[0])["QuantizeLinear"]
    assert not any("attention" in remark for remark in notes.remarks)
