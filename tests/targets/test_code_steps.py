"""The proof of lowering counts the noise of small quantized graphs in steps of their codes."""

import numpy as np
import pytest

from edgesmith.errors import ModelError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.edit import GraphEditor, constant_value
from edgesmith_onnxruntime import lowering
from edgesmith_onnxruntime.code_steps import shift_last_codes
from edgesmith_onnxruntime.lowering import _Proof
from small_graphs import context, graph, node, operators, quantize, run


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def two_convolutions():
    nodes = [node("Conv", ["x", "a"], "c"), node("Conv", ["c", "b"], "y")]
    model = graph(nodes, {"a": normal(4, 4, 1, 1), "b": normal(2, 4, 1, 1, seed=1)}, {"x": [1, 4, 1, 2]})
    return quantize(model, {"x": normal(64, 4, 1, 2)})


def test_only_the_last_codes_move_and_by_one_step():
    model, inputs = two_convolutions(), {"x": normal(1, 4, 1, 2) / 4}
    moved = model.clone()
    assert shift_last_codes(moved.graph) == 1
    assert operators(moved)["Add"] == 1
    scale = constant_value(model.graph.initializers["y_scale"])
    np.testing.assert_allclose(
        run(moved, inputs)["y"] - run(model, inputs)["y"], np.full((1, 2, 1, 2), scale), rtol=1e-5
    )


def test_each_output_has_last_codes_of_its_own():
    nodes = [node("Conv", ["x", "a"], "c"), node("Conv", ["c", "b"], "y"), node("Tanh", ["c"], "z")]
    model = graph(nodes, {"a": normal(4, 4, 1, 1), "b": normal(2, 4, 1, 1)}, {"x": ["n", 4, 2, 2]}, ("y", "z"))
    quantized = quantize(model, {"x": normal(8, 4, 2, 2)})
    assert shift_last_codes(quantized.graph) == 1  # the codes of y; those of z are codes that y is computed from, too


def test_float_graph_has_no_codes():
    model = graph([node("Conv", ["x", "a"], "y")], {"a": normal(4, 4, 1, 1)}, {"x": ["n", 4, 2, 2]})
    assert shift_last_codes(model.graph) == 0


@pytest.mark.parametrize(("steps", "accepted"), [(1, True), (3, False)])
def test_proof_takes_one_step_of_a_small_graph_and_not_three(steps, accepted):
    model, inputs = two_convolutions(), {"x": normal(1, 4, 1, 2) / 4}
    candidate = model.clone()
    editor = GraphEditor(candidate.graph)
    scale = constant_value(candidate.graph.initializers["y_scale"])
    last = next(each for each in candidate.graph if each.name == "y_quantize")
    # One of the four numbers moves, as noise would do it.
    offset = np.zeros((1, 2, 1, 2), np.float32)
    offset[0, 0, 0, 0] = steps * scale
    added = editor.insert_before(last, "Add", (last.inputs[0], editor.add_initializer("offset", offset)))
    last.replace_input_with(0, added.outputs[0])
    fault = _Proof(model.ir, [inputs], context().threads).fault(candidate.ir)
    assert (fault == "") == accepted


def large_dynamic_graph():
    """Return a dynamically quantized product, whose noise is counted in levels of optimization only."""
    model = graph([node("MatMul", ["x", "a"], "y")], {"a": normal(64, 64)}, {"x": ["n", 64]})
    return quantize(model, None, mode="dynamic"), {"x": normal(8, 64)}


def scaled(model, factor):
    """Return a graph (onnx_ir) with its output times `factor`."""
    candidate = model.clone()
    editor = GraphEditor(candidate.graph)
    editor.insert_on_uses(candidate.graph.outputs[0], "Mul", [editor.add_initializer("f", np.float32(factor))])
    return candidate


def fails_at_level_all(model, *, optimization="basic", **options):
    if optimization == "all":
        raise ModelError("no kernel", expected="one", why="it has none", fix="none")
    return ReferenceSession(model, optimization=optimization, **options)


def is_wrong_at_level_all(model, *, optimization="basic", **options):
    return ReferenceSession(scaled(model, 3.0) if optimization == "all" else model, **options)


@pytest.mark.parametrize("session", [fails_at_level_all, is_wrong_at_level_all])
@pytest.mark.parametrize(("factor", "accepted"), [(1.00001, True), (2.0, False)])
def test_a_runtime_that_is_wrong_or_fails_at_level_all_justifies_nothing(session, factor, accepted, monkeypatch):
    model, inputs = large_dynamic_graph()
    monkeypatch.setattr(lowering, "ReferenceSession", session)
    fault = _Proof(model.ir, [inputs], context().threads).fault(scaled(model.ir, factor))
    assert (fault == "") == accepted
    assert accepted or "outputs changed by 1.0e+00" in fault
