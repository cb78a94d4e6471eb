"""Which atoms of a unit go: by elimination over the layers that read them, or by a score for each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.moments import Moments
from edgesmith_pruning.finding.layers import Layer
from edgesmith_pruning.finding.records import Unit
from edgesmith_pruning.options.structure import PruneStructureOptions
from edgesmith_pruning.removal import Decision
from edgesmith_pruning.repair.least_squares import pulled
from edgesmith_pruning.scores.activations import fluctuation, over_atoms, wanda
from edgesmith_pruning.scores.elimination import Problem, eliminate
from edgesmith_pruning.statistics.held_out import HeldOut, local

Float64 = NDArray[np.float64]

Measured = Sequence[tuple[Layer, HeldOut | None]]
"""The layers that read a unit, with moments of their inputs where a score needs them."""

_STEP = 1 / 64
"""Share of the atoms that elimination takes at once, before it weighs the others anew."""


_RANKING_RIDGE = 0.3
"""Where ridges are chosen on samples held out: share of the mean second moment of an input."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Atoms in the order in which they go, and what each costs."""

    atoms: tuple[int, ...]
    costs: Float64
    """Rise of the squared error with elimination, a score otherwise."""

    def by_level(self, unit: Unit) -> Float64:
        """Return the costs of the first atom of every group together, of the second, and so on."""
        levels = np.zeros(unit.group_size)
        seen = [0] * unit.groups
        for atom, cost in zip(self.atoms, self.costs, strict=True):
            group = atom // unit.group_size
            levels[seen[group]] += cost
            seen[group] += 1
        return levels[: min(seen)]

    def first(self, unit: Unit, count: int) -> Decision:
        """Return the decision to remove the first atoms of each group."""
        left = [count] * unit.groups
        removed = []
        for atom in self.atoms:
            group = atom // unit.group_size
            if left[group]:
                left[group] -= 1
                removed.append(atom)
        return Decision(unit, tuple(sorted(removed)))


def rank(
    unit: Unit,
    measured: Measured,
    count: int,
    kept: Sequence[int],
    options: PruneStructureOptions,
    given: Float64 | None = None,
) -> Ranking:
    """Return what goes first of a unit.

    Args:
        unit: What to choose from.
        measured: The layers that read it.
        count: How many atoms go in each group; fewer go where more are kept.
        kept: Atoms that stay.
        options: Score and ridge.
        given: A score for each atom, where it comes from the network as a whole.
    """
    if options.score == "elimination":
        problems = [
            Problem(_invertible(held.total, layer, options.ridge_of(layer.consumer.operator)), layer.rows[unit.key])
            for layer, held in measured
            if held is not None
        ]
        groups = np.arange(unit.size) // unit.group_size
        order, rises = eliminate(problems, groups, [count] * unit.groups, kept=kept, step=_STEP)
        return Ranking(tuple(order), rises)
    scores = np.zeros(unit.size) if given is None else given
    if given is None:
        for layer, held in measured:
            moments = None if held is None else held.total
            scores += over_atoms(_row_scores(layer, moments, options.score), layer.rows[unit.key])
    return _by_score(unit, scores, count, kept)


def _invertible(moments: Moments, layer: Layer, ridge: float | None) -> Moments:
    """Return what elimination looks at. Without a fixed ridge it asks what the layer itself would lose.

    Aimed at errors of earlier layers, the choice would follow the calibration samples; so would a small ridge.
    Inputs that are 0 in all samples are pulled to 0, so that they cost nothing and go first, whatever their weights.
    Nearly dead ones still cost what the ridge says.
    """
    dead = np.diag(moments.gram) == 0
    prior = np.where(dead[:, None], 0.0, layer.matrix)
    if ridge is not None:
        return pulled(moments, prior, ridge)
    return pulled(local(moments, prior), prior, _RANKING_RIDGE)


def _by_score(unit: Unit, scores: Float64, count: int, kept: Sequence[int]) -> Ranking:
    free = np.ones(unit.size, np.bool_)
    free[list(kept)] = False
    order: list[int] = []
    for group in range(unit.groups):
        atoms = np.arange(group * unit.group_size, (group + 1) * unit.group_size)
        atoms = atoms[free[atoms]]
        order += atoms[np.argsort(scores[atoms], kind="stable")[:count]].tolist()
    return Ranking(tuple(order), scores[order])


def _row_scores(layer: Layer, moments: Moments | None, score: str) -> Float64:
    matrix = layer.matrix[:-1]
    if moments is None or score == "magnitude":
        return np.asarray(np.square(matrix).sum(axis=1))
    if score == "wanda":
        return wanda(matrix, moments.second_moment)
    return fluctuation(matrix, moments.variance)
