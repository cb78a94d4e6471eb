"""Python iterables as sources: lists of mappings, tuples, tensors, data loaders and generators."""

import re
from collections import UserDict

import numpy as np
import pytest
import torch

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.sources import ArraySource, CallableSource, IterableSource, Layout

ROWS = [{"input_ids": [1, 2, index], "text": "raw", "label": index % 2, "none": None} for index in range(5)]


def collect(source, batch_size=2):
    batches = list(source.batches(batch_size))
    names = batches[0].inputs
    inputs = {name: np.concatenate([batch.inputs[name] for batch in batches]) for name in names}
    labels = None if batches[0].labels is None else np.concatenate([batch.labels for batch in batches])
    return inputs, labels


def test_a_list_of_mappings_like_a_dataset():
    source = IterableSource(ROWS)
    inputs, labels = collect(source)
    assert list(inputs) == ["input_ids"]
    np.testing.assert_array_equal(inputs["input_ids"][:, 2], range(5))
    np.testing.assert_array_equal(labels, [0, 1, 0, 1, 0])
    assert (len(source), source.has_labels) == (5, True)


def test_every_form_of_the_same_samples_has_one_fingerprint():
    values, labels = np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(6)
    rows = [{"x": value, "labels": label} for value, label in zip(values, labels, strict=True)]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.tensor(values), torch.tensor(labels)), batch_size=4
    )
    sources = [
        ArraySource({"x": values}, labels),
        IterableSource(rows),
        IterableSource(rows, Layout(inputs=("x",))),
        IterableSource(list(zip(values, labels, strict=True)), Layout(inputs=("x",))),
        IterableSource([UserDict(row) for row in rows]),
        IterableSource([{"x": torch.tensor(row["x"], requires_grad=True), "labels": row["labels"]} for row in rows]),
        IterableSource(loader, Layout(inputs=("x",), batched=True)),
        CallableSource(lambda: iter(rows)),
        CallableSource(
            lambda: ({"x": values[i : i + 4], "labels": labels[i : i + 4]} for i in (0, 4)), Layout(batched=True)
        ),
    ]
    assert len({source.fingerprint for source in sources}) == 1
    for source in sources:
        inputs, found = collect(source, batch_size=4)
        np.testing.assert_array_equal(inputs["x"], values)
        np.testing.assert_array_equal(found, labels)
        again, _ = collect(source.select([1, 4]))
        np.testing.assert_array_equal(again["x"], values[[1, 4]])


def test_a_single_unnamed_input():
    inputs, labels = collect(IterableSource([np.zeros(3), np.ones(3)], Layout(inputs=("x",))))
    assert inputs["x"].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert labels is None


def test_a_function_is_called_for_every_reading_and_never_read_further_than_needed():
    reads = []

    def samples():
        for index in range(100):
            reads.append(index)
            yield {"x": np.float32([index])}

    source = CallableSource(samples)
    batches = source.read(np.array([0, 2]), 1)
    assert next(batches).inputs["x"].tolist() == [[0.0]]
    assert reads == [0]
    assert next(batches).inputs["x"].tolist() == [[2.0]]
    assert reads == [0, 1, 2]
    assert len(source) == 100


def test_a_sequence_is_read_in_any_order_and_a_stream_only_forwards():
    assert collect(IterableSource(ROWS).select([3, 0]))[0]["input_ids"][:, 2].tolist() == [3, 0]
    with pytest.raises(DataError, match="out of order"):
        next(CallableSource(lambda: iter(ROWS)).select([3, 0]).batches(2))


def test_a_generator_is_refused():
    with pytest.raises(DataError, match="a generator can be read only once"):
        IterableSource(row for row in ROWS)


def test_a_function_that_gives_fewer_samples_the_second_time_is_refused():
    lengths = iter([4, 2])
    source = CallableSource(lambda: iter(ROWS[: next(lengths)]))
    with pytest.raises(DataError, match="ended before sample 2"):
        list(source.batches(2))


@pytest.mark.parametrize(
    ("items", "layout", "message"),
    [
        ([], Layout(), "no samples"),
        ([[1, 2]], Layout(), "an item of .* is a list"),
        ([(1, 2, 3)], Layout(inputs=("x",)), "a tuple with 3 value"),
        ([{"x": 1}], Layout(inputs=("y",)), "no field y"),
        ([{"x": 1}], Layout(labels="class"), "no field class"),
        ([{"text": "only"}], Layout(), "no field with numbers"),
        ([{"x": [1]}, {"y": [1]}], Layout(), "no field x, y"),
        ([{"x": [1, 2]}, {"x": [1]}], Layout(), "different shapes: \\[1\\], \\[2\\]"),
        ([{"x": [[1, 2], [3]]}], Layout(), "'x' in a sample of .* is not an array"),
        ([{"x": object()}], Layout(inputs=("x",)), "it holds object objects"),
        ([{"x": torch.ones(2, dtype=torch.bfloat16)}], Layout(), "'x' in a sample of .* is not an array"),
        ([{"x": [1], "label": 0}, {"x": [1]}], Layout(), "1 labels for 2 samples"),
        ([{"x": [1.0, float("nan")]}], Layout(), "holds NaN"),
        ([{"x": np.ones((2, 1)), "y": np.ones((3, 1))}], Layout(batched=True), "arrays with \\[2, 3\\] samples"),
    ],
)
def test_items_that_cannot_be_samples_are_refused_with_all_four_parts(items, layout, message):
    with pytest.raises(DataError, match=message) as error:
        list(CallableSource(lambda: iter(items), layout).batches(4))
    assert all((error.value.expected, error.value.why, error.value.fix))


def first_batch(source):
    return next(iter(source.batches(2)))


def interrupted():
    yield ROWS[0]
    raise ConnectionError("the disk of samples went away\nand more")


class BrokenDataset:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return 1 / 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (CallableSource(interrupted), r"interrupted cannot be read: ConnectionError: the disk .* went away \(line"),
        (CallableSource(BrokenDataset), r"BrokenDataset cannot be read: ZeroDivisionError"),
        (CallableSource(lambda: 5), r"cannot be read: TypeError: 'int' object is not iterable$"),
        (CallableSource(lambda missing: []), r"cannot be read: TypeError: .*'missing'"),
        (
            IterableSource(BrokenDataset()),
            r"a BrokenDataset cannot be read: .* \(line \d+ of .*py\)",
        ),
    ],
)
def test_what_code_of_the_user_raises_is_named(source, message):
    with pytest.raises(DataError) as caught:
        first_batch(source)
    assert re.search(message, caught.value.what)
    assert caught.value.__cause__ is not None


def test_an_error_that_explains_itself_passes_through():
    def samples():
        raise DataError("no licence", expected="a licence", why="it is checked", fix="buy one")

    with pytest.raises(DataError, match="no licence"):
        first_batch(CallableSource(samples))
