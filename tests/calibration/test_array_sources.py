"""Arrays in memory and in .npz files, and what every source promises: repeatable batches and clear refusals."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.sources import ArraySource, Batch, DataSource, NpzSource


def source(samples=7, **changes):
    arrays = {
        "x": np.arange(samples * 3, dtype=np.float32).reshape(samples, 3),
        "mask": np.ones((samples, 2), np.int64),
    }
    return ArraySource(arrays | changes, np.arange(samples) % 3)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(1, 15))
def test_batches_cover_every_sample_in_order(samples, batch_size):
    data = source(samples)
    for _ in range(2):
        batches = list(data.batches(batch_size))
        assert [batch.size for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        np.testing.assert_array_equal(
            np.concatenate([batch.inputs["x"] for batch in batches])[:, 0] // 3, range(samples)
        )
        np.testing.assert_array_equal(np.concatenate([batch.labels for batch in batches]), data.labels())


def test_selection_keeps_order_and_labels():
    chosen = source().select([5, 1, 1])
    batch = next(chosen.batches(8))
    assert batch.inputs["x"][:, 0].tolist() == [15, 3, 3]
    assert batch.labels.tolist() == [2, 1, 1]
    assert len(chosen) == 3
    assert chosen.select([2, 0]).labels().tolist() == [1, 2]
    assert "3 of 7 samples" in chosen.description


def test_take_gives_the_first_samples_or_all():
    data = source()
    assert [len(data.take(count)) for count in (0, 3, 7, 99)] == [0, 3, 7, 7]
    assert next(data.take(2).batches(5)).inputs["x"][:, 0].tolist() == [0, 3]


@pytest.mark.parametrize("indices", [[7], [-1], [0.5]])
def test_samples_that_do_not_exist_are_refused(indices):
    with pytest.raises(DataError, match="no such samples"):
        source().select(indices)


def test_the_fingerprint_is_of_the_content():
    first = source().fingerprint
    assert first == source().fingerprint
    assert len(first) == 64
    changed = np.arange(21, dtype=np.float32).reshape(7, 3)
    changed[6, 2] += 1
    different = {
        first,
        source(x=changed).fingerprint,
        source(x=changed.astype(np.float64)).fingerprint,
        source().select([0, 1, 2]).fingerprint,
        source().select([2, 1, 0]).fingerprint,
        ArraySource({"x": changed}).fingerprint,
        ArraySource({"y": changed}).fingerprint,
        ArraySource({"x": changed}, np.zeros(7, np.int64)).fingerprint,
    }
    assert len(different) == 8
    assert source().select(range(7)).fingerprint == first


def test_npz_round_trip(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.ones((4, 2), np.float32), labels=np.array([0, 1, 0, 1]))
    data = NpzSource(path)
    assert len(data) == 4
    assert data.has_labels
    assert list(next(data.batches(4)).inputs) == ["x"]
    assert data.fingerprint == ArraySource({"x": np.ones((4, 2), np.float32)}, np.array([0, 1, 0, 1])).fingerprint


def test_labels_of_an_npz_file_stand_under_their_usual_names_or_the_name_given(tmp_path):
    path = tmp_path / "data.npz"
    answers = {"label": np.array([1, 0]), "other": np.array([0, 1])}
    np.savez(path, x=np.ones((2, 3)), **answers)
    assert NpzSource(path).labels().tolist() == [1, 0]
    assert NpzSource(path, labels="other").labels().tolist() == [0, 1]
    with pytest.raises(DataError, match="no array 'labls'") as error:
        NpzSource(path, labels="labls")
    assert "x, label, other" in error.value.expected


def _object_array(path):
    np.savez(path, x=np.array([{"a": 1}, None], dtype=object))


def _truncated(path):
    buffer = io.BytesIO()
    np.savez(buffer, x=np.ones((50, 50)))
    path.write_bytes(buffer.getvalue()[:-200])


def _text(path):
    path.write_text("not a zip archive")


def _empty(path):
    path.write_bytes(b"")


def _single_array(path):
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def _no_arrays(path):
    with zipfile.ZipFile(path, "w"):
        pass


def _damaged_member(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00garbage")


def _absurd_shape(path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999,), }"
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def _damaged_compression(path):
    np.savez_compressed(path, x=np.arange(1000))
    content = bytearray(path.read_bytes())
    content[80:120] = b"\xff" * 40
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "write",
    [
        _absurd_shape,
        _damaged_compression,
        _damaged_member,
        _empty,
        _no_arrays,
        _object_array,
        _single_array,
        _text,
        _truncated,
    ],
)
def test_damaged_npz_files_are_refused_with_all_four_parts(write, tmp_path):
    path = tmp_path / "data.npz"
    write(path)
    with pytest.raises(DataError) as error:
        NpzSource(path)
    assert str(path) in error.value.what
    assert "allow_pickle=`" not in error.value.what, "advice to load a file unsafely"
    assert all((error.value.expected, error.value.why, error.value.fix))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        NpzSource(tmp_path / "none.npz")
    with pytest.raises(DataError, match="is a folder"):
        NpzSource(tmp_path)


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        ({}, None, "no samples"),
        ({"x": np.zeros((0, 3))}, None, "no samples"),
        ({"x": np.float32(1)}, None, "no samples"),
        ({"x": np.zeros((3, 1)), "y": np.zeros((4, 1))}, None, "different lengths"),
        ({"x": np.zeros((3, 1))}, np.zeros(4), "4 labels for 3 samples"),
        ({"x": np.zeros((3, 1))}, np.array(1), "1 labels for 3 samples"),
    ],
)
def test_arrays_that_do_not_match_are_refused(inputs, labels, message):
    with pytest.raises(DataError, match=message):
        ArraySource(inputs, labels)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_data_that_is_not_finite_is_refused_by_name(bad):
    values = np.zeros((5, 2), np.float32)
    values[4, 1] = bad
    batches = ArraySource({"x": values}).batches(2)
    next(batches), next(batches)
    with pytest.raises(DataError, match=r"input 'x' holds (NaN|infinity) in sample 4 of arrays in memory"):
        next(batches)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(DataError, match="batch size 0"):
        next(source().batches(0))


class Countdown(DataSource):
    """The least that somebody else's source must be."""

    description = "a countdown"
    has_labels = True
    fingerprint = "countdown"

    def __len__(self):
        return 10

    def batches(self, batch_size):
        for start in range(0, 10, batch_size):
            values = 10 - np.arange(start, min(start + batch_size, 10))
            yield Batch({"x": values.astype(np.float32)}, values)


def test_a_minimal_source_can_be_selected_from():
    chosen = Countdown().select([2, 9])
    batch = next(chosen.batches(4))
    assert batch.inputs["x"].tolist() == [8.0, 1.0]
    assert batch.labels.tolist() == [8, 1]
    assert len(Countdown().take(3)) == 3


def test_a_spoilt_sample_of_a_selection_is_told_by_its_position_in_the_file():
    values = np.zeros((60, 2), np.float32)
    values[[41, 50], 1] = np.nan
    chosen = ArraySource({"x": values}, description="nan_some.npz").select(np.arange(10, 58)).select(np.arange(4, 48))
    message = r"^input 'x' holds NaN in sample 41 of nan_some\.npz; it is the first such sample"
    with pytest.raises(DataError, match=message):
        list(chosen.batches(5))
