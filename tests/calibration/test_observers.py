"""Observers give what numpy gives on the concatenated data, however the data was cut into batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.observers import (
    GramObserver,
    HistogramObserver,
    MeanVarianceObserver,
    MinMaxObserver,
    MovingAverageObserver,
    Observer,
)

ALL = [MinMaxObserver, MovingAverageObserver, MeanVarianceObserver, GramObserver, HistogramObserver]
MERGING = [MinMaxObserver, MeanVarianceObserver, GramObserver]
DTYPES = st.sampled_from([np.float32, np.float64, np.float16, np.int8, np.int32, np.int64, np.uint8])


@st.composite
def arrays(draw, min_rows=1):
    dtype = np.dtype(draw(DTYPES))
    shape = (draw(st.integers(min_rows, 12)), draw(st.integers(1, 4)), draw(st.integers(1, 5)))
    elements = None
    if dtype.kind == "f":
        elements = st.floats(-1000, 1000, width=min(dtype.itemsize * 8, 32), allow_subnormal=False)
    return draw(hnp.arrays(dtype, shape, elements=elements))


def cut(array, data):
    """Return `array` in pieces along its first axis, some of which may be empty."""
    cuts = sorted(data.draw(st.lists(st.integers(0, array.shape[0]), max_size=3)))
    return np.split(array, cuts)


def others(array, axis):
    return None if axis is None else tuple(i for i in range(array.ndim) if i != axis % array.ndim)


def feed(observer: Observer, pieces) -> Observer:
    for piece in pieces:
        observer.update(piece)
    return observer


@settings(deadline=None, max_examples=80)
@given(arrays(), st.sampled_from([None, 1, 2, -1, -2]), st.data())
def test_min_max_equals_numpy(array, axis, data):
    observer = feed(MinMaxObserver("x", axis), cut(array, data))
    np.testing.assert_array_equal(observer.low, array.min(axis=others(array, axis)).astype(np.float64))
    np.testing.assert_array_equal(observer.high, array.max(axis=others(array, axis)).astype(np.float64))
    assert observer.count == (array.size if axis is None else array.size // array.shape[axis])


@settings(deadline=None, max_examples=80)
@given(arrays(), st.sampled_from([None, 1, 2, -1]), st.data())
def test_mean_and_variance_equal_numpy(array, axis, data):
    observer = feed(MeanVarianceObserver("x", axis), cut(array, data))
    exact = array.astype(np.float64)
    scale = max(1.0, float(np.abs(exact).max()))
    np.testing.assert_allclose(observer.mean, exact.mean(axis=others(array, axis)), atol=1e-12 * scale)
    np.testing.assert_allclose(observer.variance, exact.var(axis=others(array, axis)), atol=1e-11 * scale**2)


@settings(deadline=None, max_examples=80)
@given(arrays(), st.data())
def test_gram_matrix_equals_numpy(array, data):
    observer = feed(GramObserver("x"), cut(array, data))
    rows = array.reshape(-1, array.shape[-1]).astype(np.float64)
    expected = rows.T @ rows
    np.testing.assert_allclose(observer.matrix, expected, rtol=1e-12, atol=1e-12 * max(1.0, np.abs(expected).max()))
    assert observer.count == rows.shape[0]


@settings(deadline=None, max_examples=60)
@given(arrays(min_rows=2), st.sampled_from(MERGING), st.data())
def test_merged_observers_equal_one_that_saw_everything(array, kind, data):
    where = data.draw(st.integers(0, array.shape[0]))
    first, second, whole = kind("x"), kind("x"), kind("x")
    first.update(array[:where])
    second.update(array[where:])
    first.merge(second)
    whole.update(array)
    assert first.count == whole.count
    for name in ("low", "high", "mean", "variance", "matrix"):
        if hasattr(whole, name):
            expected = getattr(whole, name)
            np.testing.assert_allclose(
                getattr(first, name), expected, rtol=1e-9, atol=1e-9 * (1 + np.abs(expected)).max()
            )


def test_large_blocks_are_combined_without_loss():
    # More values than one block holds, far from zero, where sums of squares would cancel.
    array = np.random.default_rng(0).normal(1e6, 1.0, (3, 700_001))
    observer = feed(MeanVarianceObserver("x", axis=0), [array])
    np.testing.assert_allclose(observer.mean, array.mean(axis=1), rtol=1e-13)
    np.testing.assert_allclose(observer.variance, array.var(axis=1), rtol=1e-7)


def test_gram_matrix_of_more_rows_than_one_block():
    rows = np.random.default_rng(0).standard_normal((9000, 6), dtype=np.float32)
    observer = feed(GramObserver("x"), [rows])
    np.testing.assert_allclose(
        observer.matrix, rows.astype(np.float64).T @ rows.astype(np.float64), rtol=1e-9, atol=1e-9
    )


@settings(deadline=None, max_examples=40)
@given(st.lists(hnp.arrays(np.float32, 4, elements=st.floats(-10, 10, width=32)), min_size=1, max_size=5))
def test_moving_average_follows_its_recurrence(batches):
    observer = feed(MovingAverageObserver("x", momentum=0.75), batches)
    low, high = float(batches[0].min()), float(batches[0].max())
    for batch in batches[1:]:
        low, high = 0.75 * low + 0.25 * float(batch.min()), 0.75 * high + 0.25 * float(batch.max())
    assert observer.low == pytest.approx(low, abs=1e-12)
    assert observer.high == pytest.approx(high, abs=1e-12)


def test_moving_average_per_channel_and_its_limits():
    observer = feed(MovingAverageObserver("x", axis=1, momentum=0.5), [np.array([[1.0, 2.0]]), np.array([[3.0, -2.0]])])
    np.testing.assert_allclose(observer.high, [2.0, 0.0])
    with pytest.raises(TypeError, match="order"):
        observer.merge(MovingAverageObserver("x"))
    with pytest.raises(ValueError, match="momentum"):
        MovingAverageObserver("x", momentum=1.0)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name_and_change_nothing(kind, bad):
    observer = feed(kind("encoder.output"), [np.ones((2, 3), np.float32)])
    array = np.ones((4, 3), np.float32)
    array[2, 1] = bad
    with pytest.raises(DataError, match=r"'encoder\.output' holds (NaN|infinity): 1 of 12 values") as error:
        observer.update(array)
    assert all((error.value.expected, error.value.why, error.value.fix))
    assert observer.count == (2 if kind is GramObserver else 6)


@pytest.mark.parametrize("kind", ALL)
def test_empty_arrays_change_nothing_and_nothing_has_no_statistic(kind):
    observer = feed(kind("x"), [np.zeros((0, 3), np.float32)])
    assert observer.count == 0
    with pytest.raises(DataError, match="no values were observed for tensor 'x'"):
        observer.require_values()


@pytest.mark.parametrize("kind", ALL)
def test_text_is_refused(kind):
    with pytest.raises(DataError, match="dtype"):
        kind("x").update(np.array(["a", "b"]))


def test_results_are_copies():
    observer = feed(MinMaxObserver("x"), [np.array([1.0, 2.0])])
    observer.low[...] = -5
    assert observer.low == 1.0


@pytest.mark.parametrize("observer", [MinMaxObserver("x", 1), MeanVarianceObserver("x", 1), GramObserver("x")])
def test_a_changed_number_of_channels_is_refused(observer):
    observer.update(np.ones((2, 3), np.float32))
    with pytest.raises(DataError, match="channels from 3 to 4"):
        observer.update(np.ones((2, 4), np.float32))


@pytest.mark.parametrize("kind", [MinMaxObserver, MeanVarianceObserver])
def test_an_axis_that_does_not_exist_is_refused(kind):
    with pytest.raises(DataError, match="no axis 3"):
        kind("x", 3).update(np.ones((2, 3), np.float32))


def test_scalars_and_booleans_are_values():
    assert feed(MinMaxObserver("x"), [np.float32(3.0)[...], np.array([True, False])]).high == 3.0
    assert feed(GramObserver("x"), [np.array(2.0)]).matrix.tolist() == [[4.0]]
