"""From a statistic to the range that an integer grid should cover."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgesmith_calibration.entropy import entropy_threshold
from edgesmith_calibration.errors import DataError
from edgesmith_calibration.grid import QuantizationParameters, quantization_parameters
from edgesmith_calibration.histogram import Histogram, HistogramObserver, magnitudes
from edgesmith_calibration.mse import smallest_error_range
from edgesmith_calibration.observers import MinMaxObserver

__all__ = ["QuantizationParameters", "Range", "RangeMethod", "estimate_range", "quantization_parameters"]

RangeMethod = Literal["min-max", "percentile", "mse", "entropy"]


@dataclass(frozen=True, slots=True)
class Range:
    """The values an integer grid covers. Contains zero; values outside saturate."""

    low: float
    high: float


def estimate_range(
    statistic: MinMaxObserver | HistogramObserver | Histogram,
    method: RangeMethod = "min-max",
    *,
    dtype: str = "int8",
    symmetric: bool = True,
    percentile: float = 99.999,
) -> Range:
    """Return the range to quantize a tensor to.

    | method | range | source |
    |---|---|---|
    | min-max | everything seen | |
    | percentile | all but the given share of the values, cut at both ends | McKinstry et al. 2018, arXiv 1809.04191 |
    | mse | smallest expected squared error of the grid | Nagel et al. 2021, arXiv 2106.08295, section 3.1 |
    | entropy | smallest Kullback-Leibler divergence | Migacz, "8-bit Inference with TensorRT", GTC 2017 |

    Ranges for symmetric grids have ends of equal magnitude.

    Args:
        statistic: A histogram, or for min-max also an observer of the smallest and largest value of a whole tensor.
        method: How to choose.
        dtype: Integer type of the grid, such as "int8" or "uint8".
        symmetric: Whether 0.0 has the middle code.
        percentile: Share of values to keep, in percent, above 0 and at most 100. Used by percentile only.

    Raises:
        DataError: Nothing was observed, or the statistic or the type does not suit the method.
    """
    if method == "min-max":
        low, high = _ends(statistic)
    else:
        histogram = _histogram(statistic, method)
        low, high = _estimate(histogram, method, dtype, symmetric, percentile)
    return _with_zero(low, high, symmetric)


def percentile_range(histogram: Histogram, percentile: float, symmetric: bool) -> tuple[float, float]:
    """Return the ends between which `percentile` percent of the values lie, interpolated within bins.

    Symmetric ranges cut the largest magnitudes; others cut half of the rest at each end.

    Raises:
        DataError: `percentile` is not above 0 and at most 100.
    """
    if not 0 < percentile <= 100:
        raise DataError(
            f"percentile {percentile} is not a share of the values",
            expected="a number above 0 and at most 100",
            why="it says how many percent of the values stay in range",
            fix="use 99.99 or 99.999",
        )
    if symmetric:
        end = _quantile(magnitudes(histogram), percentile / 100)
        return -end, end
    tail = (1 - percentile / 100) / 2
    return _quantile(histogram, tail), _quantile(histogram, 1 - tail)


def _estimate(
    histogram: Histogram, method: RangeMethod, dtype: str, symmetric: bool, percentile: float
) -> tuple[float, float]:
    if method == "percentile":
        return percentile_range(histogram, percentile, symmetric)
    if method == "mse":
        return smallest_error_range(histogram, dtype, symmetric)
    if method == "entropy":
        threshold = entropy_threshold(histogram, dtype, symmetric)
        return max(histogram.low, -threshold), min(histogram.high, threshold)
    raise DataError(
        f"'{method}' is not a range estimator",
        expected="min-max, percentile, mse or entropy",
        why="the range decides which values saturate",
        fix="name one of these",
    )


def _ends(statistic: MinMaxObserver | HistogramObserver | Histogram) -> tuple[float, float]:
    if isinstance(statistic, MinMaxObserver) and statistic.low.ndim:
        raise DataError(
            f"{statistic.subject} was observed per channel",
            expected="a statistic of the whole tensor",
            why="estimate_range returns one range",
            fix="pass the observer's low and high to quantization_parameters, or observe without an axis",
        )
    return float(statistic.low), float(statistic.high)


def _histogram(statistic: MinMaxObserver | HistogramObserver | Histogram, method: str) -> Histogram:
    if isinstance(statistic, MinMaxObserver):
        raise DataError(
            f"{statistic.subject} has no histogram for the range estimator {method}",
            expected="a HistogramObserver",
            why="the smallest and largest value do not tell how values are spread",
            fix="observe with HistogramObserver, or use min-max",
        )
    return statistic.histogram() if isinstance(statistic, HistogramObserver) else statistic


def _quantile(histogram: Histogram, share: float) -> float:
    """Return the value below which `share` of the values lie, interpolated within its bin."""
    cumulated = np.cumsum(histogram.counts)
    target = share * cumulated[-1]
    index = min(int(np.searchsorted(cumulated, target)), len(cumulated) - 1)
    start, end = histogram.edges[index : index + 2]
    inside = (target - (cumulated[index] - histogram.counts[index])) / histogram.counts[index]
    return float(start + min(max(inside, 0.0), 1.0) * (end - start))


def _with_zero(low: float, high: float, symmetric: bool) -> Range:
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        high = max(high, -low)
        low = 0.0 - high
    return Range(low=low, high=high)
