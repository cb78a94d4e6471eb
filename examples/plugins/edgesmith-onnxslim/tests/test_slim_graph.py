"""The adapter on real graphs: fewer nodes, equal numbers, and the model that was given stays."""

import edgesmith_onnxslim
import numpy as np
import onnx_ir as ir
import pytest

from edgesmith import Model
from edgesmith.execution.reference import ReferenceSession
from edgesmith.testing import conformance, isolated_registry, run_method, tiny_bert, tiny_data, tiny_mlp

pytest.importorskip("onnxslim", reason="pip install onnxslim")

REGISTRY = isolated_registry(edgesmith_onnxslim)
METHOD = "slim-graph"


def with_detours(model: Model) -> Model:
    """Return a model that adds a constant in two steps, twice over, behind an Identity."""
    result = model.clone()
    graph = result.graph
    output = graph.outputs[0]
    kind, shape = output.type, output.shape
    half = ir.tensor(np.array([0.25], np.float32), name="half")
    value = ir.Value(name="half", const_value=half, type=ir.TensorType(half.dtype), shape=half.shape)
    graph.register_initializer(value)
    name, output.name = output.name, "before"
    both = ir.node("Add", [value, value], name="constant_sum")
    identity = ir.node("Identity", [output], name="identity")
    first = ir.node("Add", [identity.outputs[0], both.outputs[0]], name="first")
    second = ir.node("Sub", [first.outputs[0], both.outputs[0]], name="second")
    for node in (both, identity, first, second):
        node.outputs[0].type, node.outputs[0].name = kind, f"{node.name}_output"
    for node in (identity, first, second):
        node.outputs[0].shape = shape
    graph.extend([both, identity, first, second])
    second.outputs[0].name = name
    graph.outputs[0] = second.outputs[0]
    return result


def count(model: Model, op_type: str) -> int:
    return sum(node.op_type == op_type for node in model.graph.all_nodes())


def test_detours_go_and_numbers_stay():
    model = with_detours(tiny_mlp())
    digest = model.digest()
    result = run_method(REGISTRY, METHOD, model)
    assert (count(model, "Identity"), count(result.model, "Identity")) == (1, 0)
    assert count(result.model, "Add") < count(model, "Add")
    assert result.relative_error < 1e-5 and model.digest() == digest
    data = tiny_data(model)
    batch = next(data.batches(8)).inputs
    before, after = (ReferenceSession(one.ir).run(batch)["y"] for one in (model, result.model))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    assert result.notes.remarks == ["7 nodes became 5."]


def test_what_is_switched_off_is_not_done():
    model = with_detours(tiny_mlp())
    kept = run_method(REGISTRY, METHOD, model, {"fold_constants": False, "fuse": False, "merge_equal": False})
    assert count(kept.model, "Add") == count(model, "Add")
    again = run_method(REGISTRY, METHOD, model)
    assert count(again.model, "Add") < count(model, "Add")


def test_a_transformer_keeps_its_outputs():
    model = tiny_bert()
    result = run_method(REGISTRY, METHOD, model, calibration=tiny_data(model))
    assert result.verdict.status == "ok" and result.relative_error < 1e-4
    assert len(result.model.graph) <= len(model.graph)


def test_weights_among_the_inputs_are_refused():
    model = tiny_mlp()
    model.graph.inputs.append(model.graph.initializers["up"])
    result = run_method(REGISTRY, METHOD, model)
    assert result.verdict.status == "refuse" and "listed among its inputs" in result.verdict.reason


@pytest.mark.parametrize("check", conformance(REGISTRY, thorough=False), ids=str)
def test_it_conforms(check):
    result = check()
    assert result.status != "failed", result
