"""Masks: exact counts, groups, what is removed stays removed, ties, and the same answer every time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgesmith_pruning.sparsity.masks import Pattern, remove_lowest, removed_count, select

PATTERNS = (Pattern(2, 4), Pattern(1, 4), Pattern(4, 8), Pattern(32, 64))


def scores(rows, columns):
    # Few different values, so that ties are common.
    return hnp.arrays(np.float64, (rows, columns), elements=st.integers(0, 6).map(float))


@given(st.data(), st.integers(1, 6), st.integers(1, 40), st.floats(0.01, 0.99), st.booleans())
def test_counts_are_exact(data, rows, columns, sparsity, whole):
    mask = select(data.draw(scores(rows, columns)), sparsity, None, whole=whole)
    if whole:
        assert mask.sum() == removed_count(rows * columns, sparsity)
    else:
        assert (mask.sum(axis=1) == removed_count(columns, sparsity)).all()


@given(st.data(), st.sampled_from(PATTERNS), st.integers(1, 4), st.integers(1, 3))
def test_groups_lose_exactly_what_the_pattern_says(data, pattern, rows, groups):
    values = data.draw(scores(rows, groups * pattern.group))
    mask = select(values, 0.9, pattern)
    assert (mask.reshape(-1, pattern.group).sum(axis=1) == pattern.group - pattern.kept).all()
    assert pattern.holds(np.where(mask, 0, values + 1))


@given(st.data(), st.integers(1, 4), st.integers(2, 30), st.tuples(st.floats(0.05, 0.9), st.floats(0.05, 0.9)))
def test_stages_are_nested(data, rows, columns, shares):
    low, high = sorted(shares)
    first = select(data.draw(scores(rows, columns)), low, None)
    second = select(data.draw(scores(rows, columns)), high, None, removed=first)
    assert (second | first == second).all()
    assert (second.sum(axis=1) == removed_count(columns, high)).all()


@given(st.data(), st.integers(1, 3), st.integers(2, 20))
def test_what_was_removed_stays_removed_beyond_the_count(data, rows, columns):
    first = select(data.draw(scores(rows, columns)), 0.9, None)
    np.testing.assert_array_equal(select(data.draw(scores(rows, columns)), 0.1, None, removed=first), first)


@given(st.data(), st.integers(1, 30), st.integers(0, 30))
def test_the_lowest_go_and_of_equals_the_first(data, columns, count):
    values = data.draw(scores(2, columns))
    mask = remove_lowest(values, count)
    expected = np.zeros_like(mask)
    for row in range(2):
        expected[row, sorted(range(columns), key=lambda at, row=row: (values[row, at], at))[:count]] = True
    np.testing.assert_array_equal(mask, expected)


def test_ties_go_by_the_second_score_then_by_place():
    values, ties = np.array([[1.0, 1, 1, 0, 1]]), np.array([[5.0, 2, 2, 9, 7]])
    assert remove_lowest(values, 2, ties=ties).tolist() == [[False, True, False, True, False]]
    assert remove_lowest(values, 3, ties=ties).tolist() == [[False, True, True, True, False]]


def test_infinite_scores_always_stay():
    values = np.array([[np.inf, 1, np.inf, 2]])
    assert select(values, 0.75, None).tolist() == [[False, True, False, True]]
    assert select(values, 0.5, Pattern(1, 4)).tolist() == [[False, True, False, True]]


@pytest.mark.parametrize(
    ("size", "sparsity", "removed"), [(10, 0.9, 9), (10, 0.95, 10), (769, 0.5, 385), (768, 0.5, 384), (7, 0.01, 1)]
)
def test_decimal_shares_are_counted_as_written(size, sparsity, removed):
    """What stays is the whole part of size * (1 - sparsity): in binary, 10 * (1 - 0.9) falls below 1."""
    assert removed_count(size, sparsity) == removed


@pytest.mark.parametrize(("text", "sparsity"), [("2:4", 0.5), ("1:4", 0.75), ("32:64", 0.5)])
def test_patterns_by_name(text, sparsity):
    pattern = Pattern.parse(text)
    assert (str(pattern), pattern.sparsity) == (text, sparsity)
    assert Pattern.parse("unstructured") is None


def test_a_pattern_holds_only_where_its_groups_cover_the_inputs():
    assert Pattern(2, 4).holds(np.array([[0, 1.0, 0, 1, 0, 0, 0, 5]]))
    assert not Pattern(2, 4).holds(np.array([[1.0, 1, 0, 1]]))
    assert not Pattern(2, 4).holds(np.zeros((2, 6)))
