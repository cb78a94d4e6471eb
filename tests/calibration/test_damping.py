"""Damped Gram matrices are never singular, and the factor is that of their inverse."""

import numpy as np
import pytest

from edgesmith_calibration.damping import damped, inverse_factor


def gram(inputs, rows, seed=0):
    values = np.random.default_rng(seed).normal(size=(rows, inputs))
    return values.T @ values


@pytest.mark.parametrize("rows", [60, 5])
def test_the_factor_is_that_of_the_inverse(rows):
    factor = inverse_factor(gram(30, rows), 0.01)
    # Damping of 1 % of the mean bounds the condition by a few thousand, so float64 keeps 1e-12 of the largest entry.
    inverse = np.linalg.inv(damped(gram(30, rows), 0.01))
    np.testing.assert_allclose(factor.T @ factor, inverse, rtol=1e-9, atol=1e-12 * np.abs(inverse).max())
    assert np.array_equal(factor, np.triu(factor))


def test_rows_of_the_factor_give_the_inverse_of_what_is_left():
    """The trick of the paper: removing the first columns one by one needs no inverse of its own for each."""
    matrix = damped(gram(12, 40), 0.01)
    factor = inverse_factor(gram(12, 40), 0.01)
    for first in (0, 5, 11):
        left = np.linalg.inv(matrix[first:, first:])
        np.testing.assert_allclose(factor[first, first] * factor[first, first:], left[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("matrix", [np.zeros((4, 4)), np.zeros((0, 0)), np.ones((4, 4))])
def test_no_matrix_stays_singular(matrix):
    assert np.isfinite(np.linalg.inv(damped(matrix, 0.01))).all()


def test_the_gram_itself_is_not_changed():
    matrix = gram(8, 20)
    before = matrix.copy()
    added = damped(matrix, 0.1) - matrix
    np.testing.assert_array_equal(matrix, before)
    np.testing.assert_allclose(added, np.eye(8) * 0.1 * np.diag(matrix).mean(), rtol=1e-12, atol=1e-12)
