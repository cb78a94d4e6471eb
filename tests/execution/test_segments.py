"""Running piece by piece gives what running at once gives, with every node run once and weights that change between."""

import gc

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.errors import DataError, ModelError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.sample import sample_inputs
from edgesmith.execution.segments import SegmentedRun
from edgesmith.graph.edit import set_initializer
from edgesmith_calibration.sources import ArraySource
from small_graphs import graph, node


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def chain():
    """Two products with a residual connection around the second."""
    nodes = [
        node("MatMul", ["x", "a"], "h"),
        node("Relu", ["h"], "r"),
        node("MatMul", ["r", "b"], "s"),
        node("Add", ["s", "r"], "y"),
    ]
    return graph(nodes, {"a": normal(4, 4), "b": normal(4, 4, seed=1)}, {"x": ["n", 4]}).ir


def at_once(model, data, names):
    return ReferenceSession(model, taps=names, optimization="all").run(data)


def all_stops(run, count):
    """Return each stop's values over all batches."""
    found = []
    for _ in range(count):
        batches = list(run.advance())
        found.append({name: np.concatenate([np.atleast_1d(batch[name]) for batch in batches]) for name in batches[0]})
    return found


@pytest.mark.parametrize("memory_bytes", [0, 100, 1 << 20])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_values_are_those_of_the_whole_graph(memory_bytes, batch_size, tmp_path):
    data, model = {"x": normal(7, 4, seed=2)}, chain()
    stops = [["x"], ["h", "r"], ["y"]]
    run = SegmentedRun(
        model, stops, ArraySource(data), scratch=tmp_path, batch_size=batch_size, memory_bytes=memory_bytes
    )
    expected = at_once(model, data, ["h", "r"]) | data
    for names, found in zip(stops, all_stops(run, 3), strict=True):
        assert sorted(found) == sorted(names)
        for name in names:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-6)
    del run
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_weights_may_change_before_they_are_used(tmp_path):
    data, model = {"x": normal(5, 4, seed=2)}, chain()
    run = SegmentedRun(model, [["r"], ["y"]], ArraySource(data), scratch=tmp_path)
    (first,) = all_stops(run, 1)
    # The first product has run already: its new weight changes nothing any more.
    set_initializer(model.graph.initializers["a"], np.zeros((4, 4), np.float32))
    set_initializer(model.graph.initializers["b"], np.eye(4, dtype=np.float32))
    (second,) = all_stops(run, 1)
    np.testing.assert_array_equal(second["y"], 2 * first["r"])


def test_values_wait_only_as_long_as_somebody_reads_them(tmp_path):
    nodes = [node("Relu", ["x"], "a"), node("Neg", ["a"], "b"), node("Neg", ["b"], "c"), node("Add", ["c", "a"], "y")]
    model = graph(nodes, {}, {"x": ["n", 4]}).ir
    run = SegmentedRun(model, [["a"], ["b"], ["c"], ["y"]], ArraySource({"x": normal(3, 4)}), scratch=tmp_path)
    waiting = [segment.waiting for segment in run._segments]
    assert waiting == [("a",), ("a", "b"), ("a", "c"), ()]


def test_bodies_of_control_flow_read_values_from_outside(tmp_path):
    then_node = node("Mul", ["h", "two"], "doubled")
    else_node = node("Neg", ["x"], "negated")
    from onnx import TensorProto, helper

    def body(inner, name):
        output = helper.make_tensor_value_info(inner.output[0], TensorProto.FLOAT, ["n", 4])
        return helper.make_graph([inner], name, [], [output])

    nodes = [
        node("Relu", ["x"], "h"),
        node("ReduceMax", ["h"], "largest", keepdims=0),
        node("Greater", ["largest", "zero"], "positive"),
        node("If", ["positive"], "y", then_branch=body(then_node, "t"), else_branch=body(else_node, "e")),
    ]
    weights = {"two": np.float32(2), "zero": np.float32(0)}
    model = graph(nodes, weights, {"x": ["n", 4]}).ir
    data = {"x": normal(3, 4)}
    run = SegmentedRun(model, [["largest"], ["y"]], ArraySource(data), scratch=tmp_path, batch_size=3)
    found = all_stops(run, 2)[1]["y"]
    np.testing.assert_array_equal(found, at_once(model, data, [])["y"])


@pytest.mark.parametrize("name", ["bert", "llama", "cnn", "vit"])
@given(draw=st.data())
@settings(max_examples=4, deadline=None)
def test_any_cuts_of_real_graphs_change_nothing(name, draw, request, tmp_path_factory):
    """Cuts at random values of networks with masks, residual streams and shape arithmetic."""
    model = request.getfixturevalue(f"tiny_{name}").ir
    order = [value.name for each in model.graph for value in each.outputs if value.dtype == ir.DataType.FLOAT]
    chosen = sorted(draw.draw(st.sets(st.integers(0, len(order) - 1), min_size=1, max_size=5)))
    stops = [[order[index]] for index in chosen]
    data = sample_inputs(model, seed=1)
    expected = at_once(model, data, [each for (each,) in stops])
    run = SegmentedRun(model, stops, ArraySource(data), scratch=tmp_path_factory.mktemp("cuts"), batch_size=2)
    for (value,) in stops:
        (found,) = run.advance()
        # Other fusions round differently in the last places.
        scale = max(1.0, float(np.abs(expected[value]).max()))
        np.testing.assert_allclose(found[value], expected[value], rtol=1e-4, atol=1e-5 * scale)


def test_lengths_may_differ_from_sample_to_sample(tiny_bert, tmp_path):
    from edgesmith.execution.unpadded import UnpaddedSource

    data = sample_inputs(tiny_bert.ir, seed=3, dimensions={"batch": 3, "sequence": 9})
    data["attention_mask"] = (np.arange(9) < np.array([4, 9, 6])[:, None]).astype(data["attention_mask"].dtype)
    source = UnpaddedSource(ArraySource(data), "attention_mask", frozenset(data))
    product = next(each for each in tiny_bert.graph if each.op_type == "MatMul")
    names = [product.inputs[0].name, tiny_bert.graph.outputs[0].name]
    run = SegmentedRun(tiny_bert.ir, [[name] for name in names], source, scratch=tmp_path)
    assert [batch[names[0]].shape[1] for batch in run.advance()] == [4, 9, 6]
    assert len(list(run.advance())) == 3


def test_what_cannot_run_says_so(tmp_path):
    model = chain()
    with pytest.raises(ModelError, match="no value named 'nowhere'"):
        SegmentedRun(model, [["nowhere"]], ArraySource({"x": normal(3, 4)}), scratch=tmp_path)
    with pytest.raises(DataError, match="no samples"):
        SegmentedRun(model, [["y"]], ArraySource({"x": normal(0, 4)}), scratch=tmp_path)
    run = SegmentedRun(model, [["y"]], ArraySource({"z": normal(3, 4)}), scratch=tmp_path)
    with pytest.raises(DataError, match="missing"):
        list(run.advance())
