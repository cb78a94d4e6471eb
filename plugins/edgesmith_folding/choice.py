"""Chooses blocks by a score, measured on calibration data."""

from collections.abc import Mapping

import numpy as np

from edgesmith_folding.finding.places import Place
from edgesmith_folding.options.removal import RemoveBlocksOptions
from edgesmith_folding.running.judge import Judge
from edgesmith_folding.running.streams import Streams
from edgesmith_folding.scores.greedy import greedy, lowest, lowest_run


def choose(
    options: RemoveBlocksOptions,
    candidates: Mapping[int, Place],
    count: int,
    streams: Streams | None,
    judge: Judge | None,
    generator: np.random.Generator,
) -> tuple[tuple[int, ...], str]:
    """Return which blocks go, and a sentence about what they were worth.

    Args:
        options: Score and how it is measured.
        candidates: Blocks that may go, by number.
        count: How many go.
        streams: Reads the residual stream; not needed to draw at random.
        judge: Measures losses; needed for sleb and perplexity.
        generator: Draws at random.
    """
    if options.score == "random" or streams is None:
        drawn = generator.permutation(sorted(candidates))[:count]
        return tuple(sorted(int(number) for number in drawn)), "They were drawn at random."
    if options.score == "angular":
        distances = streams.distances(candidates, count)
        run = lowest_run(distances, candidates)
        return run, f"Angular distance over the run: {distances[run]:.4f}." if run else ""
    if options.score == "block-influence" or judge is None:
        influences = streams.influences(list(candidates.values()))
        chosen = lowest(influences, count)
        return tuple(sorted(chosen)), "Block influence: " + _listed({each: influences[each] for each in chosen}) + "."
    if options.score == "perplexity":
        losses = judge.losses_without((), candidates)
        chosen = lowest(losses, count)
        return tuple(sorted(chosen)), "Loss without each: " + _listed({each: losses[each] for each in chosen}) + "."
    influences = streams.influences(list(candidates.values())) if options.candidates else dict.fromkeys(candidates, 0.0)

    def losses_without(removed: tuple[int, ...]) -> Mapping[int, float]:
        left = {each: influences[each] for each in candidates if each not in removed}
        return judge.losses_without(removed, lowest(left, options.candidates or len(left)))

    order = greedy(count, losses_without)
    return tuple(sorted(number for number, _ in order)), "Loss after each removal: " + _listed(dict(order)) + "."


def _listed(scores: Mapping[int, float]) -> str:
    return ", ".join(f"block {number} {score:.4g}" for number, score in scores.items())
