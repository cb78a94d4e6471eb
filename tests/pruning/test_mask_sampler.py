"""Sampled masks: frequencies of draws, the limit of many draws, ties, counts, groups, seeds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith_pruning.sparsity.masks import Pattern, removed_count, select
from edgesmith_pruning.sparsity.sampler import candidate_masks, gumbel_top, sample_counts, sample_mask


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def generator(seed=0):
    return np.random.default_rng(seed)


def test_draws_have_the_frequencies_of_drawing_without_replacement():
    """Chi-square over all ordered-away pairs of five places, with a fixed seed.

    The chance of a pair is `p_i p_j / (1 - p_i) + p_j p_i / (1 - p_j)`. With 10 pairs there are 9 degrees of freedom,
    and 27.9 is exceeded once in a thousand.
    """
    chances = np.array([0.4, 0.25, 0.2, 0.1, 0.05])
    drawn = gumbel_top(np.log(np.repeat(chances[None], 20_000, axis=0)), 2, generator())
    assert (drawn.sum(axis=1) == 2).all()
    statistic = 0.0
    for first in range(5):
        for second in range(first + 1, 5):
            p, q = chances[first], chances[second]
            expected = 20_000 * (p * q / (1 - p) + q * p / (1 - q))
            observed = (drawn[:, first] & drawn[:, second]).sum()
            statistic += (observed - expected) ** 2 / expected
    assert statistic < 27.9


def test_one_draw_takes_weights_by_the_fifth_power():
    """First places of single draws from the weights 1, 1.2, 1.4: chances by the fifth power. 13.8 is one in 1000."""
    weight = np.repeat(np.array([[1.0, -1.2, 1.4]]), 20_000, axis=0)
    found = sample_counts(weight, 1, 1, generator()).sum(axis=0)
    expected = 20_000 * np.abs(weight[0]) ** 5 / (np.abs(weight[0]) ** 5).sum()
    assert float(((found - expected) ** 2 / expected).sum()) < 13.8


def test_many_draws_and_a_high_power_give_the_largest_weights():
    weight = np.linspace(1, 2, 20)[generator(3).permutation(20)][None]
    largest = select(np.abs(weight), 0.5, None, whole=True)
    many = sample_mask(weight, 0.5, None, draws=20_000, generator=generator())
    high = sample_mask(weight, 0.5, None, draws=1, generator=generator(), exponent=2000.0)
    np.testing.assert_array_equal(many, largest)
    np.testing.assert_array_equal(high, largest)


def test_of_weights_drawn_as_often_the_smallest_go():
    """One draw counts 1 for half of the weights and 0 for the others; removing a quarter more is decided by size."""
    weight = normal(1, 40)
    drawn = sample_counts(weight, 20, 1, generator(5)) > 0
    mask = sample_mask(weight, 0.5, None, draws=1, generator=generator(5))
    np.testing.assert_array_equal(mask, ~drawn)
    # With the same draws, asking for more zeros takes the smallest of those drawn.
    counts = sample_counts(weight, 20, 1, generator(5))
    more = select(counts.astype(float), 0.75, None, whole=True, ties=np.abs(weight))
    expected = ~drawn
    order = [at for at in np.argsort(np.abs(weight[0])) if drawn[0, at]][:10]
    expected[0, order] = True
    np.testing.assert_array_equal(more, expected)


@given(seed=st.integers(0, 999), rows=st.integers(1, 6), groups=st.integers(1, 6), share=st.floats(0.1, 0.95))
@settings(max_examples=40, deadline=None)
def test_counts_are_exact_and_stages_nested(seed, rows, groups, share):
    weight = normal(rows, 4 * groups, seed=seed)
    first = sample_mask(weight, share / 2, None, draws=3, generator=generator(seed))
    second = sample_mask(weight, share, None, draws=3, generator=generator(seed + 1), removed=first)
    assert first.sum() == removed_count(weight.size, share / 2)
    assert second.sum() == removed_count(weight.size, share)
    assert second[first].all()
    grouped = sample_mask(weight, share, Pattern(2, 4), draws=3, generator=generator(seed))
    assert (grouped.reshape(-1, 4).sum(axis=1) == 2).all()


def test_seeds_decide():
    weight = normal(32, 64)
    masks = [sample_mask(weight, 0.5, None, draws=3, generator=generator(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).sum() > 0
    largest = select(np.abs(weight), 0.5, None, whole=True)
    few, many = (sample_mask(weight, 0.5, None, draws=draws, generator=generator()) for draws in (1, 200))
    assert 0 < (many != largest).sum() < (few != largest).sum()


def test_tiny_weights_do_not_underflow():
    """The fifth power of 1e-20 is 0 even in float32; its logarithm is not."""
    weight = normal(4, 64).astype(np.float32) * np.float32(1e-20)
    mask = sample_mask(weight, 0.5, None, draws=4, generator=generator())
    np.testing.assert_array_equal(mask, sample_mask(normal(4, 64), 0.5, None, draws=4, generator=generator()))


def test_more_kept_than_weights_that_are_left():
    weight = np.zeros((1, 10))
    weight[0, :3] = 1
    mask = sample_mask(weight, 0.2, None, draws=5, generator=generator(), removed=weight == 0)
    assert mask.sum() == 7 and not mask[0, :3].any()


@pytest.mark.parametrize("pattern", [None, Pattern(2, 4)])
def test_candidates_differ_and_protected_weights_are_in_all(pattern):
    weight, stays = normal(16, 64), np.zeros((16, 64), bool)
    stays[:, 5] = True
    masks = candidate_masks(weight, 0.5, pattern, count=4, generator=generator(), stays=stays)
    assert len({mask.tobytes() for mask in masks}) == 4
    assert all(mask.sum() == 512 and not mask[:, 5].any() for mask in masks)
