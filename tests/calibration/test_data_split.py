"""Splits share no sample, keep classes in proportion, and depend on content and seed alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith_calibration.checked import CheckedSource, InputForm
from edgesmith_calibration.errors import DataError
from edgesmith_calibration.sources import ArraySource, CallableSource, NpzSource, split, without


def source(values, labels=None):
    return ArraySource(
        {"x": np.asarray(values, np.int64)[:, np.newaxis]}, None if labels is None else np.asarray(labels)
    )


def values(data):
    return [int(value) for batch in data.batches(7) for value in batch.inputs["x"][:, 0]]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=30), st.integers(1, 29), st.integers(0, 3))
def test_parts_are_disjoint_and_complete_even_with_duplicates(samples, count, seed):
    data = source(samples)
    try:
        first, rest = split(data, count, seed=seed)
    except DataError:
        # Refused only where nothing can be set apart: too few samples, or repetitions larger than the count.
        assert count >= len(samples) or min(samples.count(value) for value in samples) > count or len(set(samples)) == 1
        return
    assert 1 <= len(first) <= count
    assert not set(values(first)) & set(values(rest))
    assert sorted(values(first) + values(rest)) == sorted(samples)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(2, 20), min_size=1, max_size=5), st.integers(0, 3), st.data())
def test_classes_keep_their_shares(sizes, seed, data):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = labels[data.draw(st.permutations(range(labels.size)))]
    count = data.draw(st.integers(1, labels.size - 1))
    first, _ = split(source(range(labels.size), labels), count, seed=seed)
    assert len(first) == count
    for name, size in enumerate(sizes):
        assert abs((first.labels() == name).sum() - size * count / labels.size) < 1


def test_few_samples_of_many_classes_are_not_the_first_classes():
    labels = np.arange(200)
    first, _ = split(source(range(200), labels), 40)
    assert first.labels().max() > 150
    assert len(set(first.labels().tolist())) == 40


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(0, 40), st.integers(0, 3))
def test_a_sample_has_the_size_asked_for_even_with_duplicates(samples, count, seed):
    chosen = source(samples).sample(count, seed=seed)
    assert len(chosen) == min(count, len(samples))
    assert not Counter(values(chosen)) - Counter(samples)


def test_a_sample_of_a_source_sorted_by_class_has_all_classes_in_equal_shares():
    labels = np.repeat(np.arange(4), 60)
    checked = CheckedSource(source(range(240), labels), {"x": InputForm("int64", (None, 1))}, batch_size=3)
    # 31 samples fill no whole number of batches of 3, and 33 of four classes are 8 or 9 of each.
    found = np.concatenate([batch.labels for batch in checked.sample(31).batches(1)])
    assert set(np.bincount(found).tolist()) <= {8, 9}
    assert found.size == 33


def test_the_choice_depends_on_content_and_seed_and_not_on_order():
    samples = list(range(50))
    first, _ = split(source(samples), 10, seed=1)
    backwards, _ = split(source(samples[::-1]), 10, seed=1)
    other, _ = split(source(samples), 10, seed=2)
    assert sorted(values(first)) == sorted(values(backwards))
    assert sorted(values(first)) != sorted(values(other))
    assert values(first) == sorted(values(first))
    # Pinned: another choice would silently change every stored result.
    assert values(split(source(range(12)), 4)[0]) == [1, 5, 6, 7]


def test_streams_are_split_too():
    rows = [{"x": [index]} for index in range(20)]
    first, rest = split(CallableSource(lambda: iter(rows)), 5)
    assert sorted(values(first) + values(rest)) == list(range(20))


@pytest.mark.parametrize(("samples", "count"), [([1], 1), ([1, 2], 2), ([1, 2], 0), ([3, 3, 3], 1), ([1, 1, 2, 2], 1)])
def test_what_cannot_be_split_is_refused(samples, count):
    with pytest.raises(DataError, match="cannot be split"):
        split(source(samples), count)


def test_without_removes_what_the_other_holds():
    assert values(without(source([1, 2, 3, 2]), source([2, 9]))) == [1, 3]
    same = source([1, 2])
    assert without(same, source([3])) is same
    with pytest.raises(DataError, match="every sample of"):
        without(source([1, 2]), source([2, 1, 0]))


@pytest.mark.parametrize("labels", [["cat", "dog", "cat"], [0.5, 1.0, 2.0], [0.0, float("nan"), 1.0]])
def test_labels_that_are_no_class_indices_are_refused(labels, tmp_path):
    with pytest.raises(DataError, match="the labels in arrays in memory") as caught:
        source([1, 2, 3], labels)
    assert caught.value.expected.startswith("labels must be integers 0..N-1")
    np.savez(tmp_path / "data.npz", x=np.zeros((3, 1), np.float32), labels=np.array(labels))
    with pytest.raises(DataError, match=repr(labels[0])):
        NpzSource(tmp_path / "data.npz")


def test_labels_of_a_function_are_checked_before_the_split():
    rows = [{"x": np.array([value], np.float32), "label": np.float32(value / 4)} for value in range(8)]
    with pytest.raises(DataError, match=r"labels in .* are float32"):
        split(CallableSource(lambda: rows), 2)


def test_whole_numbers_stored_as_floats_are_class_indices():
    data = source(range(4), [0.0, 1.0, 0.0, 1.0])
    assert data.labels().dtype == np.int64
    first, rest = split(data, 2)
    assert sorted(first.labels().tolist()) == sorted(rest.labels().tolist()) == [0, 1]
