"""Products left in float for their measured error, sampled rows, and rounding to least output error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.errors import StepError
from edgesmith_calibration.errors import DataError
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.quantize_int8 import QuantizeInt8
from edgesmith_quantization.statistics.output_error import output_sqnr_db
from edgesmith_quantization.statistics.row_sample import RowObserver
from small_graphs import DIALECT, SIGNED, context, graph, node, operators, quantize, run, sqnr


def normal(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


# --- rows ---


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_kept_rows_depend_on_their_number_alone(sizes, limit):
    values = np.arange(sum(sizes) * 3, dtype=np.float32).reshape(-1, 3)
    if len(values) == 0:
        return
    whole, parts, start = RowObserver("x", limit), RowObserver("x", limit), 0
    whole.update(values)
    for size in sizes:
        parts.update(values[start : start + size])
        start += size
    np.testing.assert_array_equal(whole.rows, parts.rows)
    kept = whole.rows[:, 0] / 3
    assert 1 <= len(kept) <= limit
    assert len(kept) == 1 or len(set(np.diff(kept))) == 1  # evenly spaced, from the first row on
    assert kept[0] == 0
    assert len(kept) * 2 >= min(limit, len(values))


def test_rows_of_any_rank_and_none():
    observer = RowObserver("x")
    observer.update(normal(2, 3, 5))
    assert observer.rows.shape == (6, 5)
    with pytest.raises(DataError, match="no values"):
        _ = RowObserver("x").rows
    with pytest.raises(DataError, match="infinity"):
        observer.update(np.full((1, 5), np.inf, np.float32))


# --- measured error ---


def test_ratio_of_signal_to_noise():
    rows, weight = np.float32([[3.0, 4.0]]), np.eye(2, dtype=np.float32)
    assert output_sqnr_db(rows, rows, weight, weight) == float("inf")
    assert output_sqnr_db(rows, rows + np.float32([[0.5, 0]]), weight, weight) == pytest.approx(20)
    assert output_sqnr_db(rows * 0, rows, weight, weight) == float("-inf")


@pytest.mark.parametrize("dialect", [DIALECT, SIGNED], ids=lambda each: each.name)
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_product_that_is_far_from_float_stays_there(mode, dialect):
    if mode == "dynamic" and not dialect.dynamic:
        pytest.skip("the dialect has no dynamic form")
    nodes = [node("MatMul", ["x", "a"], "p"), node("MatMul", ["p", "b"], "y")]
    # Row 0 decides the range of p, and is zero behind b, which leaves of the others what one step of that range does.
    first, second = normal(16, 8), normal(8, 4, seed=1)
    first[:, 0] *= 3e3
    second[0] = 0
    model, data = graph(nodes, {"a": first, "b": second}, {"x": ["n", 16]}), {"x": normal(64, 16)}
    used = context(QuantizeInt8Options(mode=mode, smoothing=False, minimum_sqnr_db=25.0), data, dialect)
    result = QuantizeInt8().apply(model, used)
    assert "dB, less than 25" in used.notes.skipped["node_y"]
    assert "node_p" not in used.notes.skipped
    assert "b" in result.graph.initializers
    expected = run(model, data)["y"]
    assert sqnr(expected, run(result, data)["y"]) > 25
    everything = quantize(model, data, dialect, mode=mode, smoothing=False)
    assert sqnr(expected, run(everything, data)["y"]) < 25


def test_nothing_close_enough_is_an_error_that_says_so():
    model = graph([node("MatMul", ["x", "a"], "y")], {"a": normal(16, 8)}, {"x": ["n", 16]})
    with pytest.raises(StepError, match="less than 90"):
        quantize(model, {"x": normal(64, 16)}, minimum_sqnr_db=90.0)


def test_without_a_limit_everything_is_quantized():
    nodes = [node("MatMul", ["x", "a"], "p"), node("MatMul", ["p", "b"], "y")]
    model = graph(nodes, {"a": normal(16, 8), "b": np.zeros((8, 4), np.float32)}, {"x": ["n", 16]})
    assert operators(quantize(model, {"x": normal(64, 16)}))["DequantizeLinear"] == 4


# --- rounding ---


@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "transposed"])
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_second_order_rounding_lowers_the_error_of_the_output(operator, mode):
    generator = np.random.default_rng(0)
    rows = (generator.normal(size=(400, 4)) @ generator.normal(size=(4, 32))).astype(np.float32)
    rows += normal(400, 32, scale=0.05)
    weight = normal(6, 32) if operator == "transposed" else normal(32, 6)
    name = "Gemm" if operator == "transposed" else operator
    attributes = {"transB": 1} if operator == "transposed" else {}
    model = graph([node(name, ["x", "w"], "y", **attributes)], {"w": weight}, {"x": ["n", 32]})
    expected, channel = rows @ (weight.T if operator == "transposed" else weight), {}
    for rounding in ("nearest", "second-order"):
        result = quantize(model, {"x": rows}, mode=mode, rounding=rounding)
        initializers = {key: value.const_value.numpy() for key, value in result.graph.initializers.items()}
        codes, scale = initializers["w_quantized"].astype(np.float32), initializers["w_scale"]
        matrix = codes * scale if codes.shape == (32, 6) else codes.T * scale
        channel[rounding] = sqnr(expected, rows @ matrix)
        assert np.abs(codes).max() <= 127
    assert channel["second-order"] > channel["nearest"] + 3


def test_second_order_rounding_keeps_zeros_and_shared_weights_together():
    weight = normal(32, 32, scale=0.2)
    weight[np.random.default_rng(1).random(weight.shape) < 0.5] = 0
    nodes = [node("MatMul", ["x", "w"], "a"), node("Tanh", ["a"], "t"), node("MatMul", ["t", "w"], "y")]
    result = quantize(graph(nodes, {"w": weight}, {"x": ["n", 32]}), {"x": normal(200, 32)}, rounding="second-order")
    codes = [v.const_value.numpy() for v in result.graph.initializers.values() if v.const_value.shape == (32, 32)]
    assert len(codes) == 1
    assert (codes[0][weight == 0] == 0).all()


def test_convolutions_and_missing_data_fall_back_to_nearest():
    model = graph([node("Conv", ["x", "w"], "y")], {"w": normal(4, 3, 3, 3)}, {"x": ["n", 3, 8, 8]})
    data = {"x": normal(4, 3, 8, 8)}
    first, second = (
        quantize(model, data, rounding=each, bias_correction=False) for each in ("nearest", "second-order")
    )
    np.testing.assert_array_equal(run(first, data)["y"], run(second, data)["y"])
    matrix = graph([node("MatMul", ["x", "w"], "y")], {"w": normal(8, 8)}, {"x": ["n", 8]})
    inputs = {"x": normal(4, 8)}
    nearest, none = (quantize(matrix, None, mode="dynamic", rounding=each) for each in ("nearest", "second-order"))
    np.testing.assert_array_equal(run(nearest, inputs)["y"], run(none, inputs)["y"])
