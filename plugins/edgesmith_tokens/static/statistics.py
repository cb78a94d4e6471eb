"""Streaming statistics of one attention layer: everything that its closed forms and their errors need."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.errors import DataError
from edgesmith_tokens.static.formulas import Float64, least_squares_map, mean_residual, similarity, squared_error

Array = NDArray[Any]


class MapStatistics:
    """Sums over samples of an attention map A [heads, tokens, tokens] and its values V [heads, tokens, channels].

    The sums are as large as four maps in double precision, whatever the number of samples.

    Args:
        name: What to call the layer in an error.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.count = 0
        """Samples seen so far."""
        self._sums: dict[str, Float64] = {}

    def update(self, maps: Array, values: Array) -> None:
        """Add a batch.

        Args:
            maps: Probabilities, [batch, heads, tokens, tokens].
            values: Values, [batch, heads, tokens, channels].

        Raises:
            DataError: Something in them is infinite or NaN.
        """
        for map_, value in zip(maps, values, strict=True):
            self._add(map_.astype(np.float64), value.astype(np.float64))

    def absorb(self, other: Self) -> None:
        """Add all samples of other statistics, which stay as they are."""
        for key, array in other._sums.items():
            self._sum(key, array.copy())
        self.count += other.count

    @property
    def similarity(self) -> float:
        """How alike the maps of different samples are; 1 for a constant map."""
        return similarity(self.mean_map(), self._mean("scaled"), float(self._mean("inverse")[0]))

    def mean_map(self) -> Float64:
        """Return E[A]; its rows sum to 1."""
        return self._mean("map")

    def least_squares_map(self, ridge: float) -> Float64:
        """Return the maps that come closest to A V (see `formulas.least_squares_map`)."""
        return least_squares_map(self._sums["cross"], self._sums["gram"], ridge)

    def bias(self, map_: Float64) -> Float64:
        """Return what is best to add to S V: [heads, tokens, channels]."""
        return mean_residual(map_, self._mean("output"), self._mean("values"))

    def relative_error(self, map_: Float64, bias: Float64 | None = None) -> float:
        """Return the root of the sum of ||A V - S V - bias||^2 over the sum of ||A V||^2."""
        sums = self._sums
        error = squared_error(map_, sums["energy"], sums["cross"], sums["gram"])
        if bias is not None:
            residual = sums["output"] - map_ @ sums["values"]
            error = error + np.einsum("hij,hij->h", bias, self.count * bias - 2 * residual)
        total = float(sums["energy"].sum())
        return float(np.sqrt(max(float(error.sum()), 0.0) / total)) if total > 0 else 0.0

    def _add(self, map_: Float64, value: Float64) -> None:
        output = map_ @ value
        energy = float(np.vdot(map_, map_))
        if not np.isfinite(energy) or not np.isfinite(output).all():
            raise DataError(
                f"the attention of {self.name} is infinite or NaN",
                expected="finite numbers",
                why="a static map is a mean over what attention does",
                fix="look for samples that the network cannot take",
            )
        transposed = value.swapaxes(-1, -2)
        # One after another, so that no more than one term waits to be added.
        self._sum("scaled", map_ / energy)
        self._sum("inverse", np.array([1 / energy]))
        self._sum("energy", np.einsum("hij,hij->h", output, output))
        self._sum("cross", output @ transposed)
        self._sum("gram", value @ transposed)
        self._sum("map", map_)
        self._sum("output", output)
        self._sum("values", value)
        self.count += 1

    def _sum(self, key: str, array: Float64) -> None:
        """Add to a sum in place; the first array becomes the sum."""
        if key in self._sums:
            self._sums[key] += array
        else:
            self._sums[key] = array

    def _mean(self, key: str) -> Float64:
        return self._sums[key] / self.count
