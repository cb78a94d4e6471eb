"""Residual additions stay apart from LayerNormalization when ONNX Runtime loads the graph."""

import numpy as np

from edgesmith_onnxruntime.residual_sum import write_residual_sums
from small_graphs import executed_operators, graph, node, operators, run


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def block(*, read_twice=False):
    nodes = [node("MatMul", ["x", "w"], "m"), node("Add", ["m", "b"], "biased"), node("Add", ["biased", "x"], "sum")]
    nodes += [node("LayerNormalization", ["sum", "g", "b"], "normal" if read_twice else "y")]
    nodes += [node("Add", ["normal", "sum"], "y")] if read_twice else []
    return graph(nodes, {"w": normal(8, 8), "g": normal(8), "b": normal(8)}, {"x": [2, 3, 8]})


def test_runtime_does_not_join_what_was_written_apart():
    model = block()
    assert executed_operators(model)["SkipLayerNormalization"] == 1
    result = model.clone()
    assert write_residual_sums(result.graph) == 1
    executed = executed_operators(result)
    assert (executed["SkipLayerNormalization"], executed["LayerNormalization"]) == (0, 1)
    np.testing.assert_array_equal(run(result, {"x": normal(2, 3, 8)})["y"], run(model, {"x": normal(2, 3, 8)})["y"])


def test_sum_that_is_read_twice():
    model = block(read_twice=True)
    result = model.clone()
    assert write_residual_sums(result.graph) == 1
    assert operators(result)["Sum"] == 1
    np.testing.assert_array_equal(run(result, {"x": normal(2, 3, 8)})["y"], run(model, {"x": normal(2, 3, 8)})["y"])


def test_addition_of_a_constant_stays():
    nodes = [node("Add", ["x", "p"], "s"), node("LayerNormalization", ["s", "g", "p"], "y")]
    model = graph(nodes, {"p": normal(8), "g": normal(8)}, {"x": [2, 3, 8]})
    result = model.clone()
    assert write_residual_sums(result.graph) == 0
    assert operators(result) == operators(model)
