"""The arithmetic of shifting ranges into weights, and the graph edit: equal in float, less noise in integers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.sample import sample_inputs
from edgesmith.graph.edit import GraphEditor
from edgesmith.host.context import Notes
from edgesmith_calibration.errors import DataError
from edgesmith_quantization.arithmetic.rounding import dequantize, quantize, symmetric_scale
from edgesmith_quantization.finding.candidates import find_candidates
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.quantize_int8 import QuantizeInt8
from edgesmith_quantization.repair.channel_statistics import ChannelObserver
from edgesmith_quantization.repair.migration import Migration, MigrationFinder, migrate
from edgesmith_quantization.repair.smoothing import (
    best_strength,
    equalizing_scale,
    expected_noise,
    expected_sqnr_db,
    smoothing_scale,
)
from small_graphs import DIALECT, context, graph, node, operators, run, sqnr
from small_graphs import quantize as quantize_model


def normal(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def summarize(array):
    observer = ChannelObserver("x")
    observer.update(array)
    return observer.summary()


def migrations(model, **options):
    """Return a clone, how each activation of it can be divided, and why the others cannot."""
    clone = model.clone()
    candidates = find_candidates(clone.graph, DIALECT, QuantizeInt8Options(**options), Notes())
    readers = {}
    for candidate in candidates:
        readers.setdefault(candidate.activation, []).append(candidate)
    finder = MigrationFinder(clone.ir)
    found = {activation: finder.find(activation, group) for activation, group in readers.items()}
    return (
        clone,
        [each for each in found.values() if isinstance(each, Migration)],
        {activation.name: each for activation, each in found.items() if isinstance(each, str)},
    )


def divide_all(model, seed=0):
    """Return a clone in which every activation that can be divided is, by random scales over four decades."""
    clone, found, _ = migrations(model)
    generator, editor = np.random.default_rng(seed), GraphEditor(clone.graph)
    for each in reversed(found):
        migrate(editor, each, (10 ** generator.uniform(-2, 2, int(each.ties.max()) + 1))[each.ties])
    return clone, len(found)


def assert_equal(model, changed, inputs):
    """Outputs agree to 1e-5 of their largest value, which leaves room for the rounding of about 50 float32 sums.

    So does every value inside that kept its name: the error inside the graph is measured by name.
    """
    made = [{value.name for each in graph for value in each.outputs} for graph in (model.graph, changed.graph)]
    taps = sorted((made[0] & made[1]) - {value.name for value in model.graph.outputs})
    before, after = (ReferenceSession(each.ir, taps=taps).run(inputs) for each in (model, changed))
    for name, expected in before.items():
        assert np.abs(after[name] - expected.astype(np.float64)).max() <= 1e-5 * np.abs(expected).max()


# --- arithmetic ---


def test_smoothing_scale_is_the_published_one_up_to_a_common_factor():
    activation, weight = np.array([8.0, 2.0, 0.5]), np.array([0.5, 0.5, 2.0])
    scale = smoothing_scale(activation, weight, 0.5)
    published = np.sqrt(activation / weight)
    np.testing.assert_allclose(scale / scale[0], published / published[0])
    assert np.exp(np.log(scale).mean()) == pytest.approx(1)


def test_equalizing_makes_both_sides_reach_equally_far():
    first, second = np.array([4.0, 1.0, 9.0]), np.array([1.0, 4.0, 1.0])
    scale = equalizing_scale(first, second)
    ratio = (first / scale) / (second * scale)
    np.testing.assert_allclose(ratio, ratio[0])


def test_channels_that_are_dead_on_one_side_keep_their_scale():
    scale = smoothing_scale(np.array([0.0, 3.0, 1.0]), np.array([1.0, 0.0, 2.0]), 0.7)
    assert scale[0] == scale[1] == 1
    np.testing.assert_array_equal(smoothing_scale(np.zeros(3), np.zeros(3), 0.5), np.ones(3))


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.9))
@settings(max_examples=25, deadline=None)
def test_scales_are_positive_finite_and_bounded(seed, strength):
    generator = np.random.default_rng(seed)
    activation, weight = 10 ** generator.uniform(-30, 30, (2, 9))
    scale = smoothing_scale(activation, weight, strength)
    assert np.isfinite(scale).all() and (scale >= 1e-4).all() and (scale <= 1e4).all()


def measured_noise(rows, weight, scale):
    """Return the mean square error per row of the integer product that `expected_noise` describes."""
    values, matrix = (rows / scale).astype(np.float32), (weight * scale[:, None]).astype(np.float32)
    low, high = min(values.min(), 0), max(values.max(), 0)
    step = np.float32((high - low) / 255)
    zero_point = np.uint8(np.rint(-low / step))
    rounded = dequantize(quantize(values, step, zero_point), step, zero_point)
    weight_scale = symmetric_scale(matrix, 127, 1)
    zeros = np.zeros(weight_scale.shape, np.int8)
    rounded_weight = dequantize(quantize(matrix, weight_scale, zeros, 1), weight_scale, zeros, 1)
    return float(np.square(rounded @ rounded_weight - values @ matrix).sum(axis=1).mean())


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_expected_noise_is_close_to_the_measured_one(spread):
    generator = np.random.default_rng(3)
    rows = normal(4000, 48) * 10 ** generator.uniform(-spread, spread, 48).astype(np.float32)
    weight, scale = normal(48, 32, seed=1), 10 ** generator.uniform(-0.3, 0.3, 48)
    expected = expected_noise(summarize(rows), [weight], scale)
    # Errors are uniform and independent only for values that spread over many steps; 1 dB covers what is left.
    assert 10 * abs(np.log10(expected / measured_noise(rows, weight, scale))) < 1


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_expected_ratio_is_close_to_the_measured_one(mean):
    rows, weight = normal(4000, 48) + np.float32(mean), normal(48, 32, seed=1)
    power = float(np.square(rows @ weight).sum(axis=1).mean())
    measured = 10 * np.log10(power / measured_noise(rows, weight, np.ones(48)))
    assert abs(expected_sqnr_db(summarize(rows), [weight]) - measured) < 1  # as for the noise alone


def test_expected_ratio_of_nothing():
    assert expected_sqnr_db(summarize(np.zeros((4, 3), np.float32)), [normal(3, 2)]) == float("inf")


def test_best_strength_lowers_the_noise_that_is_measured():
    rows = normal(2000, 64)
    rows[:, 5] *= 60
    weight = normal(64, 32, seed=2)
    scale, gain_db = best_strength(summarize(rows), [weight], np.arange(64))
    gained = 10 * np.log10(measured_noise(rows, weight, np.ones(64)) / measured_noise(rows, weight, scale))
    assert gained > 10
    assert abs(gained - gain_db) < 2


def test_best_strength_never_raises_the_expected_noise_and_keeps_groups_together():
    rows, weight = normal(500, 12), normal(12, 7, seed=1)
    ties = np.arange(12) // 3
    scale, gain_db = best_strength(summarize(rows), [weight, weight * 2], ties)
    assert gain_db >= 0
    assert all(len(set(scale[ties == group])) == 1 for group in range(4))


def test_channel_observer_does_not_depend_on_batches():
    values = normal(40, 6, 5)
    whole, parts = ChannelObserver(), ChannelObserver()
    whole.update(values)
    for start in range(0, 40, 7):
        parts.update(values[start : start + 7])
    parts.update(values[:0])
    for name in ("low", "high", "mean", "power"):
        np.testing.assert_allclose(getattr(parts.summary(), name), getattr(whole.summary(), name), rtol=1e-12)
    np.testing.assert_allclose(whole.summary().mean, values.reshape(-1, 5).astype(np.float64).mean(0), rtol=1e-9)
    np.testing.assert_array_equal(whole.summary().peak, np.abs(values).reshape(-1, 5).max(0))


def test_channel_observer_takes_any_axis():
    values = normal(3, 4, 5, 6)
    observer = ChannelObserver("x", 1)
    observer.update(values)
    np.testing.assert_array_equal(observer.summary().low, values.min(axis=(0, 2, 3)))


def test_channel_observer_refuses_nan_and_nothing():
    with pytest.raises(DataError, match=r"'x'.*NaN"):
        ChannelObserver("x").update(np.array([[1.0, np.nan]], np.float32))
    with pytest.raises(DataError, match="no values"):
        ChannelObserver("x").summary()


# --- graph edit ---


@pytest.mark.parametrize(
    ("fixture", "least"),
    [("tiny_vit", 6), ("tiny_dinov2", 6), ("tiny_gpt2", 4), ("tiny_llama", 8), ("tiny_bert", 5)],
)
def test_dividing_channels_of_whole_models_changes_nothing(fixture, least, request):
    model = request.getfixturevalue(fixture)
    changed, count = divide_all(model)
    assert count >= least
    assert_equal(model, changed, sample_inputs(model.ir))


def norm_then_products(**extra):
    nodes = [node("LayerNormalization", ["x", "gamma", "beta"], "n", axis=-1)]
    nodes += [node("MatMul", ["n", "a"], "p"), node("Gemm", ["r", "b", "c"], "y", transB=1)]
    nodes.insert(2, node("Relu", ["p"], "r"))
    weights = {"gamma": normal(8), "beta": normal(8, seed=1), "a": normal(8, 6, seed=2), "b": normal(5, 6, seed=3)}
    return graph(nodes, {**weights, "c": normal(5, seed=4), **extra}, {"x": ["n", 8]})


def test_scale_and_bias_of_a_normalization_and_weights_behind_relu_take_the_scale():
    model = norm_then_products()
    changed, count = divide_all(model)
    assert count == 2
    assert_equal(model, changed, {"x": normal(20, 8)})
    assert not np.array_equal(run(model, {"x": normal(2, 8)})["y"], np.zeros((2, 5)))


def test_a_residual_connection_gets_the_activation_multiplied_back():
    nodes = [node("LayerNormalization", ["x", "gamma"], "n", axis=-1), node("MatMul", ["n", "a"], "p")]
    nodes += [node("MatMul", ["n", "b"], "q"), node("Add", ["p", "n"], "s"), node("Add", ["s", "q"], "y")]
    weights = {"gamma": normal(8), "a": normal(8, 8, seed=1), "b": normal(8, 8, seed=2)}
    model = graph(nodes, weights, {"x": ["n", 8]})
    changed, count = divide_all(model)
    assert count == 1
    assert operators(changed)["Mul"] == 1
    assert_equal(model, changed, {"x": normal(20, 8)})


def test_a_shift_that_needs_an_operator_must_gain_more():
    """One channel reaches a little farther than the rest: worth new weights, but not an operator."""
    gamma = np.ones(64, np.float32)
    gamma[3] = 1.25
    products = [node("LayerNormalization", ["x", "gamma"], "n", axis=-1), node("MatMul", ["n", "w"], "p")]
    model = graph([*products, node("Add", ["p", "n"], "y")], {"gamma": gamma, "w": normal(64, 64)}, {"x": ["n", 64]})
    result = quantize_model(model, {"x": normal(64, 64)}, outlier_channels=0)
    assert operators(result)["Mul"] == 0
    gamma[3] = 50
    model = graph([*products, node("Add", ["p", "n"], "y")], {"gamma": gamma, "w": normal(64, 64)}, {"x": ["n", 64]})
    result = quantize_model(model, {"x": normal(64, 64)}, outlier_channels=0)
    assert operators(result)["Mul"] == 1


def test_the_other_factor_of_a_gate_takes_the_scale():
    nodes = [node("MatMul", ["x", "g"], "gate"), node("Sigmoid", ["gate"], "s"), node("Mul", ["gate", "s"], "silu")]
    nodes += [node("MatMul", ["x", "u"], "up"), node("Mul", ["silu", "up"], "h"), node("MatMul", ["h", "d"], "y")]
    weights = {name: normal(6, 6, seed=i) for i, name in enumerate("gud")}
    model = graph(nodes, weights, {"x": ["n", 6]})
    changed, count = divide_all(model)
    assert count == 1
    assert_equal(model, changed, {"x": normal(20, 6)})
    np.testing.assert_array_equal(changed.graph.initializers["g"].const_value.numpy(), weights["g"])


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_values_take_the_scale_of_what_attention_hands_on(heads):
    query_heads, value_heads = heads
    width, size = query_heads * 3, 3
    nodes = [node("MatMul", ["x", "wv"], "v0"), node("Add", ["v0", "bv"], "v1")]
    nodes += [node("Reshape", ["v1", "split"], "v2"), node("Transpose", ["v2"], "v3", perm=[0, 2, 1, 3])]
    nodes += [node("Unsqueeze", ["v3", "two"], "v4"), node("Expand", ["v4", "groups"], "v5")]
    nodes += [node("Reshape", ["v5", "joined"], "v")]
    nodes += [node("MatMul", ["x", "wq"], "q0"), node("Reshape", ["q0", "qsplit"], "q1")]
    nodes += [node("Transpose", ["q1"], "q", perm=[0, 2, 1, 3]), node("Transpose", ["q1"], "k", perm=[0, 2, 3, 1])]
    nodes += [node("MatMul", ["q", "k"], "scores"), node("Softmax", ["scores"], "p", axis=-1)]
    nodes += [node("MatMul", ["p", "v"], "c0"), node("Transpose", ["c0"], "c1", perm=[0, 2, 1, 3])]
    nodes += [node("Reshape", ["c1", "rows"], "c"), node("MatMul", ["c", "wo"], "y")]
    weights = {"wv": normal(8, value_heads * size), "bv": normal(value_heads * size, seed=1)}
    weights |= {"wq": normal(8, width, seed=2), "wo": normal(width, 5, seed=3)}
    weights |= {"split": np.array([0, 0, value_heads, size]), "qsplit": np.array([0, 0, query_heads, size])}
    weights |= {"groups": np.array([1, 1, query_heads // value_heads, 1, 1]), "two": np.array([2])}
    weights |= {"joined": np.array([0, query_heads, -1, size]), "rows": np.array([0, 0, width])}
    model = graph(nodes, weights, {"x": [2, 7, 8]})
    _, found, obstacles = migrations(model)
    (migration,) = found
    assert len(set(migration.ties.tolist())) == value_heads * size
    assert set(obstacles) == {"x"}
    changed, _ = divide_all(model)
    assert_equal(model, changed, {"x": normal(2, 7, 8)})


def test_convolutions_behind_relu_take_the_scale():
    nodes = [node("Conv", ["x", "a", "b"], "c"), node("Relu", ["c"], "r"), node("Conv", ["r", "d"], "e", group=6)]
    nodes += [node("Relu", ["e"], "f"), node("Conv", ["f", "g"], "y")]
    weights = {"a": normal(6, 3, 3, 3), "b": normal(6), "d": normal(6, 1, 3, 3, seed=1), "g": normal(4, 6, 1, 1)}
    model = graph(nodes, weights, {"x": ["n", 3, 9, 9]})
    changed, count = divide_all(model)
    assert count == 2
    assert_equal(model, changed, {"x": normal(2, 3, 9, 9)})


OBSTACLES = {
    "image": (("Conv", "i", "k", "h"), ("Conv", "h", "k", "z"), ("Add", "z", "h", "y")),
    "gelu": (("MatMul", "x", "a", "g"), ("Gelu", "g", "h"), ("MatMul", "h", "b", "y")),
    "clip": (("MatMul", "x", "a", "g"), ("Clip", "g", "zero", "six", "h"), ("MatMul", "h", "b", "y")),
    "input": (("MatMul", "x", "b", "y"),),
    "shared": (("MatMul", "x", "a", "h"), ("MatMul", "h", "b", "z"), ("MatMul", "z", "b", "y")),
    "source": (("MatMul", "x", "a", "h"), ("MatMul", "h", "b", "z"), ("MatMul", "x", "a", "w"), ("Add", "z", "w", "y")),
    "column": (("Add", "x", "one", "g"), ("Mul", "g", "one", "h"), ("MatMul", "h", "b", "y")),
    "square": (("MatMul", "x", "a", "g"), ("Relu", "g", "r"), ("Mul", "r", "r", "h"), ("MatMul", "h", "b", "y")),
    "double": (("MatMul", "x", "a", "g"), ("Add", "g", "g", "h"), ("MatMul", "h", "b", "y")),
}


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("image", "Add reads it too"),
        ("gelu", "Gelu does not pass a scale"),
        ("clip", "Clip does not pass a scale"),
        ("input", "input or output of the graph"),
        ("shared", "its weight is shared with MatMul"),
        ("source", "the weight of the product before it is shared"),
        ("column", "does not hold one number per channel"),
        ("square", "Mul reads r twice"),
        ("double", "Add reads g twice"),
    ],
)
def test_what_cannot_take_a_scale_says_why(case, reason):
    weights = {"a": normal(6, 6), "b": normal(6, 6, seed=1), "one": np.ones((4, 1), np.float32)}
    weights |= {"zero": np.float32(0), "six": np.float32(6), "k": normal(3, 3, 1, 1)}
    nodes = [node(operator, values[:-1], values[-1]) for operator, *values in OBSTACLES[case]]
    used = {name: array for name, array in weights.items() if any(name in each.input for each in nodes)}
    shape = {"i": [1, 3, 5, 5]} if case == "image" else {"x": [4, 6]}
    _, _, obstacles = migrations(graph(nodes, used, shape))
    assert any(reason in text for text in obstacles.values())


def test_a_graph_output_keeps_its_values():
    nodes = [node("MatMul", ["x", "a"], "h"), node("MatMul", ["h", "b"], "y")]
    model = graph(nodes, {"a": normal(6, 6), "b": normal(6, 6)}, {"x": [4, 6]}, ["y", "h"])
    _, found, obstacles = migrations(model)
    assert not found
    assert "input or output" in obstacles["h"]


def test_a_constant_as_wide_as_an_image_is_not_taken_for_channels():
    """Channels stand second in an image, so a constant along its width must never take their scale."""
    nodes = [node("Conv", ["x", "a"], "c"), node("Add", ["c", "row"], "s"), node("Conv", ["s", "b"], "y")]
    weights = {"a": normal(8, 3, 1, 1), "row": normal(8), "b": normal(4, 8, 1, 1)}
    _, found, _ = migrations(graph(nodes, weights, {"x": ["n", 3, 8, 8]}))
    assert not found


def with_extreme_channel():
    """A normalization whose scale blows up one channel, as in trained transformers."""
    gamma = np.ones(32, np.float32)
    gamma[3] = 80
    nodes = [node("LayerNormalization", ["x", "gamma"], "n", axis=-1), node("MatMul", ["n", "w"], "y")]
    weight = normal(32, 16, seed=1, scale=0.2)
    weight[3] /= 80
    return graph(nodes, {"gamma": gamma, "w": weight}, {"x": ["n", 32]})


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_smoothing_makes_an_extreme_channel_harmless(mode):
    model, data = with_extreme_channel(), {"x": normal(64, 32)}
    inputs = {"x": normal(64, 32, seed=9)}
    expected = run(model, inputs)["y"]
    plain = quantize_model(model, data, mode=mode, smoothing=False, outlier_channels=0, range_estimator="min-max")
    smooth = quantize_model(model, data, mode=mode, outlier_channels=0, range_estimator="min-max")
    gain = sqnr(expected, run(smooth, inputs)["y"]) - sqnr(expected, run(plain, inputs)["y"])
    assert gain > 15


def test_dynamic_mode_without_data_leaves_ranges_where_they_are():
    result = quantize_model(with_extreme_channel(), None, mode="dynamic")
    np.testing.assert_array_equal(result.graph.initializers["gamma"].const_value.numpy()[3], 80)


def test_equalization_needs_no_data_and_evens_out_weights():
    first, second = normal(8, 8), normal(8, 8, seed=1)
    first[:, 2] *= 50
    second[2] /= 50
    nodes = [node("MatMul", ["x", "a"], "h"), node("Relu", ["h"], "r"), node("MatMul", ["r", "b"], "y")]
    model = graph(nodes, {"a": first, "b": second}, {"x": ["n", 8]})
    used = context(QuantizeInt8Options(mode="dynamic", equalization=True, per_channel=False), None)
    equalized = QuantizeInt8().apply(model, used)
    plain = quantize_model(model, None, mode="dynamic", per_channel=False)
    inputs = {"x": normal(50, 8, seed=5)}
    expected = run(model, inputs)["y"]
    assert sqnr(expected, run(equalized, inputs)["y"]) > sqnr(expected, run(plain, inputs)["y"]) + 10
    assert any("Equalized 1 pair" in remark for remark in used.notes.remarks)
