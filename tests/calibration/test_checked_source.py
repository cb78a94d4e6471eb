"""Data is held against the inputs that a graph declares."""

import numpy as np
import pytest

from edgesmith_calibration.checked import CheckedSource, InputForm
from edgesmith_calibration.errors import DataError
from edgesmith_calibration.sources import ArraySource

FORMS = {"x": InputForm("float32", (None, 3, None)), "ids": InputForm("int64")}


def source(x=None, ids=None, **others):
    x = np.zeros((4, 3, 2), np.float32) if x is None else x
    ids = np.arange(8).reshape(4, 2) if ids is None else ids
    return CheckedSource(ArraySource({"x": x, "ids": ids} | others, np.arange(4)), FORMS)


def test_what_the_graph_does_not_take_is_left_out_and_the_rest_is_kept():
    data = source(extra=np.ones((4, 1)))
    batch = next(data.batches(3))
    assert set(batch.inputs) == {"x", "ids"}
    assert batch.labels.tolist() == [0, 1, 2]
    assert (len(data), data.has_labels, data.description) == (4, True, "arrays in memory")
    assert data.fingerprint == source(extra=np.ones((4, 1))).fingerprint != source().fingerprint


@pytest.mark.parametrize(
    ("x", "ids"),
    [
        (np.zeros((4, 3, 2), np.float64), np.arange(8, dtype=np.int32).reshape(4, 2)),
        (np.zeros((4, 3, 9), np.float16), np.arange(8, dtype=np.uint8).reshape(4, 2)),
        (np.zeros((4, 3, 0), np.float32), np.ones((4, 2), np.bool_)),
    ],
)
def test_values_of_the_same_kind_are_converted(x, ids):
    inputs = next(source(x, ids).select([1, 3]).batches(8)).inputs
    assert (inputs["x"].dtype, inputs["ids"].dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(inputs["ids"], ids[[1, 3]])


@pytest.mark.parametrize(
    ("x", "ids", "message"),
    [
        (np.zeros((4, 3, 2), np.int64), None, "input 'x' is given as int64"),
        (np.full((4, 3, 2), 1e300), None, "input 'x' is given as float64"),
        (None, np.zeros((4, 2), np.float32), "input 'ids' is given as float32"),
        (None, np.full((4, 2), 2**64 - 1, np.uint64), "input 'ids' is given as uint64"),
        (None, np.full((4, 2), "a"), "input 'ids' is given as <U1"),
        (np.zeros((4, 2, 3), np.float32), None, r"shape \[4, 2, 3\]"),
        (np.zeros((4, 3), np.float32), None, r"shape \[4, 3\]"),
    ],
)
def test_other_types_and_shapes_are_refused_with_all_four_parts(x, ids, message):
    with pytest.raises(DataError, match=message) as error:
        next(source(x, ids).batches(4))
    assert all((error.value.expected, error.value.why, error.value.fix))


def test_a_missing_input_is_refused_by_name():
    data = CheckedSource(ArraySource({"y": np.zeros((2, 1))}), FORMS)
    with pytest.raises(DataError, match="there is no array for the input 'x' in the data: ") as error:
        next(data.batches(1))
    assert "there are y" in error.value.expected
