"""Cuts a row into groups of least cost. Nothing here knows a graph."""

import math
from collections.abc import Callable


def best_partition(
    length: int, groups: int, largest: int, cost: Callable[[int, int], float]
) -> tuple[tuple[int, int], ...]:
    """Return the groups (start, stop) of least total cost, by dynamic programming; none where it cannot be done.

    Args:
        length: Members of the row.
        groups: How many groups they are cut into.
        largest: Most members of a group.
        cost: The cost of the members from a start up to a stop; infinite for what may not be one group.
    """
    best: dict[tuple[int, int], tuple[float, int]] = {(0, 0): (0.0, 0)}
    for count in range(1, groups + 1):
        for stop in range(1, length + 1):
            tried = [
                (best[count - 1, start][0] + cost(start, stop), start)
                for start in range(max(0, stop - largest), stop)
                if (count - 1, start) in best
            ]
            if tried and min(tried)[0] < math.inf:
                best[count, stop] = min(tried)
    if (groups, length) not in best:
        return ()
    found, stop = [], length
    for count in range(groups, 0, -1):
        start = best[count, stop][1]
        found.append((start, stop))
        stop = start
    return tuple(reversed(found))
