"""The benchmark of accuracy in eight-bit floats scores the file that ships."""

import numpy as np
import onnx
from benchmarks.fp8_accuracy import FORMATS, accuracy_percent, built

from edgesmith_quantization.options.fp8 import QuantizeFp8Options
from edgesmith_quantization.quantize_fp8 import QuantizeFp8
from small_graphs import graph, node


def test_the_built_file_is_what_is_scored(tmp_path, monkeypatch):
    # The defaults leave heads alone, and this model is nothing else.
    monkeypatch.setitem(FORMATS, "heads too", (QuantizeFp8, QuantizeFp8Options(heads=True)))
    generator = np.random.default_rng(0)
    mask = np.ones((48, 8), np.float32)
    data = {"x": generator.normal(size=(48, 8)).astype(np.float32), "attention_mask": mask}
    nodes = [node("Mul", ["x", "attention_mask"], "h"), node("MatMul", ["h", "w"], "r"), node("Relu", ["r"], "s")]
    weights = {"w": generator.normal(size=(8, 32)).astype(np.float32), "v": np.eye(32, 3, dtype=np.float32)}
    nodes.append(node("MatMul", ["s", "v"], "y"))
    model = graph(nodes, weights, {"x": ["n", 8], "attention_mask": ["n", 8]})
    expected = np.maximum(data["x"] @ weights["w"], 0)[:, :3].argmax(axis=1)
    path = built("heads too", model, data, 0, tmp_path)
    operators = {each.op_type for each in onnx.load(path).graph.node}
    # Lowered models hold Q/DQ pairs of eight-bit floats, files hold casts.
    assert "Cast" in operators
    assert "QuantizeLinear" not in operators
    assert accuracy_percent(path, {**data, "labels": expected}) > 80
    assert accuracy_percent(path, {**data, "labels": (expected + 1) % 3}) < 20
