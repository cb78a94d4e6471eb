"""Removal with compensation held against its papers: brute force, the plain loop, least squares, exact counts."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith_calibration.damping import damped
from edgesmith_pruning.sparsity import elimination
from edgesmith_pruning.sparsity.blocked import sweep
from edgesmith_pruning.sparsity.elimination import eliminate
from edgesmith_pruning.sparsity.masks import Pattern, removed_count, select
from edgesmith_pruning.sparsity.refit import refit
from edgesmith_pruning.sparsity.scores import magnitude, wanda

TWO_OF_FOUR = Pattern(2, 4)


def case(outputs, inputs, seed=0):
    """Return a weight, and the damped Gram matrix of inputs that differ in size and are correlated, as activations."""
    generator = np.random.default_rng(seed)
    mixing = np.eye(inputs) + 0.5 * generator.normal(size=(inputs, inputs)) / np.sqrt(inputs)
    rows = generator.normal(size=(4 * inputs, inputs)) @ mixing * np.exp(0.5 * generator.normal(size=inputs))
    return generator.normal(size=(outputs, inputs)), damped(rows.T @ rows, 0.01)


def error(new, old, hessian):
    return float(np.einsum("oi,oi->", (new - old) @ hessian, new - old))


def least_squares(weight, mask, hessian):
    """The best weights on what stays, row by row."""
    result = np.zeros_like(weight)
    for row, gone in enumerate(mask):
        kept = np.flatnonzero(~gone)
        result[row, kept] = np.linalg.solve(hessian[np.ix_(kept, kept)], hessian[kept] @ weight[row])
    return result


def plain_loop(weight, hessian, count, pattern=None):
    """The rule as the paper writes it, one row and one weight at a time."""
    result, mask = weight.copy(), np.zeros(weight.shape, bool)
    for row in range(len(weight)):
        inverse, gone = np.linalg.inv(hessian), set()
        for _ in range(count):
            full = set()
            if pattern is not None:
                counts = np.bincount([at // pattern.group for at in gone], minlength=weight.shape[1] // pattern.group)
                full = {
                    group * pattern.group + at
                    for group in np.flatnonzero(counts >= pattern.group - pattern.kept)
                    for at in range(pattern.group)
                }
            left = [at for at in range(weight.shape[1]) if at not in gone | full]
            place = min(left, key=lambda at: result[row, at] ** 2 / inverse[at, at])
            result[row] -= result[row, place] / inverse[place, place] * inverse[:, place]
            inverse -= np.outer(inverse[:, place], inverse[place]) / inverse[place, place]
            # The rounding of what is gone would make a pivot of it.
            inverse[place], inverse[:, place] = 0, 0
            gone.add(place)
            result[row, sorted(gone)] = 0
        mask[row, sorted(gone)] = True
    return result, mask


def test_one_step_is_the_best_single_removal():
    """A row of 6 weights: the removal and refit of least error among all six, by brute force."""
    weight, hessian = case(1, 6)
    found, mask = eliminate(weight, hessian, np.array([1]))
    tried = []
    for place in range(6):
        gone = np.zeros((1, 6), bool)
        gone[0, place] = True
        best = least_squares(weight, gone, hessian)
        tried.append((error(best, weight, hessian), place, best))
    least, place, best = min(tried, key=lambda each: each[0])
    assert np.flatnonzero(mask[0]) == [place]
    np.testing.assert_allclose(found, best, rtol=1e-4, atol=1e-5)
    assert error(found, weight, hessian) == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize("pattern", [None, TWO_OF_FOUR, Pattern(1, 8)])
@pytest.mark.parametrize("steps_per_update", [1, 5, 96])
def test_removals_are_those_of_the_plain_loop(pattern, steps_per_update, monkeypatch):
    monkeypatch.setattr(elimination, "_STEPS_PER_UPDATE", steps_per_update)
    weight, hessian = case(7, 24)
    count = 12 if pattern is None else round(24 * pattern.sparsity)
    expected, expected_mask = plain_loop(weight, hessian, count, pattern)
    found, mask = eliminate(weight, hessian, np.full(7, count), pattern=pattern)
    np.testing.assert_array_equal(mask, expected_mask)
    # float32 against float64 after 12 to 21 steps.
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spread", [1.0, 1e3])
def test_what_stays_is_the_least_squares_fit(spread):
    """Also where some inputs are a thousand times larger than others, as in language models."""
    weight, hessian = case(9, 60)
    scale = np.ones(60)
    scale[::7] = spread
    hessian = hessian * np.outer(scale, scale)
    found, mask = eliminate(weight, hessian, np.full(9, 30))
    best = least_squares(weight, mask, hessian)
    assert error(found, weight, hessian) <= error(best, weight, hessian) * 1.001
    assert (mask.sum(axis=1) == 30).all() and (found[mask] == 0).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("inputs", [132, 260])
@pytest.mark.parametrize("pattern", [None, TWO_OF_FOUR])
def test_errors_fall_from_magnitude_to_wanda_to_the_sweep_to_elimination(seed, inputs, pattern):
    weight, hessian = case(24, inputs, seed)
    masks = [select(magnitude(weight), 0.5, pattern, whole=True), select(wanda(weight, hessian), 0.5, pattern)]
    results = [np.where(mask, 0, weight) for mask in masks]
    results.append(sweep(weight, hessian, 0.5, pattern=pattern)[0])
    results.append(eliminate(weight, hessian, np.full(24, inputs // 2), pattern=pattern)[0])
    errors = [error(each, weight, hessian) for each in results]
    assert errors[3] < errors[2] < errors[1]
    assert errors[2] < errors[0]
    for each in results:
        assert (each == 0).sum() == each.size // 2
        assert pattern is None or pattern.holds(each)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.875])
def test_the_sweep_counts_exactly(whole, sparsity):
    weight, hessian = case(10, 300)
    values, mask = sweep(weight, hessian, sparsity, whole=whole)
    assert mask.sum() == (removed_count(3000, sparsity) if whole else 10 * removed_count(300, sparsity))
    np.testing.assert_array_equal(values == 0, mask)


def test_the_sweep_is_that_of_its_paper():
    """Column by column with the inverse of what follows, which is what the triangle of the inverse holds."""
    weight, hessian = case(6, 20)
    _, mask = sweep(weight, hessian, 0.5, whole=True)
    expected = weight.copy()
    for column in range(20):
        inverse = np.linalg.inv(hessian[column:, column:])
        removed = np.where(mask[:, column], expected[:, column], 0)
        expected[:, column:] -= np.outer(removed / inverse[0, 0], inverse[0])
    found, _ = sweep(weight, hessian, 0.5, whole=True)
    np.testing.assert_allclose(found, np.where(mask, 0, expected), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pattern", [None, TWO_OF_FOUR])
@pytest.mark.parametrize("method", ["eliminate", "sweep"])
def test_what_was_zero_stays_zero_and_what_is_protected_stays(method, pattern):
    weight, hessian = case(8, 64)
    removed, stays = np.zeros(weight.shape, bool), np.zeros(weight.shape, bool)
    removed[:, ::8], stays[:, 3::16], stays[2] = True, True, True
    removed &= ~stays
    weight[removed] = 0
    if pattern is not None:
        stays[2] = False
    given_masks = {"pattern": pattern, "removed": removed, "stays": stays}
    if method == "eliminate":
        values, mask = eliminate(weight, hessian, np.full(8, 32), **given_masks)
    else:
        values, mask = sweep(weight, hessian, 0.5, **given_masks)
    assert mask[removed].all() and (values[removed] == 0).all() and not mask[stays].any()
    rows = np.delete(np.arange(8), 2) if pattern is None else np.arange(8)
    assert (mask[rows].sum(axis=1) == 32).all()


def test_more_zeros_than_asked_for_stay():
    weight, hessian = case(3, 16)
    removed = np.zeros(weight.shape, bool)
    removed[0, :12] = True
    weight[removed] = 0
    values, mask = eliminate(weight, hessian, np.full(3, 8), removed=removed)
    assert mask.sum(axis=1).tolist() == [12, 8, 8]
    assert (values[removed] == 0).all()


def test_threads_do_not_change_a_bit():
    weight, hessian = case(200, 40)
    one, two = (eliminate(weight, hessian, np.full(200, 20), threads=count)[0] for count in (1, 2))
    np.testing.assert_array_equal(one, two)


@given(seed=st.integers(0, 2**16), iterations=st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_a_refit_lowers_the_error_and_ends_at_least_squares(seed, iterations):
    weight, hessian = case(6, 30, seed)
    mask = select(magnitude(weight), 0.5, None)
    start = np.where(mask, 0, weight)
    found = refit(start, mask, hessian, weight, iterations=iterations)
    assert (found[mask] == 0).all()
    # float32 sums of 30 terms.
    assert error(found, weight, hessian) <= error(start, weight, hessian) * (1 + 1e-5)
    many = refit(start, mask, hessian, weight, iterations=300)
    best = error(least_squares(weight, mask, hessian), weight, hessian)
    assert best * (1 - 1e-5) <= error(many, weight, hessian) <= best * 1.001


def test_the_best_of_all_masks_is_not_far_below():
    """Greedy removal is no proof of the best mask; on a row of 8 weights it comes close to trying all 70."""
    ratios = []
    for seed in range(10):
        weight, hessian = case(1, 8, seed)
        found, _ = eliminate(weight, hessian, np.array([4]))
        tried = []
        for places in combinations(range(8), 4):
            gone = np.zeros((1, 8), bool)
            gone[0, list(places)] = True
            tried.append(error(least_squares(weight, gone, hessian), weight, hessian))
        ratios.append(error(found, weight, hessian) / min(tried))
    assert min(ratios) > 0.999 and np.median(ratios) < 1.05
