"""Refits whose ridges are chosen on samples left out: what they equal, and what they refuse to follow."""

import numpy as np
import pytest

from edgesmith_calibration.moments import MomentsObserver
from edgesmith_pruning.repair.held_out_refit import held_out_refit
from edgesmith_pruning.statistics.held_out import HeldOutObserver, is_held_out, local

INPUTS, OUTPUTS = 6, 3


def layer_and_rows(samples, rows, *, seed=0, noise=0.0):
    """Return a layer, and per sample inputs and wanted outputs; noise is what layers before did to the outputs."""
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((INPUTS + 1, OUTPUTS))
    mixing = generator.standard_normal((INPUTS, INPUTS))
    batches = []
    for _ in range(samples):
        x = generator.standard_normal((rows, INPUTS)) @ mixing + 1
        # Rows of one sample share their error, as places of one photo do.
        y = x @ matrix[:-1] + matrix[-1] + noise * generator.standard_normal(OUTPUTS)
        batches.append((x, y))
    return matrix, batches


def moments_of(batches, observer=None):
    observer = observer or HeldOutObserver("layer")
    for x, y in batches:
        observer.update(x, y)
    return observer.moments


def refitted(batches, matrix, kept, *, bias=True):
    moments = moments_of(batches)
    return held_out_refit(moments, moments.judge, matrix, kept, bias=bias)


def squared_error(matrix, batches):
    return sum(float(np.square(y - x @ matrix[:-1] - matrix[-1]).sum()) for x, y in batches)


def test_every_fourth_sample_is_held_out_whole():
    _, batches = layer_and_rows(9, 5)
    moments = moments_of(batches)
    everything, judge = MomentsObserver("layer"), MomentsObserver("layer")
    for number, (x, y) in enumerate(batches):
        everything.update(x, y)
        if is_held_out(number):
            judge.update(x, y)
    np.testing.assert_allclose(moments.total.gram, everything.moments.gram)
    np.testing.assert_allclose(moments.judge.cross, judge.moments.cross)
    np.testing.assert_allclose(moments.fit.gram, (everything.moments.gram - judge.moments.gram))
    assert (moments.judge.rows, moments.fit.rows) == (10, 35)


@pytest.mark.parametrize(("samples", "hold_out"), [(3, True), (8, False)])
def test_nothing_is_held_out_of_few_samples_or_unasked(samples, hold_out):
    _, batches = layer_and_rows(samples, 5)
    moments = moments_of(batches, HeldOutObserver("layer", hold_out=hold_out))
    assert moments.judge is None
    assert moments.fit is moments.total
    assert moments.total.rows == 5 * samples


def test_nothing_removed_and_nothing_lost_before_leaves_the_layer():
    matrix, batches = layer_and_rows(8, 40)
    result = refitted(batches, matrix, np.ones(INPUTS, bool))
    np.testing.assert_allclose(result.matrix, matrix, atol=1e-8)
    assert result.error < 1e-8 * squared_error(0 * matrix, batches)


@pytest.mark.parametrize("bias", [True, False])
def test_it_solves_the_two_ridge_problems_it_says(bias):
    matrix, batches = layer_and_rows(8, 40, noise=0.5)
    kept = np.array([True, True, False, True, True, False])
    result = refitted(batches, matrix, kept, bias=bias)
    x = np.concatenate([each for each, _ in batches])
    y = np.concatenate([each for _, each in batches])
    own = x @ matrix[:-1] + matrix[-1]
    missing = y - own
    if bias:
        centre, own_mean, missing_mean = x.mean(0), own.mean(0), missing.mean(0)
    else:
        centre, own_mean, missing_mean = np.zeros(INPUTS), matrix[-1], np.zeros(OUTPUTS)
    xk = (x - centre)[:, kept]
    gram, identity = xk.T @ xk, np.eye(kept.sum())
    share = np.trace(gram) / kept.sum()
    first = result.own_ridge * share
    expected = np.linalg.solve(gram + first * identity, xk.T @ (own - own_mean) + first * matrix[:-1][kept])
    if np.isfinite(result.earlier_ridge):
        second = result.earlier_ridge * share
        expected = expected + np.linalg.solve(gram + second * identity, xk.T @ (missing - missing_mean))
        own_mean = own_mean + missing_mean
    np.testing.assert_allclose(result.matrix[:-1][kept], expected, atol=1e-8)
    np.testing.assert_allclose(result.matrix[-1], own_mean - centre[kept] @ expected, atol=1e-8)
    assert not result.matrix[:-1][~kept].any()


def test_errors_of_single_samples_are_not_followed():
    matrix, batches = layer_and_rows(4, 30, noise=1.0)
    _, fresh = layer_and_rows(200, 30, seed=0, noise=1.0)
    result = refitted(batches, matrix, np.ones(INPUTS, bool))
    free = np.linalg.lstsq(
        np.concatenate([np.pad(x, [(0, 0), (0, 1)], constant_values=1) for x, _ in batches]),
        np.concatenate([y for _, y in batches]),
        rcond=None,
    )[0]
    assert squared_error(result.matrix, fresh[4:]) < squared_error(free, fresh[4:])


def test_what_layers_before_did_to_all_samples_is_made_up_for():
    matrix, batches = layer_and_rows(16, 30)
    change = np.random.default_rng(5).standard_normal(matrix.shape)
    wanted = [(x, x @ (matrix + change)[:-1] + (matrix + change)[-1]) for x, _ in batches]
    result = refitted(wanted, matrix, np.ones(INPUTS, bool))
    assert squared_error(result.matrix, wanted) < 0.01 * squared_error(matrix, wanted)


def test_local_aims_at_what_the_layer_gives():
    matrix, batches = layer_and_rows(3, 10, noise=2.0)
    aimed = local(moments_of(batches).total, matrix)
    assert aimed.error(matrix) <= 1e-9 * aimed.energy
    own = sum(float(np.square(x @ matrix[:-1] + matrix[-1]).sum()) for x, _ in batches)
    assert np.isclose(aimed.energy, own)
