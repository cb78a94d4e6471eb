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
