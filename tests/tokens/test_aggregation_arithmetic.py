"""The arithmetic of aggregation against its definitions, written out slowly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesmith_calibration.errors import DataError
from edgesmith_tokens.aggregation.cells import Grid, cell_labels, coarser_grid, square_grid
from edgesmith_tokens.aggregation.clusters import k_means, random_groups
from edgesmith_tokens.aggregation.matrices import averaging, principal
from edgesmith_tokens.aggregation.statistics import SampleObserver, TokenGramObserver

SIDES = st.integers(1, 12)


def rng(seed=0):
    return np.random.default_rng(seed)


@given(SIDES, SIDES, st.data())
def test_cells_part_any_grid_into_rectangles(rows, columns, data):
    grid = Grid(rows, columns)
    count = data.draw(st.integers(1, grid.count))
    coarser = coarser_grid(grid, count, grid)
    labels = cell_labels(grid, coarser).reshape(rows, columns)
    assert 1 <= coarser.rows <= rows and 1 <= coarser.columns <= columns
    assert sorted(set(labels.reshape(-1).tolist())) == list(range(coarser.count))
    heights, widths = set(), set()
    for cell in range(coarser.count):
        inside = np.argwhere(labels == cell)
        height, width = inside.max(axis=0) - inside.min(axis=0) + 1
        assert len(inside) == height * width  # a whole rectangle
        heights.add(int(height))
        widths.add(int(width))
    assert max(heights) - min(heights) <= 1 and max(widths) - min(widths) <= 1


@given(SIDES, SIDES, st.data())
def test_no_other_grid_is_nearer_to_the_wished_count(rows, columns, data):
    grid = Grid(rows, columns)
    count = data.draw(st.integers(1, grid.count))
    found = coarser_grid(grid, count, grid)
    best = min(abs(r * c - count) for r in range(1, rows + 1) for c in range(1, columns + 1))
    assert abs(found.count - count) == best


def test_the_pyramid_of_the_paper():
    patches = Grid(14, 14)
    half = coarser_grid(patches, 98, patches)
    quarter = coarser_grid(half, 49, patches)
    assert {half.rows, half.columns} == {7, 14}
    assert quarter == Grid(7, 7)


def test_a_number_that_is_no_square_has_no_grid():
    assert square_grid(196) == Grid(14, 14)
    assert square_grid(195) is None


@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 5), st.data())
def test_groups_of_k_means_are_whole_and_locally_best(points, dimensions, seed, data):
    array = rng(seed).normal(size=(points, dimensions)).round(data.draw(st.integers(0, 3)))
    count = data.draw(st.integers(1, points))
    found = k_means(array, count, seed)
    assert sorted(set(found.labels.tolist())) == list(range(count))
    means = np.array([array[found.labels == group].mean(axis=0) for group in range(count)])
    np.testing.assert_allclose(found.centers, means, atol=1e-12)
    # No point is nearer to another mean, unless it keeps a group from being empty.
    distances = np.square(array[:, None] - means[None]).sum(axis=2)
    sizes = np.bincount(found.labels)
    for place, label in enumerate(found.labels):
        assert sizes[label] == 1 or distances[place, label] <= distances[place].min() + 1e-9


def test_k_means_finds_groups_that_are_there():
    centers = np.array([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    truth = np.arange(80) % 4
    found = k_means(centers[truth] + rng().normal(0, 0.1, (80, 2)), 4, seed=3)
    np.testing.assert_array_equal(found.labels, truth)


def test_k_means_is_the_same_for_the_same_seed_and_takes_equal_points():
    points = rng().normal(size=(50, 8))
    np.testing.assert_array_equal(k_means(points, 7, 1).labels, k_means(points, 7, 1).labels)
    np.testing.assert_array_equal(k_means(np.ones((5, 2)), 5, 0).labels, np.arange(5))
    with pytest.raises(ValueError, match="5 points cannot make 6 groups"):
        k_means(np.ones((5, 2)), 6, 0)


@given(st.integers(1, 40), st.data())
def test_random_groups_have_nearly_equal_sizes(count, data):
    groups = data.draw(st.integers(1, count))
    sizes = np.bincount(random_groups(count, groups, 0))
    assert len(sizes) == groups and sizes.max() - sizes.min() <= 1


@given(st.integers(1, 20), st.integers(1, 4), st.data())
def test_the_sum_of_sizes_is_the_number_of_patches_after_every_averaging(tokens, steps, data):
    sizes = np.ones(tokens)
    x = rng().normal(size=(tokens, 3))
    reduced = x
    for seed in range(steps):
        groups = data.draw(st.integers(1, len(sizes)))
        labels = random_groups(len(sizes), groups, seed)
        matrix, following = averaging(labels, sizes)
        naive = [
            (reduced[labels == g] * sizes[labels == g, None]).sum(0) / sizes[labels == g].sum() for g in range(groups)
        ]
        np.testing.assert_allclose(matrix @ reduced, naive, atol=1e-12)
        reduced, sizes = matrix @ reduced, following
    assert sizes.sum() == tokens
    # Sizes are exact weights: the mean over all patches does not move.
    np.testing.assert_allclose((reduced * sizes[:, None]).sum(0) / tokens, x.mean(0), atol=1e-12)


def test_groups_of_one_token_each_are_the_identity():
    matrix, sizes = averaging(np.arange(6), np.array([1.0, 2, 1, 3, 1, 1]))
    np.testing.assert_array_equal(matrix, np.eye(6))
    np.testing.assert_array_equal(sizes, [1, 2, 1, 3, 1, 1])


def test_principal_rows_lose_least_of_all_linear_reductions():
    x = rng().normal(size=(10, 6)) * np.arange(10, 0, -1)[:, None]
    gram = x @ x.T
    rows = principal(gram, 4)
    np.testing.assert_allclose(rows @ rows.T, np.eye(4), atol=1e-12)
    lost = np.square(x - rows.T @ rows @ x).sum()
    assert lost == pytest.approx(np.linalg.eigvalsh(gram)[:-4].sum())
    assert (np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], 1) > 0).all()


def test_the_token_gram_matrix_streams_without_protected_tokens():
    x = rng().normal(size=(7, 6, 4)).astype(np.float32)
    observer = TokenGramObserver("x", protected=2)
    for start in range(0, 7, 3):
        observer.update(x[start : start + 3])
    patches = x[:, 2:].astype(np.float64)
    np.testing.assert_allclose(observer.matrix, sum(image @ image.T for image in patches), rtol=1e-6)
    with pytest.raises(DataError, match="NaN"):
        observer.update(np.full((1, 6, 4), np.nan, np.float32))


def test_a_sample_of_rows_is_bounded_uniform_and_does_not_depend_on_batches():
    x = np.arange(400, dtype=np.float32).reshape(20, 20, 1)
    drawn = []
    for seed in range(40):
        one, other = (SampleObserver(rows=50, seed=seed, protected=1) for _ in range(2))
        one.update(x)
        for image in x:
            other.update(image[None])
        np.testing.assert_array_equal(one.rows, other.rows)
        assert one.rows.shape == (50, 1) and not np.isin(one.rows[:, 0] % 20, 0).any()
        drawn.append(one.rows)
    # 2000 draws from 380 values of mean 200 and deviation 115: the mean has deviation 2.6.
    assert abs(np.mean(drawn) - x[:, 1:].mean()) < 4 * 2.6
