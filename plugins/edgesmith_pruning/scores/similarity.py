"""Heads that attend alike: one of two can go (output approximation, arXiv 2407.19126, section 3.2 and algorithm 2)."""

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.observer import Array, Observer

Float64 = NDArray[np.float64]


def js_divergences(attention: NDArray[np.floating]) -> Float64:
    """Return the Jensen-Shannon divergence of each pair of heads, summed over rows, in nats: [heads, heads].

    JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2, between 0 and ln 2.

    Args:
        attention: Distributions along the last axis, [heads, rows, keys].
    """
    entropies = _entropy(attention)
    heads = len(attention)
    result = np.zeros((heads, heads))
    for first in range(heads):
        for second in range(first + 1, heads):
            middle = _entropy((attention[first] + attention[second]) / 2)
            mixed = float((middle - (entropies[first] + entropies[second]) / 2).sum())
            result[first, second] = result[second, first] = max(mixed, 0.0)
    return result


def _entropy(distribution: NDArray[np.floating]) -> Float64:
    numbers = distribution.astype(np.float64)
    return np.asarray(-(numbers * np.log(np.maximum(numbers, 1e-30))).sum(axis=-1))


class DivergenceObserver(Observer):
    """Mean divergence of each pair of heads over samples and query rows; the last axis but two counts heads."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self._sum: Float64 = np.zeros((0, 0))

    def update(self, array: Array) -> None:
        """Add one batch of attention, [..., heads, queries, keys]."""
        for sample in array.reshape(-1, *array.shape[-3:]):
            found = js_divergences(sample)
            self._sum = found if self.count == 0 else self._sum + found
            self.count += sample.shape[1]

    @property
    def divergences(self) -> Float64:
        """Mean divergence in nats, [heads, heads]."""
        self.require_values()
        return self._sum / self.count


def most_alike(divergences: Float64, worth: Float64) -> list[int]:
    """Return heads in the order in which they go: of the closest two that are left, the one worth less.

    Args:
        divergences: Of each pair of heads, symmetric, [heads, heads].
        worth: What each head is worth otherwise, [heads].

    Returns:
        All heads but the last one.
    """
    heads = len(divergences)
    pairs = [(divergences[i, j], i, j) for i in range(heads) for j in range(i + 1, heads)]
    gone: list[int] = []
    for _, first, second in sorted(pairs):
        if first not in gone and second not in gone:
            gone.append(first if worth[first] <= worth[second] else second)
    return gone
