"""Moments with a part of the samples apart, so that what is fitted on the others can be judged on it.

Rows of one sample resemble each other: places of one photo, words of one text. So whole samples are held out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.moments import Moments, MomentsObserver

Float64 = NDArray[np.float64]
Rows = NDArray[np.floating]

EVERY = 4
"""Every fourth batch is held out."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Moments of one layer."""

    total: Moments
    """Of all samples."""
    judge: Moments | None = None
    """Of the samples held out, which are in the total; None where there are too few samples to hold any out."""

    @property
    def fit(self) -> Moments:
        """Moments of the samples that are not held out."""
        if self.judge is None:
            return self.total
        total, judge = self.total, self.judge
        return Moments(
            total.gram - judge.gram, total.cross - judge.cross, total.energy - judge.energy, total.rows - judge.rows
        )


class HeldOutObserver:
    """Adds up moments batch by batch, every fourth batch apart.

    Args:
        name: What the rows belong to, used in errors.
        hold_out: Whether to hold anything out.
    """

    def __init__(self, name: str, *, hold_out: bool = True) -> None:
        self._fit, self._judge = MomentsObserver(name), MomentsObserver(name)
        self._hold_out, self._batches = hold_out, 0

    def update(self, inputs: Rows, outputs: Rows, weights: Rows | None = None) -> None:
        """Add the rows of one batch (see `MomentsObserver.update`)."""
        self._batches += 1
        apart = self._hold_out and self._batches % EVERY == 0
        (self._judge if apart else self._fit).update(inputs, outputs, weights)

    @property
    def moments(self) -> HeldOut:
        """The sums so far.

        Raises:
            DataError: A number was NaN or infinite, or there was no row.
        """
        fit = self._fit.moments
        if not self._hold_out or self._batches < EVERY:
            return HeldOut(fit)
        judge = self._judge.moments
        total = Moments(
            fit.gram + judge.gram, fit.cross + judge.cross, fit.energy + judge.energy, fit.rows + judge.rows
        )
        return HeldOut(total, judge)


def is_held_out(batch: int) -> bool:
    """Return whether the batch of this number, counted from 0, is held out."""
    return (batch + 1) % EVERY == 0


def local(moments: Moments, matrix: Float64) -> Moments:
    """Return moments with another aim: what the layer itself gives on these inputs.

    Args:
        moments: Of the layer's inputs.
        matrix: The layer, [inputs + 1, outputs].
    """
    cross = moments.gram @ matrix
    return Moments(moments.gram, cross, float(np.vdot(matrix, cross)), moments.rows)
