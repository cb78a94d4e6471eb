"""The knapsack behind mixed precision: held against trying every combination."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith_quantization.search import allocation
from edgesmith_quantization.search.allocation import Choice, allocate, frontier

# Sums of a few multiples of 1/8 are exact in floating point, so equality may be asked for.
NUMBERS = st.integers(-16, 64).map(lambda number: number / 8)
LOADS = st.integers(0, 64).map(lambda number: number / 8)
GROUPS = st.lists(st.lists(st.builds(Choice, NUMBERS, LOADS), min_size=1, max_size=4), min_size=1, max_size=5)


def totals(groups, picks):
    chosen = [group[pick] for group, pick in zip(groups, picks, strict=True)]
    return sum(one.cost for one in chosen), sum(one.load for one in chosen)


def cheapest(groups, capacity):
    """Return the least cost of all combinations that fit, or None."""
    every = (totals(groups, picks) for picks in product(*(range(len(group)) for group in groups)))
    return min((cost for cost, load in every if load <= capacity), default=None)


@settings(max_examples=150, deadline=None)
@given(GROUPS, st.integers(0, 300).map(lambda number: number / 8))
def test_the_exact_allocation_is_the_best_of_all_combinations(groups, capacity):
    best, found = cheapest(groups, capacity), allocate(groups, capacity)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert (found.cost, found.load) == totals(groups, found.picks)
    assert found.cost == best and found.load <= capacity


@settings(max_examples=150, deadline=None)
@given(GROUPS)
def test_every_point_of_the_frontier_is_the_cheapest_for_its_load(groups):
    points = frontier(groups)
    for point in points:
        assert (point.cost, point.load) == pytest.approx(totals(groups, point.picks), abs=1e-12)
        assert point.cost == pytest.approx(cheapest(groups, point.load), abs=1e-12)
    for before, after in pairwise(points):
        assert after.load > before.load and after.cost < before.cost
        changed = [a != b for a, b in zip(before.picks, after.picks, strict=True)]
        assert sum(changed) == 1
    assert points[0].load == sum(min(one.load for one in group) for group in groups)
    assert points[-1].cost == sum(min(one.cost for one in group) for group in groups)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.builds(Choice, NUMBERS, LOADS), min_size=2, max_size=4), min_size=3, max_size=5), LOADS)
def test_a_search_that_had_to_drop_states_still_finds_what_fits(groups, capacity):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocation, "_MOST_STATES", 2)
        found = allocate(groups, capacity)
    best = cheapest(groups, capacity)
    assert (found is None) == (best is None)
    if found is not None:
        assert best <= found.cost <= [each for each in frontier(groups) if each.load <= capacity][-1].cost
        assert found.load <= capacity


@given(GROUPS, LOADS)
def test_equal_measurements_give_equal_allocations(groups, capacity):
    assert allocate(groups, capacity) == allocate([list(group) for group in groups], capacity)
    assert frontier(groups) == frontier(groups)


def test_the_greedy_frontier_may_miss_what_the_exact_search_finds():
    """Two groups of one step each: greedy takes the better ratio and blocks the larger gain."""
    groups = [[Choice(0, 0), Choice(-3, 2)], [Choice(0, 0), Choice(-4, 3)]]
    greedy = [point for point in frontier(groups) if point.load <= 3][-1]
    assert greedy.cost == -3
    found = allocate(groups, 3)
    assert found is not None and found.picks == (0, 1) and found.cost == -4


def test_many_groups_are_solved_exactly():
    """Formats of 2, 4, 8 and 32 bits whose errors fall by four per bit, as for a large language model."""
    groups = []
    for index in range(150):
        size, sensitivity = 1 + index % 7, 1 + (index * 37) % 101
        groups.append([Choice(sensitivity * size * 4.0**-bits, float(size * bits)) for bits in (2, 4, 8, 32)])
    capacity = 4.5 * sum(1 + index % 7 for index in range(150))
    found = allocate(groups, capacity)
    assert found is not None and found.load <= capacity
    # Loads are whole numbers here, so the best cost for every capacity can be computed group by group.
    best = np.zeros(int(capacity) + 1)
    for group in groups:
        shifted = [np.concatenate([np.full(int(one.load), np.inf), best])[: len(best)] + one.cost for one in group]
        best = np.min(shifted, axis=0)
    assert found.cost == pytest.approx(best[-1], rel=1e-12)
