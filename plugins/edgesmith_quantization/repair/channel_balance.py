"""How far to raise the small channels of an image, so that one scale serves all of them, in closed form.

Raising channel `c` of an image by `f_c`, and dividing the weights that read it, changes no output. The larger the small
channels, the less the rounding of the image disturbs them; but the larger they are, the smaller the weights that
read them, which the scale of the whole output then rounds more coarsely. A depthwise convolution has a scale for each
channel, so there nothing speaks against the largest factor. Equalization in this sense: Nagel et al. 2019, "Data-Free
Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721, section 4.1; here the reach of the
image is what calibration saw, and the strength is the one of least expected rounding noise.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgesmith_quantization.repair.smoothing import WEIGHT_CODES, ChannelSummary, Float64

ACTIVATION_STEPS = 255
STRENGTHS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
"""Shares of the gap to the largest channel that `balancing_factor` tries to close, on a logarithmic scale."""
LARGEST_FACTOR = 8.0
"""Channels that stay smaller than that hardly matter, and data not seen may reach further in them."""


def balancing_factor(
    summary: ChannelSummary, weights: Sequence[NDArray[np.float32]], bound: float | None = None
) -> Float64:
    """Return the factors of least expected noise, [channels], all at least 1.

    Channels are raised towards the largest of them, or to the bound where there is one. There each channel then ends
    where calibration saw it end, which keeps rare values of a raised channel from widening the range of all.

    Args:
        summary: What calibration saw of each channel.
        weights: Each weight that reads the image, [groups, outputs per group, channels per group, taps].
        bound: Where a Clip cuts all channels off, if one does.
    """
    peak = summary.peak
    largest = float(peak.max())
    if largest == 0:
        return np.ones_like(peak)
    reach = largest if bound is None else max(bound, largest)
    seen = np.where(peak > 0, np.maximum(peak, reach / LARGEST_FACTOR), largest)
    candidates = [np.maximum(reach / seen, 1.0) ** strength for strength in STRENGTHS]
    return min(candidates, key=lambda factor: expected_noise(summary, weights, factor))


def expected_noise(summary: ChannelSummary, weights: Sequence[NDArray[np.float32]], factor: Float64) -> float:
    """Return the mean square that rounding adds to the outputs at one place of the image, summed over outputs.

    Rounding errors are taken as uniform and independent. Arguments as in `balancing_factor`.
    """
    reach = max(0.0, float((summary.high * factor).max())) - min(0.0, float((summary.low * factor).min()))
    step = reach / ACTIVATION_STEPS
    total = 0.0
    for weight in weights:
        groups, _, width, taps = weight.shape
        by_group = factor.reshape(groups, 1, width, 1)
        scaled = np.abs(weight) / by_group
        power = taps * (summary.power.reshape(by_group.shape) * by_group**2).sum(axis=(2, 3))
        steps = scaled.max(axis=(2, 3)) / WEIGHT_CODES
        total += float((np.square(scaled).sum() * step**2 + (np.square(steps) * power).sum()) / 12)
    return total
