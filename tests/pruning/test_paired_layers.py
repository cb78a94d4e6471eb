"""One layer against its dense outputs: statistics, adaptive targets, acceptance, dead inputs, protection, bias."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith_calibration.damping import damped
from edgesmith_calibration.errors import DataError
from edgesmith_pruning.sparsity.layer import Rule, prune_layer
from edgesmith_pruning.sparsity.masks import Pattern, removed_count
from edgesmith_pruning.sparsity.refit import adaptive_target
from edgesmith_pruning.statistics.paired import PairedMomentsObserver

RULE = Rule("knowledge-retention", 0.5, None, damping=1e-4)
CRITERIA = ("knowledge-retention", "sparsegpt", "wanda", "magnitude", "randomized")


def inputs(rows, width, seed=0, noise=0.3, offset=0.0):
    """Return inputs of the pruned network, which carry an error that has structure, and those of the dense one."""
    generator = np.random.default_rng(seed)
    dense = generator.normal(size=(rows, width)) * np.exp(0.5 * generator.normal(size=width))
    dense = dense @ (np.eye(width) + 0.5 * generator.normal(size=(width, width)) / np.sqrt(width))
    wrong = np.eye(width) + noise * generator.normal(size=(width, width)) / np.sqrt(width)
    return dense @ wrong + noise * generator.normal(size=(rows, width)) + offset, dense + offset


def moments_of(now, dense):
    observer = PairedMomentsObserver("x")
    observer.update(now, dense)
    return observer.moments


def weight(outputs, width, seed=9):
    return np.random.default_rng(seed).normal(size=(outputs, width))


def squared_error(now, dense, new, old):
    return np.square(now @ new.T - dense @ old.T).sum(axis=0)


@given(cuts=st.lists(st.integers(1, 700), max_size=4), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_moments_do_not_depend_on_batches(cuts, seed):
    now, dense = inputs(2500, 6, seed)
    whole, parts = PairedMomentsObserver("x"), PairedMomentsObserver("x")
    whole.update(now, dense)
    for start, stop in zip([0, *np.cumsum(cuts)], [*np.cumsum(cuts), 2500], strict=True):
        parts.update(now[start:stop], dense[start:stop])
    for name in ("now", "cross", "dense", "sums"):
        np.testing.assert_allclose(getattr(whole.moments, name), getattr(parts.moments, name), rtol=1e-9, atol=1e-6)
    assert whole.moments.rows == parts.moments.rows == 2500


def test_errors_are_those_of_the_outputs():
    now, dense = inputs(300, 12)
    new, old = weight(5, 12, 1), weight(5, 12, 2)
    found = moments_of(now, dense).objective(old).errors(new)
    np.testing.assert_allclose(found, squared_error(now, dense, new, old), rtol=1e-9)


def test_centered_errors_are_those_with_the_best_bias():
    now, dense = inputs(300, 12, offset=3.0)
    new, old = weight(5, 12, 1), weight(5, 12, 2)
    moments = moments_of(now, dense)
    difference = now @ new.T - dense @ old.T
    found = moments.centered().objective(old).errors(new)
    np.testing.assert_allclose(found, np.square(difference - difference.mean(axis=0)).sum(axis=0), rtol=1e-8)
    np.testing.assert_allclose(moments.bias_change(new, old), -difference.mean(axis=0), rtol=1e-8)


def test_numbers_that_are_not_finite_are_refused():
    observer = PairedMomentsObserver("gelu_3")
    observer.update(np.full((2, 3), np.nan), np.ones((2, 3)))
    with pytest.raises(DataError, match="gelu_3 holds numbers that are not finite"):
        _ = observer.moments


def test_without_an_error_of_the_input_dense_weights_stay():
    _, dense = inputs(400, 16)
    moments, old = moments_of(dense, dense), weight(6, 16)
    np.testing.assert_array_equal(adaptive_target(old, moments, damped(moments.now, 1e-4)), old)


@given(seed=st.integers(0, 2**16), noise=st.floats(0.01, 1.0), damping=st.sampled_from([1e-6, 1e-3, 1e-1]))
@settings(max_examples=20, deadline=None)
def test_adaptive_weights_lower_the_error_of_dense_ones(seed, noise, damping):
    now, dense = inputs(200, 16, seed, noise)
    moments, old = moments_of(now, dense), weight(4, 16)
    target = adaptive_target(old, moments, damped(moments.now, damping))
    before, after = (squared_error(now, dense, each, old).sum() for each in (old, target))
    assert after <= before * (1 + 1e-9)
    if damping == 1e-6:
        best = np.linalg.lstsq(now, dense @ old.T, rcond=None)[0].T
        assert after <= squared_error(now, dense, best, old).sum() * 1.001


@pytest.mark.parametrize("pattern", [None, Pattern(2, 4)])
@pytest.mark.parametrize("criterion", CRITERIA)
@given(seed=st.integers(0, 2**16), noise=st.sampled_from([0.0, 0.05, 0.5]), exact=st.booleans())
@settings(max_examples=6, deadline=None)
def test_adaptation_and_refit_never_raise_the_error(criterion, pattern, seed, noise, exact):
    """The error over the calibration data itself, not the quadratic form that the solver sees."""
    now, dense = inputs(150, 32, seed, noise)
    old = weight(10, 32, seed + 1)
    rule = replace(RULE, criterion=criterion, pattern=pattern, exact_width=1024 if exact else 0, seed=seed)
    moments = moments_of(now, dense)
    found = prune_layer(old, moments, rule)
    plain_rule = replace(rule, adaptive_hessian=False, adaptive_weight=False, refit=False, exact_width=0)
    plain = prune_layer(old, moments, plain_rule)
    errors = [squared_error(now, dense, each.weight, old) for each in (found, plain)]
    if criterion == "knowledge-retention":  # the plain solver keeps dense statistics: the bound holds for each output
        assert (errors[0] <= errors[1] * (1 + 1e-9) + 1e-9).all()
    assert found.error <= found.plain_error * (1 + 1e-9)
    power = np.square(dense @ old.T).sum()
    assert found.error == pytest.approx(errors[0].sum() / power, rel=1e-6, abs=1e-12)
    assert found.mask.sum() == plain.mask.sum() == 160
    assert (found.weight[found.mask] == 0).all()
    assert pattern is None or pattern.holds(found.weight)


@pytest.mark.parametrize("pattern", [None, Pattern(2, 4)])
def test_adaptive_elimination_is_below_the_sweep_that_is_below_wanda_and_magnitude(pattern):
    now, dense = inputs(2000, 64, noise=0.2)
    old, moments = weight(40, 64), moments_of(now, dense)
    published = {"adaptive_weight": False, "refit": False}
    errors = {
        name: prune_layer(old, moments, replace(RULE, criterion=name, pattern=pattern, **published)).error
        for name in CRITERIA
    }
    errors["adaptive"] = prune_layer(old, moments, replace(RULE, pattern=pattern)).error
    assert errors["adaptive"] < errors["knowledge-retention"] <= errors["sparsegpt"] * 1.02
    assert errors["sparsegpt"] < errors["wanda"] < errors["magnitude"]


def test_the_first_layer_is_not_affected_by_adaptivity():
    _, dense = inputs(400, 24)
    old, moments = weight(8, 24), moments_of(dense, dense)
    results = [
        prune_layer(old, moments, replace(RULE, adaptive_hessian=flag, adaptive_weight=flag)).weight
        for flag in (True, False)
    ]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_dead_inputs_go_first_and_count(criterion):
    now, dense = inputs(400, 24)
    now[:, 3], dense[:, 3] = 0, 0
    found = prune_layer(weight(8, 24), moments_of(now, dense), replace(RULE, criterion=criterion))
    assert found.mask[:, 3].all() and (found.weight[:, 3] == 0).all()
    assert found.mask.sum() == 8 * 12
    assert np.isfinite(found.weight).all()


def test_few_inputs_are_damped_more():
    now, dense = inputs(10, 24)
    found = prune_layer(weight(8, 24), moments_of(now, dense), RULE)
    assert found.damping == pytest.approx(1e-4 * 4 * 24 / 10)
    assert np.isfinite(found.weight).all()
    now, dense = inputs(96, 24)
    assert prune_layer(weight(8, 24), moments_of(now, dense), RULE).damping == 1e-4


@pytest.mark.parametrize("criterion", CRITERIA)
def test_protected_outputs_keep_every_bit_and_protected_inputs_are_read(criterion):
    now, dense = inputs(400, 24)
    old, stays = weight(8, 24), np.zeros((8, 24), bool)
    stays[2], stays[:, 7] = True, True
    found = prune_layer(old, moments_of(now, dense), replace(RULE, criterion=criterion), stays)
    np.testing.assert_array_equal(found.weight[2], old[2])
    assert not found.mask[:, 7].any()
    assert found.mask.sum() == 7 * removed_count(24, 0.5)


def test_pruning_again_keeps_the_zeros():
    now, dense = inputs(400, 24)
    old, moments = weight(8, 24), moments_of(now, dense)
    first = prune_layer(old, moments, replace(RULE, sparsity=0.25))
    second = prune_layer(first.weight, moments, replace(RULE, sparsity=0.75))
    assert second.mask[first.mask].all()
    assert (second.mask.sum(axis=1) == 18).all()
