"""Which channels of an activation are outliers, and what their peaks contribute to a product.

A few channels of transformers reach a hundred times farther than the rest (Dettmers et al. 2022, LLM.int8(), arXiv
2208.07339, section 4). One scale for all then wastes most codes. Here the range is that of the other channels, and
what outliers have beyond it is multiplied in float: with `c(x)` the activation cut to the range,
`x W = c(x) W + (x - c(x)) W`, and `x - c(x)` is zero but in the outlier channels. Both sides are equal before rounding.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesmith_quantization.repair.smoothing import ChannelSummary

MINIMUM_GAIN_DB = 3.0
"""A float product beside the integer one must lower the step of the activation by so much to be worth its time."""

ENOUGH_DB = 30.0
"""Products that are expected to keep this much of their output need no float product beside them."""
_CHANNELS_PER_OUTLIER = 32
"""Outliers are few: at most one channel of so many, whatever the limit."""


@dataclass(frozen=True, slots=True)
class Outliers:
    """The outlier channels of one activation."""

    channels: NDArray[np.int64]
    """In ascending order."""
    low: float
    """Smallest value of the other channels, at most 0."""
    high: float
    """Largest value of the other channels, at least 0."""


def find_outliers(summary: ChannelSummary, limit: int) -> Outliers | None:
    """Return the channels to keep out of the range, or None where that gains little.

    Takes the smallest number of channels that is within 1 dB of what `limit` channels gain.

    Args:
        summary: Channels of the activation.
        limit: Largest number of channels; never more than one of 32.
    """
    limit = min(limit, len(summary.peak) // _CHANNELS_PER_OUTLIER)
    if limit < 1:
        return None
    order = np.argsort(-summary.peak, kind="stable")
    ends = [_ends(summary, order[count:]) for count in range(limit + 1)]
    reach = np.array([high - low for low, high in ends])
    if reach[0] <= 0:
        return None
    gain_db = 20 * np.log10(reach[0] / np.maximum(reach, np.finfo(np.float64).tiny))
    if gain_db[limit] < MINIMUM_GAIN_DB:
        return None
    count = int(np.flatnonzero(gain_db >= gain_db[limit] - 1)[0])
    return Outliers(np.sort(order[:count]), *ends[count])


def _ends(summary: ChannelSummary, channels: NDArray[np.int64]) -> tuple[float, float]:
    """Return the smallest and largest value of some channels, with zero between them."""
    return min(0.0, float(summary.low[channels].min())), max(0.0, float(summary.high[channels].max()))
