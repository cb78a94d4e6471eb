"""The range whose integer grid has the smallest expected squared error on a histogram.

Values are taken as spread evenly within each bin. The error of rounding and clipping then has a closed form, so the
result does not depend on where a bin's middle happens to fall on the grid. Criterion: Nagel et al. 2021, "A White
Paper on Neural Network Quantization", arXiv 2106.08295, section 3.1, equation 3.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from edgesmith_calibration.grid import integer_limits, quantization_parameters
from edgesmith_calibration.histogram import Histogram
from edgesmith_calibration.observer import Float64

_BINS_PER_SEARCH_BIN = 32
_COARSE_FACTORS: Float64 = np.exp2(-np.arange(0, 12.01, 1 / 8))
"""Fractions of the whole range tried first: down to 1/4096, eight per octave."""
_FINE_STEPS: Float64 = np.linspace(-1, 1, 17)
_FINE_ROUNDS = 2
_SWEEPS = 2
"""How often the two ends of an asymmetric range are improved in turn."""


def squared_error(histogram: Histogram, low: Float64, high: Float64, dtype: str, symmetric: bool) -> Float64:
    """Return the mean squared error of quantizing the histogram's values to the grids of `low` to `high`.

    Args:
        histogram: Values to quantize.
        low: Lower ends of the candidate ranges, [candidates].
        high: Upper ends, [candidates].
        dtype: Integer type of the grid.
        symmetric: Whether 0.0 has the middle code.
    """
    smallest, largest = integer_limits(dtype)
    scale, zero_point = quantization_parameters(low, high, dtype, symmetric)
    step = scale.astype(np.float64)[:, np.newaxis]
    offset = zero_point.astype(np.float64)[:, np.newaxis]
    bottom, top = (smallest - offset) * step, (largest - offset) * step
    edges, counts = histogram.edges, histogram.counts
    width = np.diff(edges)
    density = np.divide(counts, width, out=np.zeros(width.shape), where=width > 0)
    total = np.diff(_error_integral(edges, step, bottom, top), axis=1) @ density
    single = width == 0
    points = edges[:-1][single]
    clipped = np.clip(points, bottom, top)
    total += np.square(points - np.rint(clipped / step) * step) @ counts[single]
    return np.asarray(total / counts.sum())


def smallest_error_range(histogram: Histogram, dtype: str, symmetric: bool) -> tuple[float, float]:
    """Return the ends of the best range found; never one with a larger error than the whole range has."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    coarse = _coarsen(histogram)

    def error(left: Float64 | float, right: Float64 | float) -> Float64:
        left, right = np.broadcast_arrays(left, right)
        return squared_error(coarse, low * left, high * right, dtype, symmetric)

    both = _minimize(lambda factors: error(factors, factors))
    left = right = both
    if not symmetric and low < 0 < high:
        for _ in range(_SWEEPS):
            right = _minimize(partial(error, left))
            left = _minimize(partial(error, right=right))
    candidates = np.array([[low, high], [both * low, both * high], [left * low, right * high]])
    best = np.argmin(squared_error(histogram, candidates[:, 0], candidates[:, 1], dtype, symmetric))
    return float(candidates[best, 0]), float(candidates[best, 1])


def _error_integral(x: Float64, step: Float64, bottom: Float64, top: Float64) -> Float64:
    """Return an antiderivative of the squared quantization error at `x`, [candidates, points].

    Within the grid, each whole cell around a code contributes step^3 / 12, and a distance d from the nearest code
    d^3 / 3. Outside, the error is the distance to the grid's end, whose square integrates to distance^3 / 3.
    """
    inside = np.clip(x, bottom, top)
    cells = inside / step
    code = np.rint(cells)
    return step**3 * (code / 12 + (cells - code) ** 3 / 3) + (x - inside) ** 3 / 3


def _coarsen(histogram: Histogram) -> Histogram:
    starts = np.arange(0, histogram.counts.size, _BINS_PER_SEARCH_BIN)
    return Histogram(
        edges=np.append(histogram.edges[starts], histogram.edges[-1]),
        counts=np.add.reduceat(histogram.counts, starts),
    )


def _minimize(cost: Callable[[Float64], Float64]) -> float:
    """Return the factor in (0, 1] with the smallest cost found: a grid of factors, refined twice around the best."""
    costs = cost(_COARSE_FACTORS)
    best = _COARSE_FACTORS[np.argmin(costs)]
    reach = best / 8
    for _ in range(_FINE_ROUNDS):
        nearby = np.clip(best + reach * _FINE_STEPS, np.finfo(np.float64).tiny, 1.0)
        best = nearby[np.argmin(cost(nearby))]
        reach *= _FINE_STEPS[1] - _FINE_STEPS[0]
    return float(best)
