"""The greedy order of SLEB. Nothing here knows a graph."""

from collections.abc import Callable, Mapping


def greedy(
    count: int, losses_without: Callable[[tuple[int, ...]], Mapping[int, float]]
) -> tuple[tuple[int, float], ...]:
    """Return which blocks go, one after the other, with the loss after each (SLEB, arXiv 2402.09025, algorithm 1).

    Args:
        count: Number of blocks to remove; fewer go where no more can.
        losses_without: Given what is removed already, returns for each block that may go next the loss without it.
    """
    order: list[tuple[int, float]] = []
    for _ in range(count):
        losses = losses_without(tuple(block for block, _ in order))
        if not losses:
            break
        best = lowest(losses, 1)[0]
        order.append((best, losses[best]))
    return tuple(order)


def lowest(scores: Mapping[int, float], count: int) -> tuple[int, ...]:
    """Return the blocks of the lowest scores, lowest first; of equal ones the earlier. NaN counts as the highest."""
    return tuple(sorted(scores, key=lambda block: (scores[block] != scores[block], scores[block], block))[:count])


def lowest_run(distances: Mapping[tuple[int, ...], float]) -> tuple[int, ...]:
    """Return the run of the least distance; of equal ones the earlier."""
    return min(distances, key=lambda run: (distances[run], run))
