"""Eight-bit floats, held against the definition of the formats and bit for bit against ONNX Runtime."""

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from edgesmith.execution.torch_graph import TorchGraph
from edgesmith_calibration.histogram import HistogramObserver
from edgesmith_quantization.arithmetic.float8 import (
    E4M3,
    E5M2,
    decode,
    dequantize,
    encode,
    flushed_share,
    peak_scale,
    quantize,
    smallest_error_peak,
)
from edgesmith_quantization.arithmetic.rounding import half_scale, symmetric_scale
from edgesmith_quantization.statistics.float8_ranges import magnitude_counts, share_below
from small_graphs import graph, node

BOTH = pytest.mark.parametrize("form", [E4M3, E5M2], ids=["e4m3", "e5m2"])
ALL_CODES = np.arange(256, dtype=np.uint8)
ONNX_TYPES = {"float8_e4m3fn": TensorProto.FLOAT8E4M3FN, "float8_e5m2": TensorProto.FLOAT8E5M2}


def defined_values(form):
    """Return the value of each of the 256 codes from the table of the formats (arXiv 2209.05433, table 1)."""
    exponent_bits, mantissa_bits, bias = (4, 3, 7) if form is E4M3 else (5, 2, 15)
    values = []
    for code in range(256):
        sign = -1.0 if code & 0x80 else 1.0
        exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
        fraction = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
        last = exponent == (1 << exponent_bits) - 1
        if form is E4M3 and (code & 0x7F) == 0x7F:
            values.append(np.nan)
        elif form is E5M2 and last:
            values.append(sign * np.inf if fraction == 0 else np.nan)
        elif exponent == 0:
            values.append(sign * fraction * 2.0 ** (1 - bias))
        else:
            values.append(sign * (1 + fraction) * 2.0 ** (exponent - bias))
    return np.array(values, np.float32)


def onnxruntime_pair(values, scale, form, axis):
    """Return what QuantizeLinear and DequantizeLinear of ONNX Runtime make of values, without its own rewrites."""
    kind = TensorProto.FLOAT if values.dtype == np.float32 else TensorProto.FLOAT16
    attributes = {} if axis is None else {"axis": axis}
    zero = helper.make_tensor("z", ONNX_TYPES[form.dtype.name], scale.shape, bytes(scale.size), raw=True)
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
        ],
        "pair",
        [helper.make_tensor_value_info(n, kind, a.shape) for n, a in (("x", values), ("s", scale))],
        [helper.make_tensor_value_info("y", kind, values.shape)],
        [zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": values, "s": scale})[0]


def borders(form):
    """Every finite value, every middle between neighbours, what is next to a middle, and what lies outside."""
    finite = np.unique(decode(ALL_CODES.view(form.dtype)))
    finite = finite[np.isfinite(finite)]
    middles = (finite[1:] + finite[:-1]) / 2
    outside = np.float32([form.largest * 1.04, form.largest * 2, 3e38, np.inf, np.nan, 1e-30, 0])
    inside = [finite, middles, np.nextafter(middles, np.float32(np.inf)), np.nextafter(middles, np.float32(-np.inf))]
    return np.concatenate([*inside, outside, -outside])


@BOTH
def test_all_codes_have_the_value_of_the_format_and_come_back(form):
    values = decode(ALL_CODES.view(form.dtype))
    np.testing.assert_array_equal(values, defined_values(form))
    finite = np.isfinite(values)
    assert finite.sum() == (254 if form is E4M3 else 248)
    np.testing.assert_array_equal(encode(values[finite], form).view(np.uint8), ALL_CODES[finite])
    assert values[finite].max() == form.largest
    assert values[values > 0].min() == form.smallest


@BOTH
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_rounding_goes_to_the_nearest_value_and_ties_to_the_even_code(form, data):
    limit = np.float32(form.largest)
    drawn = data.draw(hnp.arrays(np.float32, 32, elements=st.floats(-float(limit), float(limit), width=32)))
    values = np.concatenate([drawn, borders(form)[np.abs(borders(form)) <= limit]])
    codes = encode(values, form).view(np.uint8)
    finite = ALL_CODES[np.isfinite(defined_values(form))]
    distances = np.abs(values[:, None].astype(np.float64) - defined_values(form)[finite])
    nearest = distances == distances.min(axis=1, keepdims=True)
    chosen = np.abs(values.astype(np.float64) - decode(codes.view(form.dtype)))
    np.testing.assert_array_equal(chosen, distances.min(axis=1))
    for row, code in zip(nearest, codes, strict=True):
        candidates = {int(each) for each in finite[row]} - {0x80} if code == 0 else {int(each) for each in finite[row]}
        magnitudes = {each & 0x7F for each in candidates}
        assert len(magnitudes) == 1 or (int(code) & 0x7F) % 2 == 0


@BOTH
def test_values_outside_saturate_and_nan_stays_nan(form):
    top = form.largest
    values = np.float32([top + 1, top * 1.04, top * 100, 3e38, np.inf, -np.inf, -top * 1.04])
    np.testing.assert_array_equal(decode(encode(values, form)), [top] * 5 + [-top] * 2)
    assert np.isnan(decode(encode(np.float32([np.nan, -np.nan]), form))).all()
    # What a plain cast makes of them is why `encode` clips.
    assert not np.isfinite(np.float32([top * 1.25]).astype(form.dtype).astype(np.float32)).any()


@BOTH
@pytest.mark.parametrize("computed", [np.float32, np.float16])
def test_pairs_equal_those_of_onnxruntime_bit_for_bit(form, computed):
    with np.errstate(over="ignore"):
        values = np.concatenate([borders(form), defined_values(form)]).astype(computed)
    for scale in (1, 0.0123, 3e-5, 7.5):
        scale = np.asarray(scale, computed)
        with np.errstate(over="ignore", invalid="ignore"):
            spread = (values.astype(np.float32) * np.float32(scale)).astype(computed)
            ours = dequantize(quantize(spread, scale, form), scale).astype(computed)
        theirs = onnxruntime_pair(spread, scale, form, None)
        bits = np.uint32 if computed == np.float32 else np.uint16
        np.testing.assert_array_equal(ours.view(bits), theirs.view(bits))


@BOTH
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_pairs_per_channel_equal_those_of_onnxruntime(form, data):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=4, max_side=5))
    axis = data.draw(st.integers(0, len(shape) - 1))
    scale = data.draw(hnp.arrays(np.float32, shape[axis], elements=st.floats(2.0**-20, 2.0**20, width=32)))
    values = data.draw(hnp.arrays(np.float32, shape, elements=st.floats(-(2.0**30), 2.0**30, width=32)))
    ours = dequantize(quantize(values, scale, form, axis), scale, axis)
    np.testing.assert_array_equal(ours.view(np.uint32), onnxruntime_pair(values, scale, form, axis).view(np.uint32))


@BOTH
@given(hnp.arrays(np.float32, (4, 6), elements=st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False)))
@settings(max_examples=60, deadline=None)
def test_the_largest_magnitude_lands_on_the_largest_value_and_zero_on_zero(form, values):
    for axis in (None, 0, 1):
        scale = symmetric_scale(values, form.largest, axis)
        codes = decode(quantize(values, scale, form, axis))
        others = None if axis is None else 1 - axis
        peaks = np.abs(values).max(axis=others)
        # Below this the scale would be no normal float32, so it is 1 and everything is zero.
        large = peaks > form.largest * np.finfo(np.float32).tiny * 2
        np.testing.assert_array_equal(np.abs(codes).max(axis=others)[large], form.largest)
        assert (codes[values == 0] == 0).all()


def test_scales_of_zero_and_of_tiny_peaks_are_one():
    np.testing.assert_array_equal(peak_scale([0.0, 1e-44, 448.0], E4M3), np.float32([1, 1, 1]))
    assert peak_scale(0.0, E5M2) == 1


@given(st.floats(2.0**-40, 100, width=32))
def test_float16_scales_saturate_nothing_and_are_never_zero(scale):
    half = half_scale(np.float32([scale]))
    assert half.dtype == np.float16
    assert half[0] >= np.float16(2.0**-24)
    assert np.float32(half[0]) >= np.float32(scale)
    # Where float16 is normal its step is 2**-10 of the value.
    assert scale < 2.0**-14 or np.float32(half[0]) <= scale * (1 + 2.0**-10)


@BOTH
def test_flushed_share_counts_what_gets_the_code_of_zero(form):
    scale = np.float32(0.37)
    generator = np.random.default_rng(0)
    values = (np.exp2(generator.uniform(-30, 4, 5000)) * generator.choice([-1, 1, 0], 5000)).astype(np.float32)
    values[:4] = np.float32(form.smallest / 2) * scale * np.float32([1, -1, 1.001, 0.999])
    expected = ((decode(quantize(values, scale, form)) == 0) & (values != 0)).mean()
    assert 0.01 < expected < 0.99
    assert flushed_share(values, scale, form) == expected
    assert flushed_share(np.zeros(0, np.float32), scale, form) == 0


@BOTH
def test_the_search_finds_a_peak_at_least_as_good_as_the_largest_magnitude(form):
    generator = np.random.default_rng(0)
    values = generator.normal(0, 1, 20000).astype(np.float32)
    values[:5] = 60
    observer = HistogramObserver("x")
    observer.update(values)
    found = smallest_error_peak(observer.histogram(), form)

    def error(peak):
        scale = peak_scale(peak, form)
        return float(np.square(values - dequantize(quantize(values, scale, form), scale)).mean())

    # Bins are at most 0.2 % wide beside rounding steps of 6 % and more, so estimated errors are good to a few percent.
    assert error(found) <= 1.05 * error(np.abs(values).max())
    zeros = HistogramObserver("z")
    zeros.update(np.zeros(8, np.float32))
    assert smallest_error_peak(zeros.histogram(), form) == 0


def test_codes_have_the_types_of_ml_dtypes():
    assert encode([1.0], E4M3).dtype == ml_dtypes.float8_e4m3fn
    assert encode([1.0], E5M2).dtype == ml_dtypes.float8_e5m2


@BOTH
def test_torch_graph_rounds_to_the_same_bits_and_passes_gradients_straight_through(form):
    values = borders(form)[np.isfinite(borders(form))]
    weights = {"s": np.float32(0.0123), "z": np.zeros((), form.dtype)}
    nodes = [node("QuantizeLinear", ["x", "s", "z"], "q"), node("DequantizeLinear", ["q", "s", "z"], "y")]
    model = graph(nodes, weights, {"x": ["n"]}, opset=19)
    x = torch.from_numpy(values * np.float32(0.0123)).requires_grad_()
    y = TorchGraph(model.ir)({"x": x})["y"]
    expected = dequantize(quantize(x.detach().numpy(), weights["s"], form), weights["s"])
    np.testing.assert_array_equal(y.detach().numpy(), expected)
    y.sum().backward()
    inside = np.abs(x.detach().numpy() / weights["s"]) <= form.largest
    np.testing.assert_array_equal(x.grad.numpy()[inside], 1)
    np.testing.assert_array_equal(x.grad.numpy()[~inside], 0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 99), st.floats(-30, 30), st.sampled_from([E4M3, E5M2]))
def test_share_from_counted_magnitudes_is_that_of_the_values(seed, power, form):
    """Off by at most the values in one bin of an eighth of an octave; normal values put less than 7 % into one."""
    values = np.random.default_rng(seed).normal(size=4096).astype(np.float32)
    values[::7] = 0
    scale = np.float32(2.0**power / form.smallest)
    share = share_below(magnitude_counts(values), float(scale) * form.smallest / 2)
    assert abs(share - flushed_share(values, scale, form)) < 0.07


def test_share_below_a_power_of_two_is_exact():
    values = np.float32([0, 0, 0.1, 0.2, 0.49, 0.5, 0.51, 3, -0.3, -7])
    assert share_below(magnitude_counts(values), 0.5) == 4 / 10
    assert share_below(magnitude_counts(np.zeros(3, np.float32)), 0.5) == 0
    assert share_below(magnitude_counts(values), 0.0) == 0
