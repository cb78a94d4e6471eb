"""Masks and predictors against what is asked of them."""

import numpy as np
import pytest
from edgesmith_ftwt.masks import strongest_by_count, strongest_by_mass
from edgesmith_ftwt.predictor import Predictor, cross_entropy, features, logistic, train
from hypothesis import given
from hypothesis import strategies as st

SIZES = st.tuples(st.integers(1, 6), st.integers(1, 20))
SEEDS = st.integers(0, 100)


def responses(sizes, seed):
    """Return responses as a ReLU leaves them: some are 0."""
    return np.maximum(np.random.default_rng(seed).normal(0.3, 1, sizes), 0).astype(np.float32)


@given(SIZES, SEEDS, st.floats(0.01, 1))
def test_chosen_filters_hold_no_more_than_the_mass_or_are_one(sizes, seed, mass):
    found = responses(sizes, seed)
    chosen = strongest_by_mass(found, mass)
    held = (found * chosen).sum(axis=1)
    # 1e-5 is the published tolerance; the rest is rounding of float32 sums.
    assert ((held <= (mass + 1e-5) * found.sum(axis=1) + 1e-5) | (chosen.sum(axis=1) == 1)).all()
    assert chosen.any(axis=1).all()


@given(SIZES, SEEDS)
def test_the_whole_mass_loses_nothing(sizes, seed):
    found = responses(sizes, seed)
    lost = np.where(strongest_by_mass(found, 1.0), 0, found)
    assert (lost <= 1e-5 * found.sum(axis=1, keepdims=True)).all()


@given(SIZES, SEEDS, st.floats(0.1, 0.9))
def test_one_filter_more_would_hold_more_than_the_mass(sizes, seed, mass):
    found = responses(sizes, seed)
    chosen = strongest_by_mass(found, mass)
    for image, row in zip(found, chosen, strict=True):
        left = image[~row]
        if left.size and left.max() > 1e-5 * image.sum():
            assert image[row].sum() + left.max() > mass * image.sum()


@given(SIZES, SEEDS)
def test_filters_in_another_order_are_chosen_alike(sizes, seed):
    found = responses(sizes, seed) + np.random.default_rng(seed).uniform(1, 2, sizes)  # no ties
    order = np.random.default_rng(seed).permutation(sizes[1])
    np.testing.assert_array_equal(strongest_by_mass(found, 0.6)[:, order], strongest_by_mass(found[:, order], 0.6))


def test_of_equal_filters_the_first_are_chosen():
    assert strongest_by_count(np.ones((1, 4)), 2).tolist() == [[True, True, False, False]]
    assert strongest_by_mass(np.zeros((1, 3)), 0.5).tolist() == [[True, False, False]]


@pytest.mark.parametrize("decay", [0.01, 1.0])
def test_the_regression_ends_where_the_gradient_is_zero(decay):
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(80, 5))
    wanted = inputs[:, :3] + generator.normal(size=(80, 3)) > 0
    weight, bias = logistic(inputs, wanted, decay, 3000)
    spread = inputs.std(axis=0)
    error = 1 / (1 + np.exp(-(inputs @ weight.T + bias))) - wanted
    # Decay is that of the weights of inputs with variance 1.
    gradient = error.T @ (inputs - inputs.mean(axis=0)) / 80 / spread + decay * weight * spread
    assert np.abs(gradient).max() < 1e-6 and np.abs(error.mean(axis=0)).max() < 1e-6


def test_channels_that_never_change_have_no_say():
    inputs = np.random.default_rng(0).normal(size=(40, 3))
    inputs[:, 1] = 7.0
    weight, bias = logistic(inputs, inputs[:, :1] > 0, 0.01, 100)
    assert weight[0, 1] == 0 and np.isfinite(bias).all()


def test_decisions_that_follow_the_input_are_predicted_on_images_never_seen():
    generator = np.random.default_rng(1)
    inputs = generator.normal(size=(400, 6))
    wanted = inputs @ generator.normal(size=(6, 4)) > 0
    predictor = train(inputs, wanted, 200)
    assert predictor.agreement > 0.9 > 0.7 > predictor.constant_agreement
    noise = train(inputs, generator.random((400, 4)) > 0.2, 200)
    # 100 images of 4 filters are held out: three standard deviations of a share near 0.8 are 0.06.
    assert abs(noise.agreement - noise.constant_agreement) < 0.06
    assert np.isnan(train(inputs[:3], wanted[:3], 10).agreement)


def test_one_filter_runs_even_where_none_is_wanted():
    predictor = Predictor(np.array([[1.0], [2.0]]), np.array([-9.0, -9.0]), 1.0, 1.0)
    assert predictor.chosen(np.array([[1.0], [9.0]])).tolist() == [[False, True], [True, True]]
    assert predictor.highest(np.array([[1.0]]), 1).tolist() == [[False, True]]


def test_predictors_see_what_gates_before_them_let_through():
    pooled, chosen = np.array([[1.0, 2.0, 3.0]]), np.array([[True, False, True]])
    np.testing.assert_allclose(features(pooled, chosen, softmax=False), [[1, 0, 3]])
    weights = np.exp([1.0, 0.0, 3.0])
    np.testing.assert_allclose(features(pooled, chosen), [weights / weights.sum()])
    alone = np.exp([1.0, 3.0]) / np.exp([1.0, 3.0]).sum()
    np.testing.assert_allclose(features(pooled, chosen, gone=True), [[alone[0], 0, alone[1]]])


@given(SEEDS)
def test_cross_entropy_is_that_of_probabilities(seed):
    generator = np.random.default_rng(seed)
    logits, wanted = generator.normal(size=(3, 4)), generator.random((3, 4)) > 0.5
    chance = 1 / (1 + np.exp(-logits))
    expected = -np.log(np.where(wanted, chance, 1 - chance)).mean()
    assert cross_entropy(logits, wanted) == pytest.approx(expected)
