"""Nodes that run as one kernel give what they give apart, and stay apart where somebody looks inside."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_graphs import assert_same_as_reference, parse, run_torch, tensors

from edgesmith.execution.torch_graph import TorchGraph

GENERATOR = np.random.default_rng(11)

ATTENTION = """g (float[b, h, s, d] q, float[b, h, d, s] k, float[b, h, s, d] v, bool[b, 1, s, s] seen) =>
    (float[b, h, s, d] y) {
    mask = Where(seen, none, never)
    scores = MatMul(q, k)
    scaled = SCALE(scores, factor)
    masked = Add(scaled, mask)
    weights = Softmax<axis = -1>(masked)
    empty = IsNaN(weights)
    safe = Where(empty, none, weights)
    y = MatMul(safe, v) }"""

LAYER_NORM = """g (float[2, 5, 8] x) => (float[2, 5, 8] y) {
    mean = ReduceMean<axes = [-1]>(x)
    difference = Sub(x, mean)
    two = Constant<value = float {2.0}>()
    square = Pow(difference, two)
    variance = ReduceMean<axes = [-1]>(square)
    epsilon = Constant<value = float {0.001}>()
    total = Add(variance, epsilon)
    root = Sqrt(total)
    quotient = Div(difference, root)
    scaled = Mul(quotient, scale)
    y = Add(scaled, bias) }"""

GELU = """g (float[3, 7] x) => (float[3, 7] y) {
    root = Constant<value = float {1.4142135}>()
    one = Constant<value = float {1.0}>()
    half = Constant<value = float {0.5}>()
    scaled = Div(x, root)
    error = Erf(scaled)
    sum = Add(error, one)
    ORDER }"""

LINEAR = "g (float[2, 3, 4] x) => (float[2, 3, 5] y) { product = MatMul(x, w) y = Add(ORDER) }"


def floats(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def steps(model, taps=()) -> int:
    graph = TorchGraph(model)
    return len(graph._plan(tuple(taps)).steps)


def attention_model(scale: str):
    weights = {"none": np.float32(0), "never": np.float32(-np.inf), "factor": np.float32(0.7)}
    return parse(ATTENTION.replace("SCALE", scale), weights=weights)


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.integers(1, 4)] * 2, st.integers(1, 6), st.integers(1, 8)), st.sampled_from(["Mul", "Div"]))
def test_attention_with_a_mask_that_may_hide_everything(shape, scale):
    batch, heads, length, width = shape
    inputs = {
        "q": floats(batch, heads, length, width),
        "k": floats(batch, heads, width, length),
        "v": floats(batch, heads, length, width),
        "seen": GENERATOR.random((batch, 1, length, length)) > 0.6,
    }
    assert_same_as_reference(attention_model(scale), inputs)


def test_attention_without_the_guard_keeps_its_nan():
    text = """g (float[1, 1, 2, 4] q, float[1, 1, 4, 2] k, float[1, 1, 2, 4] v, float[1, 1, 2, 2] mask) =>
        (float[1, 1, 2, 4] y) {
        scores = MatMul(q, k)
        masked = Add(scores, mask)
        weights = Softmax<axis = -1>(masked)
        y = MatMul(weights, v) }"""
    mask = np.array([[[[0, 0], [-np.inf, -np.inf]]]], np.float32)
    inputs = {"q": floats(1, 1, 2, 4), "k": floats(1, 1, 4, 2), "v": floats(1, 1, 2, 4), "mask": mask}
    y = run_torch(parse(text), inputs)["y"]
    assert np.isfinite(y[0, 0, 0]).all()
    assert np.isnan(y[0, 0, 1]).all()


@pytest.mark.parametrize(
    "order",
    [
        "product = Mul(x, sum) y = Mul(product, half)",
        "product = Mul(x, half) y = Mul(product, sum)",
        "product = Mul(half, sum) y = Mul(x, product)",
    ],
)
def test_gelu_in_any_order_is_one_step(order):
    model = parse(GELU.replace("ORDER", order))
    assert steps(model) == 1
    assert_same_as_reference(model, {"x": floats(3, 7)})


def test_what_only_looks_like_gelu_is_left_alone():
    model = parse(GELU.replace("ORDER", "product = Mul(scaled, sum) y = Mul(product, half)"))
    assert steps(model) > 1
    assert_same_as_reference(model, {"x": floats(3, 7)})


def test_layer_norm_of_old_exports_is_one_step():
    model = parse(LAYER_NORM, weights={"scale": floats(8), "bias": floats(8)}, opset=14)
    assert steps(model) == 1
    assert_same_as_reference(model, {"x": floats(2, 5, 8)})


@pytest.mark.parametrize("order", ["product, b", "b, product"])
def test_product_and_bias_are_one_step(order):
    model = parse(LINEAR.replace("ORDER", order), weights={"w": floats(4, 5), "b": floats(5)})
    assert steps(model) == 1
    assert_same_as_reference(model, {"x": floats(2, 3, 4)})


@pytest.mark.parametrize(
    ("text", "weights", "opset", "tap"),
    [
        (LINEAR.replace("ORDER", "product, b"), {"w": (4, 5), "b": (5,)}, 20, "product"),
        (LAYER_NORM, {"scale": (8,), "bias": (8,)}, 14, "variance"),
        (GELU.replace("ORDER", "p = Mul(x, sum) y = Mul(p, half)"), {}, 20, "error"),
    ],
)
def test_a_tap_inside_splits_the_group_and_changes_nothing(text, weights, opset, tap):
    model = parse(text, weights={name: floats(*shape) for name, shape in weights.items()}, opset=opset)
    x = floats(*model.graph.inputs[0].shape.numpy())
    assert steps(model, [tap]) > steps(model) == 1
    apart = run_torch(model, {"x": x}, (tap,))
    assert tap in apart
    np.testing.assert_allclose(apart["y"], run_torch(model, {"x": x})["y"], rtol=1e-5, atol=1e-6)


def test_a_value_read_elsewhere_is_not_swallowed():
    model = parse(
        """g (float[2, 3] x) => (float[2, 5] y, float[2, 5] z) {
           product = MatMul(x, w)
           y = Add(product, b)
           z = Relu(product) }""",
        weights={"w": floats(3, 5), "b": floats(5)},
    )
    assert steps(model) == 3
    assert_same_as_reference(model, {"x": floats(2, 3)})


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from([np.int8, np.uint8, np.int16, np.uint16]),
    channels=st.integers(1, 5),
    axis=st.sampled_from([None, 0, 1]),
    seed=st.integers(0, 1000),
)
def test_quantizing_and_back_equals_the_two_nodes(kind, channels, axis, seed):
    generator = np.random.default_rng(seed)
    shape = {None: (), 0: (4,), 1: (channels,)}[axis]
    limits = np.iinfo(kind)
    weights = {
        "scale": generator.uniform(0.001, 0.5, shape).astype(np.float32),
        "zero": generator.integers(limits.min, limits.max, shape).astype(kind),
    }
    attribute = f"<axis = {axis or 0}>"
    model = parse(
        f"""g (float[4, {channels}] x) => (float[4, {channels}] y) {{
            code = QuantizeLinear{attribute}(x, scale, zero)
            y = DequantizeLinear{attribute}(code, scale, zero) }}""",
        weights=weights,
        opset=21,
    )
    x = (10 * generator.standard_normal((4, channels))).astype(np.float32)
    assert steps(model) == 1
    assert_same_as_reference(model, {"x": x}, rtol=1e-6, atol=1e-6)
    graph = TorchGraph(model)
    recorded = graph(tensors({"x": x}) | {"x": torch.tensor(x, requires_grad=True)})["y"]
    np.testing.assert_allclose(
        recorded.detach().numpy(), run_torch(model, {"x": x}, ("code",))["y"], rtol=1e-5, atol=1e-5
    )
