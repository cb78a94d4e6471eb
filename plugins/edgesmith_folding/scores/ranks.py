"""How alike two orders are. Nothing here knows a graph."""

from collections.abc import Sequence
from itertools import combinations


def kendall_tau(first: Sequence[int], second: Sequence[int]) -> float:
    """Return how many more pairs stand in the same order than in opposite orders, as a share of all pairs.

    1 for equal orders, -1 for opposite ones (Kendall 1938). Both name the same things, each once.
    """
    places = {each: index for index, each in enumerate(second)}
    signs = [1 if places[one] < places[other] else -1 for one, other in combinations(first, 2)]
    return sum(signs) / len(signs) if signs else 1.0
