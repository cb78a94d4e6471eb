"""The arithmetic of eight-bit floats, equal bit for bit to ONNX QuantizeLinear and DequantizeLinear.

`x ~ decode(q) * scale` with `q = encode(x / scale)`, all in float32 and without a zero point. `encode` clips to the
largest finite value before it rounds, because a plain cast makes NaN (E4M3) or infinity (E5M2) of what is larger.

Sources: Micikevicius et al. 2022, "FP8 Formats for Deep Learning", arXiv 2209.05433, section 3 (the formats); ONNX
operator specification, QuantizeLinear with saturate=1 (the clipping).
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgesmith_calibration.grid import normal_scale
from edgesmith_calibration.histogram import Histogram
from edgesmith_quantization.arithmetic.rounding import along

Float = NDArray[np.float32]
Codes = NDArray[Any]
"""Array of an eight-bit float type of `ml_dtypes`."""

_SEARCHED_PEAKS = np.exp2(-np.arange(0, 4.01, 1 / 8))
"""Fractions of the largest magnitude that the search for the least error tries: four octaves, eight steps in each."""


@dataclass(frozen=True, slots=True)
class Float8Format:
    """An eight-bit float type."""

    dtype: np.dtype[Any]
    largest: float
    """Largest finite value."""
    smallest: float
    """Smallest positive value, a subnormal one. Half of it and less rounds to zero."""


E4M3 = Float8Format(np.dtype(ml_dtypes.float8_e4m3fn), 448.0, 2.0**-9)
"""4 exponent and 3 mantissa bits, no infinities: the format of weights and activations."""
E5M2 = Float8Format(np.dtype(ml_dtypes.float8_e5m2), 57344.0, 2.0**-16)
"""5 exponent and 2 mantissa bits: more range, half the precision."""
FORMATS = {"e4m3": E4M3, "e5m2": E5M2}


def encode(values: ArrayLike, form: Float8Format) -> Codes:
    """Return the nearest codes; ties go to the even code, magnitudes beyond the largest saturate, NaN stays NaN."""
    clipped = np.clip(np.asarray(values, np.float32), -form.largest, form.largest)
    return np.asarray(clipped.astype(form.dtype))


def decode(codes: Codes) -> Float:
    """Return the float32 values that codes stand for."""
    return np.asarray(codes.astype(np.float32))


def quantize(values: Float, scale: ArrayLike, form: Float8Format, axis: int | None = None) -> Codes:
    """Return the codes of `values / scale`.

    Args:
        values: Array of any shape; float16 is computed in float32.
        scale: Positive scale: one number, or one per index along `axis`.
        form: Type of the codes.
        axis: Dimension that scales belong to; None for one scale.
    """
    return encode(values.astype(np.float32) / along(np.asarray(scale, np.float32), axis, values.ndim), form)


def dequantize(codes: Codes, scale: ArrayLike, axis: int | None = None) -> Float:
    """Return the float32 values that `codes` stand for. Arguments as in `quantize`."""
    return np.asarray(decode(codes) * along(np.asarray(scale, np.float32), axis, codes.ndim), np.float32)


def peak_scale(peak: ArrayLike, form: Float8Format) -> Float:
    """Return the scale that puts the magnitude `peak` on the largest finite value; 1 where `peak` is zero."""
    return normal_scale(np.asarray(peak, np.float64) / form.largest)


def flushed_share(values: Float, scale: ArrayLike, form: Float8Format, axis: int | None = None) -> float:
    """Return which share of the values, from 0 to 1, is not zero but gets the code of zero."""
    if values.size == 0:
        return 0.0
    limit = along(np.asarray(scale, np.float32), axis, values.ndim) * np.float32(form.smallest / 2)
    # Exactly half of the smallest value is a tie, which goes to the even code: zero.
    return float(np.count_nonzero((np.abs(values) <= limit) & (values != 0)) / values.size)


def smallest_error_peak(histogram: Histogram, form: Float8Format) -> float:
    """Return the magnitude that, put on the largest code, gives the least expected squared error.

    Values count as the middle of their bin. Where several are equally good it is the largest, so that a tensor whose
    error does not depend on the scale keeps its whole range.
    """
    middles = (histogram.edges[1:] + histogram.edges[:-1]) / 2
    largest = max(-histogram.low, histogram.high)
    if largest <= 0:
        return 0.0
    errors = []
    for peak in largest * _SEARCHED_PEAKS:
        scale = peak / form.largest
        restored = decode(encode(middles / scale, form)).astype(np.float64) * scale
        errors.append(float(np.square(middles - restored) @ histogram.counts))
    return float(largest * _SEARCHED_PEAKS[int(np.argmin(errors))])
