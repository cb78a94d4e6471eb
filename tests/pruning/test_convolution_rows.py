"""Rows of convolutions times the weight as a matrix are the convolution itself, whatever its attributes."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgesmith.execution.reference import ReferenceSession
from edgesmith_pruning.finding.records import Consumer
from edgesmith_pruning.finding.weights import as_matrix, beside_each_other, rows_of
from edgesmith_pruning.statistics.rows import input_rows, output_rows


def convolution(weight, image, attributes):
    x = ir.Value(name="x", shape=ir.Shape(image.shape), type=ir.TensorType(ir.DataType.FLOAT))
    w = ir.Value(name="w", shape=ir.Shape(weight.shape), type=ir.TensorType(ir.DataType.FLOAT))
    w.const_value = ir.tensor(weight, name="w")
    node = ir.node("Conv", [x, w], attributes, name="conv")
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 20})
    model = ir.Model(graph, ir_version=10)
    return node, ReferenceSession(model).run({"x": image})["y"]


@st.composite
def cases(draw):
    rank = draw(st.integers(1, 2))
    sizes = st.integers(1, 3)
    kernel = [draw(sizes) for _ in range(rank)]
    attributes = {
        "strides": [draw(st.integers(1, 2)) for _ in range(rank)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(rank)],
    }
    mode = draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    attributes["auto_pad"] = mode
    if mode == "NOTSET":
        attributes["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * rank)]
    elif mode != "VALID":
        # ONNX Runtime has no dilations together with automatic padding.
        assume(all(step == 1 for step in attributes["dilations"]))
    return kernel, attributes


@given(cases(), st.integers(0, 100))
def test_rows_times_matrix_is_the_convolution(case, seed):
    kernel, attributes = case
    generator = np.random.default_rng(seed)
    image = generator.standard_normal((2, 3, *[7] * len(kernel))).astype(np.float32)
    weight = generator.standard_normal((4, 3, *kernel)).astype(np.float32)
    node, expected = convolution(weight, image, attributes)
    consumer = Consumer(
        "y", 1, "Conv", "w", axis=1, length=3, positions=((0,), (1,), (2,)), role="consumes", source="x"
    )
    rows = input_rows(node, image)
    given_rows = output_rows(node, expected)
    # At most 27 products of numbers around 1 are summed in float32.
    np.testing.assert_allclose(rows @ as_matrix(weight, consumer), given_rows, atol=1e-4)


def test_rows_of_a_matrix_product_are_its_last_axis():
    node = ir.node("MatMul", [ir.Value(name="x"), ir.Value(name="w")])
    array = np.arange(24.0).reshape(2, 3, 4)
    assert input_rows(node, array).shape == output_rows(node, array).shape == (6, 4)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_pointwise_rows_are_pixels(dtype):
    weight = np.ones((1, 3, 1, 1), np.float32)
    image = np.arange(24, dtype=dtype).reshape(1, 3, 2, 4)
    node, _ = convolution(weight, image.astype(np.float32), {})
    assert np.array_equal(input_rows(node, image), image.reshape(3, 8).T)


def test_a_grouped_convolution_is_one_matrix_over_all_its_inputs():
    generator = np.random.default_rng(0)
    image = generator.standard_normal((2, 6, 5, 5)).astype(np.float32)
    weight = generator.standard_normal((8, 3, 3, 3)).astype(np.float32)
    node, expected = convolution(weight, image, {"group": 2, "pads": [1, 1, 1, 1]})
    consumer = Consumer("y", 1, "Conv", "w", axis=1, length=3, positions=((0,), (1, 2)), role="consumes", source="x")
    matrix = beside_each_other(as_matrix(weight, consumer), 2)
    rows = input_rows(node, image)
    np.testing.assert_allclose(rows @ matrix, output_rows(node, expected), atol=1e-4)
    # An atom lies in both groups: without its rows the convolution is that without its channels.
    masked = image.copy()
    masked[:, [0, 3]] = 0
    rows[:, list(rows_of(consumer, len(matrix), 2)[0])] = 0
    assert np.array_equal(rows, input_rows(node, masked))
