"""Second moments of a layer's inputs in two networks at once: the dense one, and the one pruned so far."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.errors import DataError

Float64 = NDArray[np.float64]

_ROWS_PER_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class PairedMoments:
    """Sums of products of inputs x' of the pruned network and x of the dense one, each float64 [inputs, inputs].

    The squared error of weights V [outputs, inputs] on x' against weights W on x is
    `tr(V now V^T - 2 V cross W^T + W dense W^T)`, so no input has to be kept.
    """

    now: Float64
    """Sum of x' x'^T."""
    cross: Float64
    """Sum of x' x^T."""
    dense: Float64
    """Sum of x x^T."""
    sums: Float64
    """Sums of x' and of x, [2, inputs]."""
    rows: int

    def centered(self) -> "PairedMoments":
        """Return the moments of inputs without their means: the error that is left once the bias is the best one."""
        now, dense = self.sums
        return PairedMoments(
            self.now - np.outer(now, now) / self.rows,
            self.cross - np.outer(now, dense) / self.rows,
            self.dense - np.outer(dense, dense) / self.rows,
            np.zeros_like(self.sums),
            self.rows,
        )

    def objective(self, target: NDArray[Any]) -> "Objective":
        """Return the error that other weights make against the dense outputs of `target`, [outputs, inputs]."""
        old = target.astype(np.float64)
        return Objective(self.now, old @ self.cross.T, np.einsum("oi,oi->o", old @ self.dense, old))

    def bias_change(self, weight: NDArray[Any], target: NDArray[Any]) -> Float64:
        """Return what to add to the bias so that outputs keep their means, [outputs]."""
        now, dense = self.sums / self.rows
        return np.asarray(target.astype(np.float64) @ dense - weight.astype(np.float64) @ now)


@dataclass(frozen=True, slots=True)
class Objective:
    """The squared error of each output over the data, as a function of weights."""

    now: Float64
    """Sum of x' x'^T, [inputs, inputs]."""
    aim: Float64
    """Sum of y x'^T with the wanted outputs y, [outputs, inputs]."""
    powers: Float64
    """Sum of squares of each wanted output, [outputs]."""

    def errors(self, weight: NDArray[Any]) -> Float64:
        """Return the squared error of each output of weights [outputs, inputs]."""
        new = weight.astype(np.float64)
        error = np.einsum("oi,oi->o", new @ self.now - 2 * self.aim, new) + self.powers
        return np.asarray(np.maximum(error, 0))


class PairedMomentsObserver:
    """Adds up `PairedMoments`, batch by batch.

    Args:
        name: What the inputs are called, used in errors.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._now = self._cross = self._dense = np.zeros((0, 0))
        self._sums = np.zeros((2, 0))
        self._rows = 0
        self._pending: list[tuple[NDArray[Any], NDArray[Any]]] = []

    def update(self, now: NDArray[Any], dense: NDArray[Any]) -> None:
        """Add inputs [rows, inputs] of both networks, row by row of the same data.

        Raises:
            DataError: A number is NaN or infinite.
        """
        self._pending.append((now, dense))
        self._rows += len(now)
        if sum(len(each) for each, _ in self._pending) >= _ROWS_PER_BLOCK:
            self._flush()

    def _flush(self) -> None:
        """Add the rows that wait. Products of many rows are much faster than of few."""
        now, dense = (np.concatenate(each) for each in zip(*self._pending, strict=True))
        self._pending.clear()
        if not self._now.size:
            width = now.shape[1]
            self._now, self._cross, self._dense = (np.zeros((width, width)) for _ in range(3))
            self._sums = np.zeros((2, width))
        for start in range(0, len(now), _ROWS_PER_BLOCK):
            first, second = (each[start : start + _ROWS_PER_BLOCK].astype(np.float64) for each in (now, dense))
            self._sums += first.sum(axis=0), second.sum(axis=0)
            square = first.T @ first
            self._now += square
            if np.array_equal(first, second):  # nothing has been pruned before this layer
                self._cross += square
                self._dense += square
            else:
                self._cross += first.T @ second
                self._dense += second.T @ second
        if not np.isfinite(self._sums).all():
            raise DataError(
                f"{self._name} holds numbers that are not finite",
                expected="finite activations on the calibration data",
                why="weights are chosen by the outputs that they make of them",
                fix="check the data, or whether the model itself gives NaN on it",
            )

    @property
    def moments(self) -> PairedMoments:
        """The sums so far."""
        if self._pending:
            self._flush()
        return PairedMoments(self._now, self._cross, self._dense, self._sums, self._rows)
