"""Channels of images are padded for the integer kernels, and sums do not change by a bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.graph.edit import constant_value, set_initializer
from edgesmith_onnxruntime.channel_padding import pad_channels
from edgesmith_onnxruntime.channels_last import keep_channels_last
from edgesmith_onnxruntime.integer_convolutions import join_integer_convolutions
from small_graphs import graph, node, operators, quantize, run


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def integer_convolution(channels=3, kernel=3, group=1, size=(7, 9), **attributes):
    weights = {"w": normal(8 * group, channels // group, *[kernel] * len(size)), "b": normal(8 * group)}
    model = graph(
        [node("Conv", ["x", "w", "b"], "y", group=group, **attributes)], weights, {"x": ["n", channels, *size]}
    )
    # Values around 1, so that the code of 0 is not the smallest one.
    quantized = quantize(model, {"x": 1 + normal(4, channels, *size)})
    join_integer_convolutions(quantized.graph)
    return quantized, {"x": 1 + 2 * normal(2, channels, *size, seed=1)}


@settings(max_examples=20, deadline=None)
@given(
    channels=st.integers(1, 11),
    kernel=st.integers(2, 4),
    stride=st.integers(1, 3),
    pad=st.integers(0, 1),
    last=st.booleans(),
)
def test_codes_do_not_change(channels, kernel, stride, pad, last):
    model, inputs = integer_convolution(channels, kernel, strides=[stride] * 2, pads=[pad] * 4)
    result = model.clone()
    assert pad_channels(result.graph) == int(channels % 4 != 0)
    if last:
        keep_channels_last(result.graph)
    width = constant_value(next(each for each in result.graph if each.op_type == "QLinearConv").inputs[3]).shape[1]
    assert width % 4 == 0
    assert 0 <= width - channels < 4
    np.testing.assert_array_equal(run(result, inputs)["y"], run(model, inputs)["y"])


@pytest.mark.parametrize(
    "form", [{"kernel": 1}, {"group": 3}, {"channels": 4}, {"size": (9,)}, {"size": (4, 4, 4)}], ids=str
)
def test_forms_that_gain_nothing_stay(form):
    model, _ = integer_convolution(**form)
    assert pad_channels(model.graph) == 0
    assert "Pad" not in operators(model)


def test_weights_around_another_zero_stay():
    model, _ = integer_convolution()
    zero = next(each for each in model.graph if each.op_type == "QLinearConv").inputs[5]
    set_initializer(zero, constant_value(zero) + np.int8(1))
    assert pad_channels(model.graph) == 0


def test_weight_that_two_convolutions_share():
    nodes = [node("Conv", ["x", "w"], "a"), node("Conv", ["x", "w"], "b", pads=[0] * 4, strides=[2, 2])]
    nodes += [node("Conv", ["a", "v"], "y"), node("Conv", ["b", "v"], "z")]
    weights = {"w": normal(4, 3, 3, 3), "v": normal(2, 4, 1, 1)}
    model = quantize(graph(nodes, weights, {"x": ["n", 3, 9, 9]}, ("y", "z")), {"x": normal(4, 3, 9, 9)})
    join_integer_convolutions(model.graph)
    result = model.clone()
    assert pad_channels(result.graph) == 2
    inputs = {"x": normal(2, 3, 9, 9, seed=1)}
    for name, expected in run(model, inputs).items():
        np.testing.assert_array_equal(run(result, inputs)[name], expected)
