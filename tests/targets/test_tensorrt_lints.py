"""Rules over graphs for TensorRT: each finds its hazard, names the nodes, and is silent elsewhere."""

import json

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from edgesmith.cli import main
from edgesmith.host.lint import Finding, run_lints
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from edgesmith_onnxruntime.cpu import DIALECT as ONNX_CPU
from edgesmith_onnxruntime.lints import processor_operators
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.quantize_int8 import QuantizeInt8
from small_graphs import context, graph, node, quantize

REGISTRY = load_registry()


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


def findings(model, target="jetson-orin-nano"):
    record, device = find_target(REGISTRY, target)
    found: dict[str, list[Finding]] = {}
    for result in run_lints(REGISTRY, record, model, device.dialect):
        found.setdefault(result.lint, []).append(result.finding)
    return found


def pair(zero_point, dtype=np.int8):
    weights = {"s": np.float32(0.1), "z": np.asarray(zero_point, dtype), "w": np.ones((16, 16), np.int8)}
    nodes = [node("QuantizeLinear", ["x", "s", "z"], "q"), node("DequantizeLinear", ["q", "s", "z"], "d")]
    nodes += [node("DequantizeLinear", ["w", "s"], "v"), node("MatMul", ["d", "v"], "y")]
    return graph(nodes, weights, {"x": [8, 16]})


def test_a_clean_graph_has_no_findings():
    model = graph([node("MatMul", ["x", "w"], "y")], {"w": normal(16, 16)}, {"x": [8, 16]})
    assert findings(model) == {}


@pytest.mark.parametrize("target", ["jetson-orin-nano", "h100"])
def test_what_we_quantize_for_a_device_has_no_findings(target):
    _, device = find_target(REGISTRY, target)
    weights = {"a": normal(16, 32), "b": normal(32, 16, seed=1), "c": normal(32, seed=2)}
    nodes = [node("MatMul", ["x", "a"], "m"), node("Add", ["m", "c"], "h"), node("Relu", ["h"], "r")]
    model = graph([*nodes, node("MatMul", ["r", "b"], "y")], weights, {"x": [8, 16]})
    options = QuantizeInt8Options(mode="static")
    result = QuantizeInt8().apply(model, context(options, {"x": normal(32, 16)}, device.dialect))
    assert findings(result, target) == {}


def test_zero_points_are_found_and_zero_is_not():
    assert findings(pair(0)).keys() == set()
    (finding,) = findings(pair(3))["zero-points"]
    assert finding.nodes == ("node_q", "node_d")


def blocks(inputs, size=32):
    """A product whose weight is stored in blocks, the last of them shorter where the size does not divide."""
    weights = {"w": np.ones((inputs, 16), np.int8), "s": np.full((-(-inputs // size), 16), 0.1, np.float32)}
    nodes = [node("DequantizeLinear", ["w", "s"], "v", axis=0, block_size=size), node("MatMul", ["x", "v"], "y")]
    return graph(nodes, weights, {"x": [8, inputs]}, opset=21)


def test_a_shorter_last_block_is_found_and_refused():
    _, device = find_target(REGISTRY, "jetson-orin-nano")
    assert "whole-blocks" not in findings(blocks(96))
    assert device.check(blocks(96)).status == "ok"
    (finding,) = findings(blocks(100))["whole-blocks"]
    assert finding.nodes == ("node_v",)
    verdict = device.check(blocks(100))
    assert verdict.status == "refuse" and "whole blocks only" in verdict.reason
    record, processor = find_target(REGISTRY, "onnx-cpu")
    lints = {found.lint for found in run_lints(REGISTRY, record, blocks(100), processor.dialect)}
    assert "whole-blocks" not in lints


def test_types_that_the_device_lacks_are_found_with_the_reason():
    (finding,) = findings(pair(0, np.uint8))["code-types"]
    assert "uint8" in finding.hazard
    assert "int8" in finding.fix
    float8 = pair(0, ml_dtypes.float8_e4m3fn)
    (finding,) = findings(float8)["code-types"]
    assert "Orin" in finding.hazard
    assert "code-types" not in findings(float8, "h100")


def test_the_form_for_onnx_runtime_is_found_and_its_own_target_is_silent():
    model = graph(
        [node("Conv", ["x", "w", "b"], "y")], {"w": normal(16, 16, 1, 1), "b": normal(16)}, {"x": [1, 16, 4, 4]}
    )
    result = quantize(model, {"x": normal(8, 16, 4, 4)}, ONNX_CPU)
    found = findings(result)
    assert {"integer-bias", "zero-points"} <= found.keys()
    assert findings(result, "onnx-cpu") == {}


def test_integer_operators_are_found():
    model = graph([node("MatMul", ["x", "w"], "y")], {"w": normal(16, 16)}, {"x": [8, 16]})
    result = quantize(model, None, ONNX_CPU, mode="dynamic")
    (finding,) = findings(result)["integer-operators"]
    assert len(finding.nodes) == 2  # the quantization and the product


def in_domain(domain):
    model = graph([node("Relu", ["x"], "h"), node("Sigmoid", ["h"], "y")], {}, {"x": [1, 16]})
    model.graph[0].domain = domain
    return model


@pytest.mark.parametrize("target", ["jetson-orin-nano", "h100", "android-cpu", "android-qnn", "ios-coreml", "onnx-cpu"])
@pytest.mark.parametrize("domain", ["com.microsoft.nchwc", "com.ms.internal.nhwc"])
def test_what_was_written_for_one_processor_is_found_for_every_target(domain, target):
    found = findings(in_domain(domain), target)
    (finding,) = found["processor-operators"]
    assert finding.nodes == ("node_h",) and domain in finding.hazard
    assert "integer-operators" not in found
    assert "processor-operators" not in findings(in_domain(""), target)


@pytest.mark.parametrize("domain", ["com.microsoft", "ai.onnx.contrib", "ai.onnx.ml"])
def test_other_domains_are_found_and_refused_by_tensorrt(domain):
    (finding,) = findings(in_domain(domain))["integer-operators"]
    assert finding.nodes == ("node_h",) and domain in finding.hazard
    verdict = find_target(REGISTRY, "h100")[1].check(in_domain(domain))
    assert verdict.status == "refuse" and verdict.nodes == ("node_h",)


def test_core_ml_counts_nodes_whose_shapes_nothing_tells():
    model = in_domain("com.microsoft.nchwc")
    model.graph[0].outputs[0].shape = model.graph[0].outputs[0].type = None
    (finding,) = findings(model, "ios-coreml")["core-ml-placement"]
    assert "0 of 2 nodes" in finding.hazard


@pytest.mark.parametrize(("channels", "found"), [(24, False), (20, True), (3, False)])
def test_channels_that_do_not_fill_tensor_cores_are_found(channels, found):
    model = graph([node("Conv", ["x", "w"], "y")], {"w": normal(32, channels, 1, 1)}, {"x": [1, channels, 4, 4]})
    assert ("channel-alignment" in findings(model)) == found


@pytest.mark.parametrize("gemm", [False, True])
def test_a_head_may_tell_any_number_of_classes_apart(gemm):
    def head(width):
        weight = normal(101, width) if gemm else normal(width, 101)
        product = node("Gemm", ["h", "v"], "p", transB=1) if gemm else node("MatMul", ["h", "v"], "p")
        nodes = [node("MatMul", ["x", "w"], "h"), product, node("Softmax", ["p"], "y")]
        return graph(nodes, {"w": normal(16, width), "v": weight}, {"x": [8, 16]})

    assert findings(head(32)) == {}
    (finding,) = findings(head(36))["channel-alignment"]
    assert finding.nodes == ("node_h", "node_p")


def test_a_depthwise_convolution_has_no_alignment():
    model = graph([node("Conv", ["x", "w"], "y", group=20)], {"w": normal(20, 1, 3, 3)}, {"x": [1, 20, 4, 4]})
    assert "channel-alignment" not in findings(model)


def test_quantized_products_need_the_wider_alignment():
    weights = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((24, 24), np.int8)}
    nodes = [node("QuantizeLinear", ["x", "s", "z"], "q"), node("DequantizeLinear", ["q", "s", "z"], "d")]
    nodes += [node("DequantizeLinear", ["w", "s", "z"], "v"), node("MatMul", ["d", "v"], "y")]
    (finding,) = findings(graph(nodes, weights, {"x": [8, 24]}))["channel-alignment"]
    assert "int8" in finding.hazard


def doubled_pairs():
    weights = {"s": np.float32(0.1), "z": np.int8(0), "t": np.float32(0.2)}
    nodes = [node("QuantizeLinear", ["x", "s", "z"], "q"), node("DequantizeLinear", ["q", "s", "z"], "d")]
    nodes += [node("QuantizeLinear", ["d", "t", "z"], "p"), node("DequantizeLinear", ["p", "t", "z"], "e")]
    nodes += [node("Softmax", ["e"], "y")]
    return graph(nodes, weights, {"x": [8, 16]})


def test_doubled_and_idle_pairs_are_found():
    found = findings(doubled_pairs())["doubled-pairs"]
    assert [finding.nodes for finding in found] == [("node_p",), ("node_q", "node_p")]


def many_casts():
    nodes = [node("Cast", ["x"], "h", to=10), node("Relu", ["h"], "r"), node("Cast", ["r"], "y", to=1)]
    return graph(nodes, {}, {"x": [8, 4]})


@pytest.mark.parametrize("target", ["android-qnn", "ios-coreml", "onnx-cpu"])
def test_what_only_tensorrt_minds_is_not_said_of_other_targets(target):
    assert not findings(doubled_pairs(), target).keys() & {"doubled-pairs", "unfused-pairs"}
    assert "type-changes" not in findings(many_casts(), target)


def test_many_casts_are_found():
    (finding,) = findings(many_casts())["type-changes"]
    assert finding.nodes == ("node_h", "node_y")


def test_the_command_prints_findings_and_says_so_by_its_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    ir.save(pair(3).ir, tmp_path / "wrong.onnx")
    assert main(["lint", str(tmp_path / "wrong.onnx"), "--target", "h100", "--json"]) == 2
    (first, *_) = json.loads(capsys.readouterr().out)
    assert first["lint"] == "zero-points"
    ir.save(pair(0).ir, tmp_path / "right.onnx")
    assert main(["lint", str(tmp_path / "right.onnx"), "--target", "h100"]) == 0
    assert "No findings for h100" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["jetson-orin-nano", "executorch-xnnpack"])
def test_the_command_says_what_a_target_refuses_without_a_rule(tmp_path, capsys, target):
    opset = 24 if target == "jetson-orin-nano" else 20
    model = graph([node("Relu", ["x"], "y")], {}, {"x": ["batch", 16]}, opset=opset)
    ir.save(model.ir, tmp_path / "refused.onnx")
    assert main(["lint", str(tmp_path / "refused.onnx"), "--target", target, "--json"]) == 2
    found = {each["lint"]: each["hazard"] for each in json.loads(capsys.readouterr().out)}
    assert ("opset" if opset == 24 else "--shape") in found["refused"]


def test_operators_of_onnx_runtime_are_found():
    model = graph([node("Relu", ["x"], "r"), node("Neg", ["r"], "y")], {}, {"x": [8, 16]})
    (relu, _) = model.graph
    relu.domain = "com.microsoft"
    (finding,) = findings(model)["integer-operators"]
    assert finding.nodes == ("node_r",)
    assert findings(model, "onnx-cpu") == {}


def test_codes_that_an_integer_operator_reads_are_not_idle():
    weights = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((16, 16), np.int8)}
    nodes = [node("QuantizeLinear", ["x", "s", "z"], "q")]
    nodes += [node("QLinearMatMul", ["q", "s", "z", "w", "s", "z", "s", "z"], "p")]
    nodes += [node("DequantizeLinear", ["p", "s", "z"], "y")]
    assert "doubled-pairs" not in findings(graph(nodes, weights, {"x": [8, 16]}))


def half_quantized(other):
    """Return a graph whose quantized activation meets `other`: a float weight, or a float branch."""
    weights = {"s": np.float32(0.1), "z": np.int8(0), "w": normal(16, 16)}
    nodes = [node("QuantizeLinear", ["x", "s", "z"], "q"), node("DequantizeLinear", ["q", "s", "z"], "d")]
    nodes += [node("Relu", ["x"], "r"), node(*other, "y")]
    return graph(nodes, weights, {"x": [8, 16]})


@pytest.mark.parametrize(("operator", "word"), [("MatMul", "Products"), ("Add", "Sums")])
def test_a_pair_on_one_input_alone_is_found(operator, word):
    other = "w" if operator == "MatMul" else "r"
    (finding,) = findings(half_quantized((operator, ["d", other])))["unfused-pairs"]
    assert finding.hazard.startswith(word)
    assert finding.nodes == ("node_y",)


def test_a_quantized_value_plus_a_constant_is_no_branch():
    model = half_quantized(("Add", ["d", "s"]))
    assert "unfused-pairs" not in findings(model)


def test_weights_alone_may_be_quantized():
    weights = {"s": np.float32(0.1), "w": np.ones((16, 16), np.int8)}
    nodes = [node("DequantizeLinear", ["w", "s"], "v"), node("MatMul", ["x", "v"], "y")]
    assert findings(graph(nodes, weights, {"x": [8, 16]})) == {}


def test_activations_with_a_scale_for_each_channel_are_found():
    weights = {"s": np.full(16, 0.1, np.float32), "z": np.zeros(16, np.int8), "w": np.ones((16, 16), np.int8)}
    nodes = [node("QuantizeLinear", ["x", "s", "z"], "q", axis=1), node("DequantizeLinear", ["q", "s", "z"], "d")]
    nodes += [node("DequantizeLinear", ["w", "s", "z"], "v"), node("MatMul", ["d", "v"], "y")]
    (finding,) = findings(graph(nodes, weights, {"x": [8, 16]}))["unfused-pairs"]
    assert finding.nodes == ("node_q",)


def test_an_input_of_a_type_that_tensorrt_lacks_is_found():
    model = graph([node("Cast", ["x"], "y", to=1)], {}, {"x": [8, 4]}, types={"x": int(ir.DataType.UINT16)})
    (finding,) = findings(model, "h100")["tensor-types"]
    assert finding.nodes == ("x",) and "uint16" in finding.hazard
    assert "tensor-types" not in findings(model, "onnx-cpu")


@pytest.mark.parametrize(
    ("dtype", "target", "word"),
    [
        (ir.DataType.DOUBLE, "h100", "TensorRT computes them in float32"),
        (ir.DataType.INT16, "rtx-50", "TensorRT has no such type"),
        (ir.DataType.FLOAT8E4M3FN, "jetson-orin-nano", "Orin"),
        (ir.DataType.FLOAT8E4M3FN, "h100", ""),
        (ir.DataType.BFLOAT16, "jetson-orin-nano", ""),
        (ir.DataType.INT64, "h100", ""),
    ],
)
def test_types_of_values_that_the_device_lacks_are_found(dtype, target, word):
    nodes = [node("Cast", ["x"], "c", to=int(dtype)), node("Cast", ["c"], "y", to=1)]
    found = findings(graph(nodes, {}, {"x": [8, 4]}), target)
    assert ("tensor-types" in found) == bool(word)
    if word:
        (finding,) = found["tensor-types"]
        assert word in finding.hazard
        assert finding.nodes == ("node_c",)


def with_shapes(model, shapes):
    model.ir.metadata_props["edgesmith.optimization_shapes"] = json.dumps(shapes)
    return model


def test_open_dimensions_without_a_profile_are_found_and_with_one_they_are_not():
    def model():
        return graph([node("Relu", ["x"], "y")], {}, {"x": ["n", 16]})

    (finding,) = findings(model())["dynamic-shapes"]
    assert finding.nodes == ("x",) and finding.is_note
    assert "--minShapes" in finding.fix
    assert findings(with_shapes(model(), {"x": {"min": [1, 16], "opt": [1, 16], "max": [8, 16]}})) == {}
    (finding,) = findings(with_shapes(model(), {}))["dynamic-shapes"]
    assert not finding.is_note


def test_the_command_ends_well_with_notes_only(tmp_path, capsys):
    ir.save(graph([node("Relu", ["x"], "y")], {}, {"x": ["n", 16]}).ir, tmp_path / "open.onnx")
    words = ["lint", str(tmp_path / "open.onnx"), "--target", "jetson-orin-nano"]
    assert main(words) == 0
    assert "dynamic-shapes (note)" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert [each["is_note"] for each in json.loads(capsys.readouterr().out)] == [True]


@pytest.mark.parametrize("target", ["jetson-orin-nano", "android-qnn"])
def test_the_command_says_once_that_an_operator_is_refused(tmp_path, capsys, target):
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "d"), node("Relu", ["s"], "y")]
    model = graph(nodes, {}, {"x": [1, 16]})
    ir.save(model.ir, tmp_path / "refused.onnx")
    assert main(["lint", str(tmp_path / "refused.onnx"), "--target", target, "--json"]) == 2
    (found,) = json.loads(capsys.readouterr().out)
    assert found["lint"] != "refused" and "costs little" not in found["fix"]


def test_the_command_says_once_that_sizes_are_open(tmp_path, capsys):
    ir.save(graph([node("Relu", ["x"], "y")], {}, {"x": ["n", 16]}).ir, tmp_path / "open.onnx")
    assert main(["lint", str(tmp_path / "open.onnx"), "--target", "android-qnn", "--json"]) == 2
    (found,) = json.loads(capsys.readouterr().out)
    assert "--shape n=SIZE" in found["fix"]


def test_a_rule_calls_nodes_without_a_name_by_what_they_make():
    model = in_domain("com.microsoft.nchwc")
    for each in model.graph:
        each.name = None
    # The host gives names to a copy.
    (finding,) = processor_operators.find(model, find_target(REGISTRY, "onnx-cpu")[1].dialect)
    assert finding.nodes == ("h",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min": [1], "opt": [1], "max": [8]},
        {"min": [1, 16], "opt": [9, 16], "max": [8, 16]},
        {"min": [1, 8], "opt": [1, 16], "max": [8, 16]},
    ],
)
def test_a_profile_that_does_not_fit_is_found(wrong):
    model = with_shapes(graph([node("Relu", ["x"], "y")], {}, {"x": ["n", 16]}), {"x": wrong})
    (finding,) = findings(model)["dynamic-shapes"]
    assert "do not fit" in finding.hazard


def test_sizes_that_the_data_decides_are_found():
    types = {"y": ir.DataType.INT64.value}
    model = graph([node("NonZero", ["x"], "y")], {}, {"x": [8, 16]}, types=types)
    (finding,) = findings(model)["dynamic-shapes"]
    assert finding.nodes == ("node_y",)
