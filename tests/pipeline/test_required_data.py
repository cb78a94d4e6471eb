"""Steps that cannot do without data say why, and what else would do."""

import numpy as np
import pytest

from edgesmith.data import required_data
from edgesmith.errors import DataError
from edgesmith_calibration.sources import ArraySource


class Empty(ArraySource):
    """A source whose samples are all gone."""

    def __len__(self) -> int:
        return 0


def test_data_that_is_there_is_returned():
    data = ArraySource({"x": np.zeros((2, 3), np.float32)})
    assert required_data(data, "pruning", why="scores look at it") is data


@pytest.mark.parametrize("data", [None, Empty({"x": np.zeros((2, 3), np.float32)})])
@pytest.mark.parametrize(("fix", "said"), [("", "pass data with --data"), ("set x", "pass data with --data, or set x")])
def test_missing_data_is_an_error_with_a_way_out(data, fix, said):
    with pytest.raises(DataError, match="no calibration data for pruning") as caught:
        required_data(data, "pruning", why="scores look at it", fix=fix)
    assert (caught.value.why, caught.value.fix) == ("scores look at it", said)
