"""What `quantize-int8` leaves alone or refuses, and the reasons it gives."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from pydantic import ValidationError

from edgesmith.errors import DataError, StepError
from edgesmith_onnxruntime.cpu import DIALECT
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.quantize_int8 import QuantizeInt8
from small_graphs import context, graph, node, operators, quantize


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def product(**attributes):
    return graph([node("Gemm", ["x", "w"], "y", **attributes)], {"w": normal(8, 8)}, {"x": ["n", 8]})


DATA = {"x": normal(4, 8)}


def check(model, data=DATA, dialect=DIALECT, **options):
    return QuantizeInt8().check(model, context(QuantizeInt8Options(**options), data, dialect))


def skipped(model, data=DATA, **options):
    """Return the reasons noted while a graph is quantized that also holds one ordinary product."""
    used = context(QuantizeInt8Options(**options), data)
    QuantizeInt8().apply(model, used)
    return used.notes.skipped


def test_ok_names_the_nodes():
    verdict = check(product())
    assert (verdict.status, verdict.nodes) == ("ok", ("node_y",))


def test_static_without_data_is_refused_in_words():
    verdict = check(product(), data=None)
    assert verdict.status == "refuse"
    assert "calibration data" in verdict.reason
    with pytest.raises(DataError, match="no calibration data for quantize-int8"):
        quantize(product(), None)


def test_dynamic_needs_no_data():
    assert check(product(), data=None, mode="dynamic").status == "ok"


def test_nothing_to_quantize_is_skipped():
    verdict = check(graph([node("Relu", ["x"], "y")], {}, {"x": ["n", 8]}))
    assert verdict.status == "skip"
    with pytest.raises(StepError, match="nothing to quantize"):
        quantize(graph([node("Relu", ["x"], "y")], {}, {"x": ["n", 8]}), DATA)


def test_dialects_without_a_form_are_refused():
    wide = replace(DIALECT, weight=replace(DIALECT.weight, dtype="int16"))
    assert check(product(), dialect=wide).status == "refuse"
    slow = replace(DIALECT, dynamic=False)
    assert "run time" in check(product(), dialect=slow, mode="dynamic").reason
    activations = replace(DIALECT, activation=replace(DIALECT.activation, dtype="uint16"))
    assert check(product(), dialect=activations).status == "refuse"
    without = replace(DIALECT, operators=frozenset({"Conv"}))
    assert "does not run in integers" in check(product(), dialect=without).reason


def test_skip_patterns_that_match_no_node_are_refused_with_near_names():
    verdict = check(product(), skip=("node_*", "nod_y", "head?"))
    assert verdict.status == "refuse"
    assert "'nod_y', which no node matches (near: node_y)" in verdict.reason
    assert "'head?', which no node matches (near: node_y)" in verdict.reason
    assert "node_*" not in verdict.reason
    assert check(product(), skip=("NODE_Y",)).reason.endswith("(near: node_y)")
    relu = graph([node("Gemm", ["x", "w"], "h"), node("Relu", ["h"], "y")], {"w": normal(8, 8)}, {"x": ["n", 8]})
    assert check(relu, skip=("node_y",)).status == "ok"


@pytest.mark.parametrize(
    ("attributes", "reason"), [({"alpha": 0.5}, "alpha"), ({"beta": 2.0}, "beta"), ({"transA": 1}, "transA")]
)
def test_gemm_forms_without_an_integer_kernel(attributes, reason):
    assert reason in check(product(**attributes)).reason


def test_each_product_left_alone_has_its_reason():
    nodes = [
        node("MatMul", ["x", "w"], "plain"),
        node("MatMul", ["plain", "w"], "named"),
        node("MatMul", ["named", "named"], "square"),
        node("MatMul", ["w", "square"], "left"),
        node("Reshape", ["left", "shape"], "cube"),
        node("MatMul", ["cube", "stack"], "stacked"),
        node("Gemm", ["left", "w", "matrix"], "wide"),
        node("Conv", ["image", "kernel", "computed"], "convolved"),
        node("Cast", ["left"], "half", to=ir.DataType.FLOAT16.value),
        node("MatMul", ["half", "w16"], "halved"),
    ]
    weights = {"w": normal(8, 8), "shape": np.array([2, 4, 8]), "stack": normal(2, 8, 3), "matrix": normal(8, 8)}
    weights |= {"w16": normal(8, 8).astype(np.float16), "kernel": normal(4, 3, 1, 1)}
    inputs = {"x": [8, 8], "image": [8, 3, 4, 4], "computed": [4]}
    outputs = ["stacked", "wide", "convolved", "halved"]
    model = graph(nodes, weights, inputs, outputs, types={"halved": ir.DataType.FLOAT16.value})
    reasons = skipped(model, None, skip=("node_na*",), mode="dynamic")
    assert reasons == {
        "node_named": "named in the option skip",
        "node_square": "both inputs are activations",
        "node_left": "its first input is constant; weights must be the second",
        "node_stacked": "its weight has 3 dimensions; 2 run in integers",
        "node_wide": "its bias is not a constant with one number per output channel",
        "node_convolved": "its bias is not a constant with one number per output channel",
        "node_halved": "its weight is FLOAT16, not FLOAT; quantize-weights takes such weights",
    }


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_weights_that_are_not_finite_stay_in_float(bad):
    weights = {"w": normal(8, 8), "v": normal(8, 4)}
    weights["w"][2, 3] = bad
    nodes = [node("MatMul", ["x", "w"], "m"), node("MatMul", ["m", "v"], "y")]
    model = graph(nodes, weights, {"x": ["n", 8]})
    assert skipped(model, None, mode="dynamic") == {"node_m": "its weight holds NaN or infinity"}


def test_operators_option_limits_what_is_quantized():
    nodes = [node("MatMul", ["x", "w"], "m"), node("Gemm", ["m", "v"], "y")]
    model = graph(nodes, {"w": normal(8, 8), "v": normal(8, 4)}, {"x": ["n", 8]})
    assert skipped(model, operators=("Gemm",)) == {"node_m": "MatMul is not among the option operators"}


def test_transposed_convolutions_say_that_no_method_takes_them():
    model = graph([node("ConvTranspose", ["x", "w"], "y")], {"w": normal(3, 4, 2, 2)}, {"x": ["n", 3, 5, 5]})
    everything = replace(DIALECT, operators=DIALECT.operators | {"ConvTranspose"})
    for dialect in (DIALECT, everything):
        verdict = QuantizeInt8().check(model, context(QuantizeInt8Options(mode="dynamic"), dialect=dialect))
        assert verdict.status == "skip"
        assert "node_y: no method quantizes ConvTranspose" in verdict.reason


def test_quantized_regions_are_left_alone_and_kept():
    once = quantize(product(), DATA)
    verdict = check(once)
    assert verdict.status == "skip"
    assert "already quantized" in verdict.reason


def test_products_in_control_flow_are_left_alone():
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        conditional (bool c, float[8, 8] x) => (float[8, 8] y) <float[8, 8] w> {
            m = MatMul(x, w)
            y = If (c) <
                then_branch = then_graph () => (float[8, 8] t) { [inner] t = MatMul(m, w) },
                else_branch = else_graph () => (float[8, 8] e) { e = Identity(m) }
            >
        }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(8, 8), "w"))
    model = product().with_ir(ir.from_proto(proto))
    used = context(QuantizeInt8Options(mode="dynamic"))
    result = QuantizeInt8().apply(model, used)
    assert used.notes.skipped == {"inner": "stands in the body of a control-flow operator"}
    assert operators(result)["MatMulInteger"] == 1


@pytest.mark.parametrize(
    "options",
    [{"mode": "weights"}, {"percentile": 50}, {"percentile": 101}, {"samples": 0}, {"batch_size": 0}, {"bits": 4}],
)
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(ValidationError):
        QuantizeInt8Options(**options)


def test_every_option_is_described():
    assert all(field.description for field in QuantizeInt8Options.model_fields.values())


def test_result_has_no_trace_of_replaced_weights():
    model = product()
    result = quantize(model, DATA)
    assert "w" not in result.graph.initializers
    assert "w" in model.graph.initializers
    assert operators(model) == {"Gemm": 1}
