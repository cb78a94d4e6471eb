"""The mean square of a tensor beside another statistic of it."""

import numpy as np
import pytest

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.observers import MinMaxObserver
from edgesmith_calibration.power import PowerObserver


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_both_see_every_value_however_it_is_cut(dtype):
    # In float16 the squares alone are beyond the largest number.
    values = (np.random.default_rng(0).normal(0, 300, (6, 5, 7)) + 20).astype(dtype)
    whole, parts = PowerObserver(MinMaxObserver("x")), PowerObserver(MinMaxObserver("x"))
    whole.update(values)
    for part in values:
        parts.update(part)
    parts.update(values[:0])
    for each in (whole, parts):
        assert each.count == values.size
        # Sums of 210 squares in float32: a rounding error of 2**-24 each at most, so far below 1e-4 in all.
        assert each.mean_square == pytest.approx(np.square(values, dtype=np.float64).mean(), rel=1e-4)
        assert (each.beside.low, each.beside.high) == (values.min(), values.max())


def test_what_is_not_finite_is_refused_by_the_other():
    with pytest.raises(DataError, match="'x' holds infinity"):
        PowerObserver(MinMaxObserver("x")).update(np.array([1.0, np.inf], np.float32))


def test_the_mean_square_of_nothing_is_refused():
    with pytest.raises(DataError, match="no values were observed"):
        _ = PowerObserver(MinMaxObserver("x")).mean_square
