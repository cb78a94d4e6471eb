"""Chooses one alternative per group under a limit: the multiple-choice knapsack problem. Pure functions of numbers.

Each group offers alternatives with a `cost` to be minimised and a `load` that counts against a capacity. Both add up
over groups. Source: Kellerer, Pferschy and Pisinger, Knapsack Problems, Springer 2004, chapter 11.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_MOST_STATES = 2_000
_ROUNDING = 1e-12
"""Relative difference below which two sums of floats count as equal."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One alternative of a group."""

    cost: float
    load: float


@dataclass(frozen=True, slots=True)
class Allocation:
    """One alternative for every group."""

    picks: tuple[int, ...]
    """Index of the chosen alternative of each group."""
    cost: float
    load: float


@dataclass(frozen=True, slots=True)
class _Upgrade:
    """A step along the convex hull of one group: less cost for more load."""

    group: int
    pick: int
    cost: float
    load: float


def frontier(groups: Sequence[Sequence[Choice]]) -> tuple[Allocation, ...]:
    """Return allocations from the least load to the least cost, each the cheapest that fits its own load.

    The linear relaxation of the problem takes the steps along the convex hulls of all groups in the order of cost
    saved per load. After each whole step its solution is integral, hence optimal for exactly that load (section 11.2).

    Args:
        groups: Alternatives of each group, at least one, all numbers finite.
    """
    hulls = [_hull(group) for group in groups]
    picks = [hull[0] for hull in hulls]
    cost = sum(groups[index][pick].cost for index, pick in enumerate(picks))
    load = sum(groups[index][pick].load for index, pick in enumerate(picks))
    found = [Allocation(tuple(picks), cost, load)]
    for step in _upgrades(groups, hulls):
        picks[step.group] = step.pick
        cost += step.cost
        load += step.load
        found.append(Allocation(tuple(picks), cost, load))
    return tuple(found)


def allocate(groups: Sequence[Sequence[Choice]], capacity: float) -> Allocation | None:
    """Return the cheapest allocation whose load is at most `capacity`, or None if none fits.

    Dynamic programming over the groups keeps, for each partial sum, only states that no other beats in both numbers
    and whose bound (the linear relaxation of the groups to come) is below the best found so far. That is exact. With
    more states than memory should hold, the most promising are kept, and something cheaper may be missed.

    Args:
        groups: Alternatives of each group, at least one, all numbers finite.
        capacity: Largest sum of loads.
    """
    tails = [_Relaxation(groups[index:]) for index in range(1, len(groups) + 1)]
    fitting = [each for each in frontier(groups) if each.load <= capacity]
    if not fitting:
        return None
    best_cost, best_picks = fitting[-1].cost, fitting[-1].picks
    states: list[tuple[float, float, tuple[int, ...]]] = [(0.0, 0.0, ())]
    for group, tail in zip(groups, tails, strict=True):
        grown = []
        for load, cost, picks in states:
            for pick, choice in enumerate(group):
                rest = tail.cost_at(capacity - load - choice.load)
                if rest is not None and cost + choice.cost + rest < best_cost - _ROUNDING * max(1.0, abs(best_cost)):
                    grown.append((load + choice.load, cost + choice.cost, (*picks, pick)))
        states = _undominated(grown)
        if len(states) > _MOST_STATES:
            room = [
                (cost + (tail.cost_at(capacity - load) or 0.0), index) for index, (load, cost, _) in enumerate(states)
            ]
            states = [states[index] for index in sorted(index for _, index in sorted(room)[:_MOST_STATES])]
    for _, cost, picks in states:
        if cost < best_cost:
            best_cost, best_picks = cost, picks
    load = sum(group[pick].load for group, pick in zip(groups, best_picks, strict=True))
    cost = sum(group[pick].cost for group, pick in zip(groups, best_picks, strict=True))
    return Allocation(best_picks, cost, load)


class _Relaxation:
    """The least cost of a few groups for any capacity, where alternatives may be mixed: a convex, falling function."""

    def __init__(self, groups: Sequence[Sequence[Choice]]) -> None:
        points = frontier(groups)
        self._loads = [point.load for point in points]
        self._costs = [point.cost for point in points]

    def cost_at(self, capacity: float) -> float | None:
        """Return the least cost, or None where even the least load does not fit."""
        slack = _ROUNDING * max(1.0, abs(self._loads[0]))
        if capacity < self._loads[0] - slack:
            return None
        index = bisect_right(self._loads, capacity)
        if index == 0 or index == len(self._loads):
            return self._costs[max(index - 1, 0)]
        low, high = self._loads[index - 1], self._loads[index]
        share = (capacity - low) / (high - low)
        return self._costs[index - 1] + share * (self._costs[index] - self._costs[index - 1])


def _hull(group: Sequence[Choice]) -> list[int]:
    """Return the alternatives on the lower convex hull, from the least load to the least cost."""
    hull: list[int] = []
    for index in sorted(range(len(group)), key=lambda one: (group[one].load, group[one].cost, one)):
        if hull and group[index].cost >= group[hull[-1]].cost:
            continue
        while len(hull) >= 2 and _slope(group, hull[-2], index) <= _slope(group, hull[-2], hull[-1]):
            hull.pop()
        if len(hull) == 1 and group[hull[0]].load == group[index].load:
            hull.pop()
        hull.append(index)
    return hull


def _slope(group: Sequence[Choice], first: int, second: int) -> float:
    """Return cost per load between two alternatives of rising load; steep falls are very negative."""
    load = group[second].load - group[first].load
    return (group[second].cost - group[first].cost) / load if load > 0 else float("-inf")


def _upgrades(groups: Sequence[Sequence[Choice]], hulls: Sequence[Sequence[int]]) -> list[_Upgrade]:
    """Return the steps along all hulls, those first that save most cost per load."""
    steps = []
    for index, (group, hull) in enumerate(zip(groups, hulls, strict=True)):
        for position, (before, after) in enumerate(pairwise(hull)):
            old, new = group[before], group[after]
            step = _Upgrade(index, after, new.cost - old.cost, new.load - old.load)
            # Steps of one group come in order of their slope; the position decides where rounding makes two equal.
            steps.append((step.cost / step.load, index, position, step))
    return [step for *_, step in sorted(steps, key=lambda each: each[:3])]


def _undominated(
    states: Sequence[tuple[float, float, tuple[int, ...]]],
) -> list[tuple[float, float, tuple[int, ...]]]:
    """Return the states that no other one beats in load and cost, by rising load."""
    kept: list[tuple[float, float, tuple[int, ...]]] = []
    for state in sorted(states):
        if not kept or state[1] < kept[-1][1]:
            kept.append(state)
    return kept
