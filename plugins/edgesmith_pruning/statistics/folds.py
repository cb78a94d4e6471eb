"""Moments in parts of the samples, so that what is fitted on some can be judged on the others.

Rows of one sample resemble each other: places of one photo, words of one text. So parts are made of whole samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.moments import Moments, MomentsObserver

Float64 = NDArray[np.float64]

PARTS = 4
"""How many parts the samples are dealt to. Each costs a Gram matrix."""


@dataclass(frozen=True, slots=True)
class Folds:
    """Moments of one layer, in parts of the samples."""

    parts: tuple[Moments, ...]
    """One at least."""
    total: Moments
    """Their sum."""

    @property
    def splits(self) -> tuple[tuple[Moments, Moments], ...]:
        """Pairs of what to fit on and what to judge on; none where there is only one part."""
        if len(self.parts) < 2:
            return ()
        return tuple((_without(self.total, part), part) for part in self.parts)


class FoldsObserver:
    """Adds up moments in parts, batch by batch in turns.

    Args:
        name: What the rows belong to, used in errors.
        parts: How many parts.
    """

    def __init__(self, name: str, parts: int = PARTS) -> None:
        self._observers = tuple(MomentsObserver(name) for _ in range(parts))
        self._batches = 0

    def update(self, inputs: NDArray[np.floating], outputs: NDArray[np.floating]) -> None:
        """Add the rows of one batch (see `MomentsObserver.update`)."""
        self._observers[self._batches % len(self._observers)].update(inputs, outputs)
        self._batches += 1

    @property
    def folds(self) -> Folds:
        """The sums so far; parts that saw nothing are left out.

        Raises:
            DataError: A number was NaN or infinite, or there was no row.
        """
        parts = tuple(each.moments for each in self._observers[: max(1, self._batches)])
        return Folds(parts, _sum(parts))


def local(moments: Moments, matrix: Float64) -> Moments:
    """Return moments with another aim: what the layer itself gives on these inputs.

    Args:
        moments: Of the layer's inputs.
        matrix: The layer, [inputs + 1, outputs].
    """
    cross = moments.gram @ matrix
    return Moments(moments.gram, cross, float(np.vdot(matrix, cross)), moments.rows)


def _sum(parts: Sequence[Moments]) -> Moments:
    if len(parts) == 1:
        return parts[0]
    return Moments(
        np.sum([part.gram for part in parts], axis=0),
        np.sum([part.cross for part in parts], axis=0),
        sum(part.energy for part in parts),
        sum(part.rows for part in parts),
    )


def _without(total: Moments, part: Moments) -> Moments:
    return Moments(total.gram - part.gram, total.cross - part.cross, total.energy - part.energy, total.rows - part.rows)
