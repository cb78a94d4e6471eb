"""A target that refuses says what would work."""

import numpy as np
import pytest

from edgesmith.frontends.fixed_dimensions import fix_dimensions
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from edgesmith_onnxruntime.qnn.target import _remedy
from small_graphs import context, graph, node

REGISTRY = load_registry()


@pytest.mark.parametrize("name", ["onnx-cpu", "android-cpu", "android-qnn", "jetson-orin-nano", "rtx-50"])
def test_an_opset_that_is_too_new_is_refused_with_the_one_to_export(name):
    _, target = find_target(REGISTRY, name)
    model = graph([node("Relu", ["x"], "y")], {}, {"x": [4]})
    model.ir.graph.opset_imports[""] = target.dialect.opset + 1
    verdict = target.check(model)
    assert verdict.status == "refuse" and f"opset_version={target.dialect.opset}" in verdict.reason


def test_an_input_that_is_also_an_output_is_refused_by_name():
    _, target = find_target(REGISTRY, "jetson-orin-nano")
    model = graph([node("Relu", ["x"], "y")], {}, {"x": ["n", 4], "past": ["n", 4]})
    assert target.check(model).status == "ok"
    model.graph.outputs.append(model.graph.inputs[1])
    verdict = target.check(model)
    assert verdict.status == "refuse" and "past is an input and an output" in verdict.reason
    # Lowering leaves the word to this verdict, and asks no compiler.
    used = context(None, {"x": np.ones((4, 4), np.float32), "past": np.ones((4, 4), np.float32)}, target.dialect)
    assert target.check(target.lower(model, used)) == verdict
    assert not any("compiler" in remark or "compute capability" in remark for remark in used.notes.remarks)


def test_what_qualcomms_compiler_rejects_in_codes_is_not_told_to_be_quantized():
    assert "--recipe int8" in _remedy(graph([node("Relu", ["x"], "y")], {}, {"x": [4]}))
    for size in (4, "n"):
        assert "--recipe int8" not in _remedy(quantized(size))


def test_smaller_inputs_are_asked_for_where_they_can_be_had():
    assert "--shape" in _remedy(fix_dimensions(quantized("n"), {"n": 4}))
    assert _remedy(quantized(4)) == "Export it with smaller inputs"


def quantized(size):
    pair = [node("QuantizeLinear", ["x", "s", "z"], "q"), node("DequantizeLinear", ["q", "s", "z"], "y")]
    return graph(pair, {"s": np.float32(1), "z": np.uint8(0)}, {"x": [size]})
