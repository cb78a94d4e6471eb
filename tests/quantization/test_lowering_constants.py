"""Lowering of what is constant: fixed dimensions out of shapes, and factors behind integer products."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith_onnxruntime.output_scales import fold_output_scales
from edgesmith_onnxruntime.static_shapes import write_static_dimensions
from small_graphs import executed_operators, graph, lower, node, operators, quantize, run


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def resized_positions():
    """Position embeddings of 4 x 4 resized to the image's 6 x 6, as vision transformers export them."""
    nodes = [
        node("Shape", ["x"], "shape"),
        node("Gather", ["shape", "two"], "height"),
        node("Gather", ["shape", "three"], "w"),
    ]
    nodes += [node("Unsqueeze", ["height", "zero"], "h1"), node("Unsqueeze", ["w", "zero"], "w1")]
    nodes += [node("Concat", ["front", "h1", "w1"], "sizes", axis=0)]
    nodes += [node("Resize", ["positions", "", "", "sizes"], "p", mode="cubic"), node("Add", ["x", "p"], "y")]
    constants = {"two": np.int64(2), "three": np.int64(3), "zero": np.array([0]), "front": np.array([1, 3])}
    return nodes, {**constants, "positions": normal(1, 3, 4, 4)}


def test_positions_for_a_fixed_image_are_computed_at_load():
    model = graph(*resized_positions(), {"x": ["batch", 3, 6, 6]})
    assert executed_operators(model)["Resize"] == 1
    lowered = lower(model)
    assert executed_operators(lowered)["Resize"] == 0
    inputs = {"x": normal(2, 3, 6, 6)}
    np.testing.assert_allclose(run(lowered, inputs)["y"], run(model, inputs)["y"], rtol=1e-6, atol=1e-6)


def test_free_dimensions_stay_computed():
    model = graph(*resized_positions(), {"x": ["batch", 3, "height", 6]})
    changed = model.clone()
    assert write_static_dimensions(changed.graph) == 1  # the width only
    assert executed_operators(changed)["Resize"] == 1
    for size in (6, 8):
        inputs = {"x": normal(2, 3, size, 6)}
        np.testing.assert_array_equal(run(changed, inputs)["y"], run(model, inputs)["y"])


@given(st.lists(st.sampled_from([None, 2, 3, 5]), min_size=1, max_size=4), st.data())
@settings(max_examples=40, deadline=None)
def test_dimensions_are_those_that_the_runtime_finds(sizes, data):
    rank = len(sizes)
    indices = np.array(data.draw(st.lists(st.integers(-rank, rank - 1), min_size=0, max_size=3)), np.int64)
    nodes = [node("Shape", ["x"], "s"), node("Gather", ["s", "i"], "d"), node("Neg", ["d"], "y")]
    model = graph(
        nodes,
        {"i": indices},
        {"x": [f"n{i}" if size is None else size for i, size in enumerate(sizes)]},
        types={"y": 7},
    )
    changed = model.clone()
    known = all(sizes[index] is not None for index in indices)
    assert write_static_dimensions(changed.graph) == int(known)
    inputs = {"x": np.zeros([4 if size is None else size for size in sizes], np.float32)}
    np.testing.assert_array_equal(run(changed, inputs)["y"], run(model, inputs)["y"])


@pytest.mark.parametrize(("start", "end"), [(1, None), (0, 2), (-2, None), (1, -1)])
def test_windows_of_shapes_are_respected(start, end):
    attributes = {"start": start} if end is None else {"start": start, "end": end}
    nodes = [node("Shape", ["x"], "s", **attributes), node("Gather", ["s", "i"], "d"), node("Neg", ["d"], "y")]
    model = graph(nodes, {"i": np.array([-1])}, {"x": ["n", 3, 5]}, types={"y": 7})
    changed = model.clone()
    write_static_dimensions(changed.graph)
    inputs = {"x": np.zeros((2, 3, 5), np.float32)}
    np.testing.assert_array_equal(run(changed, inputs)["y"], run(model, inputs)["y"])


def test_a_dimension_that_the_graph_returns_keeps_its_node():
    model = graph(
        [node("Shape", ["x"], "s"), node("Gather", ["s", "i"], "y")],
        {"i": np.int64(1)},
        {"x": ["n", 3]},
        types={"y": 7},
    )
    changed = model.clone()
    assert write_static_dimensions(changed.graph) == 0


def layer_scale(bias=True, factor=None, **shape):
    nodes = [node("MatMul", ["x", "w"], "p"), node("Add", ["p", "b"], "a"), node("Mul", ["a", "g"], "s")]
    if not bias:
        nodes = [node("MatMul", ["x", "w"], "a"), node("Mul", ["g", "a"], "s")]
    nodes += [node("Add", ["s", "x"], "y")]
    weights = {"w": normal(16, 16), "g": normal(16, seed=2) if factor is None else factor}
    weights |= {"b": normal(16, seed=3)} if bias else {}
    return graph(nodes, weights, {"x": ["n", 4, 16]})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_layer_scale_disappears_into_the_product(bias, per_channel):
    model, data = layer_scale(bias), {"x": normal(8, 4, 16)}
    quantized = quantize(model, data, per_channel=per_channel)
    lowered = lower(quantized, data)
    assert operators(lowered)["Mul"] == 0
    # The same integers, scaled once instead of twice: two roundings of the largest output apart.
    before, after = run(quantized, data)["y"], run(lowered, data)["y"]
    assert np.abs(before - after).max() <= 1e-6 * np.abs(before).max()


def test_a_factor_of_zero_or_of_another_shape_stays():
    data = {"x": normal(8, 4, 16)}
    zero = normal(16)
    zero[3] = 0
    for factor in (zero, normal(4, 16), np.float32(2)):
        lowered = lower(quantize(layer_scale(factor=factor), data), data)
        assert operators(lowered)["Mul"] == 1
        before = run(layer_scale(factor=factor), data)["y"]
        assert np.abs(run(lowered, data)["y"] - before).max() < 0.1 * np.abs(before).max()


def test_a_product_that_others_read_keeps_its_scale():
    nodes = [node("MatMul", ["x", "w"], "a"), node("Mul", ["a", "g"], "s"), node("Add", ["s", "a"], "y")]
    model = graph(nodes, {"w": normal(16, 16), "g": normal(16, seed=1)}, {"x": ["n", 4, 16]})
    data = {"x": normal(8, 4, 16)}
    lowered = lower(quantize(model, data), data)
    assert operators(lowered)["Mul"] == 1
    assert fold_output_scales(lowered.clone().graph) == 0
