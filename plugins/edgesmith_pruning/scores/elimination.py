"""Greedy elimination: each time the atom goes whose loss the others can make up for best.

With the layer refitted after each step, removing rows R raises the squared error by tr(M_R^T (P_RR)^-1 M_R), where
P = G_kk^-1 and M = P C_k is the refitted layer. Both are updated in place, so no system is solved anew.
Source: optimal brain surgeon (Hassibi and Stork 1993), for rows of a layer and with refits in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.moments import Moments

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Problem:
    """One layer that reads the atoms."""

    moments: Moments
    """Sums that may be inverted; the last row is the bias and always stays."""
    rows: Sequence[Sequence[int]]
    """For each atom its rows, equally many for all."""


def eliminate(
    problems: Sequence[Problem],
    groups: NDArray[np.intp],
    counts: Sequence[int],
    *,
    kept: Sequence[int] = (),
    step: float = 0.0,
) -> tuple[list[int], Float64]:
    """Return the atoms to remove, in the order in which they go, and the error that each adds.

    Args:
        problems: All layers that read the atoms; their errors are summed.
        groups: Group of each atom.
        counts: How many atoms go in each group.
        kept: Atoms that stay whatever it costs.
        step: Share of the remaining atoms that may go at once, before the others are weighed anew; 0: one by one.
    """
    states = [_State(problem) for problem in problems]
    alive = np.ones(len(groups), np.bool_)
    alive[list(kept)] = False
    left = np.array(counts)
    order: list[int] = []
    rises: list[float] = []
    while len(candidates := np.flatnonzero(alive & (left[groups] > 0))):
        rise = np.sum([state.rises(candidates) for state in states], axis=0)
        taken = []
        for index in np.argsort(rise, kind="stable")[: max(1, int(step * len(candidates)))]:
            atom = int(candidates[index])
            if left[groups[atom]]:
                left[groups[atom]] -= 1
                taken.append(atom)
                rises.append(float(rise[index]))
        alive[taken] = False
        order += taken
        for state in states:
            state.remove(taken)
    return order, np.array(rises)


class _State:
    """The inverse and the refitted layer of what is left; both are 0 where something is gone."""

    def __init__(self, problem: Problem) -> None:
        self._places = np.array(problem.rows)
        self._inverse = np.linalg.inv(problem.moments.gram)
        self._matrix = self._inverse @ problem.moments.cross

    def rises(self, atoms: NDArray[np.intp]) -> Float64:
        """Return by how much the squared error rises with each atom gone."""
        places = self._places[atoms]
        if places.shape[1] == 1:
            one = places[:, 0]
            squares = np.einsum("ij,ij->i", self._matrix[one], self._matrix[one])
            return np.asarray(squares / np.diag(self._inverse)[one])
        blocks = self._inverse[places[:, :, None], places[:, None, :]]
        layers = self._matrix[places]
        return np.asarray(np.einsum("aij,aij->a", layers, np.linalg.solve(blocks, layers)))

    def remove(self, atoms: Sequence[int]) -> None:
        """Take atoms out, and let the others make up for them."""
        rows = self._places[atoms].reshape(-1)
        across = self._inverse[:, rows]
        width = len(self._inverse)
        solved = np.linalg.solve(across[rows], np.concatenate([across.T, self._matrix[rows]], axis=1))
        self._matrix -= across @ solved[:, width:]
        self._inverse -= across @ solved[:, :width]
        self._inverse[rows] = self._inverse[:, rows] = self._matrix[rows] = 0.0
