"""Float16 is rounded in reference runs where that is asked for, although ONNX Runtime's CPU does not round it."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from edgesmith.execution.half_rounding import uses_half, with_half_rounding
from edgesmith.execution.reference import ReferenceSession
from edgesmith.measure.reference import ReferenceRunner
from edgesmith_calibration.sources import Batch
from small_graphs import graph, node

HALF = ir.DataType.FLOAT16


def in_half(nodes, weights=None):
    """Return a graph that reads `x`, casts it, computes in float16 and casts `b` back."""
    nodes = [node("Cast", ["x"], "a", to=int(HALF)), *nodes, node("Cast", ["b"], "y", to=int(ir.DataType.FLOAT))]
    model = graph(nodes, weights or {}, {"x": ["n"]})
    for each in model.graph:
        each.outputs[0].type = ir.TensorType(ir.DataType.FLOAT if each.outputs[0].name == "y" else HALF)
    return model.ir


def exactly(model, inputs):
    with np.errstate(over="ignore", invalid="ignore"):
        return ReferenceEvaluator(ir.to_proto(model)).run(None, inputs)[0]


MOVES = {
    "Identity": node("Identity", ["a"], "b"),
    "Reshape": node("Reshape", ["a", "all"], "b"),
    "Transpose": node("Transpose", ["a"], "b"),
    "Unsqueeze": node("Unsqueeze", ["a", "zero"], "b"),
    "Expand": node("Expand", ["a", "one"], "b"),
    "Concat": node("Concat", ["a", "a"], "b", axis=0),
    "Slice": node("Slice", ["a", "zero", "two"], "b"),
    "Gather": node("Gather", ["a", "zero"], "b"),
    "Flatten": node("Flatten", ["a"], "b", axis=0),
    "Relu": node("Relu", ["a"], "b"),
    "Add": node("Add", ["a", "a"], "b"),
    "Clip": node("Clip", ["a"], "b"),
}


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("optimization", ["disabled", "basic", "all"])
def test_casts_round_whatever_stands_between_them(name, optimization):
    weights = {"all": np.array([-1]), "zero": np.array([0]), "one": np.array([1]), "two": np.array([2])}
    model, inputs = in_half([MOVES[name]], weights), {"x": np.float32([1e5, 2049, 1e-9, 1.0001])}
    found = ReferenceSession(model, round_half=True, optimization=optimization).run(inputs)["y"]
    np.testing.assert_array_equal(found, exactly(model, inputs))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(["Relu", "Neg", "Abs", "double", "square"]), min_size=1, max_size=5), st.integers(0, 99)
)
def test_chains_give_what_the_onnx_reference_gives_bit_for_bit(operators, seed):
    names = ["a", *(f"h{index}" for index in range(len(operators) - 1)), "b"]
    made = {"double": "Add", "square": "Mul"}
    nodes = [
        node(made.get(op, op), [source, source] if op in made else [source], target)
        for op, source, target in zip(operators, names[:-1], names[1:], strict=True)
    ]
    model = in_half(nodes)
    inputs = {"x": np.random.default_rng(seed).normal(0, 300, 16).astype(np.float32)}
    np.testing.assert_array_equal(ReferenceSession(model, round_half=True).run(inputs)["y"], exactly(model, inputs))


def test_inner_values_keep_their_names_and_types():
    model, inputs = in_half([node("Relu", ["a"], "r"), node("Neg", ["r"], "b")]), {"x": np.float32([1.0001])}
    values = ReferenceSession(model, taps=["a", "r", "b"], round_half=True).run(inputs)
    assert {values[name].dtype.name for name in ("a", "r", "b")} == {"float16"}
    assert values["r"] == 1 and values["y"] == -1
    assert [each.op_type for each in model.graph] == ["Cast", "Relu", "Neg", "Cast"]


def test_graphs_in_float16_keep_their_interface():
    weights = {"w": np.float16([[2]])}
    model = graph([node("MatMul", ["x", "w"], "y")], weights, {"x": ["n", 1]}, types={"x": HALF.value, "y": HALF.value})
    model.graph.outputs[0].type = ir.TensorType(HALF)
    rounded = with_half_rounding(model.ir)
    assert [(value.name, value.dtype) for value in (*rounded.graph.inputs, *rounded.graph.outputs)] == [
        ("x", HALF),
        ("y", HALF),
    ]
    found = ReferenceSession(rounded).run({"x": np.float16([[40000]])})["y"]
    assert found.dtype == np.float16 and np.isinf(found).all()


def test_graphs_without_float16_are_not_touched():
    model = graph([node("Relu", ["x"], "y")], {}, {"x": ["n"]})
    assert not uses_half(model.ir)
    assert with_half_rounding(model.ir) is model.ir


def test_the_runner_for_devices_elsewhere_rounds(tmp_path):
    model = in_half([node("Relu", ["a"], "b")])
    ir.save(model, tmp_path / "model.onnx")
    batch = Batch(inputs={"x": np.float32([1e5, 2049])}, labels=None)
    (outputs,) = ReferenceRunner().outputs(tmp_path / "model.onnx", [batch])
    np.testing.assert_array_equal(outputs["y"], np.float32([np.inf, 2048]))
