"""Which atoms of a unit go: scores of all layers that read them, or elimination over these layers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.moments import Moments
from edgesmith_pruning.finding.layers import Layer
from edgesmith_pruning.finding.records import Unit
from edgesmith_pruning.options.structure import PruneStructureOptions
from edgesmith_pruning.removal import Decision, lowest
from edgesmith_pruning.repair.least_squares import pulled
from edgesmith_pruning.scores.activations import fluctuation, over_atoms, second_moment, wanda
from edgesmith_pruning.scores.elimination import Problem, eliminate
from edgesmith_pruning.scores.magnitude import random_scores

Float64 = NDArray[np.float64]

Measured = Sequence[tuple[Layer, Moments | None]]


def choose(
    unit: Unit, measured: Measured, count: int, kept: Sequence[int], options: PruneStructureOptions, seed: int
) -> Decision:
    """Return what goes of a unit.

    Args:
        unit: What to choose from.
        measured: The layers that read it, with moments of their inputs where the score needs them.
        count: How many atoms go in each group.
        kept: Atoms that stay.
        options: Score and ridge.
        seed: Seed of random scores.
    """
    if options.score == "elimination":
        problems = [
            Problem(pulled(moments, layer.matrix, options.ridge), layer.rows[unit.key])
            for layer, moments in measured
            if moments is not None
        ]
        groups = np.arange(unit.size) // unit.group_size
        order, _ = eliminate(problems, groups, [count] * unit.groups, kept=kept, step=STEP)
        return Decision(unit, tuple(sorted(order)))
    scores = np.zeros(unit.size)
    for layer, moments in measured:
        scores += over_atoms(_row_scores(layer, moments, options.score), layer.rows[unit.key])
    if options.score == "random":
        scores = random_scores(unit.size, seed)
    return lowest(unit, scores, count, kept)


STEP = 1 / 64
"""Share of atoms that elimination takes at once."""


def _row_scores(layer: Layer, moments: Moments | None, score: str) -> Float64:
    matrix = layer.matrix[:-1]
    if moments is None or score in ("magnitude", "random"):
        return np.asarray(np.square(matrix).sum(axis=1))
    if score == "wanda":
        return wanda(matrix, moments.second_moment)
    if score == "fluctuation":
        return fluctuation(matrix, moments.variance)
    return second_moment(matrix, moments.second_moment)
