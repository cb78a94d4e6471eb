"""The clipping threshold that loses least information, after Migacz, "8-bit Inference with TensorRT", GTC 2017."""

import numpy as np

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.grid import integer_limits
from edgesmith_calibration.histogram import Histogram, magnitudes, with_edges
from edgesmith_calibration.observer import Float64

_BINS = 2048
_BINS_PER_CANDIDATE = 8
_LARGEST_LEVELS = 256


def entropy_threshold(histogram: Histogram, dtype: str, symmetric: bool) -> float:
    """Return the magnitude beyond which values should saturate.

    The distribution of magnitudes, cut at a threshold, is compared with itself merged to as many levels as the grid
    has; the threshold with the smallest Kullback-Leibler divergence wins. Exact zeros count for nothing, since every
    grid represents them. An asymmetric grid of a tensor without negative values has twice the levels.

    Args:
        histogram: Values to quantize.
        dtype: Integer type of the grid, at most 8 bits.
        symmetric: Whether 0.0 has the middle code.

    Raises:
        DataError: The grid has more than 256 levels.
    """
    smallest, largest = integer_limits(dtype)
    levels = largest - smallest + 1
    if levels > _LARGEST_LEVELS:
        raise DataError(
            f"the entropy range estimator was asked for {dtype}",
            expected="a type of at most 8 bits",
            why=f"the divergence is measured on {_BINS} bins, and the grid is finer than that",
            fix="use mse, percentile or min-max for 16-bit grids",
        )
    one_sided = histogram.low >= 0 or histogram.high <= 0
    levels = levels if one_sided and not symmetric else levels // 2
    absolute = magnitudes(histogram)
    peak = absolute.high
    if peak == 0:
        return 0.0
    counts = with_edges(absolute, np.linspace(0, peak, _BINS + 1)).counts.astype(np.float64)
    counts[0] = 0
    widths = np.arange(levels, _BINS + 1, _BINS_PER_CANDIDATE)
    divergences = [_divergence(counts, int(width), levels) for width in widths]
    # Of equal divergences the widest range clips least.
    best = widths.size - 1 - int(np.argmin(divergences[::-1]))
    return float(peak * widths[best] / _BINS)


def _divergence(counts: Float64, width: int, levels: int) -> float:
    """Return KL(P || Q) of the first `width` bins against their merger to `levels`, [bins] counts.

    P holds what is clipped in its last bin. Q spreads the count of each level evenly over the bins that are not empty.
    """
    kept = counts[:width]
    clipped = kept.copy()
    clipped[-1] += counts[width:].sum()
    starts = np.arange(levels) * width // levels
    filled = clipped > 0
    sizes = np.diff(np.append(starts, width))
    sums = np.add.reduceat(kept, starts)
    occupied = np.maximum(np.add.reduceat(filled.astype(np.float64), starts), 1)
    merged = np.repeat(sums / occupied, sizes) * filled
    if merged.sum() == 0:
        return np.inf
    p = clipped[filled] / clipped.sum()
    # A last bin that is filled by clipping alone has no counterpart in Q; the smallest number stands in for zero.
    q = np.maximum(merged[filled] / merged.sum(), np.finfo(np.float64).tiny)
    return float(np.sum(p * np.log(p / q)))
