"""Convolutions are made easier to quantize: balanced channels leave the float network as it was, means come back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.graph.edit import GraphEditor, constant_value
from edgesmith.host.context import Notes
from edgesmith_onnxruntime.cpu import DIALECT
from edgesmith_quantization.finding.candidates import find_candidates
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.quantize_int8 import QuantizeInt8
from edgesmith_quantization.repair.bias_correction import grouped, rounding_shift
from edgesmith_quantization.repair.channel_balance import LARGEST_FACTOR, balancing_factor, expected_noise
from edgesmith_quantization.repair.channel_streams import find_streams, scale_stream
from edgesmith_quantization.repair.smoothing import ChannelSummary
from small_graphs import context, graph, node, operators, quantize, run, sqnr

UNEVEN = np.float32([1, 0.02, 0.3, 0.05, 1, 0.1, 0.02, 0.5])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def streams_of(model, **options):
    candidates = find_candidates(model.graph, DIALECT, QuantizeInt8Options(**options), Notes())
    return find_streams(model.graph, candidates)


def summary(peak):
    peak = np.asarray(peak, np.float64)
    return ChannelSummary(-peak, peak, np.zeros_like(peak), peak**2 / 9)


def network(*, head=True, clip=False, uneven=False):
    """An expanding, a depthwise and a projecting convolution with a residual sum, then a pool and a head."""
    bounds = ["zero", "six"] if clip else []
    act = "Clip" if clip else "Relu"
    weights = {"stem": normal(8, 3, 3, 3), "expand": normal(8, 8, 1, 1, seed=1), "depth": normal(8, 1, 3, 3, seed=2)}
    weights |= {"project": normal(8, 8, 1, 1, seed=3) / 4, "out": normal(4, 8, 1, 1, seed=4), "b": normal(8, seed=5)}
    weights |= {"zero": np.float32(0), "six": np.float32(6)} if clip else {}
    if uneven:
        for name in ("stem", "expand", "depth", "project"):
            weights[name] = weights[name] * UNEVEN[:, None, None, None]
    nodes = [node("Conv", ["x", "stem", "b"], "s", pads=[1] * 4), node("Conv", ["s", "expand"], "e")]
    nodes += [node(act, ["e", *bounds], "er"), node("Conv", ["er", "depth"], "d", group=8, pads=[1] * 4)]
    nodes += [node(act, ["d", *bounds], "dr"), node("Conv", ["dr", "project"], "p"), node("Add", ["s", "p"], "r")]
    nodes += [node("GlobalAveragePool", ["r"], "g"), node("Flatten", ["g"], "f")] if head else []
    weights |= {"head": normal(8, 4)} if head else {}
    nodes += [node("Gemm", ["f", "head"], "y")] if head else [node("Conv", ["r", "out"], "y")]
    if head:
        weights.pop("out")
    return graph(nodes, weights, {"x": ["n", 3, 8, 8]})


def test_streams_of_a_residual_network():
    streams = streams_of(network())
    assert [[value.name for value in stream.values] for stream in streams] == [
        ["s", "p", "r", "g", "f"],
        ["e", "er"],
        ["d", "dr"],
    ]
    assert [[len(stream.writers), len(stream.readers)] for stream in streams] == [[2, 2], [1, 1], [1, 1]]
    assert [[value.name for value in stream.images] for stream in streams][1:] == [["er"], ["dr"]]
    assert [stream.bound for stream in streams] == [None] * 3
    assert [stream.bound for stream in streams_of(network(clip=True))] == [None, 6.0, 6.0]


@settings(max_examples=15, deadline=None)
@given(head=st.booleans(), seed=st.integers(0, 50))
def test_scaling_streams_changes_no_output(head, seed):
    model = network(head=head)
    result, generator = model.clone(), np.random.default_rng(seed)
    editor = GraphEditor(result.graph)
    for stream in streams_of(result):
        scale_stream(editor, stream, generator.uniform(0.2, 8, 8))
    inputs = {"x": normal(2, 3, 8, 8, seed=seed)}
    # Six layers, each of sums of at most 27 products in float32.
    np.testing.assert_allclose(run(result, inputs)["y"], run(model, inputs)["y"], rtol=1e-3, atol=1e-3)
    # A name stands for the same numbers: the error inside the graph is measured by name.
    scaled = {value.name for stream in streams_of(model) for value in stream.values}
    assert not scaled & {value.name for each in result.graph for value in each.outputs}


def test_grouped_convolution_reads_and_makes_streams():
    nodes = [node("Conv", ["x", "a"], "c"), node("Conv", ["c", "b"], "d", group=2), node("Conv", ["d", "e"], "y")]
    weights = {"a": normal(8, 3, 1, 1), "b": normal(6, 4, 3, 3), "e": normal(4, 6, 1, 1)}
    model = graph(nodes, weights, {"x": ["n", 3, 6, 6]})
    result = model.clone()
    editor = GraphEditor(result.graph)
    streams = streams_of(result)
    assert len(streams) == 2
    for stream, width in zip(streams, (8, 6), strict=True):
        scale_stream(editor, stream, np.linspace(0.5, 4, width))
    inputs = {"x": normal(2, 3, 6, 6)}
    np.testing.assert_allclose(run(result, inputs)["y"], run(model, inputs)["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("between", "extra"),
    [
        pytest.param([node("Sigmoid", ["c"], "m")], {}, id="not homogeneous"),
        pytest.param([node("Add", ["c", "k"], "m")], {"k": normal(8, 1, 1)}, id="constant added"),
        pytest.param(
            [node("Clip", ["c", "low", "six"], "m")], {"low": np.float32(-6), "six": np.float32(6)}, id="clip"
        ),
        pytest.param([node("Transpose", ["c"], "m", perm=[0, 1, 3, 2])], {}, id="unknown operator"),
        pytest.param([node("Softmax", ["c"], "m", axis=2)], {}, id="softmax"),
    ],
)
def test_what_does_not_pass_factors_ends_a_stream(between, extra):
    nodes = [node("Conv", ["x", "a"], "c"), *between, node("Conv", ["m", "b"], "y")]
    model = graph(nodes, {"a": normal(8, 3, 1, 1), "b": normal(4, 8, 1, 1)} | extra, {"x": ["n", 3, 6, 6]})
    assert streams_of(model) == ()


def test_outputs_shared_weights_and_unselected_products_end_a_stream():
    nodes = [node("Conv", ["x", "a"], "c"), node("Conv", ["c", "b"], "d"), node("Conv", ["d", "b"], "y")]
    weights = {"a": normal(8, 8, 1, 1), "b": normal(8, 8, 1, 1)}
    shared = graph(nodes, weights, {"x": ["n", 8, 6, 6]})
    assert streams_of(shared) == ()
    nodes[2] = node("Conv", ["d", "e"], "y")
    assert len(streams_of(graph(nodes, weights | {"e": weights["b"]}, {"x": ["n", 8, 6, 6]}))) == 2
    read = graph(nodes, weights | {"e": weights["b"]}, {"x": ["n", 8, 6, 6]}, ("c", "y"))
    assert [[value.name for value in stream.values] for stream in streams_of(read)] == [["d"]]
    assert streams_of(graph(nodes, weights | {"e": weights["b"]}, {"x": ["n", 8, 6, 6]}), skip=("node_d",)) == ()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=4, max_size=4), st.integers(0, 99), st.sampled_from([1, 2, 4]))
def test_balance_never_raises_the_expected_noise(peaks, seed, groups):
    seen, weights = summary(peaks), [normal(groups, 8 // groups, 4 // groups, 3, seed=seed)]
    factor = balancing_factor(seen, weights)
    assert (factor >= 1).all()
    assert (factor <= LARGEST_FACTOR).all()
    assert expected_noise(seen, weights, factor) <= expected_noise(seen, weights, np.ones(4))


def test_depthwise_reader_lets_all_channels_reach_the_largest():
    factor = balancing_factor(summary([4, 2, 1, 0.1, 0]), [normal(5, 1, 1, 9)])
    np.testing.assert_allclose(factor, [1, 2, 4, LARGEST_FACTOR, 1])
    factor = balancing_factor(summary([4, 2, 1, 0.1, 0]), [normal(5, 1, 1, 9)], 6.0)
    np.testing.assert_allclose(factor, [1.5, 3, 6, LARGEST_FACTOR, 1.5])


def test_expected_noise_is_that_of_rounding():
    """The closed form against rounding itself, on data that fill a uniform range."""
    generator = np.random.default_rng(0)
    peak = np.array([1.0, 0.5, 0.1, 2.0])
    x = generator.uniform(-peak, peak, (20000, 4))
    weight = generator.normal(0, 1, (6, 4))
    step, steps = 4 / 255, np.abs(weight).max(axis=1, keepdims=True) / 127
    noise = np.rint(x / step) * step @ (np.rint(weight / steps) * steps).T - x @ weight.T
    seen = ChannelSummary(-peak, peak, np.zeros(4), peak**2 / 3)
    expected = expected_noise(seen, [weight.astype(np.float32).reshape(1, 6, 4, 1)], np.ones(4))
    # 24 weights are a small sample of uniform errors: their mean square scatters by 0.9 / sqrt(24), about a fifth.
    assert np.square(noise).sum(axis=1).mean() == pytest.approx(expected, rel=0.5)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 2, 4]), st.integers(0, 99))
def test_rounding_shift_is_the_mean_of_the_difference(groups, seed):
    """Against the mean of what a graph computes with the difference as its weight, on images without a border."""
    difference, x = normal(8, 4 // groups, 1, 1, seed=seed), normal(2, 4, 5, 5, seed=seed) + 1
    model = graph([node("Conv", ["x", "w"], "y", group=groups)], {"w": difference}, {"x": ["n", 4, 5, 5]})
    candidate = find_candidates(model.graph, DIALECT, QuantizeInt8Options(), Notes())[0]
    shift = rounding_shift(grouped(candidate, difference), x.mean(axis=(0, 2, 3), dtype=np.float64))
    np.testing.assert_allclose(shift, run(model, {"x": x})["y"].mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clip", [False, True])
def test_uneven_channels_gain(clip):
    model, data = network(uneven=True, clip=clip), {"x": normal(64, 3, 8, 8)}
    reference = run(model, data)["y"]
    plain = quantize(model, data, smoothing=False, bias_correction=False)
    repaired = quantize(model, data)
    assert sqnr(reference, run(repaired, data)["y"]) > sqnr(reference, run(plain, data)["y"]) + 3
    assert operators(repaired) == operators(plain)


def test_corrected_biases_bring_means_back():
    weights = {"w": normal(8, 4, 1, 1), "b": normal(8), "v": normal(8, 8, 1, 1), "c": normal(8)}
    nodes = [node("Conv", ["x", "w", "b"], "m"), node("Relu", ["m"], "r"), node("Conv", ["r", "v", "c"], "y")]
    model, data = graph(nodes, weights, {"x": ["n", 4, 6, 6]}), {"x": normal(32, 4, 6, 6) + 1}

    def shift(**options):
        found = run(quantize(model, data, per_channel=False, smoothing=False, **options), data)["y"]
        return np.abs((found - run(model, data)["y"]).mean(axis=(0, 2, 3))).max()

    assert shift() < shift(bias_correction=False) / 2


@pytest.mark.parametrize("swapped", [False, True])
def test_biases_added_behind_products_bring_means_back(swapped):
    """The mean of the inputs is far from zero, so that errors of weights that do not cancel shift the outputs."""
    inputs = ["b", "m"] if swapped else ["m", "b"]
    nodes = [node("MatMul", ["x", "w"], "m"), node("Add", inputs, "y")]
    model = graph(nodes, {"w": normal(8, 6), "b": normal(6)}, {"x": ["n", 5, 8]})
    data = {"x": normal(32, 5, 8) * 0.1 + 1}

    def shift(**options):
        found = run(quantize(model, data, per_channel=False, smoothing=False, **options), data)["y"]
        return np.abs((found - run(model, data)["y"]).mean(axis=(0, 1))).max()

    assert shift() < shift(bias_correction=False) / 2


def test_biases_that_several_products_add_stay_those_of_the_others():
    nodes = [node("MatMul", ["x", "w"], "m"), node("Add", ["m", "b"], "p"), node("Relu", ["p"], "r")]
    nodes += [node("Add", ["r", "b"], "y")]
    model, data = graph(nodes, {"w": normal(8, 8), "b": normal(8)}, {"x": ["n", 8]}), {"x": normal(32, 8) + 1}
    found = quantize(model, data, smoothing=False)
    last = next(each for each in found.graph if each.outputs[0].name == "y")
    np.testing.assert_array_equal(constant_value(last.inputs[1]), constant_value(model.graph.initializers["b"]))


def test_repairs_are_exact_where_they_are_done_twice():
    """Two runs give the same bytes, and the input is not edited."""
    model, data = network(uneven=True), {"x": normal(8, 3, 8, 8)}
    before = {name: constant_value(value).copy() for name, value in model.graph.initializers.items()}
    used = context(QuantizeInt8Options(), data)
    first, second = QuantizeInt8().apply(model, used), QuantizeInt8().apply(model, used)
    for name, value in first.graph.initializers.items():
        np.testing.assert_array_equal(constant_value(value), constant_value(second.graph.initializers[name]))
    for name, array in before.items():
        np.testing.assert_array_equal(constant_value(model.graph.initializers[name]), array)
    assert any("Balanced" in remark for remark in used.notes.remarks)
