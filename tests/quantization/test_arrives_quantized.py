"""A model that arrives quantized is accepted, its quantized products are named, and every method keeps them."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from edgesmith.cli.inspect import describe
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.sample import sample_inputs
from edgesmith.frontends.onnx_file import OnnxFrontend
from edgesmith.graph.structure import find_structure
from edgesmith.report.structure import read_structure
from edgesmith_onnxruntime.cpu import OnnxCpu
from edgesmith_quantization.options.fp8 import QuantizeFp8Options
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.options.weights import QuantizeWeightsOptions
from edgesmith_quantization.quantize_fp8 import QuantizeFp8
from edgesmith_quantization.quantize_int8 import QuantizeInt8
from edgesmith_quantization.quantize_weights import QuantizeWeights
from small_graphs import context, graph, lower, node, run

METHODS = {
    "int8 static": (QuantizeInt8, QuantizeInt8Options()),
    "int8 dynamic": (QuantizeInt8, QuantizeInt8Options(mode="dynamic")),
    "fp8": (QuantizeFp8, QuantizeFp8Options(heads=True, minimum_channels=1, minimum_head_size=1)),
    "fp8 weight-only": (QuantizeFp8, QuantizeFp8Options(mode="weight-only", heads=True)),
    "weights": (QuantizeWeights, QuantizeWeightsOptions()),
}
ALL_METHODS = pytest.mark.parametrize("method", list(METHODS))
PRODUCTS = ("MatMul", "Gemm", "Conv", "QLinearMatMul", "QLinearConv", "QGemm", "MatMulInteger", "ConvInteger")


class Samples(CalibrationDataReader):
    def __init__(self, model):
        self._batches = iter([sample_inputs(model, seed=seed) for seed in range(2)])

    def get_next(self):
        return next(self._batches, None)


def by_onnxruntime(model, form, folder):
    """Quantize with ONNX Runtime's own tool and read the file as any user would."""
    source, target = folder / "float.onnx", folder / "quantized.onnx"
    ir.save(model.ir, source)
    if form == "dynamic":
        quantize_dynamic(source, target, weight_type=QuantType.QInt8)
    else:
        kind = QuantFormat.QDQ if form == "pairs" else QuantFormat.QOperator
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(source, target, Samples(model.ir), quant_format=kind, **types)
    return target, OnnxFrontend().load(target)


def data_of(model, count=2):
    drawn = [sample_inputs(model.ir, seed=seed) for seed in range(count)]
    return {name: np.concatenate([each[name] for each in drawn]) for name in drawn[0]}


def try_method(method, model, data):
    """Return what the method makes of the model, the model itself where it skips, and the notes."""
    kind, options = METHODS[method]
    used = context(options, data)
    verdict = kind().check(model, used)
    assert verdict.status in ("ok", "skip"), verdict.reason
    return (kind().apply(model, used) if verdict.status == "ok" else model), used.notes, verdict


def region(model):
    """The nodes that make or read codes, and the bytes of their constants."""
    found = {}
    for each in model.graph:
        if each.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear") or "Integer" in each.op_type:
            constants = [value.const_value for value in each.inputs if value is not None]
            found[each.name] = (each.op_type, *(c.numpy().tobytes() for c in constants if c is not None))
    return found


@pytest.fixture(scope="module", params=["bert pairs", "bert operator", "cnn pairs"])
def foreign(request, tmp_path_factory):
    """A float model, its form, the file that ONNX Runtime quantized, and the model read from that."""
    name, form = request.param.split()
    original = request.getfixturevalue(f"tiny_{name}")
    return original, form, *by_onnxruntime(original, form, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module", params=["int8 static", "fp8"])
def returned(request, tiny_bert, tmp_path_factory):
    """The method, the directory of an artifact that it led to, and the model read from that."""
    folder, data = tmp_path_factory.mktemp("artifact"), data_of(tiny_bert)
    once, _, _ = try_method(request.param, tiny_bert, data)
    OnnxCpu().build(lower(once, data), folder)
    return request.param, folder / "model.onnx", OnnxFrontend().load(folder / "model.onnx")


def test_files_of_another_tool_load_unchanged_and_are_described(foreign):
    original, _, file, model = foreign
    inputs = sample_inputs(original.ir, seed=5)
    before = ReferenceSession(file).run(inputs)
    for output, values in run(model, inputs).items():
        np.testing.assert_array_equal(values, before[output])
    products = find_structure(model.ir).quantized_products
    named = {each.node for each in products if each.op_type in PRODUCTS}
    constant = {each.node for each in find_structure(model.ir).linears} | {
        each.node for each in find_structure(model.ir).convolutions
    }
    assert constant <= named
    assert {each.form for each in products if each.op_type in PRODUCTS} <= {"Q/DQ", "operator"}
    assert {each.types for each in products if each.node in constant} == {"uint8 x int8"}
    report = describe(model)
    assert "product" in find_structure(model.ir).summary()
    tables = {table.title: table for table in read_structure(report).tables}
    assert tables["Quantized products"].count == len(products)


def test_dynamically_quantized_files_are_described(tiny_gpt2, tmp_path):
    _, model = by_onnxruntime(tiny_gpt2, "dynamic", tmp_path)
    found = {each.types for each in find_structure(model.ir).quantized_products if each.op_type == "MatMulInteger"}
    assert found == {"uint8 x int8"}


@ALL_METHODS
def test_every_method_keeps_what_another_tool_quantized(method, foreign):
    original, form, _, model = foreign
    result, notes, verdict = try_method(method, model, data_of(original))
    kept = region(model)
    after = region(result)
    assert {key: after.get(key) for key in kept} == kept
    products = {each.node for each in find_structure(model.ir).quantized_products if each.op_type in PRODUCTS}
    same = {each.node: each for each in find_structure(result.ir).quantized_products}
    assert products <= set(same)
    reasons = " ".join([verdict.reason, *notes.skipped.values()])
    if form == "pairs":
        assert "already quantized (uint8 x int8)" in reasons


def test_our_own_artifact_is_read_as_it_was_shipped(returned, tiny_bert):
    method, file, again = returned
    inputs = sample_inputs(tiny_bert.ir, seed=5)
    shipped = ReferenceSession(file, optimization="disabled").run(inputs)
    for output, values in run(again, inputs, "disabled").items():
        np.testing.assert_array_equal(values, shipped[output])
    described = find_structure(again.ir).quantized_products
    assert len(described) >= 12
    if method == "fp8":
        assert {each.types for each in described} == {"float8e4m3fn x float8e4m3fn"}
        stored = [v for v in again.graph.initializers.values() if v.dtype == ir.DataType.FLOAT8E4M3FN]
        assert len(stored) >= 12


@ALL_METHODS
def test_every_method_keeps_our_own_artifact(method, returned, tiny_bert):
    _, _, again = returned
    result, _, _ = try_method(method, again, data_of(tiny_bert))
    described = {each.node: each for each in find_structure(again.ir).quantized_products}
    assert described.items() <= {each.node: each for each in find_structure(result.ir).quantized_products}.items()
    codes = {
        v.name: v.const_value.numpy().tobytes() for v in again.graph.initializers.values() if v.dtype.bitwidth <= 8
    }
    assert codes
    assert {name: result.graph.initializers[name].const_value.numpy().tobytes() for name in codes} == codes


@given(st.lists(st.sampled_from(["MatMul", "Relu", "Add"]), min_size=2, max_size=6), st.data())
@settings(max_examples=12, deadline=None)
def test_a_second_method_keeps_every_bit_of_what_the_first_quantized(operations, data):
    """Some products are quantized first, the rest by another method: the first codes and scales stay."""
    generator = np.random.default_rng(0)
    nodes, weights, value = [], {}, "x"
    for index, operator in enumerate(["MatMul", *operations]):
        output = f"v{index}"
        if operator == "MatMul":
            weights[f"w{index}"] = generator.normal(0, 1, (16, 16)).astype(np.float32)
            nodes.append(node("MatMul", [value, f"w{index}"], output))
        elif operator == "Add":
            nodes.append(node("Add", [value, "x"], output))
        else:
            nodes.append(node("Relu", [value], output))
        value = output
    model = graph([*nodes, node("Identity", [value], "y")], weights, {"x": ["n", 16]})
    products = [f"node_v{index}" for index, operator in enumerate(["MatMul", *operations]) if operator == "MatMul"]
    chosen = data.draw(st.sets(st.sampled_from(products), min_size=1))
    samples = {"x": generator.normal(0, 1, (4, 16)).astype(np.float32)}
    first = data.draw(st.sampled_from(["int8 static", "fp8"]))
    kind, options = METHODS[first]
    once = kind().apply(model, context(options.model_copy(update={"only": tuple(sorted(chosen))}), samples))
    result, notes, _ = try_method(data.draw(st.sampled_from(sorted(METHODS))), once, samples)
    kept, after = region(once), region(result)
    assert {key: after.get(key) for key in kept} == kept
    if result is not once:
        assert {name for name, reason in notes.skipped.items() if "already quantized" in reason} >= chosen
    run(result, samples)
