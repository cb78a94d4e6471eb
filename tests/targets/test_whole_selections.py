"""A GatherND that names every element in order becomes Reshape; any other stays."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from edgesmith_onnxruntime.whole_selections import write_whole_selections
from small_graphs import graph, node, operators, run


def selecting(sizes, indices, **attributes):
    return graph([node("GatherND", ["x", "i"], "y", **attributes)], {"i": np.asarray(indices, np.int64)}, {"x": sizes})


def in_order(leading):
    return np.stack(np.unravel_index(np.arange(int(np.prod(leading))), leading), axis=-1)


@settings(deadline=None)
@given(
    leading=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    rest=st.lists(st.integers(1, 3), max_size=2),
    extra=st.integers(0, 2),
    negative=st.booleans(),
)
def test_a_selection_of_everything_is_a_reshape(leading, rest, extra, negative):
    indices = in_order(leading)
    if negative:
        indices = indices - np.array(leading)
    model = selecting([*leading, *rest], indices.reshape(*[1] * extra, *indices.shape))
    x = np.random.default_rng(0).normal(size=[*leading, *rest]).astype(np.float32)
    expected = run(model, {"x": x})["y"]
    assert write_whole_selections(model.graph) == 1
    assert operators(model) == {"Reshape": 1}
    np.testing.assert_array_equal(run(model, {"x": x})["y"], expected)


@settings(deadline=None)
@given(leading=st.lists(st.integers(2, 4), min_size=1, max_size=2), seed=st.integers(0, 99))
def test_another_order_or_part_stays(leading, seed):
    indices = np.random.default_rng(seed).permutation(in_order(leading))
    for chosen in (indices, indices[:-1], np.concatenate([indices, indices[:1]])):
        model = selecting(leading, chosen)
        changed = write_whole_selections(model.graph)
        assert changed == int(np.array_equal(chosen, in_order(leading)))


@pytest.mark.parametrize("case", ["open", "batched", "computed"])
def test_what_is_not_known_stays(case):
    if case == "open":
        model = selecting(["n", 2], [[0, 0], [0, 1]])
    elif case == "batched":
        model = selecting([2, 2], [[[0], [1]]] * 2, batch_dims=1)
    else:
        inputs, types = {"x": [2], "i": [2, 1]}, {"i": TensorProto.INT64}
        model = graph([node("GatherND", ["x", "i"], "y")], {}, inputs, types=types)
    assert write_whole_selections(model.graph) == 0
    assert operators(model) == {"GatherND": 1}


def test_masks_and_outputs_of_the_graph_keep_type_and_name():
    model = selecting([1, 3], in_order([1, 3]))
    model.graph.inputs[0].type = ir.TensorType(ir.DataType.BOOL)
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
    write_whole_selections(model.graph)
    (found,) = run(model, {"x": np.array([[True, False, True]])}).items()
    assert found[0] == "y"
    np.testing.assert_array_equal(found[1], [True, False, True])
