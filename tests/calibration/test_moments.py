"""Moments of a layer: sums over rows, whatever batches they come in, and errors without the rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.moments import MomentsObserver


def rows(count, seed=0, inputs=5, outputs=3):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(1, 2, (count, inputs)), generator.normal(0, 1, (count, outputs))
    return x.astype(np.float32), y.astype(np.float32)


def observed(x, y, sizes):
    observer, start = MomentsObserver("layer"), 0
    for size in sizes:
        observer.update(x[start : start + size], y[start : start + size])
        start += size
    return observer.moments


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any), st.integers(0, 99))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_batches_do_not_matter(sizes, seed):
    x, y = rows(sum(sizes), seed)
    found = observed(x, y, sizes)
    ones = np.column_stack([x, np.ones(len(x))]).astype(np.float64)
    np.testing.assert_allclose(found.gram, ones.T @ ones, rtol=1e-12)
    np.testing.assert_allclose(found.cross, ones.T @ y.astype(np.float64), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.mean, x.mean(0, dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(found.variance, x.astype(np.float64).var(0), rtol=1e-9, atol=1e-9)
    assert found.rows == sum(sizes)


def test_many_rows_are_added_in_blocks_as_they_come():
    x, y = rows(5000)
    at_once, piecewise = observed(x, y, [5000]), observed(x, y, [1, 2047, 2048, 904])
    np.testing.assert_allclose(at_once.gram, piecewise.gram, rtol=1e-12)


@given(st.integers(0, 99))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_error_is_that_of_the_rows(seed):
    x, y = rows(60, seed)
    layer = np.random.default_rng(seed).normal(size=(6, 3))
    expected = np.square(np.column_stack([x, np.ones(60)]) @ layer - y).sum()
    assert observed(x, y, [60]).error(layer) == pytest.approx(expected, rel=1e-9)


def test_a_weight_counts_a_row_so_often():
    x, y = rows(20)
    counts = np.random.default_rng(1).integers(0, 4, 20)
    weighed = MomentsObserver("layer")
    weighed.update(x, y, counts.astype(np.float64))
    repeated = observed(np.repeat(x, counts, axis=0), np.repeat(y, counts, axis=0), [int(counts.sum())])
    np.testing.assert_allclose(weighed.moments.gram, repeated.gram, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(weighed.moments.cross, repeated.cross, rtol=1e-9, atol=1e-9)
    assert weighed.moments.energy == pytest.approx(repeated.energy)
    assert weighed.moments.rows == pytest.approx(counts.sum())
    np.testing.assert_allclose(weighed.moments.mean, repeated.mean, rtol=1e-9)


def test_numbers_that_are_not_finite_are_refused():
    x, y = rows(4)
    x[2, 1] = np.nan
    with pytest.raises(DataError, match="layer reads or gives numbers that are not finite"):
        observed(x, y, [4])
    with pytest.raises(DataError, match="never run"):
        _ = MomentsObserver("layer").moments
