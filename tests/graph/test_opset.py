"""Raising the opset of a graph: outputs stay, versions rise, and what cannot rise says so."""

import numpy as np
import onnx_ir as ir
import pytest

from edgesmith.errors import ModelError
from edgesmith.execution.sample import sample_inputs
from edgesmith.graph.opset import raise_opset
from small_graphs import graph, node, run


def product(opset=20):
    return graph([node("MatMul", ["x", "w"], "y")], {"w": np.eye(4, dtype=np.float32)}, {"x": ["n", 4]}, opset=opset)


@pytest.mark.parametrize(("version", "ir_version"), [(21, 10), (23, 11), (25, 13)])
def test_opset_and_file_version_rise_together(version, ir_version):
    model = product()
    raise_opset(model.ir, version)
    assert model.graph.opset_imports[""] == version
    assert model.ir.ir_version == ir_version
    inputs = {"x": np.ones((2, 4), np.float32)}
    np.testing.assert_array_equal(run(model, inputs)["y"], inputs["x"])


def test_newer_graphs_stay_as_they_are():
    model = product(22)
    before = ir.to_proto(model.ir).SerializeToString()
    raise_opset(model.ir, 21)
    assert ir.to_proto(model.ir).SerializeToString() == before


def test_operators_whose_definition_changed_are_rewritten():
    nodes = [node("GridSample", ["x", "grid"], "y", mode="bilinear")]
    model = graph(nodes, {}, {"x": [1, 2, 4, 4], "grid": [1, 3, 3, 2]}, opset=19)
    generator = np.random.default_rng(0)
    shapes = {"x": (1, 2, 4, 4), "grid": (1, 3, 3, 2)}
    inputs = {name: generator.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    before = run(model, inputs)["y"]
    raise_opset(model.ir, 21)
    assert model.graph[0].attributes["mode"].value == "linear"
    np.testing.assert_array_equal(run(model, inputs)["y"], before)


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_vit", "tiny_llama", "tiny_cnn"])
def test_networks_compute_the_same_at_opset_25(fixture, request):
    model = request.getfixturevalue(fixture)
    raised = model.clone()
    raise_opset(raised.ir, 25)
    inputs = sample_inputs(model.ir)
    for name, expected in run(model, inputs).items():
        np.testing.assert_array_equal(run(raised, inputs)[name], expected)


@pytest.mark.parametrize("opset", [9, 12, 13, 17])
def test_operators_of_old_opsets_are_rewritten_too(opset):
    """Before opset 13 Softmax flattened its input; before 18 the axes of ReduceMean were an attribute."""
    nodes = [node("Softmax", ["x"], "s"), node("ReduceMean", ["s"], "y", axes=[1], keepdims=0)]
    model = graph(nodes, {}, {"x": [2, 3, 4]}, opset=opset)
    inputs = {"x": np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)}
    before = run(model, inputs)["y"]
    raise_opset(model.ir, 21)
    assert model.graph.opset_imports[""] == 21
    np.testing.assert_allclose(run(model, inputs)["y"], before, rtol=1e-6)


def test_what_the_converter_does_not_reach_is_refused_in_words():
    with pytest.raises(ModelError, match="cannot be raised from opset 20 to 99"):
        raise_opset(product().ir, 99)
