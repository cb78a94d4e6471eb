"""Optimal one-dimensional clusters, held against exhaustive search and against dynamic programming."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgesmith_quantization.arithmetic import clustering
from edgesmith_quantization.arithmetic.clustering import cluster_of, optimal_edges

# Both sides sum squares in float64; a partition that is better by less than this is a rounding of the same one.
ROUNDING = 1e-9


def squared_error(values, owners):
    wide = values.astype(np.float64)
    return sum(float(np.square(wide[owners == each] - wide[owners == each].mean()).sum()) for each in np.unique(owners))


def found_error(values, clusters):
    row = values[None]
    return squared_error(values, cluster_of(row, optimal_edges(row, clusters))[0])


def exhaustive_error(values, clusters):
    ordered = np.sort(values)
    splits = combinations(range(1, len(ordered)), clusters - 1)
    owners = (np.searchsorted(split, np.arange(len(ordered)), side="right") for split in splits)
    return min(squared_error(ordered, each) for each in owners)


def programmed_error(values, clusters):
    """Return the least squared error by dynamic programming over all splits (Wang and Song 2011, section 2)."""
    ordered = np.sort(values).astype(np.float64) - np.mean(values, dtype=np.float64)
    sums, squares = (np.concatenate([[0.0], np.cumsum(each)]) for each in (ordered, ordered**2))
    start, stop = np.ogrid[: len(ordered), 1 : len(ordered) + 1]
    size = np.maximum(stop - start, 1)
    cost = squares[stop] - squares[start] - (sums[stop] - sums[start]) ** 2 / size
    cost[stop <= start] = np.inf
    best = cost[0]
    for _ in range(clusters - 1):
        # The last cluster starts at s and the others take the s values before it.
        best = np.min(best[:-1, None] + cost[1:], axis=0)
    return float(best[-1])


def scatter(values):
    return float(np.square(values.astype(np.float64) - values.mean(dtype=np.float64)).sum())


@settings(max_examples=150, deadline=None)
@given(
    arrays.arrays(np.float32, st.integers(2, 12), elements=st.floats(-8, 8, width=16)),
    st.integers(2, 4),
)
def test_no_partition_is_better(values, clusters):
    if len(np.unique(values)) < clusters:
        return
    assert found_error(values, clusters) <= exhaustive_error(values, clusters) + ROUNDING * scatter(values)


DISTRIBUTIONS = {
    "normal": lambda draw, size: draw.normal(0, 0.02, size),
    "laplace": lambda draw, size: draw.laplace(0, 1, size),
    "heavy tails": lambda draw, size: draw.standard_cauchy(size),
    "uniform": lambda draw, size: draw.random(size),
    "on a grid": lambda draw, size: draw.integers(-20, 20, size),
    "half zeros": lambda draw, size: draw.normal(0, 1, size) * (draw.random(size) < 0.5),
    "far from zero": lambda draw, size: 1000 + draw.normal(0, 1e-2, size),
    "two values and noise": lambda draw, size: np.sign(draw.normal(0, 1, size)) + draw.normal(0, 1e-4, size),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("clusters", [2, 3, 4])
def test_equals_dynamic_programming(name, clusters):
    values = DISTRIBUTIONS[name](np.random.default_rng(3), 700).astype(np.float32)
    expected = programmed_error(values, clusters)
    # Dynamic programming sums up to `scatter`, so its own rounding is relative to that.
    assert abs(found_error(values, clusters) - expected) <= ROUNDING * scatter(values)


def test_rows_are_independent_of_each_other(monkeypatch):
    rows = np.random.default_rng(0).laplace(0, 1, (37, 50)).astype(np.float32)
    together = optimal_edges(rows, 3)
    monkeypatch.setattr(clustering, "_CHUNK_VALUES", 120)
    assert np.array_equal(together, optimal_edges(rows, 3))
    assert np.array_equal(together, np.concatenate([optimal_edges(row[None], 3) for row in rows]))


def test_order_and_repetition_do_not_matter():
    values = np.random.default_rng(1).normal(0, 1, 300).astype(np.float32)
    expected = optimal_edges(values[None], 3)
    assert np.array_equal(expected, optimal_edges(values[None, ::-1], 3))
    assert np.array_equal(expected, optimal_edges(np.tile(values, 2)[None], 3))


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [2.0, 2.0, 2.0, 2.0], [-1.0, 1.0]])
def test_fewer_values_than_clusters_each_have_their_own(values):
    row = np.array([values], np.float32)
    owners = cluster_of(row, optimal_edges(row, 3))[0]
    assert [len({*row[0][owners == each].tolist()}) for each in np.unique(owners)] == [1] * len({*values})


def test_one_cluster_has_no_edge():
    row = np.ones((2, 3), np.float32)
    edges = optimal_edges(row, 1)
    assert edges.shape == (2, 0)
    assert not cluster_of(row, edges).any()


def test_a_large_weight_needs_few_bounds(monkeypatch):
    """Speed follows from how few sets of partitions are looked at, which does not depend on the machine."""
    counted = []
    bound = clustering._Search._bound
    monkeypatch.setattr(
        clustering._Search, "_bound", lambda self, boxes: (counted.append(len(boxes.row)), bound(self, boxes))[1]
    )
    optimal_edges(np.random.default_rng(0).normal(0, 1, (1, 1_000_000)).astype(np.float32), 3)
    # 10^12 / 2 pairs of splits; a sort of the values costs about 20 comparisons for each of them.
    assert sum(counted) < 10_000
