"""The arithmetic of uniform quantization, equal bit for bit to ONNX QuantizeLinear and DequantizeLinear.

`x ~ (q - zero_point) * scale` with `q = saturate(round_half_even(x / scale) + zero_point)`, all in float32
(ONNX operator specification; Jacob et al. 2018, arXiv 1712.05877, equation 1).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.grid import normal_scale

Float = NDArray[np.float32]
Integer = NDArray[Any]

_SMALLEST_HALF = 2.0**-24
"""Smallest positive float16."""


def quantize(values: Float, scale: Float, zero_point: Integer, axis: int | None = None) -> Integer:
    """Return the codes of `values`, with the dtype of `zero_point`.

    Args:
        values: float32 array of any shape.
        scale: Positive scale: one number, or one per index along `axis`.
        zero_point: Integer code of 0.0, shaped as `scale`.
        axis: Dimension that scales belong to; None for one scale.
    """
    limits = np.iinfo(zero_point.dtype)
    scale, zero_point = along(scale, axis, values.ndim), along(zero_point, axis, values.ndim)
    offset = zero_point.astype(np.float32)
    codes = values / scale
    # Saturation comes before rounding, so that quotients beyond the integer range stay exact.
    np.clip(codes, limits.min - offset, limits.max - offset, out=codes)
    np.rint(codes, out=codes)
    codes += offset
    return codes.astype(zero_point.dtype)


def dequantize(codes: Integer, scale: Float, zero_point: Integer, axis: int | None = None) -> Float:
    """Return the float32 values that `codes` stand for. Arguments as in `quantize`."""
    offset = along(zero_point, axis, codes.ndim).astype(np.int32)
    result: Float = (codes.astype(np.int32) - offset).astype(np.float32) * along(scale, axis, codes.ndim)
    return result


def symmetric_scale(values: Float, largest_code: float, axis: int | None = None) -> Float:
    """Return the scale that puts the largest magnitude on `largest_code`: one number, or one per index along `axis`.

    Where all values are zero, or too small for a normal float32 scale, the scale is 1 and all codes are zero.
    """
    others = tuple(i for i in range(values.ndim) if i != axis % values.ndim) if axis is not None else None
    peak = np.maximum(values.max(axis=others), -values.min(axis=others))
    return normal_scale(np.asarray(peak, np.float64) / largest_code)


def half_scale(scale: Float) -> NDArray[np.float16]:
    """Return scales as float16, rounded up and never below the smallest float16, so that nothing saturates."""
    rounded = np.maximum(scale, _SMALLEST_HALF).astype(np.float16)
    short = rounded.astype(np.float32) < scale
    return np.where(short, np.nextafter(rounded, np.float16(np.inf)), rounded)


def with_free_scales(weight_scale: Float, empty: NDArray[np.bool_]) -> Float:
    """Return weight scales with the smallest of the others where a channel is `empty`, so that no weight asks for one.

    An int32 bias counts in steps of it: a scale of 1 would round the bias as coarsely as the activation.
    """
    if empty.all():
        return weight_scale
    return np.where(empty, weight_scale[~empty].min(), weight_scale)


def bias_safe_scale(weight_scale: Float, activation_scale: np.float32, bias: Float) -> Float:
    """Return weight scales grown where `bias` would not fit int32 with scale `activation_scale * weight_scale`.

    Only channels with almost no weight are concerned; their coarser weights vanish next to such a bias.
    """
    # Half of the int32 range leaves the accumulator room for the products.
    needed = np.abs(bias) / np.float32(2**30) / activation_scale
    return np.maximum(weight_scale, needed.astype(np.float32))


def along(parameter: Any, axis: int | None, rank: int) -> NDArray[Any]:
    """Return one number per index along `axis` in a shape that broadcasts against an array of that rank."""
    array = np.asarray(parameter)
    if axis is None or array.ndim == 0:
        return array
    shape = [1] * rank
    shape[axis] = -1
    return array.reshape(shape)
