"""The lint on graphs that hold one hazard each, and on sound ones."""

import edgesmith_checks
import numpy as np
import onnx_ir as ir
import pytest
from edgesmith_checks.half_precision_constants import find_spoilt_constants

from edgesmith import Model, TargetRecord
from edgesmith.host.lint import run_lints
from edgesmith.testing import TINY_MODELS, fake_dialect, isolated_registry, tiny_mlp


def graph_with(constant: np.ndarray, *operators: str) -> Model:
    """Return x + constant, followed by operators, in the constant's type."""
    tensor = ir.tensor(constant, name="c")
    kind = ir.TensorType(tensor.dtype)
    x = ir.Value(name="x", type=kind, shape=ir.Shape([4]))
    c = ir.Value(name="c", const_value=tensor, type=kind, shape=tensor.shape)
    nodes = [ir.node("Add", [x, c], name="guard")]
    for name in operators:
        inputs = [nodes[-1].outputs[0]] if name != "Div" else [x, nodes[-1].outputs[0]]
        nodes.append(ir.node(name, inputs, name=name.lower()))
    for node in nodes:
        node.outputs[0].type, node.outputs[0].shape = kind, x.shape
    graph = ir.Graph([x], [nodes[-1].outputs[0]], nodes=nodes, initializers=[c], opset_imports={"": 20}, name="g")
    return tiny_mlp().with_ir(ir.Model(graph, ir_version=10))


def found(model: Model) -> list[tuple[str, tuple[str, ...]]]:
    return [(one.hazard, one.nodes) for one in find_spoilt_constants(model, fake_dialect())]


def test_nan_is_found_in_any_type():
    for dtype in (np.float16, np.float32, np.float64):
        assert found(graph_with(np.array([1, np.nan], dtype))) == [("c holds NaN.", ("guard",))]


def test_a_mask_that_became_infinite_is_found_in_half_precision_only():
    mask = np.array([0.0, -np.inf, 0.0, 0.0])
    ((hazard, nodes),) = found(graph_with(mask.astype(np.float16)))
    assert "masked whole becomes NaN" in hazard and nodes == ("guard",)
    assert found(graph_with(mask.astype(np.float32))) == []
    assert found(graph_with(np.array([-65504.0], np.float16))) == []


@pytest.mark.parametrize("operator", ["Sqrt", "Reciprocal", "Log", "Div"])
def test_an_epsilon_that_vanished_is_found(operator):
    vanished = np.array(1e-12).astype(np.float16)
    assert vanished == 0
    ((hazard, nodes),) = found(graph_with(vanished, operator))
    assert "became 0" in hazard and nodes == ("guard",)
    assert found(graph_with(np.array(1e-6).astype(np.float16), operator)) == []
    assert found(graph_with(np.array(0, np.float32), operator)) == []
    assert found(graph_with(vanished, "Relu")) == []


@pytest.mark.parametrize("name", TINY_MODELS)
def test_sound_graphs_give_no_finding(name):
    if name != "external":
        assert found(TINY_MODELS[name]()) == []


def test_the_host_asks_it_for_every_target():
    registry = isolated_registry(edgesmith_checks)
    target = TargetRecord(name="any", version="1", summary="Any.", entry="a:B")
    model = graph_with(np.array([np.inf], np.float16))
    (result,) = run_lints(registry, target, model, fake_dialect())
    assert str(result).startswith("half-precision-constants: c holds infinity in float16")
