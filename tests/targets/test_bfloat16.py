"""Graphs in bfloat16: the reference rounds as they do, and NVIDIA's compiler takes them."""

import json

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.runnable import runnable_inputs
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from edgesmith_tensorrt import gate
from edgesmith_tensorrt.bfloat16 import as_bfloat16, is_rounded, lower_to_bfloat16
from edgesmith_tensorrt.half_precision import BRAIN, as_half
from small_graphs import SIGNED, context, graph, node, run

needs_compiler = pytest.mark.skipif(
    not any(map(gate._is_installed, gate.COMPILERS)),
    reason="TensorRT for RTX is not installed: pip install 'edgesmith[tensorrt-rtx]'",
)


def normal(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def rounded(array):
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def chain():
    nodes = [node("Mul", ["x", "w"], "a"), node("Relu", ["a"], "b"), node("Add", ["b", "w"], "y")]
    return graph(nodes, {"w": normal(8, seed=1)}, {"x": ["n", 8]})


def card(tmp_path, base="rtx-40"):
    """A user's profile that asks for bfloat16."""
    path = tmp_path / "brain.toml"
    path.write_text(
        f'extends = "{base}"\nname = "brain"\nsummary = "bfloat16."\n[formats]\ntensors = "bfloat16"\n',
        encoding="utf-8",
    )
    return find_target(load_registry(), str(path))[1]


def test_the_reference_rounds_every_value_as_bfloat16_does():
    model, data = chain(), {"x": normal(4, 8)}
    result = model.with_ir(lower_to_bfloat16(model.ir, context(None, data, SIGNED)))
    assert is_rounded(result.ir)
    weight = rounded(normal(8, seed=1))
    expected = rounded(np.maximum(rounded(rounded(data["x"]) * weight), 0) + weight)
    np.testing.assert_array_equal(run(result, data)["y"], expected)


def test_the_graph_that_ships_is_in_bfloat16_and_keeps_inputs_and_outputs():
    model = chain()
    used = context(None, {"x": normal(4, 8)}, SIGNED)
    shipped = as_bfloat16(lower_to_bfloat16(model.ir, used))
    assert {each.name: each.outputs[0].dtype for each in shipped.graph if each.op_type != "Cast"} == {
        "node_a": BRAIN,
        "node_b": BRAIN,
        "node_y": BRAIN,
    }
    assert [value.dtype for value in (*shipped.graph.inputs, *shipped.graph.outputs)] == [ir.DataType.FLOAT] * 2
    assert sum(each.op_type == "Cast" for each in shipped.graph) == 2  # at the input and at the output
    assert any("3 nodes compute in bfloat16" in remark for remark in used.notes.remarks)


def test_what_overflows_float16_does_not_leave_bfloat16():
    nodes = [node("Mul", ["x", "big"], "p"), node("Mul", ["p", "small"], "y")]
    model = graph(nodes, {"big": np.float32(1e6), "small": np.float32(1e-6)}, {"x": ["n", 8]})
    data = {"x": normal(4, 8)}
    result = model.with_ir(lower_to_bfloat16(model.ir, context(None, data, SIGNED)))
    # Input, two constants and two products are rounded, each to 2^-9 of its size.
    np.testing.assert_allclose(run(result, data)["y"], data["x"], rtol=5 * 2**-9 * 1.01)


def test_outputs_that_move_too_far_leave_the_graph_in_float32():
    nodes = [node("Add", ["x", "large"], "p"), node("Sub", ["p", "large"], "y")]
    model = graph(nodes, {"large": np.float32(1000)}, {"x": ["n", 8]})
    used = context(None, {"x": normal(4, 8)}, SIGNED)
    assert not is_rounded(lower_to_bfloat16(model.ir, used))
    assert any("stays in float32" in remark for remark in used.notes.remarks)


WHOLE = {"i": ir.DataType.INT64.value}


def lowered(nodes, weights, inputs, data, **types):
    """Lower a graph; return the types of its nodes in what ships, and how far its outputs moved."""
    model = graph(nodes, {"w": normal(8, 8, scale=0.3), **weights}, inputs, types=types)
    result = lower_to_bfloat16(model.ir, context(None, data, SIGNED))
    assert is_rounded(result)
    found, expected = ReferenceSession(result).run(data)["y"], run(model, data)["y"]
    kinds = {str(each.name).removeprefix("node_"): each.outputs[0].dtype.name for each in as_bfloat16(result).graph}
    return kinds, np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("base", [512, 100_000])
def test_whole_numbers_that_it_would_change_stay_until_they_are_small(base):
    # Distance to a number of those around it: bfloat16 counts in steps of 4 at 512, and of 1 up to 256.
    nodes = [node("Cast", ["i"], "a", to=1), node("Sub", ["a", "base"], "b"), node("Mul", ["b", "third"], "c")]
    nodes += [node("MatMul", ["c", "w"], "y")]
    weights = {"base": np.float32(base), "third": np.float32(0.3)}
    data = {"i": np.random.default_rng(0).integers(base - 6, base + 8, (4, 8))}
    kinds, error = lowered(nodes, weights, {"i": ["n", 8]}, data, **WHOLE)
    assert kinds["a"] == kinds["b"] == "FLOAT"
    assert kinds["c"] == "BFLOAT16"
    assert error < 1e-2


@pytest.mark.parametrize("length", [512, 16_000, 100_000])
def test_comparisons_of_large_whole_numbers_are_those_of_float32(length):
    # A mask by position: this length and the number before it are one number in bfloat16.
    nodes = [node("Cast", ["i"], "a", to=1), node("Less", ["a", "base"], "b"), node("Where", ["b", "x", "zero"], "c")]
    nodes += [node("MatMul", ["c", "w"], "y")]
    data = {"i": np.array([[length - 1, length] * 4] * 2), "x": normal(2, 8)}
    weights = {"base": np.float32(length), "zero": np.float32(0)}
    kinds, error = lowered(nodes, weights, {"i": ["n", 8], "x": ["n", 8]}, data, **WHOLE)
    assert kinds["a"] == "FLOAT" and kinds["c"] == "BFLOAT16"
    assert error < 1e-2


def test_a_large_whole_number_that_is_no_count_keeps_its_reader_in_bfloat16():
    nodes = [node("Cast", ["i"], "a", to=1), node("Mul", ["a", "mask"], "b"), node("Add", ["x", "b"], "c")]
    nodes += [node("Softmax", ["c"], "d"), node("MatMul", ["d", "w"], "y")]
    data = {"i": np.array([[0, 1] * 4] * 2), "x": normal(2, 8)}
    kinds, _ = lowered(nodes, {"mask": np.float32(-10000)}, {"i": ["n", 8], "x": ["n", 8]}, data, **WHOLE)
    assert kinds["b"] == "FLOAT" and kinds["c"] == "BFLOAT16"


def test_numbers_that_become_indices_stay():
    nodes = [node("Cast", ["i"], "a", to=1), node("Mul", ["a", "half"], "b"), node("Floor", ["b"], "c")]
    nodes += [node("Cast", ["c"], "j", to=7), node("Gather", ["table", "j"], "d"), node("MatMul", ["d", "w"], "y")]
    weights = {"half": np.float32(0.5), "table": normal(8000, 8)}
    ids = np.random.default_rng(0).integers(0, 15999, (16, 4))
    kinds, error = lowered(nodes, weights, {"i": ["n", 4]}, {"i": ids}, **WHOLE)
    assert {kinds[each] for each in "abc"} == {"FLOAT"} and kinds["d"] == "BFLOAT16"
    assert error < 1e-2


def test_where_outputs_move_too_far_sensitive_operators_stay_first():
    # Rounded to 2^-9 of 30, an exponent moves its result by 6 %.
    nodes = [node("Exp", ["x"], "a"), node("MatMul", ["a", "w"], "y")]
    kinds, error = lowered(nodes, {}, {"x": ["n", 8]}, {"x": normal(4, 8, scale=0.2) + 30})
    assert kinds["a"] == "FLOAT" and kinds["y"] == "BFLOAT16"
    assert error < 1e-2


@pytest.mark.parametrize("constant", [1e-12, 1e6])
def test_guards_and_factors_beyond_float16_are_within_its_range(constant):
    nodes = [node("MatMul", ["x", "w"], "a"), node("ReduceL2", ["a", "ax"], "b"), node("Max", ["b", "s"], "c")]
    nodes += [node("Div", ["a", "c"], "d"), node("MatMul", ["d", "w"], "y")]
    rows = normal(16, 8)
    rows[::2] = 0
    kinds, error = lowered(nodes, {"s": np.float32(constant), "ax": np.array([1])}, {"x": ["n", 8]}, {"x": rows})
    assert {kinds[each] for each in "abcd"} == {"BFLOAT16"}
    assert error < 2e-2


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_vit", "tiny_cnn"])
def test_real_architectures_hold(fixture, request):
    model = request.getfixturevalue(fixture)
    result = lower_to_bfloat16(model.ir, context(None, None, SIGNED))
    assert is_rounded(result)
    inputs = runnable_inputs(model.ir, seed=7)
    expected, found = ReferenceSession(model.ir).run(inputs), ReferenceSession(result).run(inputs)
    for name, array in expected.items():
        assert np.linalg.norm(found[name] - array) < 4e-2 * np.linalg.norm(array)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=20))
def test_conversion_saturates(values):
    converted = as_half(np.array(values, np.float32), BRAIN).astype(np.float32)
    assert np.isfinite(converted).all()


@needs_compiler
def test_an_artifact_has_both_graphs_and_the_compiler_takes_the_one_that_ships(tmp_path, monkeypatch, tiny_vit):
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    target = card(tmp_path)
    used = context(None, None, target.dialect)
    (tmp_path / "scratch").mkdir()
    used = type(used)(options=None, dialect=target.dialect, scratch=tmp_path / "scratch")
    lowered = target.lower(tiny_vit, used)
    assert any("parsed and built" in remark for remark in used.notes.remarks)
    (tmp_path / "files").mkdir()
    build = target.build(lowered, tmp_path / "files")
    assert build.entry == "reference.onnx"
    assert json.loads((tmp_path / "files" / "build.json").read_text())["model"] == "model.onnx"
    shipped = ir.load(tmp_path / "files" / "model.onnx")
    assert sum(value.dtype == BRAIN for each in shipped.graph for value in each.outputs) > 20
    ReferenceSession(tmp_path / "files" / "reference.onnx").run(runnable_inputs(tiny_vit.ir))
