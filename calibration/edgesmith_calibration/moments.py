"""Second moments of what a layer reads and of what it should give: enough for scores, refits and errors alike."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.errors import DataError

Float64 = NDArray[np.float64]
Rows = NDArray[np.floating]

_ROWS_PER_BLOCK = 2048


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over rows x [inputs + 1], whose last entry is 1, and wanted outputs y [outputs].

    A layer is a matrix [inputs + 1, outputs] whose last row is the bias. Its squared error over all rows is a
    quadratic form of these sums, so no row has to be kept.
    """

    gram: Float64
    """Sum of x x^T, [inputs + 1, inputs + 1]."""
    cross: Float64
    """Sum of x y^T, [inputs + 1, outputs]."""
    energy: float
    """Sum of |y|^2."""
    rows: float
    """How many rows there were, or the sum of their weights."""

    @property
    def mean(self) -> Float64:
        """Mean of the inputs, [inputs]."""
        return self.gram[-1, :-1] / self.rows

    @property
    def second_moment(self) -> Float64:
        """Mean square of each input, [inputs]."""
        return np.diag(self.gram)[:-1] / self.rows

    @property
    def variance(self) -> Float64:
        """Variance of each input, [inputs]."""
        return np.maximum(self.second_moment - np.square(self.mean), 0.0)

    def error(self, matrix: Float64) -> float:
        """Return the summed squared error of a layer: |Y - X M|^2.

        Args:
            matrix: The layer, [inputs + 1, outputs].
        """
        quadratic = float(np.vdot(matrix, self.gram @ matrix))
        return max(self.energy - 2 * float(np.vdot(matrix, self.cross)) + quadratic, 0.0)


class MomentsObserver:
    """Adds up `Moments` in float64. Rows wait until there are enough for a fast product.

    Args:
        name: What the rows belong to, used in errors.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: list[tuple[Rows, Rows, Rows]] = []
        self._gram = self._cross = np.zeros((0, 0))
        self._energy = 0.0
        self._rows = 0.0

    def update(self, inputs: Rows, outputs: Rows, weights: Rows | None = None) -> None:
        """Add rows.

        Args:
            inputs: What the layer reads, [rows, inputs].
            outputs: What it should give, [rows, outputs].
            weights: How much each row counts, [rows]; all alike by default.

        Raises:
            DataError: A number is NaN or infinite.
        """
        weights = np.ones(len(inputs)) if weights is None else weights
        for start in range(0, len(inputs), _ROWS_PER_BLOCK):
            part = slice(start, start + _ROWS_PER_BLOCK)
            self._waiting.append((inputs[part], outputs[part], weights[part]))
            if sum(len(each) for each, _, _ in self._waiting) >= _ROWS_PER_BLOCK:
                self._add_waiting()

    def _add_waiting(self) -> None:
        if not self._waiting:
            return
        inputs, outputs, weights = zip(*self._waiting, strict=True)
        self._waiting = []
        roots = np.sqrt(np.concatenate(weights, dtype=np.float64))[:, None]
        x = np.ones((len(roots), inputs[0].shape[1] + 1))
        np.concatenate(inputs, out=x[:, :-1])
        x *= roots
        y = np.concatenate(outputs) * roots
        if not self._rows:
            self._gram, self._cross = np.zeros((x.shape[1], x.shape[1])), np.zeros((x.shape[1], y.shape[1]))
        self._gram += x.T @ x
        self._cross += x.T @ y
        self._energy += float(np.vdot(y, y))
        self._rows += float(np.square(roots).sum())
        if not np.isfinite(self._energy) or not np.isfinite(self._gram[-1]).all():
            raise DataError(
                f"{self._name} reads or gives numbers that are not finite",
                expected="finite activations on the calibration data",
                why="what a channel is worth is measured on them",
                fix="check the data, or whether the model itself gives NaN on it",
            )

    @property
    def moments(self) -> Moments:
        """The sums so far.

        Raises:
            DataError: A number was NaN or infinite, or there was no row.
        """
        self._add_waiting()
        if not self._rows:
            raise DataError(
                f"{self._name} was never run",
                expected="at least one row of inputs",
                why="what a channel is worth is measured on them",
                fix="check that the calibration data holds samples that reach this layer",
            )
        return Moments(self._gram, self._cross, self._energy, self._rows)
