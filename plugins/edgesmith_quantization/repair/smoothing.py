"""How far to shift the range of activation channels into the weights that read them, in closed form.

A product `y = x W` stays the same when channel `c` of `x` is divided by `s_c` and row `c` of `W` multiplied by it. With
`s_c = peak(x_c)^a / peak(W_c)^(1 - a)` channels of extreme range stop deciding the one scale of the activation (Xiao et
al. 2023, SmoothQuant, arXiv 2211.10438, equation 4). Two products in a row are equalized without data by
`s_c = sqrt(peak(first_c) / peak(second_c))` (Nagel et al. 2019, arXiv 1906.04721, section 4.1). The strength `a` is
chosen per activation: the one of least expected rounding noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

STRENGTHS = (0.0, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9)
"""What `best_strength` tries; 0 stands for no shift at all."""
WEIGHT_CODES = 127


@dataclass(frozen=True, slots=True)
class ChannelSummary:
    """What calibration saw of the channels of one activation. Arrays of float64 [channels]."""

    low: Float64
    high: Float64
    mean: Float64
    power: Float64
    """Mean square."""

    @property
    def peak(self) -> Float64:
        """Largest magnitude of each channel."""
        return np.maximum(self.high, -self.low)


def smoothing_scale(activation_peak: Float64, weight_peak: Float64, strength: float) -> Float64:
    """Return what to divide each activation channel by, [channels], all positive.

    Channels that are always zero, or that all weights ignore, keep their scale.

    Args:
        activation_peak: Largest magnitude of each channel, [channels].
        weight_peak: Largest magnitude of the weights that read each channel, [channels].
        strength: Share of the difficulty that moves to the weights, 0 to 1.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = activation_peak**strength / weight_peak ** (1 - strength)
    usable = (activation_peak > 0) & (weight_peak > 0) & np.isfinite(scale) & (scale > 0)
    if not usable.any():
        return np.ones_like(activation_peak)
    # A common factor changes nothing; taking it out keeps the numbers near those of the network.
    scale = scale / np.exp(np.log(scale[usable]).mean())
    return np.where(usable, np.clip(scale, 1e-4, 1e4), 1.0)


def equalizing_scale(first_peak: Float64, second_peak: Float64) -> Float64:
    """Return what to divide the channels between two products by, so that both reach equally far, [channels]."""
    return smoothing_scale(first_peak, second_peak, 0.5)


def expected_noise(
    summary: ChannelSummary, weights: Sequence[NDArray[np.float32]], scale: Float64, activation_bits: int = 8
) -> float:
    """Return the mean square that rounding adds to one row of outputs once the channels are divided by `scale`.

    Rounding errors are taken as uniform and independent: each activation adds a twelfth of its squared step through
    the weights that read it, each weight a twelfth of its own through the activation's power. The activation has one
    scale, the weights one symmetric 8-bit scale per output.

    Args:
        summary: Channels of the activation before the shift.
        weights: Each weight that reads the activation, [channels, outputs].
        scale: [channels].
        activation_bits: Bits of the activation's code.
    """
    reach = max(0.0, float((summary.high / scale).max())) - min(0.0, float((summary.low / scale).min()))
    step = reach / (2**activation_bits - 1)
    power = float((summary.power / scale**2).sum())
    total = 0.0
    for weight in weights:
        scaled = np.abs(weight * scale.astype(np.float32)[:, None])
        steps = scaled.max(axis=0).astype(np.float64) / WEIGHT_CODES
        total += step**2 / 12 * float(np.vdot(scaled, scaled)) + float(np.square(steps).sum()) / 12 * power
    return total


def expected_sqnr_db(
    summary: ChannelSummary, weights: Sequence[NDArray[np.float32]], activation_bits: int = 8
) -> float:
    """Return the signal-to-noise ratio to expect of all outputs together, in decibels; infinite without noise.

    Channels are taken as uncorrelated around their means. Arguments as in `expected_noise`.
    """
    noise = expected_noise(summary, weights, np.ones_like(summary.power), activation_bits)
    variance = np.maximum(summary.power - summary.mean**2, 0)
    signal = sum(
        float(np.square(summary.mean @ weight).sum()) + float(variance @ np.einsum("co,co->c", weight, weight))
        for weight in weights
    )
    if noise <= 0:
        return float("inf")
    return 10 * float(np.log10(signal / noise)) if signal > 0 else float("-inf")


def best_strength(
    summary: ChannelSummary,
    weights: Sequence[NDArray[np.float32]],
    ties: NDArray[np.int64],
    activation_bits: int = 8,
) -> tuple[Float64, float]:
    """Return the scales of least expected noise among `STRENGTHS`, and by how many decibels they lower it.

    Args:
        summary: Channels of the activation.
        weights: Each weight that reads the activation, [channels, outputs].
        ties: [channels] number of the group that each channel belongs to; a group shares one scale.
        activation_bits: Bits of the activation's code.
    """
    activation_peak, weight_peak = summary.peak, np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    tied_activation, tied_weight = _group_maximum(activation_peak, ties), _group_maximum(weight_peak, ties)
    best = np.ones_like(activation_peak)
    least = unchanged = expected_noise(summary, weights, best, activation_bits)
    for strength in STRENGTHS[1:]:
        scale = smoothing_scale(tied_activation, tied_weight, strength)[ties]
        noise = expected_noise(summary, weights, scale, activation_bits)
        if noise < least:
            best, least = scale, noise
    gain = 10 * float(np.log10(unchanged / least)) if least > 0 else 0.0
    return best, gain


def _group_maximum(values: Float64, ties: NDArray[np.int64]) -> Float64:
    """Return the largest value of each group."""
    result = np.zeros(int(ties.max()) + 1)
    np.maximum.at(result, ties, values)
    return result
