"""Neg and Expand in forms that Core ML takes: the same numbers, bit for bit."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from edgesmith_onnxruntime.core_ml_forms import write_core_ml_forms
from small_graphs import graph, node, operators, run


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([1, 4])), min_size=1, max_size=4))
def test_an_expansion_is_a_tile(sizes):
    old = [size for size, _ in sizes]
    new = [repeats if size == 1 else size for size, repeats in sizes]
    model = graph([node("Expand", ["x", "s"], "y")], {"s": np.array(new, np.int64)}, {"x": old})
    x = np.random.default_rng(0).normal(size=old).astype(np.float32)
    expected = run(model, {"x": x})["y"]
    assert write_core_ml_forms(model.graph) == 1
    assert operators(model) == {"Tile": 1}
    np.testing.assert_array_equal(run(model, {"x": x})["y"], expected)


def test_a_negation_is_a_product_with_every_special_value():
    x = np.array([0.0, -0.0, 1.5, -2.0, np.inf, -np.inf, np.nan], np.float32)
    model = graph([node("Neg", ["x"], "y")], {}, {"x": [7]})
    expected = run(model, {"x": x})["y"]
    assert write_core_ml_forms(model.graph) == 1
    actual = run(model, {"x": x})["y"]
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(np.signbit(actual[:6]), np.signbit(expected[:6]))


def test_what_is_not_known_or_not_float_stays():
    grown = graph([node("Expand", ["x", "s"], "y")], {"s": np.array([2, 3], np.int64)}, {"x": [3]})
    opened = graph([node("Expand", ["x", "s"], "y")], {"s": np.array([1, 3], np.int64)}, {"x": ["n", 1]})
    whole = graph([node("Neg", ["x"], "y")], {}, {"x": [2]}, types={"x": TensorProto.INT64, "y": TensorProto.INT64})
    for model in (grown, opened, whole):
        assert write_core_ml_forms(model.graph) == 0
