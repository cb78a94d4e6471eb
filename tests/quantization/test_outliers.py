"""Outlier channels: which ones, the float product beside the integer one, and isolated convolutions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.graph.edit import GraphEditor
from edgesmith.host.context import Notes
from edgesmith_quantization.finding.candidates import find_candidates
from edgesmith_quantization.finding.isolation import without_isolated_convolutions
from edgesmith_quantization.forms.outlier_form import add_outlier_products, clip_outliers
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.repair.outliers import Outliers, find_outliers
from edgesmith_quantization.repair.smoothing import ChannelSummary
from small_graphs import DIALECT, SIGNED, executed_operators, graph, lower, node, operators, quantize, run, sqnr


def normal(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def summary(low, high, even=0):
    """Return channels with these ends, and `even` more that reach from -1 to 1."""
    low, high = np.array([*low, *[-1] * even], np.float64), np.array([*high, *[1] * even], np.float64)
    return ChannelSummary(low, high, (low + high) / 2, high**2)


def with_peaks(rows=200, width=96, seed=0):
    """Return rows in which channels 4 and 9 reach a hundred times farther than the rest, and only sometimes."""
    values = normal(rows, width, seed=seed)
    values[::17, 4] = 300
    values[5::31, 9] = -250
    return values


def test_the_smallest_set_that_gains_nearly_all_is_taken():
    reach = np.array([1.0, 100, 1, 50, 1, 1.05, 1])
    found = find_outliers(summary(-reach, reach, even=153), 5)
    assert found is not None
    assert found.channels.tolist() == [1, 3]
    assert (found.low, found.high) == (-1.05, 1.05)


def test_one_sided_channels_leave_zero_in_range():
    found = find_outliers(summary([0.0] * 40, [1.0, 40.0, *[2.0] * 38]), 1)
    assert found is not None
    assert (found.low, found.high, found.channels.tolist()) == (0.0, 2.0, [1])


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_even_channels_have_no_outliers(limit):
    assert find_outliers(summary([-1.0, -1.2, -0.9, -1.1], [1.0, 1.1, 0.8, 1.3], even=124), limit) is None


def test_zero_channels_and_single_channels_have_none():
    assert find_outliers(summary([0.0] * 64, [0.0] * 64), 4) is None
    assert find_outliers(summary([-1.0], [5.0]), 4) is None


def test_narrow_activations_have_none_and_wide_ones_few():
    assert find_outliers(summary([-1.0] * 30, [*[1.0] * 29, 1000.0]), 8) is None
    found = find_outliers(summary([-1.0] * 70, [*[1.0] * 60, *[1000.0] * 10]), 8)
    assert found is None  # two of them may go, which leaves eight


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_outliers_are_the_farthest_channels_and_shorten_the_range(seed, limit):
    generator = np.random.default_rng(seed)
    reach = 10 ** generator.normal(0, 0.7, 384)
    found = find_outliers(summary(-reach, reach), limit)
    order = np.sort(reach)[::-1]
    if found is None:
        assert order[0] < 10 ** (3 / 20) * order[limit]
        return
    count = len(found.channels)
    assert 1 <= count <= limit
    assert set(reach[found.channels]) == set(order[:count])
    assert found.high == order[count]
    assert order[0] >= 10 ** (3 / 20) * order[limit]


def products(bias=True, transposed=False):
    weight = normal(7, 96, seed=2) if transposed else normal(96, 7, seed=2)
    product = (
        [node("Gemm", ["x", "w", "b"], "y", transB=1)]
        if transposed
        else [node("MatMul", ["x", "w"], "p"), node("Add", ["p", "b"], "y")]
    )
    if not bias:
        product = [node("MatMul", ["x", "w"], "y")]
    second = [node("MatMul", ["x", "v"], "z")]
    weights = {"w": weight, "b": normal(7, seed=3), "v": normal(96, 5, seed=4)}
    if not bias:
        weights.pop("b")
    return graph(product + second, weights, {"x": ["n", 96]}, ["y", "z"])


@pytest.mark.parametrize(("bias", "transposed"), [(True, False), (True, True), (False, False)])
def test_cut_products_plus_outlier_products_are_the_float_products(bias, transposed):
    model, rows = products(bias, transposed), with_peaks()
    changed = model.clone()
    candidates = find_candidates(changed.graph, DIALECT, QuantizeInt8Options(), Notes())
    editor, activation = GraphEditor(changed.graph), candidates[0].activation
    outliers = {activation: Outliers(np.array([4, 9]), -4.0, 4.0)}
    ranges = {activation: (np.float32(-6), np.float32(6))}
    add_outlier_products(editor, candidates, outliers, ranges)
    clip_outliers(editor, candidates, ranges)
    assert operators(changed)["Gather"] == 1  # both products share what is beyond the range
    expected, found = run(model, {"x": rows}), run(changed, {"x": rows})
    for name, reference in expected.items():
        # Two sums instead of one: a few float32 roundings of the largest term, 300 times a weight.
        assert np.abs(found[name] - reference).max() <= 1e-5 * np.abs(reference).max()


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize("dialect", [DIALECT, SIGNED], ids=lambda each: each.name)
def test_outlier_channels_cost_the_others_no_accuracy(mode, dialect):
    if mode == "dynamic" and not dialect.dynamic:
        pytest.skip("the dialect has no dynamic form")
    model, data, inputs = products(), {"x": with_peaks()}, {"x": with_peaks(seed=7)}
    expected = run(model, inputs)
    ordinary = np.abs(inputs["x"]).max(axis=1) < 10
    settings_ = {"mode": mode, "smoothing": False, "range_estimator": "min-max"}
    kept = run(quantize(model, data, dialect, outlier_channels=4, **settings_), inputs)
    lost = run(quantize(model, data, dialect, outlier_channels=0, **settings_), inputs)
    for name, reference in expected.items():
        assert sqnr(reference[ordinary], kept[name][ordinary]) > 30
        assert sqnr(reference[ordinary], kept[name][ordinary]) > sqnr(reference[ordinary], lost[name][ordinary]) + 20
        assert sqnr(reference, kept[name]) > 40


def test_peaks_beyond_what_calibration_saw_are_kept_too():
    model, data = products(), {"x": with_peaks()}
    result = quantize(model, data, smoothing=False, range_estimator="min-max")
    inputs = {"x": with_peaks(seed=1)}
    inputs["x"][3, 4] = 5000
    assert sqnr(run(model, inputs)["y"][3], run(result, inputs)["y"][3]) > 50


def test_outliers_that_do_no_harm_stay_in_the_integer_product():
    """One channel reaches twice as far as the rest, which costs 6 dB of about 45."""
    model, rows = products(), normal(500, 96)
    rows[:, 4] *= 2
    assert operators(quantize(model, {"x": rows}, smoothing=False))["Gather"] == 0
    assert operators(quantize(model, {"x": with_peaks()}, smoothing=False))["Gather"] == 1


def test_lowered_products_still_run_in_integers():
    model, data = products(), {"x": with_peaks()}
    lowered = lower(quantize(model, data, smoothing=False), data)
    executed = executed_operators(lowered)
    assert executed["MatMulIntegerToFloat"] == 2
    assert executed["MatMul"] + executed["Gemm"] == 2  # the two small ones


def test_quantizing_is_deterministic():
    model, data = products(), {"x": with_peaks()}
    first, second = quantize(model, data), quantize(model, data)
    assert list(first.graph.initializers) == list(second.graph.initializers)
    for name, value in first.graph.initializers.items():
        np.testing.assert_array_equal(value.const_value.numpy(), second.graph.initializers[name].const_value.numpy())


def isolated(nodes, weights, outputs=("y",)):
    model = graph(nodes, weights, {"x": ["n", 3, 8, 8]}, outputs)
    notes = Notes()
    candidates = find_candidates(model.graph, DIALECT, QuantizeInt8Options(), notes)
    kept = without_isolated_convolutions(model.graph, candidates, DIALECT, notes)
    return {candidate.name for candidate in kept}, notes


PATCHES = [node("Conv", ["x", "k"], "c", strides=[4, 4]), node("Reshape", ["c", "flat"], "r")]
PATCHES += [node("Transpose", ["r"], "t", perm=[0, 2, 1]), node("LayerNormalization", ["t", "g"], "n", axis=-1)]
PATCHES += [node("MatMul", ["n", "w"], "y")]
PATCH_WEIGHTS = {"k": normal(6, 3, 4, 4), "flat": np.array([0, 6, 4]), "g": np.ones(6, np.float32), "w": normal(6, 5)}


def test_a_patch_embedding_before_a_normalization_stays_in_float():
    names, notes = isolated(PATCHES, PATCH_WEIGHTS)
    assert names == {"node_y"}
    assert "round it twice" in notes.skipped["node_c"]


def test_a_convolution_whose_codes_are_read_stays_in_integers():
    nodes = [node("Conv", ["x", "k"], "c"), node("Relu", ["c"], "r"), node("MaxPool", ["r"], "m", kernel_shape=[2, 2])]
    nodes += [node("Conv", ["m", "v"], "y")]
    names, _ = isolated(nodes, {"k": normal(6, 3, 3, 3), "v": normal(4, 6, 3, 3)})
    assert names == {"node_c", "node_y"}


def test_a_convolution_behind_others_stays_in_integers_whatever_follows():
    nodes = [node("Sigmoid", ["x"], "s"), node("Conv", ["s", "k"], "c"), node("Softmax", ["c"], "p", axis=1)]
    nodes += [node("Conv", ["p", "v"], "y")]
    names, _ = isolated(nodes, {"k": normal(6, 3, 3, 3), "v": normal(4, 6, 3, 3)})
    assert names == {"node_c", "node_y"}


def test_a_graph_of_isolated_convolutions_only_is_quantized_all_the_same():
    nodes = [node("Conv", ["x", "k"], "c"), node("Softmax", ["c"], "y", axis=1)]
    names, _ = isolated(nodes, {"k": normal(6, 3, 3, 3)})
    assert names == {"node_c"}


def test_a_dialect_that_rounds_no_outputs_keeps_all_convolutions():
    model = graph(PATCHES, PATCH_WEIGHTS, {"x": ["n", 3, 8, 8]})
    candidates = find_candidates(model.graph, SIGNED, QuantizeInt8Options(), Notes())
    assert len(without_isolated_convolutions(model.graph, candidates, SIGNED, Notes())) == 2
