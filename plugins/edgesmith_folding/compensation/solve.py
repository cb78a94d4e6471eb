"""Least squares for one layer that stays near what it was. Nothing here knows a graph."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.moments import Moments

Float64 = NDArray[np.float64]

_ROUNDING = 1e-9
"""Activations are off by 1e-7 of themselves, and sums of their squares cancel."""


def solve(moments: Moments, start: Float64, ridge: float) -> Float64:
    """Return the matrix of least |Y - X M|^2 + ridge * |D (M - start)|^2, D^2 the mean diagonal of X^T X.

    The last row, the bias, is not held back. So directions that the data hardly shows stay what they were.

    Args:
        moments: Sums over inputs and wanted outputs.
        start: The layer to stay near, [inputs + 1, outputs].
        ridge: How strongly it is held.
    """
    held = np.full(len(start), ridge * float(np.mean(np.diag(moments.gram)[:-1])))
    held[-1] = 1e-9 * moments.gram[-1, -1]
    gram = moments.gram + np.diag(held)
    change = moments.cross - moments.gram @ start
    try:
        return np.asarray(start + np.linalg.solve(gram, change), np.float64)
    except np.linalg.LinAlgError:  # inputs that are all zero: nothing can be learned from them
        return start.copy()


def in_units_of(
    rows: NDArray[np.floating], targets: NDArray[np.floating], size: NDArray[np.floating]
) -> tuple[Float64, Float64]:
    """Return inputs with a column of ones, and targets, each row in units of its root mean square in `size`.

    A normalization follows every sum of the stream, so the same error matters less where the stream is long; and a few
    tokens of language models carry values a hundred times as large as all others.

    Args:
        rows: Inputs, [rows, inputs].
        targets: Wanted outputs, [rows, outputs].
        size: The stream, [rows, channels].
    """
    scale = np.sqrt(np.square(size.astype(np.float64)).mean(axis=1, keepdims=True))
    scale = np.where(scale > 0, scale, 1.0)
    ones = np.ones((len(rows), 1))
    return np.hstack([rows.astype(np.float64), ones]) / scale, targets.astype(np.float64) / scale


def without_constant(moments: Moments) -> Moments:
    """Return moments whose inputs hold their own last entry, without the constant one that was appended."""
    return Moments(moments.gram[:-1, :-1], moments.cross[:-1], moments.energy, moments.rows)


@dataclass(frozen=True, slots=True)
class Solution:
    """A solved layer and how well it does on samples that it was not solved on."""

    matrix: Float64
    before: float
    """Squared error of the layer as it was, on samples held out, as a share of the target's size."""
    after: float

    @property
    def better(self) -> bool:
        """Whether the error falls by more than what rounding to float32 makes of it."""
        return self.after < self.before - _ROUNDING


def best_solution(fit: Moments, judge: Moments, start: Float64, ridges: Sequence[float]) -> Solution:
    """Return the solution of least error on samples held out.

    Args:
        fit: Sums over the samples to solve on.
        judge: Sums over the samples held out.
        start: The layer as it is.
        ridges: Strengths to try.
    """
    solved = [solve(fit, start, ridge) for ridge in ridges]
    errors = [judge.error(matrix) for matrix in solved]
    best = int(np.argmin(errors))
    whole = max(judge.energy, np.finfo(np.float64).tiny)
    return Solution(solved[best], judge.error(start) / whole, errors[best] / whole)
