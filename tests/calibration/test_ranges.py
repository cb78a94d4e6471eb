"""Range estimators: what they promise, on histograms and on the data behind them."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.grid import INTEGER_LIMITS, quantization_parameters
from edgesmith_calibration.mse import squared_error
from edgesmith_calibration.observers import Histogram, HistogramObserver, MinMaxObserver, MovingAverageObserver
from edgesmith_calibration.ranges import Range, estimate_range

METHODS = ["min-max", "percentile", "mse", "entropy"]
GRIDS = [("int8", True), ("int8", False), ("uint8", True), ("uint8", False), ("int4", True)]
TENSORS = hnp.arrays(
    np.float32, st.integers(1, 80), elements=st.floats(-(2.0**66), 2.0**66, width=32, allow_subnormal=False)
)


def observe(values) -> HistogramObserver:
    observer = HistogramObserver("x")
    observer.update(np.asarray(values, np.float32))
    return observer


def true_error(values, found: Range, dtype, symmetric) -> float:
    smallest, largest = INTEGER_LIMITS[dtype]
    scale, zero_point = (
        part.astype(np.float64) for part in quantization_parameters(found.low, found.high, dtype, symmetric)
    )
    values = np.asarray(values, np.float64)
    codes = np.clip(np.rint(values / scale) + zero_point, smallest, largest)
    return float(np.square((codes - zero_point) * scale - values).mean())


def predicted_error(observer, found: Range, dtype, symmetric) -> float:
    return float(
        squared_error(observer.histogram(), np.array([found.low]), np.array([found.high]), dtype, symmetric)[0]
    )


def samples() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    normal = generator.standard_normal(60_000)
    exponentials = np.exp(3 * normal[:51_200]).reshape(-1, 128)
    return {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "gelu": normal / (1 + np.exp(-1.702 * normal)),
        "heavy tails": generator.standard_t(3, 60_000),
        "one outlier": np.append(normal, 50.0),
        "negative": -np.abs(normal),
        "softmax": exponentials / exponentials.sum(axis=1, keepdims=True),
    }


@settings(deadline=None, max_examples=60)
@given(TENSORS, st.sampled_from(METHODS), st.sampled_from(GRIDS))
@example(np.zeros(5, np.float32), "entropy", ("int8", True))
@example(np.full(3, -7.5, np.float32), "mse", ("uint8", False))
@example(np.array([1e-42], np.float32), "mse", ("int8", True))
def test_every_range_is_usable(values, method, grid):
    dtype, symmetric = grid
    found = estimate_range(observe(values), method, dtype=dtype, symmetric=symmetric, percentile=99.9)
    assert found.low <= 0 <= found.high
    assert found.low >= min(values.min(), 0) - 1e-12 or symmetric
    assert found.high <= max(0.0, np.abs(values).max())
    if symmetric:
        assert found.low == -found.high
    scale, _ = quantization_parameters(found.low, found.high, dtype, symmetric)
    assert np.finfo(np.float32).tiny <= scale < np.inf


@settings(deadline=None, max_examples=30)
@given(TENSORS, st.sampled_from(METHODS), st.data())
def test_ranges_do_not_depend_on_batches(values, method, data):
    cut = data.draw(st.integers(0, values.size))
    parts = HistogramObserver("x")
    parts.update(values[cut:])
    parts.update(values[:cut])
    assert estimate_range(parts, method) == estimate_range(observe(values), method)


@settings(deadline=None, max_examples=60)
@given(TENSORS, st.sampled_from(GRIDS))
def test_mse_range_is_never_worse_than_min_max_on_the_histogram(values, grid):
    observer = observe(values)
    errors = [
        predicted_error(observer, estimate_range(observer, method, dtype=grid[0], symmetric=grid[1]), *grid)
        for method in ("mse", "min-max")
    ]
    assert errors[0] <= errors[1] * (1 + 1e-9)


@pytest.mark.parametrize("name", samples())
@pytest.mark.parametrize("grid", GRIDS)
def test_mse_range_is_best_on_the_data_itself(name, grid):
    values = samples()[name].astype(np.float32)
    observer = observe(values)
    errors = {
        method: true_error(values, estimate_range(observer, method, dtype=grid[0], symmetric=grid[1]), *grid)
        for method in METHODS
    }
    assert errors["mse"] <= 1.01 * min(errors.values())


@pytest.mark.parametrize("name", samples())
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("method", METHODS)
def test_predicted_error_is_the_error_of_the_data(name, grid, method):
    values = samples()[name].astype(np.float32)
    observer = observe(values)
    found = estimate_range(observer, method, dtype=grid[0], symmetric=grid[1], percentile=99.9)
    assert predicted_error(observer, found, *grid) == pytest.approx(true_error(values, found, *grid), rel=0.02)


def test_the_closed_form_equals_numeric_integration():
    histogram = Histogram(np.array([-2.0, -0.3, 0.0, 0.7, 5.0]), np.array([3, 10, 20, 1]))
    found = Range(-1.0, 3.0)
    expected = 0.0
    for start, end, count in zip(histogram.edges[:-1], histogram.edges[1:], histogram.counts, strict=True):
        middle = start + (np.arange(200_000) + 0.5) * (end - start) / 200_000
        expected += count * true_error(middle, found, "int4", False)
    expected /= histogram.counts.sum()
    found_error = squared_error(histogram, np.array([found.low]), np.array([found.high]), "int4", False)[0]
    assert found_error == pytest.approx(expected, rel=1e-6)


def test_mse_search_comes_close_to_an_exhaustive_one():
    values = samples()["heavy tails"].astype(np.float32)
    peak = float(np.abs(values).max())
    thresholds = np.linspace(peak / 400, peak, 400)
    best = min(true_error(values, Range(-end, end), "int8", True) for end in thresholds)
    found = estimate_range(observe(values), "mse", dtype="int8", symmetric=True)
    assert true_error(values, found, "int8", True) <= 1.005 * best


@pytest.mark.parametrize("share", [50.0, 90.0, 99.0, 99.9, 100.0])
def test_percentile_is_the_order_statistic_within_a_bin(share):
    values = samples()["heavy tails"].astype(np.float32)
    symmetric = estimate_range(observe(values), "percentile", percentile=share, symmetric=True)
    assert_quantile(np.abs(values), share / 100, symmetric.high)
    found = estimate_range(observe(values), "percentile", dtype="uint8", percentile=share, symmetric=False)
    tail = (1 - share / 100) / 2
    assert_quantile(values, tail, found.low)
    assert_quantile(values, 1 - tail, found.high)


def assert_quantile(values, share, found):
    """Check that `found` lies between the values just below and just above the quantile, give or take a bin."""
    ordered = np.sort(values.astype(np.float64))
    rank = round(share * ordered.size)
    below, above = ordered[max(rank - 1, 0)], ordered[min(rank, ordered.size - 1)]
    assert below - abs(below) * 2**-8 <= found <= above + abs(above) * 2**-8


@settings(deadline=None, max_examples=60)
@given(TENSORS, st.floats(1, 100))
def test_percentile_keeps_the_share_it_promises(values, share):
    found = estimate_range(observe(values), "percentile", percentile=share, symmetric=True)
    magnitude = np.abs(values.astype(np.float64))
    # Interpolation may cut the bin that holds the threshold, so values up to one bin above it count as kept.
    kept = (magnitude <= found.high * (1 + 2**-8) + np.abs(values).max() * 2.0**-14).mean()
    assert kept >= share / 100 - 1e-9


def test_entropy_ignores_exact_zeros():
    normal = samples()["normal"]
    padded = np.concatenate([normal, np.zeros(500_000)])
    assert estimate_range(observe(padded), "entropy") == estimate_range(observe(normal), "entropy")


def test_entropy_cuts_an_outlier_and_keeps_a_uniform_range():
    generator = np.random.default_rng(0)
    uniform = generator.uniform(-1, 1, 100_000)
    assert estimate_range(observe(uniform), "entropy").high > 0.95
    assert estimate_range(observe(np.append(uniform, 100.0)), "entropy").high < 50


def test_entropy_is_refused_beyond_8_bits():
    with pytest.raises(DataError, match="entropy range estimator was asked for int16"):
        estimate_range(observe([1.0]), "entropy", dtype="int16")


def test_min_max_from_every_kind_of_statistic():
    values = np.array([-1.0, 4.0], np.float32)
    for observer in (MinMaxObserver("x"), MovingAverageObserver("x"), HistogramObserver("x")):
        observer.update(values)
        assert estimate_range(observer, dtype="uint8", symmetric=False) == Range(-1.0, 4.0)
    assert estimate_range(observe(values).histogram(), "min-max", symmetric=True) == Range(-4.0, 4.0)


def test_a_tensor_without_negative_values_starts_at_zero():
    assert estimate_range(observe([2.0, 3.0]), dtype="uint8", symmetric=False) == Range(0.0, 3.0)


def test_other_estimators_need_a_histogram():
    observer = MinMaxObserver("x")
    observer.update(np.ones(3))
    with pytest.raises(DataError, match="tensor 'x' has no histogram for the range estimator mse"):
        estimate_range(observer, "mse")


def test_statistics_per_channel_are_refused():
    observer = MinMaxObserver("x", axis=0)
    observer.update(np.ones((3, 2)))
    with pytest.raises(DataError, match="observed per channel"):
        estimate_range(observer)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_observed_is_refused(method):
    with pytest.raises(DataError, match="no values were observed for tensor 'x'"):
        estimate_range(HistogramObserver("x"), method)


@pytest.mark.parametrize("share", [0, -1, 100.1, float("nan")])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(DataError, match="not a share"):
        estimate_range(observe([1.0]), "percentile", percentile=share)


def test_unknown_estimators_are_refused():
    with pytest.raises(DataError, match="'median' is not a range estimator"):
        estimate_range(observe([1.0]), "median")
