"""The histogram counts exactly, whatever the batching, the order and the scale of the data."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.histogram import OCTAVES, Histogram, HistogramObserver, magnitudes, with_edges

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
TENSORS = hnp.arrays(np.float32, st.integers(1, 60), elements=FLOATS)


def observe(*arrays) -> HistogramObserver:
    observer = HistogramObserver("x")
    for array in arrays:
        observer.update(array)
    return observer


def count_by_hand(values, histogram: Histogram) -> np.ndarray:
    """Count with a search per value: bins are closed at the end near zero and open at the other."""
    counts = np.zeros(histogram.counts.size, np.int64)
    edges = histogram.edges
    for value in values.astype(np.float64):
        inside = (edges[:-1] <= value) & (value <= edges[1:])
        # A value on an edge belongs to the bin farther from zero, unless that lies outside the data.
        found = np.flatnonzero(inside)
        counts[found[0] if value < 0 else found[-1]] += 1
    return counts


@settings(deadline=None, max_examples=150)
@given(TENSORS)
@example(np.zeros(3, np.float32))
@example(np.array([-0.0, 0.0, 1.0], np.float32))
@example(np.full(4, 3.3, np.float32))
@example(np.array([3.4028235e38, -1e-45, 1e-30], np.float32))
def test_counts_are_exact(values):
    histogram = observe(values).histogram()
    assert histogram.counts.sum() == values.size
    assert (np.diff(histogram.edges) >= 0).all()
    assert histogram.low == values.min()
    assert histogram.high == values.max()
    nonzero = values[values != 0]
    np.testing.assert_array_equal(
        _without_zero_bins(histogram, count_by_hand(nonzero, histogram)),
        _without_zero_bins(histogram, histogram.counts),
    )


def _without_zero_bins(histogram, counts):
    return counts[(histogram.edges[:-1] > 0) | (histogram.edges[1:] < 0)]


@settings(deadline=None, max_examples=100)
@given(TENSORS, st.data())
def test_batches_and_order_do_not_matter(values, data):
    whole = observe(values).histogram()
    shuffled = values[data.draw(st.permutations(range(values.size)))]
    cuts = sorted(data.draw(st.lists(st.integers(0, values.size), max_size=4)))
    pieces = observe(*np.split(shuffled, cuts)).histogram()
    np.testing.assert_array_equal(pieces.edges, whole.edges)
    np.testing.assert_array_equal(pieces.counts, whole.counts)


@settings(deadline=None, max_examples=80)
@given(TENSORS, TENSORS)
def test_merging_equals_seeing_both(first, second):
    merged = observe(first)
    merged.merge(observe(second))
    both = observe(np.concatenate([first, second]))
    np.testing.assert_array_equal(merged.histogram().counts, both.histogram().counts)
    np.testing.assert_array_equal(merged.histogram().edges, both.histogram().edges)
    assert merged.count == both.count


def test_bins_are_narrow_relative_to_their_values():
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    histogram = observe(values).histogram()
    near = np.minimum(np.abs(histogram.edges[:-1]), np.abs(histogram.edges[1:]))
    resolved = near >= 2.0 ** (np.floor(np.log2(np.abs(values).max())) + 1 - OCTAVES)
    assert (np.diff(histogram.edges)[resolved] <= near[resolved] * 2**-9).all()
    assert resolved.sum() > 10_000


def test_an_outlier_costs_the_rest_no_resolution():
    body = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    alone, beside = observe(body).histogram(), observe(body, np.array([1000.0], np.float32)).histogram()
    inside = (np.abs(alone.edges) > 0.1) & (np.abs(alone.edges) < 2)
    assert np.isin(alone.edges[inside], beside.edges).all()


def test_what_becomes_negligible_joins_the_bin_at_zero():
    observer = observe(np.array([1e-6, -1e-6, 1.0], np.float32))
    before = observer.histogram()
    observer.update(np.array([1e9], np.float32))
    after = observer.histogram()
    assert before.counts.sum() + 1 == after.counts.sum() == 4
    assert after.counts[:2].tolist() == [1, 2]
    assert after.edges[1] == 0.0


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint8, np.int64, np.bool_])
def test_other_dtypes_count_as_float32(dtype):
    values = np.array([0, 1, 1, 3, 100]).astype(dtype)
    expected = observe(values.astype(np.float32)).histogram()
    np.testing.assert_array_equal(observe(values).histogram().counts, expected.counts)


def test_views_and_shapes_do_not_matter():
    values = np.random.default_rng(1).standard_normal((6, 8, 10)).astype(np.float32)
    expected = observe(values).histogram()
    np.testing.assert_array_equal(observe(values.transpose(2, 0, 1)).histogram().counts, expected.counts)
    halves = observe(values[:, ::2], values[:, 1::2]).histogram()
    np.testing.assert_array_equal(halves.counts, expected.counts)


def test_more_values_than_one_block():
    values = np.random.default_rng(2).standard_normal(3 * (1 << 16) + 17).astype(np.float32)
    whole, parts = observe(values).histogram(), observe(*np.array_split(values, 7)).histogram()
    np.testing.assert_array_equal(whole.counts, parts.counts)
    assert whole.counts.sum() == values.size


def test_values_beyond_float32_are_refused():
    with pytest.raises(DataError, match="tensor 'x' holds values from 0 to 1e\\+300"):
        observe(np.array([0.0, 1e300]))


@settings(deadline=None, max_examples=80)
@given(TENSORS)
def test_magnitudes_keep_the_count_and_the_ends(values):
    absolute = magnitudes(observe(values).histogram())
    assert absolute.counts.sum() == pytest.approx(values.size)
    assert (absolute.counts >= -1e-9).all()
    assert absolute.high == np.abs(values).max()
    assert 0 <= absolute.low <= np.abs(values).min()


def test_magnitudes_equal_a_histogram_of_absolute_values():
    values = np.random.default_rng(3).standard_normal(20_000).astype(np.float32)
    absolute, direct = magnitudes(observe(values).histogram()), observe(np.abs(values)).histogram()
    points = np.linspace(0.01, 3, 200)
    below = [np.interp(points, h.edges[1:], np.cumsum(h.counts)) for h in (absolute, direct)]
    # Only the bin at zero and the cut outermost bins are spread differently.
    np.testing.assert_allclose(below[0], below[1], atol=2)


@settings(deadline=None, max_examples=60)
@given(TENSORS, st.integers(1, 20))
def test_other_edges_keep_the_count(values, bins):
    histogram = observe(values).histogram()
    edges = np.linspace(histogram.low, histogram.high, bins + 1)
    assert with_edges(histogram, edges).counts.sum() == pytest.approx(values.size)
