"""The outermost values are exact, whatever the order and size of the batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.tails import TailObserver

VALUES = st.floats(-(2.0**20), 2.0**20, width=32) | st.sampled_from([0.0, 6.0, -1.0])


@given(hnp.arrays(np.float32, st.integers(2, 300), elements=VALUES), st.integers(1, 9), st.floats(90, 100))
@settings(max_examples=150, deadline=None)
def test_equals_the_percentile_of_all_values(values, batches, percentile):
    parts = np.array_split(values, batches)
    parts = [part for part in parts if part.size]
    observer = TailObserver(percentile=90, updates=len(parts))
    for part in parts:
        observer.update(part)
    low, high = observer.range(percentile, symmetric=False)
    tail = (100 - percentile) / 2
    expected = np.percentile(values.astype(np.float64), [tail, 100 - tail])
    np.testing.assert_allclose((low, high), expected, rtol=1e-6, atol=1e-6 * np.abs(values).max() + 1e-30)
    magnitude = np.percentile(np.abs(values).astype(np.float64), percentile)
    bottom, top = observer.range(percentile, symmetric=True)
    np.testing.assert_allclose(top, magnitude, rtol=1e-6, atol=1e-6 * np.abs(values).max() + 1e-30)
    assert bottom == -top


def test_hundred_percent_is_minimum_and_maximum():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    observer = TailObserver(percentile=99, updates=10)
    for part in np.split(values, 10):
        observer.update(part)
    assert observer.range(100, symmetric=False) == (values.min(), values.max())


def test_larger_batches_than_announced_never_cut_more():
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    observer = TailObserver(percentile=99.9, updates=1)
    for part in np.split(values, [1000]):
        observer.update(part)
    low, high = observer.range(99.9, symmetric=False)
    assert low <= np.percentile(values, 0.05)
    assert high >= np.percentile(values, 99.95)


@given(hnp.arrays(np.float32, st.integers(20, 300), elements=VALUES), st.integers(1, 10), st.floats(90, 100))
@settings(max_examples=150, deadline=None)
def test_a_short_first_batch_never_cuts_more(values, first, percentile):
    observer = TailObserver(percentile=90, updates=2)
    for part in np.split(values, [first]):
        observer.update(part)
    tolerance = 1e-6 * np.abs(values).max() + 1e-30
    low, high = observer.range(percentile, symmetric=False)
    tail = (100 - percentile) / 2
    bottom, top = np.percentile(values.astype(np.float64), [tail, 100 - tail])
    assert low <= bottom + tolerance and high >= top - tolerance
    _, end = observer.range(percentile, symmetric=True)
    assert np.percentile(np.abs(values).astype(np.float64), percentile) - tolerance <= end <= np.abs(values).max()


def test_the_short_side_of_a_skewed_tensor_does_not_cut_the_long_one():
    """GELU gives no less than -0.17 and any positive value; the first of its batches is the shortest."""
    inner = np.random.default_rng(0).normal(0, 0.6, 100_000)
    values = (inner * 0.5 * (1 + np.tanh(0.7978846 * (inner + 0.044715 * inner**3)))).astype(np.float32)
    observer = TailObserver(percentile=99.9, updates=11)
    for part in np.array_split(values[:500], 1) + np.array_split(values[500:], 10):
        observer.update(part)
    assert observer.range(99.9, symmetric=True)[1] >= np.percentile(np.abs(values), 99.9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_name_the_tensor(bad):
    with pytest.raises(DataError, match="'hidden'"):
        TailObserver("hidden").update(np.array([1, bad], np.float32))


def test_nothing_seen_or_a_percentile_not_kept_is_refused():
    observer = TailObserver("hidden", percentile=99.9)
    with pytest.raises(DataError, match="no values"):
        observer.range(99.9, symmetric=False)
    observer.update(np.zeros(0, np.float32))
    observer.update(np.arange(10, dtype=np.float32))
    assert observer.count == 10
    with pytest.raises(DataError, match=r"percentile 99 "):
        observer.range(99, symmetric=False)
    with pytest.raises(DataError, match="percentile"):
        TailObserver("hidden", percentile=50)
