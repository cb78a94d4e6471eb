"""Nodes that follow from constants are computed, and quantization is not undone."""

import numpy as np
from onnx import TensorProto, helper

from edgesmith_onnxruntime.constants import fold_constants
from small_graphs import graph, node, operators, run


def test_what_constants_fill_is_computed_once():
    filled = helper.make_tensor("value", TensorProto.FLOAT, [1], [2.0])
    nodes = [
        node("ConstantOfShape", ["s"], "filled", value=filled),
        node("Expand", ["one", "s"], "wide"),
        node("Add", ["filled", "wide"], "total"),
        node("Mul", ["x", "total"], "y"),
    ]
    weights = {"s": np.array([3, 4], np.int64), "one": np.ones((1, 1), np.float32)}
    model = graph(nodes, weights, {"x": [3, 4]})
    folded, remark = fold_constants(model.ir)
    result = model.with_ir(folded)
    assert operators(result) == {"Mul": 1}
    assert operators(model)["Expand"] == 1
    assert remark.startswith("Computed 3 nodes")
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(run(result, {"x": x})["y"], run(model, {"x": x})["y"])
    assert fold_constants(folded) == (folded, "")


def test_codes_stay_codes():
    weights = {"q": np.ones((4, 4), np.int8), "s": np.float32(0.1), "z": np.int8(0)}
    model = graph(
        [node("DequantizeLinear", ["q", "s", "z"], "w"), node("MatMul", ["x", "w"], "y")], weights, {"x": [1, 4]}
    )
    assert fold_constants(model.ir) == (model.ir, "")


def test_what_would_be_large_stays_an_instruction():
    nodes = [node("ConstantOfShape", ["s"], "wide"), node("Add", ["x", "wide"], "y")]
    model = graph(nodes, {"s": np.array([1 << 10, 1 << 10], np.int64)}, {"x": [1]})
    assert fold_constants(model.ir) == (model.ir, "")
