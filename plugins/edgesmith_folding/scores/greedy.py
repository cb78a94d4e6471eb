"""The greedy order of SLEB, and the best of single blocks and of runs. Nothing here knows a graph."""

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


def best_runs(distances: Mapping[tuple[int, ...], float], count: int) -> tuple[tuple[int, ...], ...]:
    """Return runs that hold `count` blocks in all: the fewest, of those the nearest, of equal ones the earlier.

    Args:
        distances: How far each run turns the stream, by its blocks. Any part of a run that is shorter is there too,
            unless one run holds `count` blocks.
        count: Number of blocks to remove.
    """
    first, last = min(run[0] for run in distances), max(run[-1] for run in distances)
    # The best plan for each number of blocks, of runs up to a block: number of runs, sum of their distances, runs.
    plans: dict[int, dict[int, tuple[int, float, tuple[tuple[int, ...], ...]]]] = {first - 1: {0: (0, 0.0, ())}}
    for block in range(first, last + 1):
        plans[block] = dict(plans[block - 1])
        for run in (run for run in distances if run[-1] == block):
            for held, (number, total, chosen) in plans[run[0] - 1].items():
                plan, size = (number + 1, total + distances[run], (*chosen, run)), held + len(run)
                if size <= count and (size not in plans[block] or plan < plans[block][size]):
                    plans[block][size] = plan
    return plans[last][count][2]
